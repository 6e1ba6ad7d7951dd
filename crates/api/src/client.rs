//! The typed client of `/api/v1`: one method a route, over HTTP to one server.
//!
//! It opens a connection per call, follows no redirect and keeps nothing. Streams end when the
//! server ends them; dropping one hangs up.

mod calls;
mod connection;
mod disk;
mod engine;
mod keys;
mod schedules;

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use updraft_model::{FunctionName, OwnerName, RepositoryName, SecretName};
use updraft_pipeline::PushEvent;
use updraft_store::{BuildId, PushId, TokenId};

use crate::wire;
use connection::Connection;

pub use calls::CallOptions;
pub use connection::{ClientError, Credentials, ParseServerAddressError, SendBody, ServerAddress};
pub use keys::fetch_certificate;

/// The longest an ordinary call may take to its answer's head.
const CALL_TIME: Duration = Duration::from_mins(1);

/// The longest a rollback or removal may take: replicas start or drain meanwhile.
const CHANGE_TIME: Duration = Duration::from_mins(10);

/// The longest that sending a working tree may take; the server gives up on a silent one earlier.
const UPLOAD_TIME: Duration = Duration::from_hours(1);

/// Which lines of a function's log to read.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Go on with new lines.
    pub follow: bool,
    /// Only lines from this moment on.
    pub since: Option<jiff::Timestamp>,
    /// Only the newest so many.
    pub tail: Option<usize>,
    /// Only this replica's.
    pub instance: Option<String>,
}

/// Which records a list shows. Absent means any.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Only this owner's.
    pub owner: Option<OwnerName>,
    /// Only this function's; builds only.
    pub function: Option<FunctionName>,
    /// Only this repository's; pushes only.
    pub repository: Option<RepositoryName>,
    /// The newest so many; the server decides when absent.
    pub limit: Option<u32>,
}

