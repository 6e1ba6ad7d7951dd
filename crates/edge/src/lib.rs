//! The front door: one listener, and for each request the one place it may go.
//!
//! The edge reads the host and the path and hands the request to the data plane, to the gateway
//! or to the platform's own routes. It denies by default: an owner's host reaches that owner's
//! functions and nothing else, and a host that nobody knows reaches nothing. It never looks into a
//! body, never follows a request to an address that the request names, and keeps no state.

mod body;
mod connection;
mod door;
mod host;
mod hurried;
mod lanes;
mod route;

pub use door::{Edge, EdgeLimits, EdgeParts, Inside};
pub use host::{Host, HostError};
pub use route::{Place, Root, RootError, Site};
