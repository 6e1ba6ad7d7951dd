//! What owners push, and how it becomes a build context.
//!
//! Everything here was written by strangers: texts are parsed under caps, paths are resolved
//! beneath the folder they belong to, links cannot leave it. Nothing here builds or runs anything.

pub mod context;
mod diagnostic;
pub mod git;
mod path;
mod size;
pub mod stack;
pub mod template;
mod tree;
mod yaml;

pub use diagnostic::{Diagnostic, Position};
pub use path::{OpenError, PathError};
