//! Configuration of a server: built-in defaults, one TOML file, environment, flags, in that order
//! of rising precedence. Checked whole at start; an unknown key is an error with a suggestion.

mod build;
mod images;
mod isolation;
mod keys;
mod nats;
mod queue;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use updraft_edge::Root;
use updraft_gateway::ServiceUrl;
use updraft_model::{CpuQuantity, MemoryQuantity, parse_duration};
use updraft_scaler::ScalerOptions;

use crate::cli::Up;

pub(crate) use build::BuildConfig;
pub(crate) use images::ImagesConfig;
pub(crate) use isolation::IsolationConfig;
pub(crate) use keys::KeysConfig;
pub(crate) use nats::{NatsConfig, QueueBackend};
pub(crate) use queue::QueueConfig;

const DEFAULT_PORT: u16 = 8080;

/// What a server runs with.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) root: Root,
    pub(crate) build: BuildConfig,
    pub(crate) push: PushConfig,
    pub(crate) function: FunctionConfig,
    pub(crate) gateway: GatewayConfig,
    pub(crate) scaler: ScalerConfig,
    pub(crate) log: LogConfig,
    pub(crate) metrics: MetricsConfig,
    pub(crate) queue: QueueConfig,
    pub(crate) images: ImagesConfig,
    pub(crate) keys: KeysConfig,
    pub(crate) isolation: IsolationConfig,
}

/// `[push]`: what one push may hold.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PushConfig {
    /// Branches whose pushes go live.
    pub(crate) live_branches: Vec<String>,
    /// Most bytes of one push, packed.
    #[serde(deserialize_with = "bytes")]
    pub(crate) size: u64,
    /// Most bytes of one repository.
    #[serde(deserialize_with = "bytes")]
    pub(crate) repository_size: u64,
    /// Most bytes of a checkout.
    #[serde(deserialize_with = "bytes")]
    pub(crate) checkout_size: u64,
    /// Most bytes of one file.
    #[serde(deserialize_with = "bytes")]
    pub(crate) file_size: u64,
    /// Most files of a checkout.
    pub(crate) files: usize,
    /// Whether a repository may bring its own `template` folder.
    pub(crate) repository_templates: bool,
}

impl Default for PushConfig {
    fn default() -> Self {
        Self {
            live_branches: vec!["main".to_owned(), "master".to_owned()],
            size: 256 << 20,
            repository_size: 1 << 30,
            checkout_size: 512 << 20,
            file_size: 128 << 20,
            files: 20_000,
            repository_templates: false,
        }
    }
}

/// `[function]`: what a function gets unless its stack file says otherwise.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct FunctionConfig {
    /// Memory limit.
    #[serde(deserialize_with = "bytes")]
    pub(crate) memory: u64,
    /// Processor limit; nothing for all of the machine but an eighth.
    pub(crate) cpu: Option<CpuQuantity>,
    /// Most processes and threads.
    pub(crate) processes: u32,
    /// Longest time of one invocation.
    #[serde(deserialize_with = "duration")]
    pub(crate) timeout: Duration,
    /// The most that a function may ask for instead.
    #[serde(deserialize_with = "duration")]
    pub(crate) longest_timeout: Duration,
    /// Longest time from start to ready.
    #[serde(deserialize_with = "duration")]
    pub(crate) ready: Duration,
}

impl Default for FunctionConfig {
    fn default() -> Self {
        Self {
            memory: 128 << 20,
            cpu: None,
            processes: 256,
            timeout: Duration::from_mins(1),
            longest_timeout: Duration::from_hours(24),
            ready: Duration::from_secs(30),
        }
    }
}

/// `[log]`: what is kept of what functions write.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LogConfig {
    /// Most bytes of one replica.
    #[serde(deserialize_with = "bytes")]
    pub(crate) replica_size: u64,
    /// Most bytes of a function's running replicas together, and again of ended ones.
    #[serde(deserialize_with = "bytes")]
    pub(crate) function_size: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { replica_size: 8 << 20, function_size: 32 << 20 }
    }
}

/// `[gateway]`: the OpenFaaS API.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GatewayConfig {
    /// Whether the administrator's routes ask for the password.
    pub(crate) authentication: bool,
    /// Who is asked in place of the password.
    #[serde(deserialize_with = "service")]
    pub(crate) auth_proxy_url: Option<ServiceUrl>,
    /// Whether it is sent the request's body too.
    pub(crate) auth_proxy_pass_body: bool,
    /// Who is asked what functions wrote, in place of the engine.
    #[serde(deserialize_with = "service")]
    pub(crate) logs_provider_url: Option<ServiceUrl>,
    /// Certificates that these two may show beside those the system believes.
    pub(crate) service_roots: Option<PathBuf>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            authentication: true,
            auth_proxy_url: None,
            auth_proxy_pass_body: false,
            logs_provider_url: None,
            service_roots: None,
        }
    }
}

