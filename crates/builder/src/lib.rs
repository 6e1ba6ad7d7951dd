//! Turns a build context into an image, contained and limited.
//!
//! On the way from push to ready this crate has one step: the folder that the source crate
//! prepared goes in, an image in the store comes out, and every line that the build writes goes
//! to whoever watches. It never decides whether a build is needed; [`Builder::key`] tells the
//! caller what a build depends on, so that the caller can.

mod buildah;
mod cgroup;
mod dockerfile;
mod error;
mod network;
mod output;
mod port;
mod sandbox;
mod seccomp;

pub use buildah::{BuildahBuilder, examine};
pub use error::BuildError;
pub use network::{Destination, Egress, ParseDestinationError};
pub use port::{BuildLimits, BuildPolicy, BuildRequest, Builder, BuiltImage, LineSink};
