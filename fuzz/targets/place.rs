//! Names and namespaces from bodies, queries and paths, on their way to a function or a secret.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/gateway/src/place.rs"]
mod place;

include!("../properties/place.rs");

fuzz_target!(|data: &[u8]| check(data));
