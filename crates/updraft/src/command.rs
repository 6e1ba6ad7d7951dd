//! What the commands do: each is a thin client of a running server, or works on the data
//! directory where no server is needed.

pub(crate) mod builds;
pub(crate) mod calls;
pub(crate) mod disk;
pub(crate) mod down;
pub(crate) mod engine;
mod function;
pub(crate) mod images;
pub(crate) mod invoke;
pub(crate) mod keys;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod new;
pub(crate) mod push;
pub(crate) mod releases;
pub(crate) mod remove;
pub(crate) mod replicas;
pub(crate) mod schedules;
pub(crate) mod seal;
pub(crate) mod secrets;
pub(crate) mod token;
