//! The queue with its calls kept by a NATS server of each test's own: the tests of `queue.rs`, and
//! what only a broker can do, such as being away.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "queue/backend/nats.rs"]
mod backend;
#[path = "queue/broker.rs"]
mod broker;
#[path = "queue/callbacks.rs"]
mod callbacks;
#[path = "queue/calls.rs"]
mod calls;
#[path = "queue/double.rs"]
mod double;
#[path = "queue/house.rs"]
mod house;
#[path = "queue/restarts.rs"]
mod restarts;
#[path = "queue/retries.rs"]
mod retries;
#[path = "queue/schedules.rs"]
mod schedules;
#[path = "../../queue-nats/tests/nats/server.rs"]
mod server;
