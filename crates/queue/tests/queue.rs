//! The queue as its users meet it: real calls to real servers, with a real record on disk.
//!
//! `nats.rs` beside this runs the same tests with the record in NATS.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "queue/backend/sqlite.rs"]
mod backend;
#[path = "queue/callbacks.rs"]
mod callbacks;
#[path = "queue/calls.rs"]
mod calls;
#[path = "queue/double.rs"]
mod double;
#[path = "queue/house.rs"]
mod house;
#[path = "queue/lost_bodies.rs"]
mod lost_bodies;
#[path = "queue/restarts.rs"]
mod restarts;
#[path = "queue/retries.rs"]
mod retries;
#[path = "queue/schedules.rs"]
mod schedules;
