//! Files of sealed secrets: reading, opening, editing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use updraft_seal::{
    Document, Format, Hints, Item, Limits, SealedFile, parse_documents, unseal_with_keys,
};

include!("../properties/sealed.rs");

fuzz_target!(|data: &[u8]| check(data));
