//! The local engine on this machine's real kernel, with real container runtimes.

#![allow(clippy::unwrap_used, reason = "a failed step ends its test")]

mod adoption;
mod cgroups;
mod conformance;
mod gvisor;
mod harness;
mod hostile;
mod hostile_network;
mod limits;
mod names;
mod network;
mod registry;
mod rest;
mod shares;
mod store;
mod upgrade;
