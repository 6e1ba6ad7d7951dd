//! `[images]`: how much disk images may take, and how long they stay.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::{Deserialize, Deserializer};
use updraft_images::Budget;
use updraft_model::MemoryQuantity;
use updraft_pipeline::HousekeeperOptions;

use super::{bytes, duration};

/// `[images]`: how much disk images may take, and how long they stay.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ImagesConfig {
    /// Most bytes of all images together, as far as nothing needs them.
    #[serde(deserialize_with = "optional_bytes")]
    pub(crate) budget: Option<u64>,
    /// Most bytes of build steps that are kept for the next build.
    #[serde(deserialize_with = "bytes")]
    pub(crate) cache: u64,
    /// Bytes that stay free on the disk; below that nothing is built or fetched.
    #[serde(deserialize_with = "bytes")]
    pub(crate) free: u64,
    /// Newest releases of each function that can be gone back to.
    pub(crate) keep_releases: u32,
    /// Releases younger than this can be gone back to as well.
    #[serde(deserialize_with = "duration")]
    pub(crate) keep_for: Duration,
    /// How long an image that nothing needs stays.
    #[serde(deserialize_with = "duration")]
    pub(crate) keep_unused: Duration,
    /// How long an image stays after it was asked for or its last release went.
    #[serde(deserialize_with = "duration")]
    pub(crate) settle: Duration,
    /// Time between two collections.
    #[serde(deserialize_with = "duration")]
    pub(crate) every: Duration,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self {
            budget: None,
            cache: 4 << 30,
            free: 512 << 20,
            keep_releases: 10,
            keep_for: Duration::ZERO,
            keep_unused: Duration::from_hours(24 * 7),
            settle: Duration::from_mins(10),
            every: Duration::from_mins(5),
        }
    }
}

impl ImagesConfig {
    pub(crate) fn check(&self) -> Result<()> {
        if self.keep_releases == 0 {
            bail!("images.keep_releases is 0; at least the newest release must be kept");
        }
        if self.every < Duration::from_secs(1) {
            bail!("images.every is {:?}; choose 1s or more", self.every);
        }
        Ok(())
    }

    pub(crate) fn options(&self) -> HousekeeperOptions {
        HousekeeperOptions {
            budget: Budget {
                total_bytes: self.budget,
                cache_bytes: self.cache,
                free_bytes: self.free.saturating_add(self.free / 4),
                unused_for: self.keep_unused,
            },
            keep_releases: self.keep_releases,
            keep_for: self.keep_for,
            every: self.every,
        }
    }
}

fn optional_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let quantity = MemoryQuantity::deserialize(deserializer)?;
    Ok(Some(quantity.bytes()))
}
