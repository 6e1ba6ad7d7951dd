//! The real binary with real processes behind it; each test is a claim of the user guide's tables.

#![allow(clippy::unwrap_used)]

mod classic;
mod forking;
mod http;
mod inproc;
mod jwt;
mod life;
mod observe;
mod support;
mod traces;
