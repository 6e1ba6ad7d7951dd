//! The watchdog: the small binary inside each function container. HTTP comes in on one port, and
//! the function's process answers behind it.
//!
//! A call's way: `server` accepts and guards, then `proxy` (mode http), `fork` (streaming and
//! serializing) or `files` (static) answers; `life` knows whether calls are welcome, `run` starts
//! and ends everything. It depends on no other crate of the workspace, resolves no names and reads
//! no user database, so that it runs alone in an empty image as PID 1.

mod auth;
mod body;
mod call;
mod children;
mod config;
mod duration;
mod files;
mod fork;
mod life;
mod lines;
mod log;
mod metrics;
mod percent;
mod proxy;
mod resolve;
mod run;
mod server;
mod upstream;

pub use config::{Config, ConfigError};
pub use log::{Log, LogFormat};
pub use run::{lock_file_exists, run, version_line};
