//! What fuzzing has found or should begin with, as an ordinary test.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use updraft_edge::{Host, Place, Root, Site};

include!("../../../fuzz/properties/host_and_path.rs");

#[test]
fn hosts_and_paths_that_fuzzing_knows_keep_their_properties() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/host_and_path");
    let mut checked = 0;
    for entry in std::fs::read_dir(&corpus).unwrap() {
        check(&std::fs::read(entry.unwrap().path()).unwrap());
        checked += 1;
    }
    assert!(checked >= 8, "only {checked} samples in {}", corpus.display());
}
