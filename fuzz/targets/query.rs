//! The parameters of a request for logs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use updraft_engine::LogQuery;

include!("../properties/query.rs");

fuzz_target!(|data: &[u8]| check(data));
