//! The door: submit, look, cancel, make again, discard.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body;
use prometheus_client::registry::Registry;
use updraft_invoke::{Invoker, Scheme, call_id};
use updraft_model::{FunctionId, OwnerName};
use updraft_store::queue::{CallStore, CallToAdd, Client, RequestHead, StoredBody};

use crate::dispatch::Running;
use crate::lanes::{NoPlace, Places};
use crate::metrics::QueueCollector;
use crate::shared::Shared;
use crate::submit::{queue_name, take_body};
use crate::{
    CallFilter, CallId, CallRecord, CallResult, NewCall, OwnerKey, QueueError, QueueOptions,
    SubmitError,
};

/// Most dead letters that one write puts back.
const REDRIVE_STEP: u32 = 200;

/// What a queue is made of.
#[derive(Debug)]
pub struct QueueParts {
    /// The record of calls.
    pub store: Arc<dyn CallStore>,
    /// What makes the calls.
    pub invoker: Arc<Invoker>,
    /// Limits.
    pub options: QueueOptions,
}

/// Takes calls and has them made. Ends with [`Queue::shutdown`].
pub struct Queue {
    shared: Arc<Shared>,
    running: Mutex<Option<Running>>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Queue {
    /// Takes up what an earlier process left and begins to make calls. When the record is kept
    /// elsewhere and is away, that goes on in the background; calls are refused meanwhile.
    ///
    /// # Errors
    /// The machine's fault: the record cannot be read or written.
    pub async fn start(parts: QueueParts) -> Result<Arc<Self>, QueueError> {
        let shared = Shared::open(parts)?;
        let running = match shared.take_up().await {
            Ok(()) => Running::start(&shared),
            Err(error) if error.is_unavailable() => Running::start_later(&shared, &error),
            Err(error) => return Err(error.into()),
        };
        Ok(Arc::new(Self { shared, running: Mutex::new(Some(running)) }))
    }

    /// Takes a call: it is on the disk when this returns, and will be made. The body is streamed.
    ///
    /// # Errors
    /// Nothing is kept then; [`SubmitError`] says whose fault it is.
    pub async fn submit<B>(&self, mut call: NewCall, body: B) -> Result<CallId, SubmitError>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let shared = &self.shared;
        if shared.stopping.is_cancelled() {
            return Err(SubmitError::Stopping);
        }
        if !shared.is_taken_up() {
            return Err(SubmitError::Away);
        }
        call.prepare(&shared.options)?;
        let function = shared.invoker.find(&call.function.to_string());
        let function =
            function.ok_or_else(|| SubmitError::UnknownFunction(call.function.clone()))?;
        let spec = function.spec();
        let place = Place::take(shared, call.function, spec.owner(), queue_name(spec))?;
        let body = take_body(&*shared.store, &shared.options, body).await?;
        let length = body.length();
        let file = match &body {
            StoredBody::Blob(name, _) => Some(name.clone()),
            StoredBody::Inline(_) => None,
        };
        let added = shared.store.add(CallToAdd {
            ids: [id_of(&call.headers), id_of(&HeaderMap::new())],
            function: place.function.clone(),
            owner: spec.owner(),
            queue: queue_name(spec).to_owned(),
            head: RequestHead {
                method: call.method,
                target: call.target,
                headers: call.headers,
                client: Client {
                    address: call.caller.address(),
                    tls: call.caller.scheme() == Scheme::Https,
                    authorized: call.caller.is_authorized(),
                },
            },
            body,
            callback: call.callback.map(|callback| callback.to_string()),
        });
        match added.await {
            Ok((id, created)) => {
                place.keep(length, created.as_millisecond());
                Ok(id)
            }
            Err(error) => {
                // It may be kept for all we know; then the body is still needed, and else the next
                // start sweeps it.
                if let (Some(file), updraft_store::StoreError::Sqlite { .. }) = (file, &error) {
                    shared.store.remove_body(file).await;
                }
                Err(error.into())
            }
        }
    }

    /// What is known of a call; nothing when it never was or is forgotten.
    ///
    /// # Errors
    /// The machine's fault.
    pub async fn call(&self, id: &CallId) -> Result<Option<CallRecord>, QueueError> {
        Ok(self.shared.store.call(id).await?)
    }

    /// What the function answered; nothing while it has not, or when that is forgotten.
    ///
    /// # Errors
    /// The machine's fault.
    pub async fn result(&self, id: &CallId) -> Result<Option<CallResult>, QueueError> {
        Ok(self.shared.store.result(id).await?)
    }

