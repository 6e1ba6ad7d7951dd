//! What fuzzing has found or should begin with, as an ordinary test.

#![allow(clippy::unwrap_used, missing_docs, unused_crate_dependencies)]

use std::path::Path;

use proptest::prelude::*;

/// Files of sealed secrets.
mod sealed {
    use updraft_seal::{
        Document, Format, Hints, Item, Limits, SealedFile, parse_documents, unseal_with_keys,
    };

    include!("../../../fuzz/properties/sealed.rs");
}

/// Single values.
mod opening {
    use std::sync::OnceLock;

    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use updraft_seal::{
        Document, Hints, Item, Limits, OpeningKey, PrivateKey, SealedSecret, parse_documents,
        unseal_with_keys,
    };

    include!("../../../fuzz/properties/opening.rs");
}

fn samples(which: &str) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(which);
    let entries = std::fs::read_dir(&corpus).unwrap();
    entries.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

#[test]
fn files_that_fuzzing_knows_keep_their_properties() {
    let samples = samples("sealed");
    assert!(samples.len() >= 6, "only {} samples", samples.len());
    for sample in samples {
        sealed::check(&sample);
    }
}

#[test]
fn values_that_fuzzing_knows_keep_their_properties() {
    let samples = samples("opening");
    assert!(samples.len() >= 5, "only {} samples", samples.len());
    for sample in samples {
        opening::check(&sample);
    }
}

proptest! {
    #[test]
    fn damaged_files_keep_their_properties(
        which: prop::sample::Index,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut: prop::sample::Index,
    ) {
        let samples = samples("sealed");
        let mut sample = which.get(&samples).clone();
        for (at, byte) in changes {
            let at = at.index(sample.len());
            sample[at] = byte;
        }
        if cut.index(3) == 0 {
            sample.truncate(cut.index(sample.len()));
        }
        sealed::check(&sample);
    }

    #[test]
    fn values_of_any_bytes_keep_their_properties(
        data in prop::collection::vec(any::<u8>(), 0..700),
    ) {
        opening::check(&data);
    }
}
