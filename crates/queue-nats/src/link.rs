//! The way to the broker: connection, streams, subjects, and what its failures mean.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{ContextBuilder, PublishErrorKind};
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, LastRawMessageErrorKind, RetentionPolicy, StorageType, Stream,
};
use async_nats::jetstream::{Context, message::StreamMessage};
use async_nats::{Client, ConnectOptions, Event, HeaderMap, ServerAddr};
use bytes::Bytes;
use thiserror::Error;
use updraft_model::FunctionId;
use updraft_store::StoreError;
use updraft_store::queue::CallId;

use crate::{NatsLogin, NatsOptions};

/// Longest wait for an answer of the broker.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Longest wait for a connection before the broker is said to be away.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

/// Longest wait for a message to be kept; a burst waits for its turn here.
const ACK_PATIENCE: Duration = Duration::from_secs(15);

/// Messages on their way at once.
const ON_THEIR_WAY: usize = 4096;

/// How long the broker remembers ids, to notice two calls of one id at once.
const REMEMBERED: Duration = Duration::from_mins(2);

/// Room that headers may need beside a body in one message.
const HEADER_ROOM: usize = 160 << 10;

/// The store of calls cannot be opened. The operator's fault.
#[derive(Debug, Error)]
pub enum OpenNatsError {
    /// A server's address makes no sense.
    #[error("`{address}` is no address of a NATS server, write one such as nats://127.0.0.1:4222")]
    Address {
        /// The address.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file with a secret or certificate cannot be used.
    #[error("cannot use `{path}` to log in to NATS", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection could not even be begun.
    #[error("cannot begin a connection to NATS")]
    Connect(#[source] async_nats::ConnectError),
    /// The index cannot be made. The machine's fault.
    #[error("cannot make the index of calls")]
    Index(#[from] StoreError),
}

/// The way to the broker.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) context: Context,
    pub(crate) names: Names,
    pub(crate) replicas: usize,
    lease: Duration,
    /// For messages: who keeps the records.
    keeper: String,
}

/// What streams and subjects are called.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) calls: String,
    pub(crate) records: String,
    pub(crate) bodies: String,
    prefix: String,
}

impl Names {
    fn new(stream: &str) -> Self {
        Self {
            calls: format!("{stream}_CALLS"),
            records: format!("{stream}_RECORDS"),
            bodies: format!("{stream}_BODIES"),
            prefix: stream.to_ascii_lowercase(),
        }
    }

    pub(crate) fn call(&self, function: &FunctionId) -> String {
        format!("{}.calls.{}.{}", self.prefix, function.namespace, function.name)
    }

    /// The function that a subject of calls is about.
    pub(crate) fn function(&self, subject: &str) -> Option<FunctionId> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix(".calls.")?;
        let (namespace, name) = rest.split_once('.')?;
        Some(FunctionId { name: name.parse().ok()?, namespace: namespace.parse().ok()? })
    }

    pub(crate) fn record(&self, id: &CallId) -> String {
        format!("{}.records.{}", self.prefix, token(id))
    }

    pub(crate) fn all_records(&self) -> String {
        format!("{}.records.*", self.prefix)
    }

    pub(crate) fn answer(&self, id: &CallId) -> String {
        format!("{}.answers.{}", self.prefix, token(id))
    }

    pub(crate) fn letter(&self, id: &CallId) -> String {
        format!("{}.letters.{}", self.prefix, token(id))
    }

    pub(crate) fn body(&self, name: &str, piece: &str) -> String {
        format!("{}.bodies.{name}.{piece}", self.prefix)
    }

    /// The body that a subject holds a piece of.
    pub(crate) fn body_of<'a>(&self, subject: &'a str) -> Option<&'a str> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix(".bodies.")?;
        Some(rest.split_once('.')?.0)
    }
}

/// An id as one token of a subject: dots separate tokens, and `=` is in no id.
fn token(id: &CallId) -> String {
    id.as_str().replace('.', "=")
}

/// Why a version of a record was not kept.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// Another version is there than the one that it was to replace.
    Changed,
    /// The broker failed.
    Failed(StoreError),
}

