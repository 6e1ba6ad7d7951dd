//! The suite that every engine must pass.
//!
//! An engine's tests implement [`Harness`] and stamp the suite out with
//! [`engine_conformance!`](crate::engine_conformance): one test per claim, each on an engine of
//! its own. What a harness cannot offer is not asked for; what the port promises is not optional.
//!
//! The suite calls functions the way the data plane does: it takes a replica from the endpoint
//! table and a lease on it. The function it deploys is an image that serves HTTP on port 8080:
//!
//! | path | answer |
//! |------|--------|
//! | `/_/health` | the status that `/sick` was told, that in the environment variable `health`, or 200 |
//! | `/sick/STATUS` | makes `/_/health` answer that from now on |
//! | `/env/NAME` | the variable's value, or 404 |
//! | `/read/PATH`, `/write/PATH`, `/remove/PATH` | the file's content, or nothing; 500 with the reason when it fails |
//! | `/stat/PATH` | the file's mode, user and group: `400 1000 1000` |
//! | `/print/WORDS` | prints a line on standard output |
//! | `/slow/MS` | answers that much later |
//! | `/held` | answers once somebody has called `/release` |
//! | `/exit/CODE` | ends the process |
//! | `/memory/MIB` | touches that much memory |
//! | `/hold/MIB` | touches that much memory and keeps it |
//! | `/count` | how many bytes of what it keeps are what they were |
//! | `/spin/MS` | keeps a processor busy for that long |
//! | `/threads/NUMBER` | starts that many threads, each for a second; how many could be |
//! | `/connect/TARGET` | `connected` once a TCP connection to an address or name with a port is; 500 with the reason when there is none within half a second |
//! | `/upgrade` | 101; from then on the connection sends back what comes |
//! | `/attack/WORDS` | what `/usr/bin/perl /attacks.pl WORDS…` prints; words are separated by `/`, with `%` codes for what cannot stand in a path |
//! | anything else | the variable `answer`, or `hello` |
//!
//! With the variable `exit_at_start` it prints `conformance app was asked to fail` on standard
//! error and exits with that code; with `start_delay_ms` it listens that much later; with
//! `lock_file` it writes `/tmp/.lock` once it listens. Beside it the image has what attacks are made
//! of: an interpreter at `/usr/bin/perl`, a copy of it at `/setuid-perl` that belongs to root and
//! has the set-user-id bit (mode 4755), and [`ATTACKS`] at `/attacks.pl`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed claim ends its test")]

mod client;
pub mod egress;
pub mod exits;
pub mod hostile;
pub mod inside;
pub mod isolation;
pub mod life;
pub mod logs;
pub mod names;
pub mod rest;
pub mod restart;
pub mod secrets;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use updraft_model::{FunctionId, FunctionSpec, ImageRef, Namespace, annotations, labels};

use crate::{Engine, FunctionStatus, Revision, Wake};

/// How long anything may take that should happen by itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks at something that should happen by itself.
const LOOK: Duration = Duration::from_millis(10);

/// What attacks from inside a function are: a script for an interpreter without modules.
pub const ATTACKS: &str = include_str!("conformance/attacks.pl");

/// The path that has the suite's function run an attack.
pub fn attack_path(words: &[&str]) -> String {
    let mut path = "/attack".to_owned();
    for word in words {
        path.push('/');
        for byte in word.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._".contains(&byte) {
                path.push(char::from(byte));
            } else {
                write!(path, "%{byte:02x}").expect("text takes text");
            }
        }
    }
    path
}

/// What the engine of a harness lets one replica have at most, whose spec says nothing about it.
/// The suite fills all of it: the less, the quicker.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Processes and threads.
    pub processes: u32,
    /// Bytes of memory, with all that is kept in memory.
    pub memory_bytes: u64,
    /// Bytes of each of `/tmp` and `/dev/shm`.
    pub tmp_bytes: u64,
    /// Bytes that may be written to the root.
    pub root_bytes: u64,
    /// Files in each of these places.
    pub files: u32,
    /// Bytes of its log that are kept.
    pub log_bytes: u64,
}

