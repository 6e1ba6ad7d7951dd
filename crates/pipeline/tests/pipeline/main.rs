//! The pipeline with a real store, real git and the real stack and context code; what builds and
//! what runs are small recording doubles, because the real ones have suites of their own.
#![allow(clippy::unwrap_used)]

mod bad_secrets;
mod builder;
mod engine;
mod git_push;
mod going_live;
mod newest_wins;
mod ownership;
mod resuming;
mod rolling_back;
mod sealing;
mod secrets;
mod world;
