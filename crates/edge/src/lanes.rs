//! The threads that serve connections, each with an event loop of its own.
//!
//! A connection stays on its lane all its life, and so do the connections to replicas that its
//! requests use: a call crosses no thread. The acceptor hands each new connection to the lane that
//! has the fewest. Nothing of the control plane runs here.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// All lanes; they end when this goes.
#[derive(Debug)]
pub(crate) struct Lanes {
    lanes: Vec<Lane>,
    ending: CancellationToken,
}

#[derive(Debug)]
struct Lane {
    handle: Handle,
    connections: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Lanes {
    /// Starts `count` threads, at least one.
    ///
    /// # Errors
    /// The system gives no thread or no event loop.
    pub(crate) fn start(count: usize) -> io::Result<Self> {
        let mut lanes = Self { lanes: Vec::new(), ending: CancellationToken::new() };
        for number in 0..count.max(1) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let ending = lanes.ending.clone();
            let thread = std::thread::Builder::new().name(format!("lane-{number}"));
            let thread = thread.spawn(move || {
                updraft_invoke::keep_connections_in(number);
                runtime.block_on(ending.cancelled());
            })?;
            let connections = Arc::default();
            lanes.lanes.push(Lane { handle, connections, thread: Some(thread) });
        }
        Ok(lanes)
    }

    /// Serves a connection on the lane that has the fewest of them.
    pub(crate) fn spawn<F>(&self, tasks: &TaskTracker, serving: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let load = |lane: &&Lane| lane.connections.load(Ordering::Relaxed);
        let Some(lane) = self.lanes.iter().min_by_key(load) else { return };
        let place = Place::take(&lane.connections);
        let serving = async move {
            serving.await;
            drop(place);
        };
        tasks.spawn_on(serving, &lane.handle);
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.ending.cancel();
        for lane in &mut self.lanes {
            if let Some(thread) = lane.thread.take() {
                // A lane that panicked has said so on its way.
                drop(thread.join());
            }
        }
    }
}

/// Counts one connection of a lane.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(connections: &Arc<AtomicUsize>) -> Self {
        connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(connections))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::thread::ThreadId;

    use tokio::sync::{mpsc, watch};

    use super::*;

    #[tokio::test]
    async fn connections_spread_evenly_and_free_their_place() {
        let lanes = Lanes::start(3).unwrap();
        let tasks = TaskTracker::new();
        let (here, mut seen) = mpsc::unbounded_channel();
        let end = watch::Sender::new(false);
        let mut threads: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..9 {
            let (here, mut end) = (here.clone(), end.subscribe());
            lanes.spawn(&tasks, async move {
                let id: ThreadId = std::thread::current().id();
                here.send(format!("{id:?}")).unwrap();
                end.wait_for(|end| *end).await.unwrap();
            });
            *threads.entry(seen.recv().await.unwrap()).or_default() += 1;
        }
        assert_eq!(threads.into_values().collect::<Vec<_>>(), [3, 3, 3]);
        end.send_replace(true);
        tasks.close();
        tasks.wait().await;
        let open = |lane: &Lane| lane.connections.load(Ordering::Relaxed);
        assert!(lanes.lanes.iter().all(|lane| open(lane) == 0));
    }
}
