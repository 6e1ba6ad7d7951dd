//! The environment, read once into settings that cannot hold a wrong value.
//!
//! The only place that knows variable names and defaults; it reads through a lookup function and
//! never touches the process environment itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderValue, Uri};

use crate::duration::parse_setting;
use crate::lines::LineStyle;
use crate::log::LogFormat;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Most headers that can be asked for.
const MAX_HEADERS: usize = 10_000;
const DEFAULT_KEY_REFRESH: Duration = Duration::from_mins(5);
/// Where Kubernetes says in which namespace a pod is.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
const DEFAULT_METRICS_PORT: u16 = 8081;
/// In place of a limit where there is none.
const FOR_EVER: Duration = Duration::from_hours(24 * 365);
/// Longest line of the child that is logged whole unless `log_buffer_size` says otherwise.
const DEFAULT_LINE: usize = 64 * 1024;
/// Most bytes of one body that are held in memory where a mode needs the whole of it.
const DEFAULT_BUFFER: usize = 256 * 1024 * 1024;

/// Why the watchdog refuses to start; each is the fault of the image or the deployment.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ConfigError {
    /// No process to run.
    #[error("nothing to run: set `fprocess` to the command of the function")]
    MissingProcess,
    /// A quote that does not end.
    #[error("cannot split fprocess `{0}`: a quote does not end")]
    UnbalancedQuotes(String),
    /// No address to send requests to.
    #[error(
        "mode http needs `upstream_url`: set it to where the function listens, such as `http://127.0.0.1:3000`"
    )]
    MissingUpstream,
    /// An address that cannot be dialled.
    #[error("cannot use upstream_url `{url}`: {reason}")]
    BadUpstream {
        /// The value as given.
        url: String,
        /// What is wrong and what to write instead.
        reason: &'static str,
    },
    /// A mode this binary does not have.
    #[error(
        "unknown mode `{0}`: use `http`, `streaming`, `serializing`, `classic`, `static` or `inproc`"
    )]
    UnknownMode(String),
    /// A write timeout of zero.
    #[error("HTTP write timeout must be over 0s: set `write_timeout`")]
    ZeroWriteTimeout,
    /// A line length that is no number.
    #[error("log_buffer_size `{0}` is not a number: give bytes, or -1 for no limit")]
    BadLineLength(String),
    /// A content type that cannot be sent.
    #[error("content_type `{0}` cannot be sent as a header")]
    BadContentType(String),
    /// A shape of log lines that this binary does not have.
    #[error("unknown log_format `{0}`: use `text` or `json`")]
    UnknownLogFormat(String),
    /// A metrics port that is none.
    #[error("metrics_port `{0}` is no port: give a number up to 65535, or 0 for no metrics")]
    BadMetricsPort(String),
    /// A collector of traces that cannot be dialled.
    #[error(
        "cannot use updraft_traces_endpoint `{url}`: {reason}; it must be of the form `http://collector:4318`"
    )]
    BadCollector {
        /// The value as given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Authentication for a function of unknown name.
    #[error("jwt_auth needs `{0}`: the platform sets it, as part of the function's full name")]
    MissingIdentity(&'static str),
    /// An issuer that cannot be asked.
    #[error(
        "cannot use jwt_auth_authority `{0}`: it must be of the form `http://gateway.openfaas:8080`; this binary has no TLS"
    )]
    BadAuthority(String),
}

/// The command of the function, split on single spaces unless quotes are to count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandLine {
    pub(crate) text: String,
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
}

impl CommandLine {
    /// Splits as a shell splits words, quotes included; nothing is expanded.
    fn parse_quoted(text: &str) -> Result<Self, ConfigError> {
        let mut parts = shlex::split(text)
            .ok_or_else(|| ConfigError::UnbalancedQuotes(text.to_owned()))?
            .into_iter();
        Ok(Self {
            text: text.to_owned(),
            program: parts.next().ok_or(ConfigError::MissingProcess)?,
            arguments: parts.collect(),
        })
    }

    fn parse(text: &str) -> Self {
        let mut parts = text.split(' ').map(str::to_owned);
        Self {
            text: text.to_owned(),
            program: parts.next().unwrap_or_default(),
            arguments: parts.collect(),
        }
    }
}

/// Where the function of mode http listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UpstreamAddress {
    /// An address or a name.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) authority: String,
    /// Path before each request's own; empty for most.
    pub(crate) prefix: String,
}

