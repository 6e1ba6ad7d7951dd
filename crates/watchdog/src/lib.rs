//! The watchdog: the small binary inside each function container. HTTP comes in on one port, and
//! the function's process answers behind it.
//!
//! A call's way: `server` accepts and guards, `auth` asks for its token, then `proxy` (mode http),
//! `fork` (streaming, serializing, classic), `files` (static) or a handler compiled in
//! (`inproc`) answers; `life` knows whether calls
//! are welcome, `metrics` counts them, `traces` tells of them, `run` starts and ends everything. It depends on no other
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
mod inproc;
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
mod start;
mod traces;
mod upstream;

pub use inproc::Handler;
pub use start::start;
