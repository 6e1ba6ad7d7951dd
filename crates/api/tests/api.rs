//! The system host as its clients meet it: the typed client and real git over real HTTP.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "../../gateway/tests/support/memory_engine.rs"]
mod memory_engine;

#[path = "api/access.rs"]
mod access;
#[path = "api/builds.rs"]
mod builds;
#[path = "api/calls.rs"]
mod calls;
#[path = "api/engine.rs"]
mod engine;
#[path = "api/functions.rs"]
mod functions;
#[path = "api/git.rs"]
mod git;
#[path = "api/harness.rs"]
mod harness;
#[path = "api/keys.rs"]
mod keys;
#[path = "api/pushes.rs"]
mod pushes;
#[path = "api/schedules.rs"]
mod schedules;
#[path = "api/secrets.rs"]
mod secrets;
#[path = "api/tokens.rs"]
mod tokens;