impl UpstreamAddress {
    fn parse(text: &str) -> Result<Self, ConfigError> {
        let bad = |reason| ConfigError::BadUpstream { url: text.to_owned(), reason };
        let uri: Uri =
            text.parse().map_err(|_| bad("it is no URL; write `http://127.0.0.1:3000`"))?;
        if uri.scheme_str() != Some("http") {
            return Err(bad("it must begin with `http://`"));
        }
        if uri.query().is_some() {
            return Err(bad("it must not have a query"));
        }
        let authority = uri.authority().ok_or_else(|| bad("it has no host"))?;
        Ok(Self {
            host: authority.host().to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().to_owned(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

/// What the watchdog does with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Pass it to one long-lived child.
    Http { command: CommandLine, upstream: UpstreamAddress },
    /// Start a process for it; bodies stream.
    Streaming { command: CommandLine },
    /// Start a process for it; bodies are held whole.
    Serializing { command: CommandLine },
    /// Start a process for it as the first OpenFaaS watchdog did.
    Classic { command: CommandLine, settings: Classic },
    /// Serve a file.
    Static { root: PathBuf },
    /// Have the handler answer that is compiled in.
    InProcess,
}

/// What only mode classic can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Classic {
    /// Mix the process's errors into the answer rather than log them.
    pub(crate) combine_output: bool,
    /// Give the process the request as variables.
    pub(crate) cgi_headers: bool,
    /// Give the process headers and body as JSON on its input.
    pub(crate) marshal_request: bool,
    /// Log what the process prints.
    pub(crate) write_debug: bool,
    /// Log the headers of request and answer.
    pub(crate) debug_headers: bool,
    /// `None` repeats the request's type.
    pub(crate) content_type: Option<HeaderValue>,
    /// Also take HEAD and OPTIONS, which the original refuses.
    pub(crate) all_methods: bool,
}

impl Mode {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Http { .. } => "http",
            Self::Streaming { .. } => "streaming",
            Self::Serializing { .. } => "serializing",
            Self::Classic { .. } => "classic",
            Self::Static { .. } => "static",
            Self::InProcess => "inproc",
        }
    }

    pub(crate) fn command(&self) -> Option<&CommandLine> {
        match self {
            Self::Http { command, .. }
            | Self::Streaming { command }
            | Self::Serializing { command }
            | Self::Classic { command, .. } => Some(command),
            Self::Static { .. } | Self::InProcess => None,
        }
    }
}

/// Authentication of callers by tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JwtAuth {
    /// Where the issuer is found: scheme, host and port, without a slash at the end.
    pub(crate) authority: String,
    /// `namespace:name`, as tokens name the function.
    pub(crate) function: String,
    /// Log why callers are refused.
    pub(crate) debug: bool,
    /// How often keys are fetched anew.
    pub(crate) refresh: Duration,
}

impl JwtAuth {
    fn read(
        get: &impl Fn(&str) -> Option<String>,
        flag: &impl Fn(&str) -> bool,
        namespace_file: &Path,
    ) -> Result<Option<Self>, ConfigError> {
        // Every spelling of true, here as nowhere else: the other way to err is to run open.
        let asked =
            flag("jwt_auth") || get("jwt_auth").as_deref().and_then(parse_bool) == Some(true);
        if !asked {
            return Ok(None);
        }
        let name = get("OPENFAAS_NAME").ok_or(ConfigError::MissingIdentity("OPENFAAS_NAME"))?;
        let namespace = get("OPENFAAS_NAMESPACE")
            .or_else(|| {
                let text = std::fs::read_to_string(namespace_file).ok()?;
                Some(text.trim().to_owned()).filter(|text| !text.is_empty())
            })
            .ok_or(ConfigError::MissingIdentity("OPENFAAS_NAMESPACE"))?;
        let by_default = if flag("jwt_auth_local") {
            "http://127.0.0.1:8000"
        } else {
            "http://gateway.openfaas:8080"
        };
        let authority = get("jwt_auth_authority").unwrap_or_else(|| by_default.to_owned());
        let parsed = authority.parse::<Uri>().ok().filter(|uri| {
            uri.scheme_str() == Some("http") && uri.host().is_some() && uri.query().is_none()
        });
        if parsed.is_none() {
            return Err(ConfigError::BadAuthority(authority));
        }
        let refresh = parse_setting(get("updraft_jwt_refresh").as_deref(), DEFAULT_KEY_REFRESH);
        Ok(Some(Self {
            authority: authority.trim_end_matches('/').to_owned(),
            function: format!("{namespace}:{name}"),
            debug: flag("jwt_auth_debug"),
            refresh: if refresh.is_zero() { DEFAULT_KEY_REFRESH } else { refresh },
        }))
    }
}

/// Where spans of calls go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TraceSettings {
    pub(crate) collector: UpstreamAddress,
    /// As what the function stands in its traces.
    pub(crate) service: String,
}

