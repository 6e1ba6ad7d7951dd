//! Keys of sealed secrets, seen from the client.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};

use super::connection::Connection;
use super::{CALL_TIME, Client, ClientError, Credentials, ServerAddress, whole};

/// The largest certificate or sealed secret that an answer may be.
const ANSWER_MAX: usize = 4 << 20;

/// What a server gives at `path`, without showing it who we are: a certificate is public.
///
/// # Errors
/// See [`ClientError`].
pub async fn fetch_certificate(server: &ServerAddress, path: &str) -> Result<Bytes, ClientError> {
    let credentials = Credentials::Bearer(String::new());
    let connection = Connection { server: server.clone(), credentials };
    let request = Request::builder().uri(path).body(whole(Bytes::new()))?;
    let response = connection.send(request, CALL_TIME).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
    let body = body.map_err(|error| connection.broken(error))?.to_bytes();
    if status == StatusCode::OK {
        return Ok(body);
    }
    let reason = format!("{server} answered {status} for {path}");
    Err(ClientError::Refused { status, reason, hint: None })
}

impl Client {
    /// Whether the server opens a sealed secret, given as JSON or YAML.
    pub async fn verify(&self, sealed: &str) -> Result<bool, ClientError> {
        match self.ask("/v1/verify", sealed).await {
            Ok(_) => Ok(true),
            Err(error) if error.status() == Some(StatusCode::CONFLICT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A sealed secret, sealed with the server's newest key.
    pub async fn rotate(&self, sealed: &str) -> Result<Bytes, ClientError> {
        self.ask("/v1/rotate", sealed).await
    }

    async fn ask(&self, path: &str, sealed: &str) -> Result<Bytes, ClientError> {
        let body = whole(Bytes::from(sealed.to_owned()));
        let request = Request::builder().method(Method::POST).uri(path).body(body)?;
        let response = self.connection.call(request, CALL_TIME).await?;
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        Ok(body.map_err(|error| self.connection.broken(error))?.to_bytes())
    }
}