    /// The calls that the filter lets through, newest first.
    ///
    /// # Errors
    /// The machine's fault.
    pub async fn list(&self, filter: CallFilter) -> Result<Vec<CallRecord>, QueueError> {
        Ok(self.shared.store.calls(&filter).await?)
    }

    /// Ends a call that waits or runs. False when there is no such call.
    ///
    /// # Errors
    /// The machine's fault.
    pub async fn cancel(&self, id: &CallId) -> Result<bool, QueueError> {
        let shared = &self.shared;
        let Some(record) = shared.store.cancel(id).await? else { return Ok(false) };
        shared.hang_up(record.number);
        shared.lanes().gone(&record.function, 1, record.body_length);
        Ok(true)
    }

    /// Has a dead letter made again, as if it had just come. False when there is no such one.
    ///
    /// # Errors
    /// The machine's fault.
    pub async fn redrive(&self, id: &CallId) -> Result<bool, QueueError> {
        let Some(record) = self.shared.store.redrive(id).await? else { return Ok(false) };
        self.shared.redriven(&[record]);
        Ok(true)
    }

    /// Has all dead letters made again that the filter lets through. Returns how many that are.
    ///
    /// # Errors
    /// The machine's fault; those before it are made again.
    pub async fn redrive_all(&self, filter: CallFilter) -> Result<u64, QueueError> {
        let mut after = -1;
        let mut total = 0;
        loop {
            let calls = self.shared.store.redrive_some(&filter, after, REDRIVE_STEP).await?;
            let Some(last) = calls.last() else { return Ok(total) };
            after = last.number;
            total += calls.len() as u64;
            self.shared.redriven(&calls);
        }
    }

    /// Forgets a call that has ended, dead or not. False when there is no such one.
    ///
    /// # Errors
    /// The machine's fault.
    pub async fn discard(&self, id: &CallId) -> Result<bool, QueueError> {
        let Some(record) = self.shared.store.discard(id).await? else { return Ok(false) };
        self.shared.forgotten(&[record]);
        Ok(true)
    }

    /// How many calls of a function wait or run. Cheap.
    pub fn backlog(&self, id: &FunctionId) -> u64 {
        self.shared.lanes().backlog(id)
    }

    /// The key that signs what an owner's callbacks tell; the functions of nobody have one
    /// together. Only for that owner, or the administrator.
    pub fn callback_key(&self, owner: Option<&OwnerName>) -> OwnerKey {
        self.shared.options.callback.key.of(owner)
    }

    /// Adds the queue's numbers to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(QueueCollector::new(Arc::clone(&self.shared))));
    }

    /// Takes no more calls, waits for those under way for as long as the options say, and gives
    /// the others back: the next start makes them.
    pub async fn shutdown(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(running) = running {
            running.stop(&self.shared).await;
        }
    }
}

/// The id of a call with these headers: its own when it is safe, else a new one.
fn id_of(headers: &HeaderMap) -> CallId {
    let id = call_id(headers);
    id.to_str().ok().and_then(|id| id.parse().ok()).expect("an id that is safe for logs is one")
}

/// A place in the queue, given back unless the call is kept.
struct Place<'a> {
    shared: &'a Shared,
    function: FunctionId,
    kept: bool,
}

impl<'a> Place<'a> {
    fn take(
        shared: &'a Shared,
        function: FunctionId,
        owner: Option<OwnerName>,
        queue: &str,
    ) -> Result<Self, SubmitError> {
        let options = &shared.options;
        let places = Places {
            all: options.waiting,
            function: options.function_waiting,
            bytes: options.waiting_bytes,
        };
        let taken = shared.lanes().reserve(&function, owner, queue.to_owned(), places);
        let what = match taken {
            Ok(()) => return Ok(Self { shared, function, kept: false }),
            Err(NoPlace::All) => format!("{} calls wait already", options.waiting),
            Err(NoPlace::Function) => {
                format!("{} calls of `{function}` wait already", options.function_waiting)
            }
            Err(NoPlace::Bytes) => {
                format!("{} bytes of bodies wait already", options.waiting_bytes)
            }
        };
        Err(SubmitError::Full { what })
    }

    fn keep(mut self, bytes: u64, created: i64) {
        self.kept = true;
        self.shared.accepted(&self.function, bytes, created);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.shared.lanes().gone(&self.function, 1, 0);
        }
    }
}