impl TraceSettings {
    fn read(get: &impl Fn(&str) -> Option<String>) -> Result<Option<Self>, ConfigError> {
        let Some(url) = get("updraft_traces_endpoint") else { return Ok(None) };
        let collector = UpstreamAddress::parse(&url).map_err(|error| match error {
            ConfigError::BadUpstream { url, reason } => ConfigError::BadCollector { url, reason },
            other => other,
        })?;
        let service = get("OTEL_SERVICE_NAME").unwrap_or_else(|| {
            let name = get("OPENFAAS_NAME").unwrap_or_else(|| "function".to_owned());
            get("OPENFAAS_NAMESPACE")
                .map_or_else(|| name.clone(), |namespace| format!("{name}.{namespace}"))
        });
        Ok(Some(Self { collector, service }))
    }
}

/// All settings of one watchdog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) mode: Mode,
    /// `None` lets every caller in.
    pub(crate) jwt_auth: Option<JwtAuth>,
    /// `None` records no spans.
    pub(crate) traces: Option<TraceSettings>,
    /// 0 asks the system for a free port.
    pub(crate) port: u16,
    /// Where metrics are served; `None` is nowhere.
    pub(crate) metrics_port: Option<u16>,
    /// Limit for receiving a request and for an idle connection; `None` is no limit.
    pub(crate) read_timeout: Option<Duration>,
    /// Limit for answering a request, and for draining; `None`, in mode classic only, is no limit.
    pub(crate) write_timeout: Option<Duration>,
    /// Limit for one invocation; `None` is no limit.
    pub(crate) exec_timeout: Option<Duration>,
    /// How long to go on serving after SIGTERM.
    pub(crate) healthcheck_interval: Duration,
    pub(crate) content_type: HeaderValue,
    /// Most calls at once; `None` is no limit.
    pub(crate) max_inflight: Option<usize>,
    pub(crate) buffer_request: bool,
    pub(crate) prefix_logs: bool,
    /// Longest piece of a line in bytes; `None` is no limit.
    pub(crate) line_limit: Option<usize>,
    pub(crate) log_call_id: bool,
    pub(crate) ready_path: Option<String>,
    /// `None` when the lock file is suppressed.
    pub(crate) lock_file: Option<PathBuf>,
    /// Report health before the child accepts connections, as the original watchdog does.
    pub(crate) early_ready: bool,
    /// Pass SIGTERM on to the function at once, as the original watchdog does.
    pub(crate) early_sigterm: bool,
    /// Let callers shorten `exec_timeout` by `X-Timeout`.
    pub(crate) x_timeout: bool,
    /// How long a stream may carry nothing; `None` is for ever.
    pub(crate) stream_idle_timeout: Option<Duration>,
    /// End the wait after SIGTERM as soon as no calls arrive any more.
    pub(crate) quiet_drain: bool,
    /// Most bytes of one body held in memory.
    pub(crate) max_buffer: usize,
    /// Most headers of a request or an answer where it is not hyper's 100; room for more is made
    /// for every message and costs a tenth of what mode http can serve.
    pub(crate) max_headers: Option<usize>,
}

