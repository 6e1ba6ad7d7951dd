//! The local engine: replicas are containers on this machine, run by an OCI runtime.
//!
//! [`LocalEngine`] is the embedded implementation of the engine port. One task per function (the
//! `controller`) compares what is desired (`record`, on disk) with what runs and starts, replaces
//! and stops replicas; one task per replica walks the life cycle of one container (`replica`). A
//! container is a bundle (`bundle`) that the runtime program (`runtime`) runs inside a network
//! namespace made beforehand (`network`), in a cgroup (`cgroup`) below its tenant's (`groups`), with its output going to a
//! file (`logs`).
//!
//! Replicas are not children that die with Updraft: its next start adopts them. All that a
//! replica needs from the host beside its processes lives in memory of its own namespaces, so
//! that nothing is left behind when it ends, whoever ends it.
//!
//! This crate never builds or pulls an image (it asks an [`ImageSource`]), never proxies a
//! request, and nothing outside of it starts a container runtime for a replica.

mod address;
mod backoff;
mod bundle;
mod cgroup;
mod controller;
mod destroy;
mod egress;
mod engine;
mod exit;
mod findings;
mod firewall;
mod groups;
mod gvisor;
mod image;
mod launch;
mod logs;
mod metrics;
mod namespaces;
mod network;
mod options;
mod phases;
mod private_mounts;
mod probe;
mod pull_secret;
mod record;
mod replica;
mod runtime;
mod secrets;
mod shared;
mod stock;
mod strays;
mod tenants;
mod user;
mod volatile;

pub use engine::{EngineReport, LocalEngine};
pub use image::{ImageProcess, ImageSource, PreparedImage};
pub use options::{
    EgressOptions, GvisorPlatform, LocalEngineOptions, OpenError, RuntimeChoice, SandboxOptions,
    UserRange,
};
