//! The words of Updraft as types that cannot hold a wrong value.
//!
//! Names, quantities, durations, image references, digests and the function spec are parsed once,
//! at the door through which they come in, and are right from then on. This crate is pure: it does
//! no I/O, starts nothing and knows no other crate of the workspace.

mod digest;
mod duration;
mod egress;
mod function;
mod image;
mod name;
mod policy;
mod quantity;
mod tenant;

pub use digest::{Digest, ParseDigestError};
pub use duration::{ParseDurationError, format_duration, parse_duration};
pub use egress::{EgressPolicy, EgressRule, EgressTarget, IpBlock, ParseEgressError, Transport};
pub use function::{FunctionId, FunctionSpec, ResourceSet, SpecError, annotations, labels};
pub use image::{ImageRef, ParseImageRefError};
pub use name::{
    FunctionName, ItemKey, NameError, Namespace, OwnerName, RepositoryName, SecretName,
    owners_collide,
};
pub use policy::{Proof, Protection, Protocol, Sandbox};
pub use quantity::{CpuQuantity, MemoryQuantity, ParseQuantityError};
pub use tenant::{ParseTenantError, Tenant};