/// An engine to be judged, with nothing deployed on it.
#[async_trait]
pub trait Harness: Sized + Send + Sync + 'static {
    /// What was prepared for the engine before there was anything else.
    type Ground: Send;

    /// Prepares what has to be so for the whole of a test, on the thread that starts all others.
    fn prepare() -> Self::Ground;

    /// Makes a fresh engine. A replica may take at most 10 seconds to become ready on it:
    /// enough for a busy machine, little enough to wait for the end of. Names of egress policies
    /// are looked up again within seconds.
    async fn start(ground: Self::Ground) -> Self;

    /// The engine.
    fn engine(&self) -> Arc<dyn Engine>;

    /// Ends the engine as its process ends, and makes another one of what that left behind. What
    /// [`Self::engine`] gave before is not used any more.
    async fn restart(&self);

    /// The image with the suite's function, which runs as a user that is not root.
    fn image(&self) -> ImageRef;

    /// The same image, whose function runs as root as far as it can tell.
    fn root_image(&self) -> ImageRef;

    /// What a replica gets on this engine.
    fn bounds(&self) -> Bounds;

    /// Addresses at which the platform or its machines accept TCP connections, none of them for
    /// functions: the engine's own programs, the control plane, services of the host, by every
    /// address that a function could try. They accept for as long as the harness is there.
    fn inside(&self) -> Vec<SocketAddr>;

    /// The name and port at which functions that may reach the gateway find it.
    fn gateway(&self) -> String;

    /// Makes a public name stand for these addresses and no others, for whomever the engine asks.
    fn set_name(&self, name: &str, addresses: &[Ipv4Addr]);

    /// An image reference that stands for nothing and never will.
    fn missing_image(&self) -> ImageRef;

    /// Two services that accept TCP connections at a public address outside of the engine, until
    /// the engine is stopped.
    async fn outside(&self) -> [SocketAddr; 2];

    /// Whether the engine can tell what replicas use here.
    fn measures_usage(&self) -> bool {
        true
    }

    /// Ends the engine and removes all that it made.
    async fn stop(self);
}

/// Runs one claim and stops the engine whatever comes of it.
pub fn judge<H, Claim, Outcome>(claim: Claim)
where
    H: Harness,
    Claim: FnOnce(Arc<Judge<H>>) -> Outcome + Send + 'static,
    Outcome: Future<Output = ()> + Send + 'static,
{
    let ground = H::prepare();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().expect("threads can be made");
    runtime.block_on(judge_on::<H, _, _>(ground, claim));
}

async fn judge_on<H, Claim, Outcome>(ground: H::Ground, claim: Claim)
where
    H: Harness,
    Claim: FnOnce(Arc<Judge<H>>) -> Outcome + Send + 'static,
    Outcome: Future<Output = ()> + Send + 'static,
{
    let judge = Arc::new(Judge { harness: H::start(ground).await });
    let outcome = tokio::spawn(claim(Arc::clone(&judge))).await;
    let judge = Arc::into_inner(judge).expect("a claim keeps nothing running");
    judge.harness.stop().await;
    if let Err(failure) = outcome {
        resume_unwind(failure.into_panic());
    }
}

/// What a claim works with.
#[derive(Debug)]
pub struct Judge<H> {
    harness: H,
}

impl<H: Harness> Judge<H> {
    fn engine(&self) -> Arc<dyn Engine> {
        self.harness.engine()
    }

    /// A spec for the suite's function in the default namespace.
    fn spec(&self, name: &str) -> FunctionSpec {
        let id = FunctionId::in_default(name.parse().expect("a name"));
        FunctionSpec::new(id, self.harness.image())
    }

    /// A spec of a tenant.
    fn owned(&self, owner: &str, name: &str) -> FunctionSpec {
        let mut spec = self.spec(name);
        spec.labels.insert(labels::GIT_OWNER.into(), owner.into());
        spec
    }

    fn spec_in(&self, namespace: &str, name: &str) -> FunctionSpec {
        let namespace = Namespace::new(namespace).expect("a namespace");
        let id = FunctionId { namespace, name: name.parse().expect("a name") };
        FunctionSpec::new(id, self.harness.image())
    }

    /// Applies a spec and waits until it serves.
    async fn deploy(&self, spec: &FunctionSpec) -> Revision {
        let engine = self.engine();
        let revision = engine.apply(spec.clone(), Wake::Keep).await.expect("it applies");
        engine.wait_ready(&spec.id, revision, PATIENCE).await.expect("it becomes ready");
        revision
    }

    /// The address of a function's first ready replica.
    fn address(&self, id: &FunctionId) -> SocketAddr {
        self.engine().endpoints().borrow()[id].ready[0].address
    }

