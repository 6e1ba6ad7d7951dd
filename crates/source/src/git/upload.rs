//! A working tree on its way to the server without a commit: packed there, unpacked here.
//!
//! The command line packs with [`pack`] or [`packed_body`], the server unpacks with [`unpack`];
//! both keep the same rules, so that what is refused is refused before it is sent. The format is
//! a tar archive, plain or gzipped, which `tar` and `git archive` write as well.

mod pack;
mod unpack;

pub use pack::{PackError, Packed, pack, packed_body};
pub use unpack::{UploadError, Uploaded, unpack};
