//! The JSON of the disk and of what is collected.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use updraft_model::{Digest, ImageRef};

/// What uses the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// Bytes free on the disk of the images.
    pub free_bytes: u64,
    /// Bytes that should be free there; below it everything that can go does.
    pub free_bytes_wanted: u64,
    /// Content of all image layers, each counted once.
    pub images_bytes: u64,
    /// Most of it that is kept, where there is a bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_budget_bytes: Option<u64>,
    /// Of it, what neither a function nor a kept release needs, the build cache included.
    pub unneeded_bytes: u64,
    /// Of it, the build cache.
    pub cache_bytes: u64,
    /// Most of the build cache that is kept.
    pub cache_budget_bytes: u64,
    /// Of it, what belongs to no image: builds under way, or the rest of a crash.
    pub loose_bytes: u64,
    /// Bytes of each other folder, by what it holds.
    pub folders: BTreeMap<String, u64>,
}

impl From<updraft_pipeline::DiskUse> for DiskUse {
    fn from(used: updraft_pipeline::DiskUse) -> Self {
        Self {
            free_bytes: used.images.free_bytes,
            free_bytes_wanted: used.budget.free_bytes,
            images_bytes: used.images.total_bytes,
            images_budget_bytes: used.budget.total_bytes,
            unneeded_bytes: used.images.unneeded_bytes,
            cache_bytes: used.images.cache_bytes,
            cache_budget_bytes: used.budget.cache_bytes,
            loose_bytes: used.images.loose_bytes,
            folders: used.folders.into_iter().map(|(what, size)| (what.to_owned(), size)).collect(),
        }
    }
}

/// Why an image is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UsedBy {
    /// A function, or a release that may be gone back to.
    Functions,
    /// Templates build on it.
    Templates,
    /// Nothing.
    Nothing,
    /// It is a step of builds.
    Builds,
}

/// An image on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptImage {
    /// Digest of its configuration.
    pub id: Digest,
    /// Its full names.
    pub names: Vec<ImageRef>,
    /// Content of all its layers.
    pub size_bytes: u64,
    /// Content of the layers that no other image has.
    pub own_bytes: u64,
    /// Why it is kept.
    pub used_by: UsedBy,
    /// When it was needed last.
    pub last_used: Timestamp,
    /// When it was made, as far as known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
}

impl From<updraft_images::Surveyed> for KeptImage {
    fn from(image: updraft_images::Surveyed) -> Self {
        Self {
            id: image.id,
            names: image.names,
            size_bytes: image.size_bytes,
            own_bytes: image.own_bytes,
            used_by: match image.role {
                updraft_images::Role::Needed => UsedBy::Functions,
                updraft_images::Role::Base => UsedBy::Templates,
                updraft_images::Role::Unused => UsedBy::Nothing,
                updraft_images::Role::Cache => UsedBy::Builds,
            },
            last_used: image.last_used,
            created: image.created,
        }
    }
}

/// An image that went, or would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectedImage {
    /// Digest of its configuration.
    pub id: Digest,
    /// The names it had.
    pub names: Vec<ImageRef>,
    /// Content that came free.
    pub bytes: u64,
    /// Why it went.
    pub reason: String,
}

impl From<updraft_images::Collected> for CollectedImage {
    fn from(image: updraft_images::Collected) -> Self {
        let reason = image.reason.to_owned();
        Self { id: image.id, names: image.names, bytes: image.bytes, reason }
    }
}
