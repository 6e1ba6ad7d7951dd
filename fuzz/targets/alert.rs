//! The webhook of Alertmanager.
#![no_main]

use libfuzzer_sys::fuzz_target;
use updraft_scaler::Alert;

include!("../properties/alert.rs");

fuzz_target!(|data: &[u8]| check(data));
