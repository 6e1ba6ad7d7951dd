//! The engine conformance suite, once for each runtime.

mod crun {
    use crate::harness::Local;

    updraft_engine::engine_conformance!(Local<false>);
}

mod runc {
    use crate::harness::Local;

    updraft_engine::engine_conformance!(Local<true>);
}
