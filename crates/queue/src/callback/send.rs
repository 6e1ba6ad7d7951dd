//! One callback over HTTP: to a judged address, without following anything, in capped time.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use updraft_store::queue::LeasedCallback;

use super::sign::Signer;
use super::{Told, address};
use crate::policy::retry_after;
use crate::shared::{Shared, now};

/// Bytes of a receiver's answer that are read, so that it can end well.
const ANSWER_MAX: usize = 64 << 10;

/// Headers of the function's answer that would mean something else to the receiver.
const NOT_TOLD: [HeaderName; 12] = [
    CONTENT_LENGTH,
    HOST,
    header::AUTHORIZATION,
    header::CONNECTION,
    header::DATE,
    header::EXPECT,
    header::PROXY_AUTHORIZATION,
    header::SET_COOKIE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

const CALL_ID: HeaderName = HeaderName::from_static("x-call-id");
const DURATION: HeaderName = HeaderName::from_static("x-duration-seconds");
const FUNCTION_STATUS: HeaderName = HeaderName::from_static("x-function-status");
const FUNCTION_NAME: HeaderName = HeaderName::from_static("x-function-name");
const START_TIME: HeaderName = HeaderName::from_static("x-start-time");
const RETRY: HeaderName = HeaderName::from_static("x-retry");
const RETRY_MAX: HeaderName = HeaderName::from_static("x-retry-max");
const SIGNATURE: HeaderName = HeaderName::from_static("x-updraft-signature");
const CUT: HeaderName = HeaderName::from_static("x-updraft-cut");

/// Makes callbacks.
#[derive(Debug)]
pub(crate) struct Caller {
    tls: Arc<ClientConfig>,
}

impl Caller {
    /// Believes the system's certificates, and those in the file.
    pub(super) fn open(extra: Option<&Path>) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        // A system without certificates can still tell in the clear.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = extra {
            for certificate in CertificateDer::pem_file_iter(path).map_err(io::Error::other)? {
                let certificate = certificate.map_err(io::Error::other)?;
                roots.add(certificate).map_err(io::Error::other)?;
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(config) })
    }

    /// Tells the receiver what the function answered.
    pub(super) async fn tell(&self, shared: &Shared, callback: &LeasedCallback) -> Told {
        let told_to = callback.record.callback.as_ref();
        let url: Uri = match told_to.map(|told_to| told_to.url.parse()) {
            Some(Ok(url)) => url,
            _ => return Told::Never("the callback address cannot be read".to_owned()),
        };
        let limit = shared.options.callback.time;
        match tokio::time::timeout(limit, self.exchange(shared, callback, &url)).await {
            Ok(told) => told,
            Err(_) => Told::Again(
                format!("no answer within {}", updraft_model::format_duration(limit)),
                None,
            ),
        }
    }

    async fn exchange(&self, shared: &Shared, callback: &LeasedCallback, url: &Uri) -> Told {
        let options = &shared.options;
        let addresses = match address::resolve(url, &options.callback).await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(refusal)) => return Told::Never(refusal),
            Err(reason) => return Told::Again(reason, None),
        };
        let signer = match Signer::of(shared, &callback.record).await {
            Ok(signer) => signer,
            Err(reason) => return Told::Again(reason, None),
        };
        let Some(request) = request(shared, callback, url, &signer) else {
            return Told::Never("the callback address cannot be asked for".to_owned());
        };
        let sent = async {
            let stream = connect(&addresses).await?;
            if url.scheme_str() == Some("https") {
                let (host, _) = address::host_and_port(url);
                let name = ServerName::try_from(host).map_err(io::Error::other)?;
                let connector = TlsConnector::from(Arc::clone(&self.tls));
                send(connector.connect(name, stream).await?, request).await
            } else {
                send(stream, request).await
            }
        };
        match sent.await {
            Err(error) => Told::Again(format!("cannot reach the callback address: {error}"), None),
            Ok((status, _)) if status.is_success() => Told::Taken,
            Ok((status, headers)) => {
                let reason = format!("the callback address answered {}", status.as_u16());
                if options.callback.retry.codes.contains(&status.as_u16()) {
                    Told::Again(reason, retry_after(&headers, SystemTime::now()))
                } else {
                    Told::Never(reason)
                }
            }
        }
    }
}

/// The first of the addresses that takes a connection.
async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut refusal = io::Error::other("there is no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> io::Result<(StatusCode, HeaderMap)> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let (head, mut body) = response.into_parts();
    let mut read = 0;
    while read < ANSWER_MAX
        && let Some(Ok(frame)) = body.frame().await
    {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
    Ok((head.status, head.headers))
}

/// The function's answer as a request to the receiver.
fn request(
    shared: &Shared,
    callback: &LeasedCallback,
    url: &Uri,
    signer: &Signer,
) -> Option<Request<Full<Bytes>>> {
    let (record, options) = (&callback.record, &shared.options);
    let (answered, body, cut) = if let Some(result) = &callback.result {
        (result.headers.clone(), result.body.clone(), result.is_cut())
    } else {
        let reason = record.reason.as_deref().unwrap_or("the call was not made");
        let told = serde_json::json!({
            "component": "queue", "reason": reason, "call_id": record.id.as_str(),
        });
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        (headers, Bytes::from(told.to_string()), false)
    };
    let mut headers = answered;
    for name in NOT_TOLD {
        headers.remove(name);
    }
    let status = record.status.unwrap_or(503);
    let policy = crate::work::policy_told(shared, record);
    let authority = url.authority()?;
    let own = |text: String| HeaderValue::try_from(text).ok();
    let signature = signer.sign(now() / 1000, record.id.as_str(), status, &body);
    headers.insert(HOST, own(authority.as_str().to_owned())?);
    headers.insert(USER_AGENT, own(format!("updraft/{}", options.callback.version))?);
    headers.insert(CONTENT_LENGTH, body.len().into());
    headers.insert(CALL_ID, own(record.id.to_string())?);
    headers.insert(FUNCTION_STATUS, status.into());
    headers.insert(FUNCTION_NAME, own(name_told(record))?);
    let took = record.took.unwrap_or_default();
    headers.insert(DURATION, own(format!("{:.6}", took.as_secs_f64()))?);
    headers.entry(START_TIME).or_insert(own(format!("{}", record.created_at.as_nanosecond()))?);
    if record.attempts > 1 {
        headers.insert(RETRY, (record.attempts - 1).into());
        headers.insert(RETRY_MAX, policy.into());
    }
    headers.insert(SIGNATURE, own(signature)?);
    if cut {
        headers.insert(CUT, HeaderValue::from_static("true"));
    }
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = url.path_and_query().map_or("/", |target| target.as_str()).parse().ok()?;
    *request.headers_mut() = headers;
    Some(request)
}

/// The function as its caller named it: with its namespace unless that is the usual one.
fn name_told(record: &updraft_store::queue::CallRecord) -> String {
    let function = &record.function;
    if function.namespace == updraft_model::Namespace::default() {
        function.name.to_string()
    } else {
        function.to_string()
    }
}