impl From<StoreError> for WriteError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl Link {
    /// Begins the connection, which comes and goes from then on.
    pub(crate) async fn open(options: &NatsOptions) -> Result<Self, OpenNatsError> {
        let mut addresses = Vec::new();
        for address in &options.servers {
            let parsed: Result<ServerAddr, _> = address.parse();
            let wrong = |source| OpenNatsError::Address { address: shown(address), source };
            addresses.push(parsed.map_err(wrong)?);
        }
        let shown: Vec<String> = options.servers.iter().map(|address| shown(address)).collect();
        let keeper = format!("NATS at {}", shown.join(", "));
        let connect = connect_options(options, &keeper)?;
        let client = connect.retry_on_initial_connect().connect(addresses).await;
        let client = client.map_err(OpenNatsError::Connect)?;
        Ok(Self::over(client, options, keeper))
    }

    pub(crate) fn over(client: Client, options: &NatsOptions, keeper: String) -> Self {
        let context = ContextBuilder::new()
            .timeout(PATIENCE)
            .ack_timeout(ACK_PATIENCE)
            .max_ack_inflight(ON_THEIR_WAY)
            .build(client.clone());
        Self {
            client,
            context,
            names: Names::new(options.stream.as_str()),
            replicas: options.replicas,
            lease: options.lease,
            keeper,
        }
    }

    pub(crate) fn unavailable(&self, doing: &'static str, reason: impl Display) -> StoreError {
        let (keeper, reason) = (self.keeper.clone(), reason.to_string());
        StoreError::Unavailable { doing, keeper, reason }
    }

    pub(crate) fn refused(&self, doing: &'static str, reason: impl Display) -> StoreError {
        let (keeper, reason) = (self.keeper.clone(), reason.to_string());
        StoreError::Refused { doing, keeper, reason }
    }

    /// Fails at once while there is no connection: what is sent then would wait for one.
    pub(crate) fn check(&self, doing: &'static str) -> Result<(), StoreError> {
        match self.client.connection_state() {
            State::Connected => Ok(()),
            _ => Err(self.unavailable(doing, "there is no connection")),
        }
    }

