//! The search of one call for a replica: pick one, wait for a turn or for a start, connect, and look
//! elsewhere when it is not there. Nothing of the request is sent here.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::StatusCode;
use updraft_model::format_duration;

use crate::connection::Connection;
use crate::failure::Failure;
use crate::function::Function;
use crate::invoker::Shared;
use crate::line::{Asked, Hold, Limit};
use crate::replica::Replica;
use crate::waiting::not_startable;

/// How long to wait before a replica that refused a connection is tried again, if the engine has
/// not taken it off the table by then. Nothing has been sent to it.
const CONNECT_AGAIN: Duration = Duration::from_millis(50);

/// A held replica with a connection that can take a request now.
pub(crate) struct Found {
    pub(crate) replica: Arc<Replica>,
    pub(crate) hold: Hold,
    pub(crate) connection: Connection,
    /// Whether the connection was made for this call.
    pub(crate) fresh: bool,
}

/// The search of one call for a replica that takes it.
pub(crate) struct Search {
    pub(crate) function: Arc<Function>,
    /// The frozen version of the function that this call has thawed.
    thawed: Option<Arc<Function>>,
    /// Replicas that did not take a connection.
    refused: Vec<Arc<Replica>>,
    /// When to give up waiting for a replica; set at the first wait.
    wake_deadline: Option<tokio::time::Instant>,
    /// When to give up connecting; set at the first refusal.
    connect_deadline: Option<Instant>,
    /// From when on the function's timeout counts: since the call began, or since a function that
    /// slept was awake.
    pub(crate) since: Instant,
    /// Whether it has waited for others to end.
    pub(crate) waited: bool,
    /// Whether its turn has come once.
    had_turn: bool,
}

impl Search {
    pub(crate) fn new(function: Arc<Function>, started: Instant) -> Self {
        Self {
            function,
            thawed: None,
            refused: Vec::new(),
            wake_deadline: None,
            connect_deadline: None,
            since: started,
            waited: false,
            had_turn: false,
        }
    }

    /// The next replica to try.
    pub(crate) async fn next(&mut self, shared: &Arc<Shared>) -> Result<Found, Failure> {
        loop {
            let picked = match self.function.limit {
                None => {
                    let picked = self.function.pick(&self.refused);
                    picked.map(|(replica, lease)| (replica, Hold::unlimited(lease)))
                }
                // Boxed, so that calls of other functions do not hold room for it.
                Some(limit) => Box::pin(self.turn(shared, limit)).await?,
            };
            let Some((replica, hold)) = picked else {
                if self.refused.is_empty() {
                    let limit = shared.options.wake_limit;
                    let deadline = *self
                        .wake_deadline
                        .get_or_insert_with(|| tokio::time::Instant::now() + limit);
                    self.function =
                        shared.wait_ready(&self.function, &mut self.thawed, deadline).await?;
                    self.since = Instant::now();
                    self.connect_deadline = None;
                } else {
                    self.after_refusal(shared).await?;
                }
                continue;
            };
            while let Some(mut connection) = replica.take() {
                let usable = poll_fn(|context| Poll::Ready(connection.is_usable(context))).await;
                if usable {
                    return Ok(Found { replica, hold, connection, fresh: false });
                }
            }
            let limit = shared.options.connect_limit;
            match replica.connect(limit).await {
                Ok(connection) => return Ok(Found { replica, hold, connection, fresh: true }),
                Err(error) => self.refused(shared, replica, &error)?,
            }
        }
    }

    /// Waits for the call's turn at a function that takes only so many at once; nothing when no
    /// replica is there to wait for.
    async fn turn(
        &mut self,
        shared: &Shared,
        limit: Limit,
    ) -> Result<Option<(Arc<Replica>, Hold)>, Failure> {
        let state = Arc::clone(&self.function.state);
        let name = &*state.name;
        let asked = state.ask(&self.function, limit, &self.refused, self.had_turn);
        let turn = match asked {
            Asked::NoReplica => return Ok(None),
            Asked::Turn(turn) => turn,
            Asked::Full => {
                let reason = format!(
                    "{} calls at once on each replica are what the function takes, and {} wait \
                     already",
                    limit.each, limit.waiting
                );
                let failure = Failure::invoke(StatusCode::TOO_MANY_REQUESTS, name, reason);
                return Err(failure.retry_after(1));
            }
            Asked::Wait(mut place) => {
                self.waited = true;
                let timeout = self.function.timeout;
                let deadline = (self.since + timeout).into();
                let waited = async {
                    tokio::select! {
                        biased;
                        turn = place.turn() => Ok(turn),
                        reason = shared.fails(&state.qualified) => Err(reason),
                    }
                };
                match tokio::time::timeout_at(deadline, waited).await {
                    Ok(Ok(Some(turn))) => turn,
                    Ok(Err(reason)) => return Err(not_startable(name, &reason)),
                    Ok(Ok(None)) => {
                        let reason = "the function was removed while the request waited for it";
                        return Err(Failure::invoke(StatusCode::NOT_FOUND, name, reason));
                    }
                    Err(_) => {
                        let reason = format!(
                            "its turn did not come within {}, the function's timeout: replicas \
                             take {} calls at once",
                            format_duration(timeout),
                            limit.each
                        );
                        let failure = Failure::invoke(StatusCode::GATEWAY_TIMEOUT, name, reason);
                        return Err(failure.retry_after(1));
                    }
                }
            }
        };
        self.had_turn = true;
        self.function = turn.function;
        Ok(Some((turn.replica, turn.hold)))
    }

    /// Notes that a replica took no request, of which nothing has been sent.
    pub(crate) fn refused(
        &mut self,
        shared: &Shared,
        replica: Arc<Replica>,
        error: impl fmt::Display,
    ) -> Result<(), Failure> {
        let name = &*self.function.state.name;
        let shown = &replica.endpoint.replica;
        tracing::debug!(function = name, replica = %shown, %error, "a replica takes no connection");
        let limit = shared.options.connect_limit;
        let deadline = *self.connect_deadline.get_or_insert_with(|| Instant::now() + limit);
        if Instant::now() >= deadline {
            let reason = format!("replica `{shown}` takes no connection: {error}");
            return Err(Failure::invoke(StatusCode::BAD_GATEWAY, name, reason));
        }
        self.refused.push(replica);
        Ok(())
    }

    /// Every replica on the table refused: lets the engine notice, then looks again.
    async fn after_refusal(&mut self, shared: &Arc<Shared>) -> Result<(), Failure> {
        let mut changes = shared.changes.subscribe();
        let same = |function: &Arc<Function>| Arc::ptr_eq(function, &self.function);
        let current = shared.table.load().by_name(&self.function.state.qualified).map(Arc::clone);
        if current.as_ref().is_some_and(same) {
            // Whichever comes first; either way the table is read anew.
            let _ = tokio::time::timeout(CONNECT_AGAIN, changes.changed()).await;
        }
        let name = &*self.function.state.name;
        let current = shared.table.load().by_name(&self.function.state.qualified).map(Arc::clone);
        self.function = current.ok_or_else(|| {
            Failure::invoke(StatusCode::NOT_FOUND, name, "the function was removed meanwhile")
        })?;
        self.refused.clear();
        Ok(())
    }
}
