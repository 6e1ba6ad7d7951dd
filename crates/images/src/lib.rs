//! The container images kept on this machine, through `buildah`.
//!
//! On its place between the builder, which adds images, and the engine, which runs them, this
//! crate answers four questions: is this image here, how does it get here, where is its root
//! folder, and what may be thrown away. The store is a folder of Updraft's own; the stores of
//! the machine's users (`/var/lib/containers`) are never touched.
//!
//! `buildah` writes, this crate reads: asking which image a name means and mounting its layers
//! go straight to the store's documented files, because each start of a program would cost more
//! than the rest of a deployment. Images come from an archive, from a registry, or, for the base
//! images of the templates, from Debian packages ([`base`]), so that a machine without any
//! registry is a supported case.

mod archive;
pub mod base;
mod collect;
mod config;
mod credentials;
mod driver;
mod error;
mod layout;
mod loose;
mod maintain;
mod mount;
mod name;
mod opaque;
mod process;
mod pull;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod uses;

pub use collect::{Budget, Collected, Keep, Role, Step, Survey, Surveyed};
pub use config::{ImageConfig, architecture};
pub use credentials::{CredentialsError, RegistryCredentials};
pub use driver::Driver;
pub use error::ImageError;
pub use store::{Image, ImageStore, ImageStoreOptions, Progress, Working};
