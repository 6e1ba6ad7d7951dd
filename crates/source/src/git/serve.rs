//! The HTTP side of the git endpoint: which request is which, advertisements, fetches, refusals.
//!
//! Pushes are in `receive`. Answers stream; nothing here holds a pack in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::ChildStdout;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::body::RequestBody;
use super::program::{KernelLimits, RunningGit, read_complaint};
use super::push::PushSink;
use super::receive::{self, Receiving};
use super::repository::is_repository;
use super::{GitBody, GitError, GitRequest, Inner, pktline};

/// Most bytes of a list of refs.
const ADVERTISEMENT_BYTES: u64 = 64 * 1024 * 1024;

/// Most bytes of a fetch request: what the client wants and has.
const FETCH_REQUEST_BYTES: usize = 16 * 1024 * 1024;

/// Bytes of a pack read from git at once.
const PIECE: usize = 64 * 1024;

/// Longest `Git-Protocol` header that is passed on.
const PROTOCOL_BYTES: usize = 256;

/// The two services of git's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    UploadPack,
    ReceivePack,
}

impl Service {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "git-upload-pack" => Some(Self::UploadPack),
            "git-receive-pack" => Some(Self::ReceivePack),
            _ => None,
        }
    }

    /// The subcommand of git, which the wire puts `git-` before.
    fn subcommand(self) -> &'static str {
        match self {
            Self::UploadPack => "upload-pack",
            Self::ReceivePack => "receive-pack",
        }
    }
}

/// Settings of git for serving pushes and fetches.
pub(super) const SERVICE_SETTINGS: &[&str] = &[
    // Every object of a push is checked before a ref moves. Ignored are flaws that old and
    // otherwise harmless histories carry.
    "receive.fsckObjects=true",
    "receive.fsck.zeroPaddedFilemode=ignore",
    "receive.fsck.badTimezone=ignore",
    "receive.fsck.missingSpaceBeforeDate=ignore",
    // A pack is kept as it came, so that it takes on disk what it took on the wire: unpacked, a
    // few kilobytes of deltas could fill the disk.
    "receive.unpackLimit=1",
    // A function's owner may rewrite history and drop branches.
    "receive.denyNonFastForwards=false",
    "receive.denyDeletes=false",
    "receive.advertisePushOptions=true",
    "receive.keepAlive=5",
    "uploadpack.keepAlive=5",
    "uploadpack.allowFilter=true",
];

/// Answers one request.
pub(super) async fn handle(
    inner: &Arc<Inner>,
    request: GitRequest,
    sink: Arc<dyn PushSink>,
) -> Response<GitBody> {
    let GitRequest { owner, repository, path, request } = request;
    let (parts, body) = request.into_parts();
    let Ok(permit) = Arc::clone(&inner.requests).try_acquire_owned() else {
        let mut answer = text(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many git requests are being served, try again in a few seconds",
        );
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
        return answer;
    };
    let bare = inner.repositories.path(&owner, &repository);
    let protocol = protocol(&parts.headers);
    let service = match path.as_str() {
        "info/refs" => {
            if parts.method != Method::GET && parts.method != Method::HEAD {
                return not_allowed("GET, HEAD");
            }
            let name = service_parameter(parts.uri.query());
            let Some(service) = name.and_then(Service::parse) else {
                return text(
                    StatusCode::FORBIDDEN,
                    "only git's smart protocol is spoken here, use a git client of this century",
                );
            };
            return match advertise(inner, service, &bare, protocol.as_deref()).await {
                Ok(Some(answer)) => answer,
                Ok(None) => no_repository(&GitError::NoRepository { owner, repository }),
                Err(error) => failed(&error),
            };
        }
        name => match Service::parse(name) {
            Some(service) => service,
            None => return text(StatusCode::NOT_FOUND, "the git endpoint has no such path"),
        },
    };
    if parts.method != Method::POST {
        return not_allowed("POST");
    }
    if !has_content_type(&parts.headers, service) {
        return text(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "this is no request of git's smart protocol, use a git client",
        );
    }
    let gzipped = match parts.headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity" | b"") => false,
        Some(b"gzip" | b"x-gzip") => true,
        Some(_) => {
            return text(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "of encodings only gzip is understood",
            );
        }
    };
    let body = RequestBody::new(body, gzipped, inner.options.idle_limit);
    match service {
        Service::UploadPack if !is_repository(&bare) => {
            no_repository(&GitError::NoRepository { owner, repository })
        }
        Service::UploadPack => match fetch(inner, &bare, body, protocol.as_deref(), permit).await {
            Ok(answer) | Err(answer) => answer,
        },
        Service::ReceivePack => {
            // A task of its own, so that a push which git has taken in goes on when the client
            // leaves and this future is dropped.
            let (response_tx, response_rx) = oneshot::channel();
            let receiving = Receiving {
                inner: Arc::clone(inner),
                owner,
                repository,
                bare,
                protocol,
                sink,
                permit,
            };
            drop(inner.tasks.spawn(receive::receive(receiving, body, response_tx)));
            response_rx.await.unwrap_or_else(|_| {
                text(StatusCode::INTERNAL_SERVER_ERROR, "the push failed on our side, push again")
            })
        }
    }
}

