//! The watchdog: the small binary inside each function container. HTTP comes in on one port, and
//! the function's process answers behind it.
//!
//! A call's way: `server` accepts and guards, `auth` asks for its token, then `proxy` (mode http),
//! `fork` (streaming, serializing, classic) or `files` (static) answers; `life` knows whether calls
//! are welcome, `metrics` counts them, `run` starts and ends everything. It depends on no other
//! crate of the workspace and on no C library that would look up names or users, so that it runs
//! alone in an empty image as PID 1.

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
mod socket;
mod upstream;

pub use config::{Config, ConfigError};
pub use log::{Log, LogFormat};
pub use run::{lock_file_exists, run, version_line};
