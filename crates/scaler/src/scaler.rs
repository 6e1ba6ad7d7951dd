//! The loop: measure, decide, act; once a tick.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use updraft_engine::{Engine, EngineError};
use updraft_invoke::Invoker;
use updraft_model::{FunctionId, FunctionSpec, Namespace};

use crate::alert::{Alert, AlertOutcome, AlertStatus, after_alert};
use crate::entry::{Action, Entry, Step};
use crate::metrics::ScalerCollector;
use crate::options::ScalerOptions;
use crate::policy::Policy;
use crate::view::ScalingView;

/// Longest time the engine may take for one request; the others wait meanwhile.
const ENGINE_LIMIT: Duration = Duration::from_secs(10);

/// How many asynchronous calls of a function wait or run.
pub type Backlog = Arc<dyn Fn(&FunctionId) -> u64 + Send + Sync>;

/// What a scaler is made of.
pub struct ScalerParts {
    /// What runs the functions.
    pub engine: Arc<dyn Engine>,
    /// Tells what they carry.
    pub invoker: Arc<Invoker>,
    /// Tells what waits for them.
    pub backlog: Backlog,
    /// How to work where labels say nothing.
    pub options: ScalerOptions,
}

impl fmt::Debug for ScalerParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScalerParts").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Scales functions until it is shut down.
#[derive(Debug)]
pub struct Scaler {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// What the loop, alerts and the metrics share.
#[derive(Debug)]
pub(crate) struct Shared {
    parts: ScalerParts,
    /// Held for moments only, never while the engine is asked.
    entries: Mutex<HashMap<FunctionId, Entry>>,
}

impl Shared {
    pub(crate) fn entries(&self) -> MutexGuard<'_, HashMap<FunctionId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scaler {
    /// Begins to look at all functions once a tick. Must be called within a Tokio runtime.
    pub fn start(parts: ScalerParts) -> Arc<Self> {
        let shared = Arc::new(Shared { parts, entries: Mutex::default() });
        let (tasks, closing) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn({
            let (shared, closing) = (Arc::clone(&shared), closing.clone());
            async move {
                let tick = shared.parts.options.tick.max(Duration::from_millis(10));
                let mut ticks = tokio::time::interval(tick);
                // After a pause, for instance of the whole machine, one look is enough.
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    tokio::select! {
                        _ = ticks.tick() => {}
                        () = closing.cancelled() => return,
                    }
                    // What is begun is ended, so that the log and the engine say the same.
                    shared.look().await;
                }
            }
        });
        tasks.close();
        Arc::new(Self { shared, tasks, closing })
    }

    /// Does what an alert asks: a step of the maximum more while it fires, the minimum when it is
    /// over. Functions that nobody knows are skipped, as are those whose labels give them one
    /// size.
    pub async fn alert(&self, alert: Alert) -> AlertOutcome {
        let mut outcome = AlertOutcome::default();
        for notice in alert.notices {
            let Some(id) = named(&notice.function) else { continue };
            match self.heed(&id, notice.status).await {
                Ok(true) => outcome.scaled += 1,
                Ok(false) | Err(EngineError::UnknownFunction(_)) => {}
                Err(error) => {
                    tracing::warn!(function = %id, %error, "an alert could not be heeded");
                    outcome.errors.push(format!("function `{id}` could not be scaled: {error}"));
                }
            }
        }
        outcome
    }

    async fn heed(&self, id: &FunctionId, status: AlertStatus) -> Result<bool, EngineError> {
        let ScalerParts { engine, options, .. } = &self.shared.parts;
        let Some(function) = limited(id, engine.get(id)).await? else { return Ok(false) };
        let current = function.replicas;
        let (policy, _) = Policy::of(&function.spec, options);
        let wanted = after_alert(status, current, &policy);
        if wanted == current {
            return Ok(false);
        }
        limited(id, engine.scale(id, wanted)).await?;
        let firing = status == AlertStatus::Firing;
        tracing::info!(
            "{id} {current} => {wanted}: alert {}",
            if firing { "fires" } else { "is over" }
        );
        if let Some(entry) = self.shared.entries().get_mut(id) {
            entry.scaled(wanted);
            let until = Instant::now() + options.manual_hold;
            entry.history.held = firing.then_some((until, wanted));
        }
        Ok(true)
    }

    /// How a function is scaled; nothing before the scaler has looked at it once.
    pub fn view(&self, id: &FunctionId) -> Option<ScalingView> {
        self.shared.entries().get(id).map(ScalingView::of)
    }

    /// What makes no sense among the labels and annotations that scaling reads.
    pub fn mistakes(&self, spec: &FunctionSpec) -> Vec<String> {
        crate::policy::mistakes(spec, &self.shared.parts.options)
    }