    async fn status(&self, id: &FunctionId) -> FunctionStatus {
        self.engine().get(id).await.expect("get works").expect("the function is there")
    }

    /// Looks again until `check` is true.
    async fn until<Check, Outcome>(&self, what: &str, check: Check)
    where
        Check: Fn() -> Outcome,
        Outcome: Future<Output = bool>,
    {
        let begin = Instant::now();
        while !check().await {
            assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until so many replicas are ready and no other is.
    async fn until_ready(&self, id: &FunctionId, replicas: u32) {
        let what = format!("{id} has {replicas} ready replicas");
        self.until(&what, || async {
            let listed =
                self.engine().endpoints().borrow().get(id).map_or(0, |entry| entry.ready.len());
            self.status(id).await.available_replicas == replicas && listed == replicas as usize
        })
        .await;
    }
}

/// A spec with environment variables.
fn with_environment(mut spec: FunctionSpec, variables: &[(&str, &str)]) -> FunctionSpec {
    let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    spec.environment.extend(variables);
    spec
}

/// A spec that says what its function may reach.
fn narrowed(mut spec: FunctionSpec, egress: &str) -> FunctionSpec {
    spec.annotations.insert(annotations::EGRESS.into(), egress.into());
    spec
}

/// Stamps the suite out for a [`Harness`], in modules by subject.
///
/// Claims that it cannot keep are left out by a macro of the tests' own, in which each has a rule
/// with the reason beside it. It gets the claim and its test, and begins with
/// `#[deny(unused_macro_rules)]`, so that no name in it means nothing:
///
/// ```ignore
/// macro_rules! kept {
///     // There are no logs.
///     (a_tail_is_the_end_of_what_is_there $($test:tt)*) => {};
///     ($claim:ident $($test:tt)*) => { $($test)* };
/// }
/// updraft_engine::engine_conformance!(Mine, kept);
/// ```
#[macro_export]
macro_rules! engine_conformance {
    ($harness:ty) => {
        $crate::engine_conformance!(@list $harness, [$crate::every_claim]);
    };
    ($harness:ty, $kept:ident) => {
        $crate::engine_conformance!(@list $harness, [$kept]);
    };
    (@list $harness:ty, $kept:tt) => {
        $crate::engine_conformance!(@tests $harness, $kept,
            life: [
                a_function_is_created_listed_described_and_removed,
                what_does_not_exist_is_told,
                a_spec_that_cannot_run_is_refused,
                a_release_applied_again_changes_nothing,
                an_update_rolls_even_when_nothing_has_changed,
                a_change_in_between_stops_a_conditional_update,
                an_update_replaces_what_answers,
                a_first_revision_that_fails_is_told_with_its_last_lines,
                an_image_that_does_not_exist_is_told,
                a_function_that_never_gets_ready_is_told_why,
                a_failing_update_leaves_the_old_revision_serving,
                a_fixed_update_after_a_failing_one_serves,
                the_newest_of_many_updates_wins,
                no_request_fails_while_a_function_is_replaced,
                an_open_request_ends_before_its_replica_goes,
                an_upgraded_connection_goes_on_while_its_function_is_replaced,
                scaling_starts_and_ends_replicas,
                the_minimum_label_decides_how_many_start,
                a_sleeping_function_stays_asleep_when_it_is_updated,
                a_sleeping_function_wakes_to_prove_an_update,
                a_failed_proof_lets_a_sleeping_function_sleep_on,
                a_sleeping_function_wakes_when_it_is_asked_for,
                a_crashed_replica_is_started_again,
                a_function_removed_while_it_starts_is_gone,
                a_removed_function_can_be_created_again,
            ]
            exits: [
                an_exit_is_told_with_its_code_and_last_lines,
                a_memory_kill_is_told_as_one,
                a_crash_loop_backs_off_and_says_so,
                a_function_that_rests_between_two_crashes_still_says_so,
                replicas_are_told_one_by_one,
                a_replica_that_hangs_is_replaced,
                readiness_waits_for_the_path_that_was_asked_for,
                a_replica_that_is_not_ready_any_more_gets_no_requests_until_it_is,
                a_lock_file_tells_readiness_and_health,
                an_engine_tells_what_it_found,
            ]
            secrets: [
                secrets_are_created_listed_updated_and_removed,
                a_secret_holds_the_items_it_was_given_last,
                each_item_of_a_secret_is_a_file,
                an_item_that_two_secrets_have_is_refused,
                a_secret_is_a_file_that_only_the_function_reads,
                an_updated_secret_is_seen_by_running_replicas,
                a_secret_is_never_seen_half_updated,
                a_function_with_a_missing_secret_is_refused,
                namespaces_are_created_listed_updated_and_removed,
                namespaces_hold_functions_of_the_same_name_apart,
                a_removed_namespace_takes_its_functions_along,
            ]
            logs: [
                logs_are_there_after_the_replica_is_gone,
                a_tail_is_the_end_of_what_is_there,
                since_leaves_earlier_lines_out,
                a_follower_sees_lines_of_new_replicas,
            ]
            rest: [
                a_frozen_function_is_thawed_as_it_was,
                a_frozen_function_does_nothing,
                a_busy_function_is_not_frozen,
                a_starting_function_is_not_frozen,
                no_request_fails_however_often_its_function_is_frozen,
                a_frozen_function_is_scaled_replaced_and_removed,
                a_secret_that_changes_during_a_rest_is_seen_after_it,
                a_request_thaws_without_the_control_plane,
                a_wake_up_runs_the_minimum,
                usage_follows_what_replicas_do,
                a_processor_limit_holds,
            ]
            isolation: [
                environment_and_process_reach_the_function,
                a_function_has_no_privileges,
                a_function_sees_no_other_process,
                a_read_only_root_cannot_be_written_but_tmp_can,
                a_writable_root_is_fresh_for_each_replica,
                a_function_that_takes_too_much_memory_is_ended_and_told,
            ]
            egress: [
                an_open_function_reaches_the_outside,
                a_closed_function_reaches_nothing,
                a_list_opens_what_it_names_and_nothing_else,
                no_function_reaches_another_by_its_address,
                a_policy_changes_with_the_function,
                a_policy_that_means_nothing_is_refused,
            ]
            names: [
                a_name_on_a_list_opens_what_it_stands_for_and_nothing_else,
                a_name_that_moves_in_public_is_followed,
                a_name_that_is_turned_to_the_inside_opens_nothing_there,
            ]
            inside: [
                the_platform_and_its_machines_are_out_of_reach,
                metadata_and_private_networks_are_out_of_reach,
                the_gateways_door_is_open_to_those_who_may_use_it,
                nobody_speaks_under_the_address_of_another,
            ]
            hostile: [
                a_fork_bomb_ends_at_the_limit_of_processes,
                a_memory_bomb_ends_its_own_replica_alone,
                filling_the_disk_ends_where_the_replicas_own_room_does,
                filling_a_file_system_with_empty_files_ends_at_its_bound,
                a_flooded_log_is_cut_and_the_newest_lines_are_kept,
                mounts_and_new_namespaces_are_refused,
                other_processes_cannot_be_traced,
                the_kernels_keyrings_are_out_of_reach,
                calls_that_only_attacks_make_are_refused,
                raw_sockets_are_refused,
                ports_below_1024_cannot_be_bound,
                proc_and_sys_lead_nowhere,
                cgroups_cannot_be_reached_let_alone_left,
                device_nodes_cannot_be_made,
                programs_that_are_to_run_as_root_do_not,
            ]
            restart: [
                replicas_outlive_the_control_plane,
                what_is_desired_outlives_the_control_plane,
                how_a_replica_ended_is_known_after_a_restart,
                what_was_frozen_answers_after_a_restart,
                what_a_restart_finds_leaving_is_not_counted_as_a_failure,
            ]
        );
    };
    (@tests $harness:ty, $kept:tt, $($module:ident: [$($claim:ident,)*])*) => {
        $(
            mod $module {
                use super::*;

                $(
                    $crate::engine_conformance!(@test $harness, $kept, $module, $claim);
                )*
            }
        )*
    };
    (@test $harness:ty, [$($kept:tt)*], $module:ident, $claim:ident) => {
        $($kept)*! {
            $claim
            #[test]
            fn $claim() {
                $crate::conformance::judge::<$harness, _, _>(
                    $crate::conformance::$module::$claim,
                );
            }
        }
    };
}

/// What leaves no claim of the suite out.
#[doc(hidden)]
#[macro_export]
macro_rules! every_claim {
    ($claim:ident $($test:tt)*) => { $($test)* };
}