/// The value of `service` in the query.
pub(super) fn service_parameter(query: Option<&str>) -> Option<&str> {
    query?.split('&').find_map(|pair| pair.strip_prefix("service="))
}

/// The list of refs; `None` if there is no such repository to read.
async fn advertise(
    inner: &Inner,
    service: Service,
    bare: &Path,
    protocol: Option<&str>,
) -> Result<Option<Response<GitBody>>, GitError> {
    let repository: PathBuf = match (is_repository(bare), service) {
        (true, _) => bare.to_owned(),
        // It will be made by the push itself, not by the question.
        (false, Service::ReceivePack) => inner.repositories.empty(),
        (false, Service::UploadPack) => return Ok(None),
    };
    let mut command = service_command(inner, service, protocol);
    command.args(["--stateless-rpc", "--advertise-refs"]).arg(&repository);
    let answer = inner
        .program
        .ask_for(&mut command, inner.options.git_limit, ADVERTISEMENT_BYTES)
        .await?
        .into_output("list the refs")?;
    let mut out = BytesMut::with_capacity(answer.len() + 64);
    // Protocol version 2 has no such line, and only fetches speak it.
    let second_version = protocol.is_some_and(|protocol| protocol.contains("version=2"));
    if service == Service::ReceivePack || !second_version {
        pktline::put(&mut out, format!("# service=git-{}\n", service.subcommand()).as_bytes());
        out.extend_from_slice(pktline::FLUSH);
    }
    out.extend_from_slice(&answer);
    let content_type = match service {
        Service::UploadPack => "application/x-git-upload-pack-advertisement",
        Service::ReceivePack => "application/x-git-receive-pack-advertisement",
    };
    Ok(Some(respond(StatusCode::OK, content_type, full(out.freeze()))))
}

/// Sends a pack, piece by piece as git makes it.
async fn fetch(
    inner: &Inner,
    bare: &Path,
    body: RequestBody,
    protocol: Option<&str>,
    permit: OwnedSemaphorePermit,
) -> Result<Response<GitBody>, Response<GitBody>> {
    let request = body
        .collect(FETCH_REQUEST_BYTES)
        .await
        .map_err(|error| text(StatusCode::BAD_REQUEST, &error.to_string()))?;
    let mut command = service_command(inner, Service::UploadPack, protocol);
    command.args(["--stateless-rpc", "--strict"]);
    command.arg(format!("--timeout={}", inner.options.idle_limit.as_secs().max(1)));
    command.arg(bare).stdin(std::process::Stdio::piped());
    let mut git = inner.program.start(&mut command).map_err(|error| failed(&error))?;
    git.limit(kernel_limits(inner));
    if let Some(mut stdin) = git.take_stdin() {
        // Ends by itself: git reads on or is killed.
        drop(tokio::spawn(async move {
            if let Err(error) = stdin.write_all(&request).await {
                tracing::debug!(%error, "git stopped reading a fetch request");
            }
        }));
    }
    let complaint = git.take_stderr();
    drop(tokio::spawn(async move {
        let complaint = read_complaint(complaint).await;
        if !complaint.is_empty() {
            tracing::debug!(complaint, "git complained during a fetch");
        }
    }));
    let Some(stdout) = git.take_stdout() else {
        return Err(text(StatusCode::INTERNAL_SERVER_ERROR, "git gave no answer, try again"));
    };
    let pack = PackStream { git, stdout, limit: inner.options.git_limit, _permit: permit };
    let frames = futures_util::stream::unfold(pack, PackStream::next);
    let body = StreamBody::new(frames.map(|piece| piece.map(Frame::data))).boxed_unsync();
    Ok(respond(StatusCode::OK, "application/x-git-upload-pack-result", body))
}

