//! Long bodies: pieces in a stream of their own, each a message that is found by its number.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{TryStreamExt, stream};
use jiff::Timestamp;
use tokio::sync::mpsc;
use updraft_store::queue::{BodyPieces, BodyWriter};
use updraft_store::{BlobName, StoreError};

use crate::lease::moment;
use crate::link::{Link, WriteError};
use crate::store::Inner;

/// Bytes of a piece, where the server takes messages that long.
const PIECE: usize = 256 << 10;

/// Pieces that are read ahead of the function.
const AHEAD: usize = 2;

/// A body without a call is somebody's upload under way until it is this old.
const UNFINISHED: Duration = Duration::from_hours(1);

/// The folder that names of bodies pretend to be in.
const BODIES: &str = "bodies";

/// A body on its way into the stream.
pub(crate) struct StreamBody {
    inner: Arc<Inner>,
    name: BlobName,
    buffer: BytesMut,
    pieces: usize,
    finished: bool,
}

fn short(name: &BlobName) -> &str {
    name.as_str().rsplit('/').next().unwrap_or_default()
}

impl StreamBody {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        let name = BlobName::random(BODIES);
        Self { inner, name, buffer: BytesMut::new(), pieces: 0, finished: false }
    }

    async fn send(&mut self, length: usize) -> Result<(), StoreError> {
        let link = &self.inner.link;
        let piece = self.buffer.split_to(length).freeze();
        let subject = link.names.body(short(&self.name), &self.pieces.to_string());
        match link.publish("keep the body", subject, HeaderMap::new(), piece).await {
            Ok(_) | Err(WriteError::Changed) => {
                self.pieces += 1;
                Ok(())
            }
            Err(WriteError::Failed(error)) => Err(error),
        }
    }
}

#[async_trait]
impl BodyWriter for StreamBody {
    async fn append(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.buffer.extend_from_slice(&piece);
        let length = PIECE.min(self.inner.link.room());
        while self.buffer.len() >= length {
            self.send(length).await?;
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<BlobName, StoreError> {
        if !self.buffer.is_empty() {
            self.send(self.buffer.len()).await?;
        }
        self.finished = true;
        Ok(self.name.clone())
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        if self.finished || self.pieces == 0 {
            return;
        }
        let (inner, name) = (Arc::clone(&self.inner), self.name.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(async move { remove(&inner.link, &name).await }));
        }
    }
}

/// A body from its beginning; nothing when it is gone.
pub(crate) async fn open(
    inner: &Arc<Inner>,
    name: &BlobName,
) -> Result<Option<BodyPieces>, StoreError> {
    let Some(first) = piece(&inner.link, name, 0).await? else { return Ok(None) };
    let (send, receive) = mpsc::channel(AHEAD);
    let (inner, name) = (Arc::clone(inner), name.clone());
    tokio::spawn(async move {
        let mut next = Ok(Some(first));
        for number in 1.. {
            let sent = match next {
                Ok(None) => return,
                Ok(Some(piece)) => send.send(Ok(piece)).await,
                Err(error) => {
                    drop(send.send(Err(io::Error::other(error))).await);
                    return;
                }
            };
            // Nobody reads any more.
            if sent.is_err() {
                return;
            }
            next = piece(&inner.link, &name, number).await;
        }
    });
    let pieces =
        stream::unfold(receive, async |mut receive| Some((receive.recv().await?, receive)));
    Ok(Some(Box::pin(pieces)))
}

async fn piece(link: &Link, name: &BlobName, number: usize) -> Result<Option<Bytes>, StoreError> {
    let subject = link.names.body(short(name), &number.to_string());
    Ok(link.last(&link.names.bodies, &subject).await?.map(|message| message.payload))
}

/// Removes a body; what cannot be removed now is swept at a later start.
pub(crate) async fn remove(link: &Link, name: &BlobName) {
    link.purge(&link.names.bodies, link.names.body(short(name), "*")).await;
}

/// Removes bodies that no call has any more. Gives how many went.
pub(crate) async fn sweep(link: &Link, kept: &HashSet<BlobName>) -> Result<usize, StoreError> {
    const DOING: &str = "list the bodies";
    let failed = |error: &dyn std::fmt::Display| link.unavailable(DOING, error);
    let stream = link.stream(&link.names.bodies).await?;
    let subjects = stream.info_with_subjects(link.names.body("*", "*")).await;
    let mut subjects = subjects.map_err(|error| failed(&error))?;
    let mut lost = HashSet::new();
    while let Some((subject, _)) = subjects.try_next().await.map_err(|error| failed(&error))? {
        let name = link.names.body_of(&subject);
        let name: Option<BlobName> = name.and_then(|name| format!("{BODIES}/{name}").parse().ok());
        lost.extend(name.filter(|name| !kept.contains(name)));
    }
    let young = Timestamp::now() - UNFINISHED;
    let mut removed = 0;
    for name in lost {
        let first = link.names.body(short(&name), "0");
        let first = link.last(&link.names.bodies, &first).await?;
        if first.is_none_or(|first| moment(first.time) < young) {
            remove(link, &name).await;
            removed += 1;
        }
    }
    Ok(removed)
}