    /// Adds what is known of all functions' scaling to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(ScalerCollector(Arc::clone(&self.shared))));
    }

    /// Ends after the look that is under way.
    pub async fn shutdown(&self) {
        self.closing.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Scaler {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// What the engine is to be asked about a function before a decision.
struct Questions {
    id: FunctionId,
    status: bool,
    usage: bool,
}

impl Shared {
    /// One look at everything.
    async fn look(&self) {
        let now = Instant::now();
        for Questions { id, status, usage } in self.observe(now) {
            if let Err(error) = self.ask(&id, status, usage, now).await {
                tracing::debug!(function = %id, %error, "a function could not be looked at");
                continue;
            }
            let step = {
                let mut entries = self.entries();
                let Some(entry) = entries.get_mut(&id) else { continue };
                let ScalerParts { engine, options, .. } = &self.parts;
                entry.next(options, engine.capabilities().freeze, now, Timestamp::now())
            };
            let Some(step) = step else { continue };
            let done = self.act(&id, &step).await;
            if let Some(entry) = self.entries().get_mut(&id) {
                match done {
                    Ok(true) | Err(EngineError::UnknownFunction(_)) => {}
                    Ok(false) => entry.refused(now),
                    Err(_) => entry.failed(now),
                }
            }
        }
    }

    /// Notes what every function carries; returns those that something may follow for.
    fn observe(&self, now: Instant) -> Vec<Questions> {
        let ScalerParts { invoker, backlog, options, .. } = &self.parts;
        let loads = invoker.loads();
        let mut entries = self.entries();
        let mut questions = Vec::new();
        for load in &loads {
            let id = &load.spec.id;
            if !entries.contains_key(id) {
                entries.insert(id.clone(), Entry::new(load, options, now));
            }
            let Some(entry) = entries.get_mut(id) else { continue };
            entry.observe(load, backlog(id), options, now);
            let (status, usage) = (entry.wants_status(now), entry.wants_usage(now));
            if status || usage || entry.may_act() {
                questions.push(Questions { id: id.clone(), status, usage });
            }
        }
        if entries.len() > loads.len() {
            let known: std::collections::HashSet<&FunctionId> =
                loads.iter().map(|load| &load.spec.id).collect();
            entries.retain(|id, _| known.contains(id));
        }
        questions
    }

    async fn ask(
        &self,
        id: &FunctionId,
        status: bool,
        usage: bool,
        now: Instant,
    ) -> Result<(), EngineError> {
        let ScalerParts { engine, options, .. } = &self.parts;
        if status
            && let Some(status) = limited(id, engine.get(id)).await?
            && let Some(entry) = self.entries().get_mut(id)
        {
            entry.desired(status.replicas, options, now);
        }
        if usage {
            let usage = limited(id, engine.usage(id)).await?;
            if let Some(entry) = self.entries().get_mut(id) {
                entry.used(usage, now);
            }
        }
        Ok(())
    }

    /// Does a step; returns whether it was done.
    async fn act(&self, id: &FunctionId, step: &Step) -> Result<bool, EngineError> {
        let done = self.try_to_act(id, step).await;
        if let Err(error) = &done
            && !matches!(error, EngineError::UnknownFunction(_))
        {
            tracing::warn!(function = %id, %error, "a function could not be scaled");
        }
        done
    }

    async fn try_to_act(
        &self,
        id: &FunctionId,
        Step { action, reason }: &Step,
    ) -> Result<bool, EngineError> {
        let engine = &self.parts.engine;
        match action {
            Action::Scale(replicas) => self.scale(id, *replicas, reason).await?,
            Action::Stop if !self.is_idle(id) => return Ok(false),
            Action::Stop => self.scale(id, 0, reason).await?,
            Action::Wake => {
                limited(id, engine.wake(id)).await?;
                tracing::info!("{id} thaws: {reason}");
                if let Some(entry) = self.entries().get_mut(id) {
                    entry.decided(format!("thaws: {reason}"));
                }
            }
            Action::Freeze => {
                if !limited(id, engine.freeze(id)).await? {
                    return Ok(false);
                }
                tracing::info!("{id} freezes: {reason}");
                if let Some(entry) = self.entries().get_mut(id) {
                    entry.counts.freeze += 1;
                    entry.decided(format!("freezes: {reason}"));
                }
            }
        }
        Ok(true)
    }

    async fn scale(&self, id: &FunctionId, replicas: u32, reason: &str) -> Result<(), EngineError> {
        let before = self.entries().get(id).and_then(|entry| entry.current).unwrap_or(0);
        limited(id, self.parts.engine.scale(id, replicas)).await?;
        tracing::info!("{id} {before} => {replicas}: {reason}");
        if let Some(entry) = self.entries().get_mut(id) {
            entry.scaled(replicas);
            entry.decided(format!("{before} => {replicas}: {reason}"));
        }
        Ok(())
    }

    /// Looks once more before a function is stopped. A call that comes even later is not lost: the
    /// engine lets it end, or the data plane wakes the function again.
    fn is_idle(&self, id: &FunctionId) -> bool {
        let function = self.parts.invoker.find(&id.to_string());
        function.is_some_and(|function| function.load().in_flight == 0)
            && (self.parts.backlog)(id) == 0
    }
}

/// The function that `name` or `name.namespace` stands for; nothing when no function can have that
/// name.
fn named(name: &str) -> Option<FunctionId> {
    let (name, namespace) = match name.rsplit_once('.') {
        Some((name, namespace)) => (name, namespace.parse().ok()?),
        None => (name, Namespace::default()),
    };
    Some(FunctionId { name: name.parse().ok()?, namespace })
}

/// What the engine answers, if it does so in time.
async fn limited<T>(
    id: &FunctionId,
    answer: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, EngineError> {
    tokio::time::timeout(ENGINE_LIMIT, answer).await.unwrap_or_else(|_| {
        let limit = ENGINE_LIMIT.as_secs();
        let reason = format!("no answer within {limit}s");
        Err(EngineError::engine(format!("look after function `{id}`"), reason))
    })
}
