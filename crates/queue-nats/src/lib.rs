//! Asynchronous calls kept by a NATS server: [`NatsCallStore`] is the queue's other home.
//!
//! Three streams hold everything that must outlive a process or be shared by several: the calls to
//! make, what became of each call, and long bodies. A function's calls are handed out by a pull
//! consumer of its own, whose unacknowledged messages are the leases; which attempt counts is
//! settled by the record, of which each version replaces exactly the one before it. Lists and
//! look-ups are answered from an index on this machine that follows the streams and can be thrown
//! away at any time. Nothing here decides which call is made when, or what an answer means.

mod body;
mod callback;
mod end;
mod entry;
mod examine;
mod follow;
mod lease;
mod link;
mod message;
mod options;
mod recover;
mod store;

pub use examine::{NatsFinding, examine};
pub use link::OpenNatsError;
pub use options::{NatsLogin, NatsOptions, NatsTls, ParseStreamNameError, StreamName};
pub use store::NatsCallStore;
