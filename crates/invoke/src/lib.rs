//! The data plane: takes one request to one ready replica of its function, and back.
//!
//! An [`Invoker`] follows the engine's table of endpoints, picks the replica with the least to
//! do, and streams both bodies through a kept-alive connection. A function that sleeps is woken
//! once for however many requests wait. It never decides who may call what (the edge does), never
//! sends a request twice of which a byte may have been read, and never touches what a function
//! answers beyond the headers that belong to the hop.

mod body;
mod call_id;
mod connection;
mod failure;
mod function;
mod gate;
mod headers;
mod ink;
mod invoker;
mod keys;
mod line;
mod metrics;
mod options;
mod replica;
mod search;
mod shared_connection;
mod table;
mod tunnel;
mod waiting;
mod wire;

pub use body::{BodyError, InvokeBody, RequestBody};
pub use failure::{Failure, INTERNAL};
pub use function::{Function, FunctionLoad};
pub use headers::{CALL_ID, Caller, Scheme, call_id};
pub use invoker::Invoker;
pub use keys::MissingKeys;
pub use options::InvokeOptions;
pub use replica::keep_connections_in;
pub use tunnel::TunnelGuard;
pub use wire::Wire;