    /// Waits a moment for the first connection.
    pub(crate) async fn connected(&self) {
        let connected = async {
            while self.client.connection_state() != State::Connected {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        drop(tokio::time::timeout(FIRST_PATIENCE, connected).await);
    }

    /// The most bytes that one message takes beside its headers.
    pub(crate) fn room(&self) -> usize {
        self.client.max_payload().saturating_sub(HEADER_ROOM).max(16 << 10)
    }

    /// Keeps a message; it is in the stream when this returns.
    pub(crate) async fn publish(
        &self,
        doing: &'static str,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<PublishAck, WriteError> {
        self.check(doing)?;
        let failed = |error: async_nats::jetstream::context::PublishError| match error.kind() {
            PublishErrorKind::WrongLastSequence => WriteError::Changed,
            PublishErrorKind::MaxPayloadExceeded => WriteError::Failed(self.refused(
                doing,
                "the message is longer than the server takes, raise its `max_payload`",
            )),
            _ => WriteError::Failed(self.unavailable(doing, with_causes(&error))),
        };
        let sent = self.context.publish_with_headers(subject, headers, payload).await;
        sent.map_err(failed)?.await.map_err(failed)
    }

    /// A stream that is known to be there.
    pub(crate) async fn stream(&self, name: &str) -> Result<Stream<()>, StoreError> {
        let stream = self.context.get_stream_no_info(name).await;
        stream.map_err(|error| self.unavailable("find the stream", error))
    }

    /// Makes the streams, or brings them to this form. The operator's limits of size are kept.
    pub(crate) async fn make_streams(&self) -> Result<(), StoreError> {
        const DOING: &str = "make the streams";
        self.check(DOING)?;
        let prefix = &self.names.prefix;
        let basis = Config {
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            num_replicas: self.replicas,
            duplicate_window: REMEMBERED,
            allow_direct: true,
            ..Config::default()
        };
        let calls = Config {
            name: self.names.calls.clone(),
            subjects: vec![format!("{prefix}.calls.>")],
            description: Some("asynchronous calls that are to be made".to_owned()),
            ..basis.clone()
        };
        let records = Config {
            name: self.names.records.clone(),
            subjects: ["records", "answers", "letters"]
                .map(|kind| format!("{prefix}.{kind}.*"))
                .to_vec(),
            max_messages_per_subject: 1,
            description: Some("what became of asynchronous calls".to_owned()),
            ..basis.clone()
        };
        let bodies = Config {
            name: self.names.bodies.clone(),
            subjects: vec![format!("{prefix}.bodies.*.*")],
            max_messages_per_subject: 1,
            description: Some("long bodies of asynchronous calls".to_owned()),
            ..basis
        };
        for config in [calls, records, bodies] {
            let made = self.context.get_or_create_stream(config.clone()).await;
            let mut made = made.map_err(|error| self.unavailable(DOING, with_causes(&error)))?;
            let there = made.info().await.map_err(|error| self.unavailable(DOING, error))?;
            let there = &there.config;
            if there.subjects != config.subjects || there.retention != config.retention {
                let reason = format!("the stream `{}` is somebody else's", config.name);
                return Err(self.refused(DOING, reason));
            }
            if there.num_replicas != config.num_replicas {
                let wanted = Config { num_replicas: config.num_replicas, ..there.clone() };
                let updated = self.context.update_stream(wanted).await;
                updated.map_err(|error| self.unavailable(DOING, with_causes(&error)))?;
            }
        }
        Ok(())
    }

    /// The consumer that hands out a function's calls.
    pub(crate) async fn consumer(&self, function: &FunctionId) -> Result<PullConsumer, StoreError> {
        let stream = self.stream(&self.names.calls).await?;
        let name = format!("{}_{}", function.namespace, function.name);
        let config = pull::Config {
            durable_name: Some(name),
            filter_subject: self.names.call(function),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.lease,
            // A call that waits for its next attempt is one that was handed out.
            max_ack_pending: -1,
            max_deliver: -1,
            max_waiting: 512,
            ..pull::Config::default()
        };
        let made = stream.create_consumer(config).await;
        made.map_err(|error| self.unavailable("find the function's consumer", with_causes(&error)))
    }

    /// The message of a subject that came last; nothing when there is none.
    pub(crate) async fn last(
        &self,
        stream: &str,
        subject: &str,
    ) -> Result<Option<StreamMessage>, StoreError> {
        const DOING: &str = "read the record";
        self.check(DOING)?;
        let stream = self.stream(stream).await?;
        match stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some(message)),
            Err(error) => self.nothing(DOING, &error),
        }
    }

    /// The message of a number; nothing when it is gone.
    pub(crate) async fn message(
        &self,
        stream: &str,
        sequence: u64,
    ) -> Result<Option<StreamMessage>, StoreError> {
        const DOING: &str = "read the call";
        self.check(DOING)?;
        let stream = self.stream(stream).await?;
        match stream.get_raw_message(sequence).await {
            Ok(message) => Ok(Some(message)),
            Err(error) => self.nothing(DOING, &error),
        }
    }

    fn nothing<T>(
        &self,
        doing: &'static str,
        error: &async_nats::jetstream::stream::RawMessageError,
    ) -> Result<Option<T>, StoreError> {
        /// What the broker answers when there is no such message.
        const NO_MESSAGE: u64 = 10037;
        match error.kind() {
            LastRawMessageErrorKind::NoMessageFound => Ok(None),
            LastRawMessageErrorKind::JetStream(error) if error.error_code().0 == NO_MESSAGE => {
                Ok(None)
            }
            _ => Err(self.unavailable(doing, with_causes(error))),
        }
    }

