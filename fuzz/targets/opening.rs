//! Single sealed values: opening them.
#![no_main]

use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use updraft_seal::{
    Document, Hints, Item, Limits, OpeningKey, PrivateKey, SealedSecret, parse_documents,
    unseal_with_keys,
};

include!("../properties/opening.rs");

fuzz_target!(|data: &[u8]| check(data));
