//! Functions are frozen while nobody calls them, and nobody who calls them notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use updraft_engine::{Availability, Engine};
use updraft_tests::{DataPlane, eventually};

/// Calls of each caller.
const CALLS: u64 = 120;

/// Callers come at all moments of freezing and thawing, through the data plane, to one function
/// with one replica and to one with several.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_served_while_functions_are_frozen_as_often_as_possible() {
    let plane = Arc::new(DataPlane::start().await);
    let ids = [plane.deploy("single", 1).await, plane.deploy("several", 3).await];
    let over = Arc::new(AtomicBool::new(false));
    let frozen = Arc::new(AtomicUsize::new(0));
    let freezers: Vec<_> = ids
        .iter()
        .map(|id| {
            let (plane, id) = (Arc::clone(&plane), id.clone());
            let (over, frozen) = (Arc::clone(&over), Arc::clone(&frozen));
            tokio::spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    let before = plane.engine.endpoints().borrow()[&id].availability.clone();
                    if plane.engine.freeze(&id).await.expect("it can be asked")
                        && before != Availability::Frozen
                    {
                        frozen.fetch_add(1, Ordering::SeqCst);
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let callers: Vec<_> = (0..6_usize)
        .map(|caller| {
            let (plane, id) = (Arc::clone(&plane), ids[caller % 2].clone());
            tokio::spawn(async move {
                for call in 0..CALLS {
                    // Spread over a whole cycle of resting and waking, the same in each run.
                    let pause = (call * 7919 + caller as u64 * 104_729) % 97;
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                    let answer = plane.call(&id).await;
                    assert_eq!(answer.status, 200, "{}", answer.body);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("every call is served");
    }
    over.store(true, Ordering::SeqCst);
    for freezer in freezers {
        freezer.await.expect("freezing does not fail");
    }
    let frozen = frozen.load(Ordering::SeqCst);
    assert!(frozen >= 20, "they were frozen {frozen} times only");
    Arc::into_inner(plane).expect("nobody uses it any more").stop().await;
}

/// Many who come at once to what is frozen are all served by one thaw.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_before_a_frozen_function_is_served_at_once() {
    let plane = Arc::new(DataPlane::start().await);
    let id = plane.deploy("crowded", 1).await;
    eventually("it is frozen", Duration::from_secs(10), async || {
        plane.engine.freeze(&id).await.ok()?.then_some(())
    })
    .await;
    let callers: Vec<_> = (0..200)
        .map(|_| {
            let (plane, id) = (Arc::clone(&plane), id.clone());
            tokio::spawn(async move { plane.call(&id).await.status })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.expect("the call ends"), 200);
    }
    Arc::into_inner(plane).expect("nobody uses it any more").stop().await;
}
