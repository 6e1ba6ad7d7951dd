//! A service of the operator's own that the gateway asks: who may come in, or what a function
//! wrote. It is spoken to by HTTP, in the clear or over TLS, a connection for each question.

use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, Request, Response, Uri, header};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// Any error of a question to a service, for the log.
pub type ServiceError = Box<dyn StdError + Send + Sync>;

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
    encrypted: bool,
}

/// The service itself: its address, and how its certificate is judged where it has one.
#[derive(Clone)]
pub struct Service {
    url: ServiceUrl,
    tls: Option<TlsConnector>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Service").field(&self.url).finish()
    }
}

/// The service cannot be spoken to over TLS. The operator's fault.
#[derive(Debug, Error)]
pub enum OpenServiceError {
    /// The file with certificates to believe cannot be used.
    #[error("cannot read certificates to believe from `{}`", path.display())]
    Roots {
        /// The file that was named.
        path: PathBuf,
        /// Why.
        #[source]
        cause: ServiceError,
    },
    /// Host and port are none that a certificate could be for.
    #[error("`{0}` is no name that a certificate could be for")]
    Name(String),
    /// The versions of TLS that are usual cannot be had.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
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
        let encrypted = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let authority = authority.ok_or_else(wrong)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let usual = if encrypted { 443 } else { 80 };
        let address = (host, authority.port_u16().unwrap_or(usual));
        let authority = authority.to_string();
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        Ok(Self { uri: target.parse().map_err(|_| wrong())?, authority, address, encrypted })
    }
}

impl Service {
    /// The service at this address. One with `https` has to show a certificate for its host that
    /// the system believes, or one of those in the PEM file `roots`.
    pub fn open(url: ServiceUrl, roots: Option<&Path>) -> Result<Self, OpenServiceError> {
        let tls = if url.encrypted {
            let (host, _) = &url.address;
            if ServerName::try_from(host.as_str()).is_err() {
                return Err(OpenServiceError::Name(host.clone()));
            }
            Some(TlsConnector::from(Arc::new(believing(roots)?)))
        } else {
            None
        };
        Ok(Self { url, tls })
    }

    /// Host and port, for the log.
    pub(crate) fn authority(&self) -> &str {
        &self.url.authority
    }

    /// Path and query as they were written.
    pub(crate) fn target(&self) -> &Uri {
        &self.url.uri
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
        let mut request = Request::get(target).body(body)?;
        *request.headers_mut() = end_to_end(headers);
        request.headers_mut().insert(header::HOST, self.url.authority.parse()?);
        let (host, port) = &self.url.address;
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        match &self.tls {
            Some(tls) => {
                let name = ServerName::try_from(host.clone())?;
                send(tls.connect(name, stream).await?, request).await
            }
            None => send(stream, request).await,
        }
    }
}

/// TLS as a client that believes the system's certificates, and those in the file.
fn believing(roots: Option<&Path>) -> Result<ClientConfig, OpenServiceError> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = roots {
        let unusable =
            |cause: ServiceError| OpenServiceError::Roots { path: path.to_owned(), cause };
        let before = store.len();
        let certificates =
            CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.into()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| unusable(error.into()))?;
            store.add(certificate).map_err(|error| unusable(error.into()))?;
        }
        if store.len() == before {
            return Err(unusable("there is no certificate in it".into()));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(OpenServiceError::Tls)?;
    Ok(config.with_root_certificates(store).with_no_client_auth())
}

async fn send<B>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<B>,
) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), ServiceError>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<ServiceError>,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = AbortOnDropHandle::new(tokio::spawn(async move {
        // How it ended shows in the answer.
        drop(connection.await);
    }));
    Ok((sender.send_request(request).await?, driver))
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
    fn an_address_is_http_or_https_with_a_host() {
        let read = |text: &str| text.parse::<ServiceUrl>();
        let url = read("http://127.0.0.1:8090/validate?x=1").unwrap();
        assert_eq!(url.address, ("127.0.0.1".to_owned(), 8090));
        assert_eq!(url.uri, "/validate?x=1");
        assert_eq!(read("http://[::1]").unwrap().address, ("::1".to_owned(), 80));
        let encrypted = read("https://logs.example/loki").unwrap();
        assert_eq!(encrypted.address, ("logs.example".to_owned(), 443));
        for wrong in ["", "/validate", "127.0.0.1:80", "ftp://a/", "http://u:p@a/", "http://a b/"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("expected"), "{error}");
        }
    }

    #[test]
    fn certificates_that_are_not_there_are_noticed_before_anybody_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let [absent, empty] = ["absent.pem", "empty.pem"].map(|name| folder.path().join(name));
        std::fs::write(&empty, "").unwrap();
        let open = |url: &str, roots: &Path| Service::open(url.parse().unwrap(), Some(roots));
        for roots in [&absent, &empty] {
            let error = open("https://logs.example/", roots).unwrap_err().to_string();
            assert!(error.contains(roots.to_str().unwrap()), "{error}");
        }
        open("http://logs.example/", &absent).unwrap();
        let unnamed = open("https://-_-../", &empty).unwrap_err().to_string();
        assert!(unnamed.contains("`-_-..`"), "{unnamed}");
    }
}
