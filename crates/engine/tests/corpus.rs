//! What fuzzing has found or should begin with, as an ordinary test.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use updraft_engine::LogQuery;

include!("../../../fuzz/properties/query.rs");

#[test]
fn queries_that_fuzzing_knows_keep_their_properties() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/query");
    let mut checked = 0;
    for entry in std::fs::read_dir(&corpus).unwrap() {
        check(&std::fs::read(entry.unwrap().path()).unwrap());
        checked += 1;
    }
    assert!(checked >= 4, "only {checked} samples in {}", corpus.display());
}
