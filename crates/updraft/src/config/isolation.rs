//! `[isolation]`: the walls between tenants, and what may pass through them.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use updraft_engine_local::{EgressOptions, GvisorPlatform, SandboxOptions, UserRange};
use updraft_model::{EgressPolicy, Sandbox, Tenant};

use super::bytes;

/// The walls between tenants.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct IsolationConfig {
    /// Users of the machine that tenants are given ranges of: the first, and how many.
    #[serde(deserialize_with = "users")]
    pub(crate) users: UserRange,
    /// What a tenant may reach that is not named below.
    pub(crate) egress: EgressPolicy,
    /// What stands between a function and the kernel, for tenants not named below.
    #[serde(deserialize_with = "sandbox")]
    pub(crate) runtime: Sandbox,
    /// What gVisor stands on.
    #[serde(deserialize_with = "platform")]
    pub(crate) runsc_platform: GvisorPlatform,
    /// Most bytes a second of all replicas of a tenant together, each way; 0 for no limit.
    #[serde(deserialize_with = "bytes")]
    pub(crate) bandwidth: u64,
    /// Most open connections of all replicas of a tenant together; 0 for no limit.
    pub(crate) connections: u32,
    /// What Updraft itself gets of processor and disk where functions together get 100; 0 leaves
    /// it in the control group it was started in.
    pub(crate) own_weight: u32,
    /// Port of the gateway's door for functions; 0 keeps it shut.
    pub(crate) gateway_port: u16,
    /// Tenants that are treated otherwise.
    pub(crate) tenants: BTreeMap<Tenant, TenantConfig>,
}

/// `[isolation.tenants."owner/NAME"]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TenantConfig {
    pub(crate) egress: Option<EgressPolicy>,
    #[serde(deserialize_with = "some_sandbox")]
    pub(crate) runtime: Option<Sandbox>,
}

impl Default for IsolationConfig {
    fn default() -> Self {
        Self {
            users: UserRange::USUAL,
            egress: EgressPolicy::open(),
            runtime: Sandbox::Kernel,
            runsc_platform: GvisorPlatform::Usual,
            bandwidth: 125_000_000,
            connections: 8192,
            own_weight: 0,
            gateway_port: 8080,
            tenants: BTreeMap::new(),
        }
    }
}

impl IsolationConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let UserRange { first, count } = self.users;
        if first < 65_536 || count < 2 * 65_536 || first.checked_add(count).is_none() {
            bail!(
                "isolation.users is `{first}:{count}`; begin at 65536 or above, and leave room for \
                 two times 65536 users at least"
            );
        }
        if self.own_weight > 10_000 {
            bail!("isolation.own_weight is {}, the most is 10000", self.own_weight);
        }
        Ok(())
    }

    /// What tenants may reach.
    pub(crate) fn egress(&self) -> EgressOptions {
        let of = self
            .tenants
            .iter()
            .filter_map(|(tenant, config)| Some((tenant.clone(), config.egress.clone()?)));
        EgressOptions { of_all: self.egress.clone(), of: of.collect() }
    }

    /// Which tenants run in which sandbox.
    pub(crate) fn sandboxes(&self) -> SandboxOptions {
        let of = self
            .tenants
            .iter()
            .filter_map(|(tenant, config)| Some((tenant.clone(), config.runtime?)));
        SandboxOptions { of_all: self.runtime, of: of.collect() }
    }
}

/// `FIRST:COUNT`.
fn users<'de, D: Deserializer<'de>>(deserializer: D) -> Result<UserRange, D::Error> {
    let text = String::deserialize(deserializer)?;
    let range = text.split_once(':').and_then(|(first, count)| {
        Some(UserRange { first: first.trim().parse().ok()?, count: count.trim().parse().ok()? })
    });
    range.ok_or_else(|| {
        D::Error::custom(format!("`{text}` is no range of users, expected FIRST:COUNT"))
    })
}

fn sandbox<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Sandbox, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.as_str() {
        "default" => Ok(Sandbox::Kernel),
        "runsc" => Ok(Sandbox::Gvisor),
        _ => Err(D::Error::custom(format!(
            "runtime `{text}` is unknown, expected `default` or `runsc`"
        ))),
    }
}

fn platform<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GvisorPlatform, D::Error> {
    use GvisorPlatform::{Kvm, Ptrace, Systrap, Usual};
    let text = String::deserialize(deserializer)?;
    let known = [Usual, Systrap, Ptrace, Kvm].into_iter().find(|one| one.to_string() == text);
    known.ok_or_else(|| {
        D::Error::custom(format!(
            "platform `{text}` is unknown, expected `default`, `systrap`, `ptrace` or `kvm`"
        ))
    })
}

fn some_sandbox<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Sandbox>, D::Error> {
    sandbox(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<IsolationConfig, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn tenants_may_be_treated_otherwise() {
        let config = parsed(
            "egress = 'gateway'\nusers = '200000:131072'\n[tenants.\"owner/alice\"]\n\
             egress = 'open, 10.1.2.3:5432'",
        );
        // `open` is a word for a whole policy, not an entry of one.
        assert!(config.is_err());
        let config = parsed(
            "egress = 'gateway'\nusers = '200000:131072'\n[tenants.\"owner/alice\"]\n\
             egress = 'public, 10.1.2.3:5432'\nruntime = 'runsc'",
        )
        .unwrap();
        config.check().unwrap();
        let alice: Tenant = "owner/alice".parse().unwrap();
        assert_eq!(config.egress().of_all.to_string(), "gateway");
        assert_eq!(config.egress().of[&alice].to_string(), "public, 10.1.2.3/32:5432");
        assert_eq!(config.sandboxes().of_all, Sandbox::Kernel);
        assert_eq!(config.sandboxes().of[&alice], Sandbox::Gvisor);
    }

    #[test]
    fn everybody_can_be_given_gvisor_and_what_it_stands_on() {
        let config = parsed("runtime = 'runsc'\nrunsc_platform = 'kvm'").unwrap();
        assert_eq!(config.sandboxes().of_all, Sandbox::Gvisor);
        assert_eq!(config.runsc_platform, GvisorPlatform::Kvm);
        assert_eq!(IsolationConfig::default().runsc_platform, GvisorPlatform::Usual);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for text in [
            "egress = 'opne'",
            "runtime = 'kata'",
            "runsc_platform = 'xen'",
            "users = '100000'",
            "[tenants.alice]\negress = 'open'",
            "[tenants.\"owner/alice\"]\negres = 'open'",
        ] {
            assert!(parsed(text).is_err(), "{text}");
        }
        for users in ["0:200000", "65536:65536", "4294900000:131072"] {
            let config = parsed(&format!("users = '{users}'")).unwrap();
            assert!(config.check().is_err(), "{users}");
        }
    }
}
