//! Hosts and paths as strangers send them, on their way to a place.
#![no_main]

use libfuzzer_sys::fuzz_target;
use updraft_edge::{Host, Place, Root, Site};

include!("../properties/host_and_path.rs");

fuzz_target!(|data: &[u8]| check(data));
