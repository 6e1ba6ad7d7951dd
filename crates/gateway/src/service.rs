//! A service of the operator's own that the gateway asks: who may come in, or what a function
//! wrote. It is spoken to by plain HTTP, a connection for each question.

use std::error::Error as StdError;

use http::{HeaderMap, HeaderName, Request, Response, Uri, header};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// Any error of a question, for the log.
pub(crate) type ServiceError = Box<dyn StdError + Send + Sync>;

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
pub struct ServiceUrl {
    uri: Uri,
    authority: String,
    address: (String, u16),
}

/// The text is no address that can be asked. The operator's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is no address of a service, expected one such as `http://127.0.0.1:8090/path`")]
pub struct ServiceUrlError(String);

impl std::str::FromStr for ServiceUrl {
    type Err = ServiceUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ServiceUrlError(text.to_owned());
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

impl ServiceUrl {
    /// Host and port, for the log.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// Path and query as they were written.
    pub(crate) fn target(&self) -> &Uri {
        &self.uri
    }

    /// Sends a `GET` with these headers and this body. The connection ends with the second half
    /// of what is returned.
    pub(crate) async fn get<B>(
        &self,
        target: Uri,
        headers: HeaderMap,
        body: B,
    ) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), ServiceError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<ServiceError>,
    {
        let (host, port) = &self.address;
        let stream = TokioIo::new(TcpStream::connect((host.as_str(), *port)).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            // How it ended shows in the answer.
            drop(connection.await);
        }));
        let mut request = Request::get(target).body(body)?;
        *request.headers_mut() = end_to_end(headers);
        request.headers_mut().insert(header::HOST, self.authority.parse()?);
        Ok((sender.send_request(request).await?, driver))
    }
}

/// The headers without those of the hop.
pub(crate) fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
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
        let read = |text: &str| text.parse::<ServiceUrl>();
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
