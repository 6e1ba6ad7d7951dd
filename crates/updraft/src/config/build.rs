//! `[build]`: what builds may use and reach.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use updraft_builder::{Destination, Egress};

use super::{bytes, duration};

/// `[build]`: what one build may use.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct BuildConfig {
    /// Builds at the same time.
    pub(crate) parallel: usize,
    /// Longest time of one build.
    #[serde(deserialize_with = "duration")]
    pub(crate) time: Duration,
    /// Most memory of one build.
    #[serde(deserialize_with = "bytes")]
    pub(crate) memory: u64,
    /// Most disk one build may add.
    #[serde(deserialize_with = "bytes")]
    pub(crate) disk: u64,
    /// Most files one build may make.
    pub(crate) files: u64,
    /// Newest logs of each function's builds that are kept.
    pub(crate) keep_logs: u32,
    /// Most bytes of one log that are kept.
    #[serde(deserialize_with = "bytes")]
    pub(crate) log_size: u64,
    /// Most processes of one build.
    pub(crate) processes: u32,
    /// What builds may reach: `open`, `closed`, or a list of addresses.
    #[serde(deserialize_with = "egress")]
    pub(crate) egress: Egress,
    /// Owners whose local images everybody may build on.
    pub(crate) shared_owners: Vec<String>,
}

impl Default for BuildConfig {
    fn default() -> Self {
        Self {
            parallel: std::thread::available_parallelism().map_or(2, usize::from),
            time: Duration::from_mins(15),
            memory: 2 << 30,
            disk: 8 << 30,
            files: 1_000_000,
            keep_logs: 20,
            log_size: 8 << 20,
            processes: 2048,
            egress: Egress::Open,
            shared_owners: Vec::new(),
        }
    }
}

impl BuildConfig {
    pub(crate) fn check(&self) -> Result<()> {
        if self.parallel == 0 {
            bail!("build.parallel is 0; at least one build must be allowed");
        }
        for (key, value) in [
            ("memory", self.memory),
            ("disk", self.disk),
            ("files", self.files),
            ("processes", u64::from(self.processes)),
        ] {
            if value == 0 {
                bail!("build.{key} is 0, so that no build could succeed; allow more");
            }
        }
        Ok(())
    }
}

fn egress<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Egress, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Word(String),
        List(Vec<String>),
    }
    match Written::deserialize(deserializer)? {
        Written::Word(word) => match word.as_str() {
            "open" => Ok(Egress::Open),
            "closed" => Ok(Egress::Closed),
            other => Err(D::Error::custom(format!(
                "`{other}` is no egress, write `open`, `closed` or a list such as `[\"public\", \"10.1.2.3:3142\"]`"
            ))),
        },
        Written::List(list) => {
            let list: Result<Vec<Destination>, _> = list.iter().map(|text| text.parse()).collect();
            list.map(Egress::Only).map_err(D::Error::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_no_build_could_keep_are_refused() {
        for (key, none) in [
            ("memory", "'0'"),
            ("disk", "'0'"),
            ("files", "0"),
            ("processes", "0"),
            ("parallel", "0"),
        ] {
            let build: BuildConfig = toml::from_str(&format!("{key} = {none}")).unwrap();
            let refusal = build.check().unwrap_err().to_string();
            assert!(refusal.contains(&format!("build.{key} is 0")), "{refusal}");
        }
        let few = "files = 20\nkeep_logs = 0\nlog_size = '1Ki'";
        let few: BuildConfig = toml::from_str(few).unwrap();
        assert!(few.check().is_ok());
    }
}
