//! The engine conformance suite, once for each runtime.

mod crun {
    use crate::harness::{Crun, Local};

    updraft_engine::engine_conformance!(Local<Crun>);
}

mod runc {
    use crate::harness::{Local, Runc};

    updraft_engine::engine_conformance!(Local<Runc>);
}

mod runsc {
    use crate::harness::{Gvisor, Local};

    /// What gVisor cannot keep.
    #[deny(unused_macro_rules)]
    macro_rules! kept {
        // The sandbox shows nobody its files, so such a probe is refused, as `gvisor.rs` tests.
        (a_lock_file_tells_readiness_and_health $($test:tt)*) => {};
        // It shows neither all sets of capabilities nor our filter, which is not applied; what it
        // shows is held to zero in `gvisor.rs`.
        (a_function_has_no_privileges $($test:tt)*) => {};
        // A sandbox that is killed tells nobody that its connections have ended, so the call that
        // takes too much waits for its own limit, which these calls have not. `gvisor.rs` tests
        // the rest: that the sandbox is ended, and that it is told why.
        (a_function_that_takes_too_much_memory_is_ended_and_told $($test:tt)*) => {};
        (a_memory_kill_is_told_as_one $($test:tt)*) => {};
        (a_memory_bomb_ends_its_own_replica_alone $($test:tt)*) => {};
        // The limit is one of the sandbox: at it the sandbox ends, and the bomb is not told.
        (a_fork_bomb_ends_at_the_limit_of_processes $($test:tt)*) => {};
        // Names are memory of the sandbox, which is what bounds them.
        (filling_a_file_system_with_empty_files_ends_at_its_bound $($test:tt)*) => {};
        // Refused otherwise, or granted in a kernel that is the function's alone, where it means
        // nothing to anybody else: docs/security.md has the list.
        (calls_that_only_attacks_make_are_refused $($test:tt)*) => {};
        (device_nodes_cannot_be_made $($test:tt)*) => {};
        (mounts_and_new_namespaces_are_refused $($test:tt)*) => {};
        (other_processes_cannot_be_traced $($test:tt)*) => {};
        (ports_below_1024_cannot_be_bound $($test:tt)*) => {};
        ($claim:ident $($test:tt)*) => { $($test)* };
    }

    updraft_engine::engine_conformance!(Local<Gvisor>, kept);
}