/// A client of one server. Cheap to clone.
///
/// # Errors
/// Every call: see [`ClientError`]; a refusal carries the server's reason and hint.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// A client; nothing is sent yet.
    pub const fn new(server: ServerAddress, credentials: Credentials) -> Self {
        Self { connection: Connection { server, credentials } }
    }

    /// The server's address.
    pub const fn server_address(&self) -> &ServerAddress {
        &self.connection.server
    }

    /// The server itself.
    pub async fn server(&self) -> Result<wire::Server, ClientError> {
        self.get("server").await
    }

    /// Functions: of an owner, or all that may be seen.
    pub async fn functions(
        &self,
        owner: Option<&OwnerName>,
    ) -> Result<Vec<wire::Function>, ClientError> {
        match owner {
            Some(owner) => self.get(&format!("owners/{owner}/functions")).await,
            None => self.get("functions").await,
        }
    }

    /// One function.
    pub async fn function(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
    ) -> Result<wire::Function, ClientError> {
        self.get(&format!("owners/{owner}/functions/{function}")).await
    }

    /// A function's releases, newest first.
    pub async fn releases(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
    ) -> Result<Vec<wire::Release>, ClientError> {
        self.get(&format!("owners/{owner}/functions/{function}/releases")).await
    }

    /// Makes another release of a function live; returns when it serves.
    pub async fn rollback(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
        to: wire::Rollback,
    ) -> Result<wire::Release, ClientError> {
        let path = format!("owners/{owner}/functions/{function}/rollback");
        self.send_json(Method::POST, &path, &to, CHANGE_TIME).await
    }

    /// Removes a function; returns when no call can reach it.
    pub async fn remove_function(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
    ) -> Result<(), ClientError> {
        let request = Request::builder()
            .method(Method::DELETE)
            .uri(format!("/api/v1/owners/{owner}/functions/{function}"))
            .body(whole(Bytes::new()))?;
        self.connection.call(request, CHANGE_TIME).await.map(drop)
    }

    /// What a function writes.
    pub async fn logs(
        &self,
        owner: &OwnerName,
        function: &FunctionName,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<wire::LogLine, ClientError>>, ClientError> {
        let mut query = Query::default();
        query.add("follow", options.follow.then_some("true"));
        query.add("since", options.since);
        query.add("tail", options.tail);
        query.add("instance", options.instance.as_deref());
        let path = format!("owners/{owner}/functions/{function}/logs{query}");
        let response = self.call(Method::GET, &path, None).await?;
        Ok(self.connection.json_lines(response))
    }

    /// Pushes, newest first.
    pub async fn pushes(&self, options: &ListOptions) -> Result<Vec<wire::Push>, ClientError> {
        self.get(&format!("pushes{}", Query::of(options))).await
    }

    /// One push.
    pub async fn push(&self, push: PushId) -> Result<wire::Push, ClientError> {
        self.get(&format!("pushes/{push}")).await
    }

    /// Sends a working tree as a tar archive, plain or gzipped, and makes its functions live.
    /// Returns when the push is recorded; [`Self::push_events`] tells the rest.
    ///
    /// When `archive` breaks off so does the call, with [`ClientError::Broken`]; whoever makes the
    /// archive knows why.
    pub async fn upload(
        &self,
        owner: &OwnerName,
        repository: &RepositoryName,
        archive: SendBody,
    ) -> Result<PushId, ClientError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/api/v1/owners/{owner}/repositories/{repository}/push"))
            .header(header::CONTENT_TYPE, "application/x-tar")
            .body(archive)?;
        let response = self.connection.call(request, UPLOAD_TIME).await?;
        let pushed: wire::Pushed = self.connection.json(response).await?;
        Ok(pushed.push)
    }

    /// The story of a push from event `from` on (1 is the first), until the push is over: the last
    /// event is [`updraft_pipeline::PushEventKind::Finished`], unless the server stopped.
    pub async fn push_events(
        &self,
        push: PushId,
        from: u64,
    ) -> Result<BoxStream<'static, Result<PushEvent, ClientError>>, ClientError> {
        let path = format!("pushes/{push}/events?from={from}");
        let response = self.call(Method::GET, &path, None).await?;
        Ok(self.connection.json_lines(response))
    }

    /// Builds, newest first.
    pub async fn builds(&self, options: &ListOptions) -> Result<Vec<wire::Build>, ClientError> {
        self.get(&format!("builds{}", Query::of(options))).await
    }

    /// One build.
    pub async fn build(&self, build: BuildId) -> Result<wire::Build, ClientError> {
        self.get(&format!("builds/{build}")).await
    }

    /// What a build wrote, in pieces; following, until the build ends.
    pub async fn build_log(
        &self,
        build: BuildId,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<Bytes, ClientError>>, ClientError> {
        let path = format!("builds/{build}/log?follow={follow}");
        let response = self.call(Method::GET, &path, None).await?;
        Ok(self.connection.chunks(response))
    }

    /// Names of an owner's secrets.
    pub async fn secrets(&self, owner: &OwnerName) -> Result<Vec<wire::Secret>, ClientError> {
        self.get(&format!("owners/{owner}/secrets")).await
    }

    /// Keeps a secret, new or not.
    pub async fn set_secret(
        &self,
        owner: &OwnerName,
        name: &SecretName,
        value: Vec<u8>,
    ) -> Result<(), ClientError> {
        let path = format!("owners/{owner}/secrets/{name}");
        self.call(Method::PUT, &path, Some(value.into())).await.map(drop)
    }

    /// One secret, without its values.
    pub async fn secret(
        &self,
        owner: &OwnerName,
        name: &SecretName,
    ) -> Result<wire::Secret, ClientError> {
        self.get(&format!("owners/{owner}/secrets/{name}")).await
    }

    /// Makes a secret hold these items and no others.
    pub async fn set_secret_items(
        &self,
        owner: &OwnerName,
        name: &SecretName,
        items: &wire::SecretItems,
    ) -> Result<(), ClientError> {
        let path = format!("owners/{owner}/secrets/{name}/items");
        let body = serde_json::to_vec(items).map_err(|error| ClientError::Unreadable {
            server: self.connection.server.clone(),
            source: error.into(),
        })?;
        self.call(Method::PUT, &path, Some(body.into())).await.map(drop)
    }

    /// What a push of a file of sealed secrets would change.
    pub async fn compare_secrets(
        &self,
        owner: &OwnerName,
        repository: &RepositoryName,
        file: Vec<u8>,
    ) -> Result<Vec<wire::SecretDifference>, ClientError> {
        let path = format!("owners/{owner}/repositories/{repository}/secrets/diff");
        let response = self.call(Method::POST, &path, Some(file.into())).await?;
        self.connection.json(response).await
    }

    /// Removes a secret.
    pub async fn unset_secret(
        &self,
        owner: &OwnerName,
        name: &SecretName,
    ) -> Result<(), ClientError> {
        let path = format!("owners/{owner}/secrets/{name}");
        self.call(Method::DELETE, &path, None).await.map(drop)
    }

    /// Owners, by name.
    pub async fn owners(&self) -> Result<Vec<wire::Owner>, ClientError> {
        self.get("owners").await
    }

    /// Makes sure that an owner exists.
    pub async fn create_owner(&self, name: &OwnerName) -> Result<wire::Owner, ClientError> {
        let owner = wire::Owner { name: name.clone(), created_at: None };
        self.send_json(Method::POST, "owners", &owner, CALL_TIME).await
    }

    /// Tokens: of an owner, or of everybody.
    pub async fn tokens(&self, owner: Option<&OwnerName>) -> Result<Vec<wire::Token>, ClientError> {
        let mut query = Query::default();
        query.add("owner", owner);
        self.get(&format!("tokens{query}")).await
    }

    /// Makes a token for an owner, who comes into being with it when new.
    pub async fn create_token(
        &self,
        owner: &OwnerName,
        name: &str,
    ) -> Result<wire::NewToken, ClientError> {
        let token = wire::CreateToken { owner: owner.clone(), name: name.to_owned() };
        self.send_json(Method::POST, "tokens", &token, CALL_TIME).await
    }

    /// Makes a token worthless.
    pub async fn revoke_token(&self, token: TokenId) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("tokens/{token}"), None).await.map(drop)
    }

    /// Calls a function: any method, `path` with its query below the server's root. With `host`
    /// the request goes to that host name at this server's address. Credentials are not sent.
    /// The answer is the function's, whatever its status.
    pub async fn invoke(
        &self,
        method: Method,
        host: Option<&str>,
        path: &str,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(host) = host {
            request = request.header(header::HOST, host);
        }
        let mut request = request.body(whole(body.into()))?;
        request.headers_mut().extend(headers);
        self.connection.send(request, CHANGE_TIME).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.call(Method::GET, path, None).await?;
        self.connection.json(response).await
    }

    async fn send_json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Unreadable {
            server: self.connection.server.clone(),
            source: error.into(),
        })?;
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(whole(body.into()))?;
        let response = self.connection.call(request, limit).await?;
        self.connection.json(response).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Response<Incoming>, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/{path}"))
            .body(whole(body.unwrap_or_default()))?;
        self.connection.call(request, CALL_TIME).await
    }
}

fn whole(body: Bytes) -> SendBody {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

/// A query string under construction.
#[derive(Default)]
struct Query(String);

impl Query {
    fn of(options: &ListOptions) -> Self {
        let mut query = Self::default();
        query.add("owner", options.owner.as_ref());
        query.add("function", options.function.as_ref());
        query.add("repository", options.repository.as_ref());
        query.add("limit", options.limit);
        query
    }

    fn add(&mut self, key: &str, value: Option<impl ToString>) {
        let Some(value) = value else { return };
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(key);
        self.0.push('=');
        for byte in value.to_string().bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
                self.0.push(char::from(byte));
            } else {
                // Writing to a string cannot fail.
                let _written = write!(self.0, "%{byte:02X}");
            }
        }
    }
}

impl std::fmt::Display for Query {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_escaped_and_leaves_out_what_is_absent() {
        let mut query = Query::default();
        query.add("a", None::<u32>);
        assert_eq!(query.to_string(), "");
        query.add("since", Some("2026-01-01T00:00:00+02:00"));
        query.add("tail", Some(5));
        assert_eq!(query.to_string(), "?since=2026-01-01T00%3A00%3A00%2B02%3A00&tail=5");
    }
}