/// A pack on its way out. Dropped when the client leaves, and git with it.
struct PackStream {
    git: RunningGit,
    stdout: ChildStdout,
    limit: std::time::Duration,
    _permit: OwnedSemaphorePermit,
}

impl PackStream {
    async fn next(
        mut self,
    ) -> Option<(Result<Bytes, Box<dyn std::error::Error + Send + Sync>>, Self)> {
        let mut piece = BytesMut::with_capacity(PIECE);
        match tokio::time::timeout(self.limit, self.stdout.read_buf(&mut piece)).await {
            Ok(Ok(0)) => {
                if let Err(error) = self.git.wait().await {
                    tracing::debug!(%error, "lost git at the end of a fetch");
                }
                None
            }
            Ok(Ok(_)) => Some((Ok(piece.freeze()), self)),
            Ok(Err(error)) => Some((Err(error.into()), self)),
            Err(_) => Some((Err(GitError::TimedOut { limit: self.limit }.into()), self)),
        }
    }
}

/// `git <service>` with the settings for serving.
pub(super) fn service_command(
    inner: &Inner,
    service: Service,
    protocol: Option<&str>,
) -> tokio::process::Command {
    let mut command = inner.program.command();
    for setting in SERVICE_SETTINGS {
        command.arg("-c").arg(setting);
    }
    command.arg(service.subcommand());
    if let Some(protocol) = protocol {
        command.env("GIT_PROTOCOL", protocol);
    }
    command
}

pub(super) fn kernel_limits(inner: &Inner) -> KernelLimits {
    KernelLimits {
        memory_bytes: inner.options.max_git_memory_bytes,
        // Lists of refs must fit in the tightest repository.
        file_bytes: inner.options.max_repository_bytes.max(ADVERTISEMENT_BYTES),
    }
}

/// The `Git-Protocol` header, if it looks like one.
fn protocol(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("git-protocol")?.to_str().ok()?;
    let fits = value.len() <= PROTOCOL_BYTES
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"=:.-_".contains(&byte));
    fits.then(|| value.to_owned())
}

fn has_content_type(headers: &HeaderMap, service: Service) -> bool {
    let expected: &[u8] = match service {
        Service::UploadPack => b"application/x-git-upload-pack-request",
        Service::ReceivePack => b"application/x-git-receive-pack-request",
    };
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes() == expected)
}

pub(super) fn full(bytes: Bytes) -> GitBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// An answer with the headers that keep caches from storing it.
pub(super) fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: GitBody,
) -> Response<GitBody> {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    let no_cache = HeaderValue::from_static("no-cache, max-age=0, must-revalidate");
    headers.insert(CACHE_CONTROL, no_cache);
    headers.insert("pragma", HeaderValue::from_static("no-cache"));
    headers.insert("expires", HeaderValue::from_static("Fri, 01 Jan 1980 00:00:00 GMT"));
    answer
}

/// A refusal in plain text, which git clients show behind `remote:`.
pub(super) fn text(status: StatusCode, message: &str) -> Response<GitBody> {
    let body = full(Bytes::from(format!("{message}\n")));
    respond(status, "text/plain; charset=utf-8", body)
}

fn not_allowed(methods: &'static str) -> Response<GitBody> {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "the git endpoint has no such method");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    answer
}

fn no_repository(error: &GitError) -> Response<GitBody> {
    text(StatusCode::NOT_FOUND, &error.to_string())
}

/// A failure on our side. Paths and causes go to the log, not to the client.
fn failed(error: &GitError) -> Response<GitBody> {
    tracing::error!(error = error as &dyn std::error::Error, "git request failed");
    text(StatusCode::INTERNAL_SERVER_ERROR, "git failed on our side, try again")
}