/// `[scaler]`: how replicas follow load where a function's labels say nothing.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ScalerConfig {
    /// Whether replicas follow load.
    pub(crate) follow_load: bool,
    /// Time between two looks.
    #[serde(deserialize_with = "duration")]
    pub(crate) tick: Duration,
    /// Most replicas of one function.
    pub(crate) max: u32,
    /// Load that one replica should carry, for a function that names a type and no target.
    pub(crate) target: f64,
    /// Calls a second that are worth a second replica.
    pub(crate) calls: f64,
    /// Calls under way that one replica should carry.
    pub(crate) in_flight: f64,
    /// How long a lower need must last.
    #[serde(deserialize_with = "duration")]
    pub(crate) down_window: Duration,
    /// How long a number set by hand is left standing.
    #[serde(deserialize_with = "duration")]
    pub(crate) manual_hold: Duration,
    /// Time without a call until a function freezes; 0 for never.
    #[serde(deserialize_with = "duration")]
    pub(crate) freeze_after: Duration,
    /// Whether idle functions stop.
    pub(crate) scale_to_zero: bool,
    /// Time without a call until a function stops.
    #[serde(deserialize_with = "duration")]
    pub(crate) zero_after: Duration,
}

impl Default for ScalerConfig {
    fn default() -> Self {
        let usual = ScalerOptions::default();
        Self {
            follow_load: usual.follow_load,
            tick: usual.tick,
            max: usual.max,
            target: usual.target,
            calls: usual.calls,
            in_flight: usual.in_flight,
            down_window: usual.down_window,
            manual_hold: usual.manual_hold,
            freeze_after: usual.freeze_after.unwrap_or_default(),
            scale_to_zero: usual.scale_to_zero,
            zero_after: usual.zero_after,
        }
    }
}

/// `[metrics]`: where numbers are shown besides the gateway.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MetricsConfig {
    /// A listener of their own, without a password.
    pub(crate) listen: Option<SocketAddr>,
}

/// The file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ConfigFile {
    listen: Option<SocketAddr>,
    root: Option<String>,
    build: BuildConfig,
    push: PushConfig,
    function: FunctionConfig,
    gateway: GatewayConfig,
    scaler: ScalerConfig,
    log: LogConfig,
    metrics: MetricsConfig,
    queue: QueueConfig,
    images: ImagesConfig,
    keys: KeysConfig,
    isolation: IsolationConfig,
}

impl Config {
    /// Puts the layers together: flags and environment (already merged by the parser) over the
    /// file over the defaults.
    pub(crate) fn load(up: &Up) -> Result<Self> {
        let file = up.config.as_deref().map_or_else(|| Ok(ConfigFile::default()), read)?;
        let config = Self {
            listen: up
                .listen
                .or(file.listen)
                .unwrap_or_else(|| (Ipv4Addr::LOCALHOST, DEFAULT_PORT).into()),
            root: Root::new(up.root.as_deref().or(file.root.as_deref()).unwrap_or("localhost"))?,
            build: file.build,
            push: file.push,
            function: file.function,
            gateway: file.gateway,
            scaler: file.scaler,
            log: file.log,
            metrics: file.metrics,
            queue: file.queue,
            images: file.images,
            keys: file.keys,
            isolation: file.isolation,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        self.build.check()?;
        if self.push.live_branches.is_empty() {
            bail!("push.live_branches is empty; name at least one branch, for instance `main`");
        }
        if !self.gateway.authentication && self.gateway.auth_proxy_url.is_some() {
            bail!(
                "gateway.authentication is off and gateway.auth_proxy_url says whom to ask; \
                 remove one of them"
            );
        }
        if self.gateway.auth_proxy_pass_body && self.gateway.auth_proxy_url.is_none() {
            bail!("gateway.auth_proxy_pass_body is on and gateway.auth_proxy_url names nobody");
        }
        if !self.gateway.authentication && !self.listen.ip().is_loopback() {
            bail!(
                "gateway.authentication is off and {} can be reached from other machines, whose \
                 users could deploy anything; listen on 127.0.0.1 or switch it on",
                self.listen
            );
        }
        let scaler = &self.scaler;
        if scaler.tick < Duration::from_millis(100) || scaler.tick > Duration::from_secs(10) {
            bail!("scaler.tick is {:?}; choose from 100ms to 10s", scaler.tick);
        }
        if scaler.max == 0 {
            bail!("scaler.max is 0; at least one replica must be allowed");
        }
        for (key, load) in
            [("target", scaler.target), ("calls", scaler.calls), ("in_flight", scaler.in_flight)]
        {
            if !(load > 0.0 && load.is_finite()) {
                bail!("scaler.{key} is {load}; choose a number above 0");
            }
        }
        self.images.check()?;
        self.keys.check()?;
        self.isolation.check()?;
        self.queue.check()
    }
}

/// The broker that the file names for asynchronous calls, if it does.
pub(crate) fn broker(path: &Path) -> Result<Option<NatsConfig>> {
    let queue = read(path)?.queue;
    queue.check()?;
    Ok((queue.backend == QueueBackend::Nats).then_some(queue.nats))
}

/// How the keys of sealed secrets are made and chosen by the server with this file, if it has one.
pub(crate) fn keys(path: Option<&Path>) -> Result<KeysConfig> {
    let keys = match path {
        Some(path) => read(path)?.keys,
        None => KeysConfig::default(),
    };
    keys.check()?;
    Ok(keys)
}

fn read(path: &Path) -> Result<ConfigFile> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<ConfigFile> {
    toml::from_str(text).map_err(|error| {
        let hint = suggestion(&error.to_string());
        anyhow::anyhow!("{}: {}{hint}", path.display(), error.to_string().trim_end())
    })
}

/// For an unknown key, the known one that looks most like it.
fn suggestion(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let (true, Some(unknown)) = (message.contains("unknown field"), quoted.next()) else {
        return String::new();
    };
    quoted
        .map(|known| (strsim::jaro_winkler(unknown, known), known))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map_or_else(String::new, |(_, known)| format!("\ndid you mean `{known}`?"))
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Seconds(u64),
        Text(String),
    }
    match Written::deserialize(deserializer)? {
        Written::Seconds(seconds) => Ok(Duration::from_secs(seconds)),
        Written::Text(text) => parse_duration(&text).map_err(D::Error::custom),
    }
}

