//! `[keys]`: the keys of sealed secrets.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use serde::Deserialize;
use updraft_seal::{KeyOrder, KeyRingOptions};

use super::duration;

/// `[keys]`: how the keys of sealed secrets are made and chosen.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct KeysConfig {
    /// Bits of new keys.
    size: u32,
    /// How long their certificates count.
    #[serde(deserialize_with = "duration")]
    lifetime: Duration,
    /// After how long there is a new key; 0 for never.
    #[serde(deserialize_with = "duration")]
    renew_after: Duration,
    /// Name in the certificates.
    common_name: String,
    /// Keys from before do not count as current.
    cutoff: Option<String>,
    /// What decides which key is the newest.
    order: Order,
    /// Whether pushes may bring secrets sealed in a wider scope than `strict`.
    pub(crate) wider_scopes: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Order {
    NotBefore,
    Created,
}

impl Default for KeysConfig {
    fn default() -> Self {
        let usual = KeyRingOptions::usual(PathBuf::new());
        Self {
            size: usual.key_bits,
            lifetime: usual.lifetime,
            renew_after: usual.renew_after.unwrap_or_default(),
            common_name: usual.common_name,
            cutoff: None,
            order: Order::NotBefore,
            wider_scopes: false,
        }
    }
}

impl KeysConfig {
    pub(super) fn check(&self) -> Result<()> {
        if ![2048, 3072, 4096, 8192].contains(&self.size) {
            bail!("keys.size is {}; choose 2048, 3072, 4096 or 8192", self.size);
        }
        if self.lifetime < Duration::from_hours(1) {
            bail!("keys.lifetime is {:?}; choose an hour or more", self.lifetime);
        }
        if !self.renew_after.is_zero() && self.renew_after < Duration::from_mins(1) {
            bail!(
                "keys.renew_after is {:?}; choose a minute or more, or 0 for never",
                self.renew_after
            );
        }
        self.cutoff()?;
        Ok(())
    }

    /// A moment as RFC 3339 or, as the original wants it, RFC 1123 with a numeric zone.
    fn cutoff(&self) -> Result<Option<Timestamp>> {
        let Some(text) = self.cutoff.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let moment = text.parse().ok().or_else(|| Some(rfc2822::parse(text).ok()?.timestamp()));
        moment.map(Some).with_context(|| {
            format!("keys.cutoff `{text}` is no moment; write for instance 2026-11-20T10:00:00Z")
        })
    }

    /// What the ring is opened with.
    pub(crate) fn options(&self, machine_key: PathBuf) -> Result<KeyRingOptions> {
        Ok(KeyRingOptions {
            key_bits: self.size,
            lifetime: self.lifetime,
            renew_after: Some(self.renew_after).filter(|after| !after.is_zero()),
            common_name: self.common_name.clone(),
            cutoff: self.cutoff()?,
            order: match self.order {
                Order::NotBefore => KeyOrder::CertificateNotBefore,
                Order::Created => KeyOrder::Created,
            },
            ..KeyRingOptions::usual(machine_key)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_by_hand_follows_the_servers_file_and_wider_scopes_are_off_unless_it_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("updraft.toml");
        std::fs::write(&file, "[keys]\nsize = 2048\nwider_scopes = true\norder = 'created'\n")
            .unwrap();
        let keys = crate::config::keys(Some(&file)).unwrap();
        let options = keys.options(PathBuf::new()).unwrap();
        assert_eq!((options.key_bits, options.order), (2048, KeyOrder::Created));
        assert!(keys.wider_scopes && !crate::config::keys(None).unwrap().wider_scopes);
        std::fs::write(&file, "[keys]\nsize = 1000\n").unwrap();
        assert!(crate::config::keys(Some(&file)).unwrap_err().to_string().contains("keys.size"));
    }

    #[test]
    fn a_cutoff_is_read_in_both_forms_and_nonsense_is_refused() {
        let config =
            |cutoff: &str| KeysConfig { cutoff: Some(cutoff.to_owned()), ..KeysConfig::default() };
        let moment: Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
        for text in ["2026-11-20T10:00:00Z", "Fri, 20 Nov 2026 12:00:00 +0200"] {
            assert_eq!(config(text).cutoff().unwrap(), Some(moment), "{text}");
        }
        assert!(config("yesterday").check().unwrap_err().to_string().contains("keys.cutoff"));
        assert!(KeysConfig { size: 1024, ..KeysConfig::default() }.check().is_err());
        assert!(KeysConfig::default().check().is_ok());
        let never = KeysConfig { renew_after: Duration::ZERO, ..KeysConfig::default() };
        assert_eq!(never.options(PathBuf::new()).unwrap().renew_after, None);
    }
}