impl Config {
    /// Reads all settings through `lookup`, which answers with the value of a variable.
    ///
    /// # Errors
    /// The first setting that makes a start pointless; nothing has happened yet then.
    pub(crate) fn from_lookup(
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let get = |name: &str| lookup(name).filter(|value| !value.is_empty());
        // The two original watchdogs read some values differently.
        let classic = get("mode").as_deref() == Some("classic");
        let flag = |name: &str| match get(name).as_deref() {
            Some("true") => true,
            Some("1") => !classic,
            _ => false,
        };
        let timeout = |name: &str, default| parse_setting(get(name).as_deref(), default);
        let limit = |duration: Duration| Some(duration).filter(|duration| !duration.is_zero());

        let write_timeout = timeout("write_timeout", DEFAULT_TIMEOUT);
        if write_timeout.is_zero() && !classic {
            return Err(ConfigError::ZeroWriteTimeout);
        }
        let content_type = get("content_type")
            .map(|text| HeaderValue::from_str(&text).map_err(|_| ConfigError::BadContentType(text)))
            .transpose()?;
        let line_limit = match get("log_buffer_size") {
            None => Some(DEFAULT_LINE),
            Some(text) => match text.parse::<i64>() {
                Ok(number) => usize::try_from(number).ok().map(|bytes| bytes.max(1)),
                Err(_) => return Err(ConfigError::BadLineLength(text)),
            },
        };
        if let Some(name) = get("log_format").filter(|name| LogFormat::named(name).is_none()) {
            return Err(ConfigError::UnknownLogFormat(name));
        }
        let metrics_port = match get("metrics_port") {
            None => DEFAULT_METRICS_PORT,
            Some(text) => text.parse().map_err(|_| ConfigError::BadMetricsPort(text))?,
        };
        let lock_file = (!flag("suppress_lock")).then(|| {
            get("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from).join(".lock")
        });
        Ok(Self {
            mode: mode(&get, &flag, content_type.as_ref())?,
            jwt_auth: JwtAuth::read(&get, &flag, Path::new(NAMESPACE_FILE))?,
            traces: TraceSettings::read(&get)?,
            port: get("port")
                .map_or(8080, |text| text.parse().unwrap_or(if classic { 8080 } else { 0 })),
            metrics_port: Some(metrics_port).filter(|&port| port > 0),
            read_timeout: limit(timeout("read_timeout", DEFAULT_TIMEOUT)),
            write_timeout: limit(write_timeout),
            exec_timeout: limit(timeout(
                "exec_timeout",
                if classic { Duration::ZERO } else { DEFAULT_TIMEOUT },
            )),
            healthcheck_interval: timeout("healthcheck_interval", write_timeout),
            content_type: content_type
                .unwrap_or(HeaderValue::from_static("application/octet-stream")),
            max_inflight: get("max_inflight")
                .and_then(|text| text.parse().ok())
                .filter(|&calls| calls > 0),
            buffer_request: flag("http_buffer_req_body") || flag("buffer_http"),
            prefix_logs: get("prefix_logs").as_deref().and_then(parse_bool).unwrap_or(true),
            line_limit,
            log_call_id: ["log_callid", "log_call_id"]
                .iter()
                .any(|name| get(name).as_deref().and_then(parse_bool) == Some(true)),
            ready_path: get("ready_path")
                .map(|path| if path.starts_with('/') { path } else { format!("/{path}") }),
            lock_file,
            early_ready: flag("updraft_early_ready"),
            early_sigterm: flag("updraft_early_sigterm"),
            x_timeout: get("updraft_x_timeout").is_none() || flag("updraft_x_timeout"),
            stream_idle_timeout: limit(timeout("updraft_stream_idle_timeout", Duration::ZERO)),
            quiet_drain: get("updraft_drain").as_deref() == Some("quiet"),
            max_buffer: get("updraft_max_buffer")
                .and_then(|text| text.parse().ok())
                .unwrap_or(DEFAULT_BUFFER),
            max_headers: get("updraft_max_headers")
                .and_then(|text| text.parse().ok())
                .filter(|most| (1..=MAX_HEADERS).contains(most)),
        })
    }
}

impl Config {
    /// How long an answer may take where a moment must be named.
    pub(crate) fn answer_limit(&self) -> Duration {
        self.write_timeout.unwrap_or(FOR_EVER)
    }

    pub(crate) fn line_style(&self) -> LineStyle {
        LineStyle { prefix: self.prefix_logs, limit: self.line_limit }
    }
}

fn mode(
    get: &impl Fn(&str) -> Option<String>,
    flag: &impl Fn(&str) -> bool,
    content_type: Option<&HeaderValue>,
) -> Result<Mode, ConfigError> {
    let name = get("mode").unwrap_or_else(|| "streaming".to_owned());
    let command = || {
        get("function_process")
            .or_else(|| get("fprocess"))
            .ok_or(ConfigError::MissingProcess)
            .and_then(|text| {
                if flag("updraft_quoted_fprocess") {
                    CommandLine::parse_quoted(&text)
                } else {
                    Ok(CommandLine::parse(&text))
                }
            })
    };
    match name.as_str() {
        "http" => {
            let command = command()?;
            let url = get("http_upstream_url")
                .or_else(|| get("upstream_url"))
                .ok_or(ConfigError::MissingUpstream)?;
            Ok(Mode::Http { command, upstream: UpstreamAddress::parse(&url)? })
        }
        "streaming" => Ok(Mode::Streaming { command: command()? }),
        "serializing" => Ok(Mode::Serializing { command: command()? }),
        "classic" => {
            let on_unless_denied = |name: &str| get(name).is_none() || flag(name);
            let settings = Classic {
                combine_output: on_unless_denied("combine_output"),
                cgi_headers: on_unless_denied("cgi_headers"),
                marshal_request: flag("marshal_request"),
                write_debug: flag("write_debug"),
                debug_headers: flag("debug_headers"),
                content_type: content_type.cloned(),
                all_methods: flag("updraft_all_methods"),
            };
            Ok(Mode::Classic { command: command()?, settings })
        }
        "static" => Ok(Mode::Static {
            root: get("static_path").unwrap_or_else(|| "/home/app/public".to_owned()).into(),
        }),
        "inproc" => Ok(Mode::InProcess),
        _ => Err(ConfigError::UnknownMode(name)),
    }
}

/// Go's spellings of a truth value.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