fn service<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ServiceUrl>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let quantity = MemoryQuantity::deserialize(deserializer)?;
    Ok(quantity.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<ConfigFile> {
        parse(text, Path::new("updraft.toml"))
    }

    #[test]
    fn quantities_and_durations_are_read_as_in_stack_files() {
        let file = parsed("[build]\nmemory = '1Gi'\ntime = '5m'\n[function]\nready = 10").unwrap();
        assert_eq!(file.build.memory, 1 << 30);
        assert_eq!(file.build.time, Duration::from_mins(5));
        assert_eq!(file.function.ready, Duration::from_secs(10));
        assert_eq!(file.function.processes, 256);
    }

    /// Checks a configuration that is the usual one but for this.
    fn checked(listen: &str, gateway: GatewayConfig) -> Result<(), String> {
        let file = ConfigFile::default();
        let config = Config {
            listen: listen.parse().unwrap(),
            root: Root::new("localhost").unwrap(),
            build: file.build,
            push: file.push,
            function: file.function,
            gateway,
            scaler: ScalerConfig::default(),
            log: LogConfig::default(),
            metrics: MetricsConfig::default(),
            queue: QueueConfig::default(),
            images: ImagesConfig::default(),
            keys: KeysConfig::default(),
            isolation: IsolationConfig::default(),
        };
        config.check().map_err(|error| error.to_string())
    }

    #[test]
    fn services_of_the_operator_have_addresses_and_a_body_goes_to_somebody() {
        let gateway = |text: &str| parsed(&format!("[gateway]\n{text}")).map(|file| file.gateway);
        let asked = gateway(
            "auth_proxy_url = 'http://127.0.0.1:8090/validate'\nauth_proxy_pass_body = true\n\
             logs_provider_url = 'https://logs.example'",
        )
        .unwrap();
        assert!(asked.auth_proxy_pass_body && asked.logs_provider_url.is_some());
        assert_eq!(checked("127.0.0.1:8080", asked), Ok(()));
        let wrong = gateway("logs_provider_url = 'ftp://logs.example'").unwrap_err().to_string();
        assert!(wrong.contains("ftp://logs.example") && wrong.contains("line 2"), "{wrong}");
        let nobody = gateway("auth_proxy_pass_body = true").unwrap();
        let refusal = checked("127.0.0.1:8080", nobody).unwrap_err();
        assert!(refusal.contains("gateway.auth_proxy_url"), "{refusal}");
    }

    #[test]
    fn the_gateway_is_open_only_to_this_machine() {
        let check = |listen: &str, authentication: bool| {
            checked(listen, GatewayConfig { authentication, ..GatewayConfig::default() })
        };
        assert_eq!(check("127.0.0.1:8080", false), Ok(()));
        assert_eq!(check("[::1]:8080", false), Ok(()));
        assert_eq!(check("0.0.0.0:8080", true), Ok(()));
        let refusal = check("0.0.0.0:8080", false).unwrap_err();
        assert!(refusal.contains("gateway.authentication"), "{refusal}");
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one() {
        let refusal = parsed("[build]\nparalel = 2").unwrap_err().to_string();
        assert!(refusal.contains("updraft.toml"), "{refusal}");
        assert!(refusal.contains("line 2"), "{refusal}");
        assert!(refusal.contains("did you mean `parallel`?"), "{refusal}");
    }
}
