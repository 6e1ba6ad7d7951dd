//! Asks somebody else who may come in: a service of the operator's own, for instance one that
//! logs people in.
//!
//! It is sent a `GET` with the caller's headers. 200 lets the caller in as the administrator;
//! every other answer goes back to the caller as it is, so that it can ask for credentials or
//! send a browser elsewhere. One that cannot be asked lets nobody in.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;

use crate::answer::Failure;

/// How long the service may take for its whole answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Largest refusal that is passed on.
const REFUSAL_LIMIT: usize = 256 << 10;

/// What belongs to one hop, and what describes a body that is not sent along.
const NOT_COPIED: [HeaderName; 11] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Address of the service that is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthProxyUrl {
    uri: Uri,
    authority: String,
    address: (String, u16),
}

/// The text is no address that can be asked. The operator's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{0}` is no address of an authentication service, expected one such as `http://127.0.0.1:8090/validate`"
)]
pub struct AuthProxyUrlError(String);

impl std::str::FromStr for AuthProxyUrl {
    type Err = AuthProxyUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || AuthProxyUrlError(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let (Some("http"), Some(authority)) = (uri.scheme_str(), authority) else {
            return Err(wrong());
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let address = (host, authority.port_u16().unwrap_or(80));
        let authority = authority.to_string();
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        Ok(Self { uri: target.parse().map_err(|_| wrong())?, authority, address })
    }
}

impl AuthProxyUrl {
    /// Whether a request with these headers may come in; else what to answer.
    pub(crate) async fn ask(&self, headers: &HeaderMap) -> Result<(), Response> {
        let answer = tokio::time::timeout(PATIENCE, self.exchange(headers)).await;
        let unanswered = match answer {
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(refusal))) => return Err(refusal),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        tracing::error!(service = self.authority, error = unanswered, "cannot ask who may come in");
        let text = "the authentication service could not be asked";
        Err(Failure::new(StatusCode::BAD_GATEWAY, text).into_response())
    }

    /// Nothing when the service says yes, else its answer.
    async fn exchange(
        &self,
        headers: &HeaderMap,
    ) -> Result<Option<Response>, Box<dyn std::error::Error + Send + Sync>> {
        let (host, port) = &self.address;
        let stream = TokioIo::new(TcpStream::connect((host.as_str(), *port)).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        let mut request = Request::get(self.uri.clone()).body(Empty::<Bytes>::new())?;
        *request.headers_mut() = end_to_end(headers.clone());
        request.headers_mut().insert(header::HOST, self.authority.parse()?);
        let answer = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            if head.status == StatusCode::OK {
                return Ok(None);
            }
            let body = Limited::new(body, REFUSAL_LIMIT).collect().await?.to_bytes();
            let mut refusal = Response::new(Body::from(body));
            *refusal.status_mut() = head.status;
            *refusal.headers_mut() = end_to_end(head.headers);
            Ok(Some(refusal))
        };
        // The connection is driven here and ends with the answer.
        let mut answer = std::pin::pin!(answer);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            ended = &mut connection => {
                ended?;
                answer.await
            }
        }
    }
}

fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    for name in &NOT_COPIED {
        headers.remove(name);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_plain_http_with_a_host() {
        let read = |text: &str| text.parse::<AuthProxyUrl>();
        let url = read("http://127.0.0.1:8090/validate?x=1").unwrap();
        assert_eq!(url.address, ("127.0.0.1".to_owned(), 8090));
        assert_eq!(url.uri, "/validate?x=1");
        assert_eq!(read("http://[::1]").unwrap().address, ("::1".to_owned(), 80));
        for wrong in ["", "/validate", "127.0.0.1:80", "https://a/", "http://u:p@a/", "http://a b/"]
        {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("expected"), "{error}");
        }
    }
}
