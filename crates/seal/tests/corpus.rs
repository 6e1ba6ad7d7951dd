//! What fuzzing has found or should begin with, as an ordinary test.

#![allow(clippy::unwrap_used, missing_docs, unused_crate_dependencies)]

use std::path::Path;

use proptest::prelude::*;
use updraft_seal::{
    Document, Format, Hints, Item, Limits, SealedFile, parse_documents, unseal_with_keys,
};

include!("../../../fuzz/properties/sealed.rs");

fn samples() -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/sealed");
    let entries = std::fs::read_dir(&corpus).unwrap();
    entries.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

#[test]
fn files_that_fuzzing_knows_keep_their_properties() {
    let samples = samples();
    assert!(samples.len() >= 6, "only {} samples", samples.len());
    for sample in samples {
        check(&sample);
    }
}

proptest! {
    #[test]
    fn damaged_files_keep_their_properties(
        which: prop::sample::Index,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut: prop::sample::Index,
    ) {
        let samples = samples();
        let mut sample = which.get(&samples).clone();
        for (at, byte) in changes {
            let at = at.index(sample.len());
            sample[at] = byte;
        }
        if cut.index(3) == 0 {
            sample.truncate(cut.index(sample.len()));
        }
        check(&sample);
    }
}
