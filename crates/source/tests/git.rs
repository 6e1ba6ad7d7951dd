//! The git endpoint and checkouts, with a real `git` client against a real HTTP server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "git/checkout.rs"]
mod checkout;
#[path = "git/house.rs"]
mod house;
#[path = "git/limits.rs"]
mod limits;
#[path = "git/push.rs"]
mod push;
#[path = "git/upload.rs"]
mod upload;
