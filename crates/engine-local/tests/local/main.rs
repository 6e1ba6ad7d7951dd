//! The local engine on this machine's real kernel, with real container runtimes.

mod adoption;
mod conformance;
mod harness;
mod network;
