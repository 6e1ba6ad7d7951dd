//! Taking a call: what is asked, where its body goes, and when it is safe.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Uri, header};
use http_body::Body;
use http_body_util::BodyExt;
use updraft_invoke::Caller;
use updraft_model::{FunctionId, FunctionSpec, annotations};
use updraft_store::queue::{BodyWriter, CallStore, StoredBody};

use crate::QueueOptions;
use crate::error::SubmitError;

/// The queue of functions that name none.
const USUAL_QUEUE: &str = "faas-request";

/// Longest queue name that is taken over.
const QUEUE_NAME_MAX: usize = 63;

/// Longest path with its query.
const TARGET_MAX: usize = 64 << 10;

/// A call to be made later.
#[derive(Debug, Clone)]
pub struct NewCall {
    /// Whom to call.
    pub function: FunctionId,
    /// The method to call with.
    pub method: Method,
    /// Raw path and query behind the function's name, as received; `/` when empty.
    pub target: String,
    /// The caller's headers. A safe `X-Call-Id` becomes the call's id unless another call has it;
    /// what belongs to the hop is dropped.
    pub headers: HeaderMap,
    /// Who calls. One that is not [authorized](Caller::authorized) is asked what the function asks
    /// of its callers when the call is made, with the headers it came with.
    pub caller: Caller,
    /// Whom to tell of the answer: an `http` or `https` address.
    pub callback: Option<Uri>,
}

impl NewCall {
    /// Checks what would otherwise fail at every attempt, and drops what belongs to the hop.
    pub(crate) fn prepare(&mut self, options: &QueueOptions) -> Result<(), SubmitError> {
        let wrong = |reason: String| Err(SubmitError::Request(reason));
        if self.target.is_empty() {
            self.target.push('/');
        } else if !self.target.starts_with('/') {
            self.target.insert(0, '/');
        }
        if self.target.len() > TARGET_MAX {
            return wrong(format!("the path is longer than {TARGET_MAX} bytes"));
        }
        if self.target.parse::<PathAndQuery>().is_err() {
            return wrong("the path holds characters that no path may".to_owned());
        }
        if self.method == Method::CONNECT {
            return wrong("CONNECT cannot be called later".to_owned());
        }
        if let Some(callback) = &self.callback {
            crate::callback::check(callback, &options.callback).map_err(SubmitError::Request)?;
        }
        remove_hop_headers(&mut self.headers);
        Ok(())
    }
}

/// Removes what belongs to the connection the call came by; its length is told by its body.
fn remove_hop_headers(headers: &mut HeaderMap) {
    let listed: Vec<header::HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| *name != header::HOST)
        .collect();
    for name in listed {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::EXPECT,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings", "x-callback-url"] {
        headers.remove(name);
    }
}

/// Whether a queue may have this name.
pub fn is_queue_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=QUEUE_NAME_MAX).contains(&name.len()) && name.bytes().all(plain)
}

/// The queue that a function's calls go to: its annotation's, when that is a plain name.
pub(crate) fn queue_name(spec: &FunctionSpec) -> &str {
    spec.annotations
        .get(annotations::QUEUE)
        .map(|name| name.trim())
        .filter(|name| is_queue_name(name))
        .unwrap_or(USUAL_QUEUE)
}

/// Takes a body in: short ones stay in memory, long ones go to a file as they come.
pub(crate) async fn take_body<B>(
    store: &dyn CallStore,
    options: &QueueOptions,
    body: B,
) -> Result<StoredBody, SubmitError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let limit = options.body;
    if body.size_hint().lower() > limit {
        return Err(SubmitError::TooLarge { limit });
    }
    let mut body = pin!(body);
    let mut inline = BytesMut::new();
    let mut file: Option<Box<dyn BodyWriter>> = None;
    let mut length = 0;
    loop {
        let frame = tokio::time::timeout(options.body_patience, body.frame())
            .await
            .map_err(|_| SubmitError::Stalled)?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| SubmitError::Body(error.into()))?;
        // Trailers have no place in a stored call.
        let Ok(piece) = frame.into_data() else { continue };
        length += piece.len() as u64;
        if length > limit {
            return Err(SubmitError::TooLarge { limit });
        }
        if let Some(file) = &mut file {
            file.append(piece).await?;
        } else if inline.len() + piece.len() > options.inline_body {
            let mut upload = store.new_body().await?;
            upload.append(inline.split().freeze()).await?;
            upload.append(piece).await?;
            file = Some(upload);
        } else if inline.is_empty() && body.is_end_stream() {
            // The usual case: one piece, not copied.
            return Ok(StoredBody::Inline(piece));
        } else {
            inline.extend_from_slice(&piece);
        }
    }
    match file {
        None => Ok(StoredBody::Inline(inline.freeze())),
        Some(upload) => Ok(StoredBody::Blob(upload.finish().await?, length)),
    }
}
