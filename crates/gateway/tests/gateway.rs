//! The gateway's router against the API's description, table by table, as its clients call it.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "support/memory_engine.rs"]
mod memory_engine;

#[path = "gateway/access.rs"]
mod access;
#[path = "gateway/alert.rs"]
mod alert;
#[path = "gateway/calls.rs"]
mod calls;
#[path = "gateway/deployment.rs"]
mod deployment;
#[path = "gateway/functions.rs"]
mod functions;
#[path = "gateway/harness.rs"]
mod harness;
#[path = "gateway/info.rs"]
mod info;
#[path = "gateway/logs.rs"]
mod logs;
#[path = "gateway/logs_provider.rs"]
mod logs_provider;
#[path = "gateway/namespaces.rs"]
mod namespaces;
#[path = "gateway/openapi.rs"]
mod openapi;
#[path = "gateway/requests.rs"]
mod requests;
#[path = "gateway/routes.rs"]
mod routes;
#[path = "gateway/secrets.rs"]
mod secrets;