    /// Removes a message. One that cannot be removed now is removed at the next start.
    pub(crate) async fn remove(&self, stream: &str, sequence: u64) {
        let removed = match self.stream(stream).await {
            Ok(stream) => stream.delete_message(sequence).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = removed {
            tracing::debug!(error, sequence, "a message of an ended call is still there");
        }
    }

    /// Removes all messages of a subject, as [`remove`](Self::remove) does.
    pub(crate) async fn purge(&self, stream: &str, subject: String) {
        let purged = match self.stream(stream).await {
            Ok(stream) => {
                let purged = stream.purge().filter(subject.clone()).await;
                purged.map(drop).map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = purged {
            tracing::debug!(error, subject, "messages of an ended call are still there");
        }
    }

    /// Tells the consumer what becomes of a message it handed out. When that does not arrive, the
    /// message is handed out again, and the record says what to do with it.
    pub(crate) async fn acknowledge(&self, hold: &str, what: async_nats::jetstream::AckKind) {
        if let Err(error) = self.client.publish(hold.to_owned(), what.into()).await {
            tracing::debug!(%error, "an acknowledgement was not sent");
        }
    }
}

/// An address without the secret that may be in it.
fn shown(address: &str) -> String {
    match (address.find("://"), address.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => {
            format!("{}{}", &address[..scheme + 3], &address[at + 1..])
        }
        (None, Some(at)) => address[at + 1..].to_owned(),
        _ => address.to_owned(),
    }
}

/// An error and what led to it, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

fn secret(path: &Path) -> Result<String, OpenNatsError> {
    let failed = |source| OpenNatsError::File { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let text = text.trim();
    if text.is_empty() {
        return Err(failed(io::Error::other("the file is empty")));
    }
    Ok(text.to_owned())
}

pub(crate) fn connect_options(
    options: &NatsOptions,
    keeper: &str,
) -> Result<ConnectOptions, OpenNatsError> {
    let keeper: Arc<str> = keeper.into();
    let connect = ConnectOptions::new()
        .name(format!("updraft {}", options.instance))
        .connection_timeout(PATIENCE)
        .request_timeout(Some(PATIENCE))
        .ping_interval(Duration::from_secs(10))
        .reconnect_delay_callback(|attempts| {
            // 0, 100, 200, 400 ms and so on up to 5 s.
            let doubled = u32::try_from(attempts).unwrap_or(u32::MAX).saturating_sub(1).min(6);
            if attempts == 0 {
                Duration::ZERO
            } else {
                Duration::from_millis(100 << doubled).min(PATIENCE)
            }
        })
        .event_callback(move |event| {
            let keeper = Arc::clone(&keeper);
            async move {
                match event {
                    Event::Connected => tracing::info!(%keeper, "connected"),
                    Event::Disconnected => {
                        tracing::warn!(%keeper, "disconnected, asynchronous calls wait");
                    }
                    event => tracing::warn!(%keeper, %event, "the broker says"),
                }
            }
        });
    let mut connect = match &options.login {
        NatsLogin::Nobody => connect,
        NatsLogin::Token(path) => connect.token(secret(path)?),
        NatsLogin::Password(user, path) => connect.user_and_password(user.clone(), secret(path)?),
        NatsLogin::NKey(path) => connect.nkey(secret(path)?),
        // The mark at its end is looked for with the end of the line.
        NatsLogin::Credentials(path) => connect
            .credentials(&format!("{}\n", secret(path)?))
            .map_err(|source| OpenNatsError::File { path: path.clone(), source })?,
    };
    let readable = |path: &PathBuf| {
        std::fs::metadata(path)
            .map(drop)
            .map_err(|source| OpenNatsError::File { path: path.clone(), source })
    };
    if options.tls.required {
        connect = connect.require_tls(true);
    }
    if let Some(roots) = &options.tls.roots {
        readable(roots)?;
        connect = connect.add_root_certificates(roots.clone());
    }
    if let Some((certificate, key)) = &options.tls.own {
        readable(certificate)?;
        readable(key)?;
        connect = connect.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(connect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_name_the_function_and_the_call() {
        let names = Names::new("UPDRAFT");
        let function = FunctionId {
            name: "resize".parse().unwrap(),
            namespace: "openfaas-fn".parse().unwrap(),
        };
        let subject = names.call(&function);
        assert_eq!(subject, "updraft.calls.openfaas-fn.resize");
        assert_eq!(names.function(&subject), Some(function));
        assert_eq!(names.function("updraft.calls.a.b.c"), None);
        let id: CallId = "a.b:c-d_e".parse().unwrap();
        assert_eq!(names.record(&id), "updraft.records.a=b:c-d_e");
        assert_eq!(names.body_of(&names.body("01ab", "7")), Some("01ab"));
    }

    #[test]
    fn secrets_in_addresses_are_not_shown() {
        assert_eq!(shown("nats://user:secret@host:4222"), "nats://host:4222");
        assert_eq!(shown("secret@host"), "host");
        assert_eq!(shown("tls://host:4222"), "tls://host:4222");
    }
}
