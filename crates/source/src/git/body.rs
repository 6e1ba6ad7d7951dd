//! Request bodies: read in pieces, unpacked if they come gzipped, bounded in silence.
//!
//! Never holds more than a piece in memory, whatever the other side sends.

use std::io::Write;
use std::time::Duration;

use bytes::{Buf, Bytes};
use flate2::write::GzDecoder;
use http_body_util::BodyExt;
use thiserror::Error;

use super::GitBody;

/// Gzipped bytes fed at once: a byte becomes 1 032 at most, so this bounds what comes out.
const GZIP_SLICE: usize = 1024;

/// Why a request body could not be read. The client's fault, or its network's.
#[derive(Debug, Error)]
pub(super) enum BodyError {
    #[error("the request broke off, push again")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("nothing arrived for {0:?}, check the network and push again")]
    Silent(Duration),
    #[error("the request says that it is gzipped but is not")]
    Gzip(#[source] std::io::Error),
    #[error("the request is larger than {0} bytes")]
    TooLarge(usize),
}

/// A request body with its encoding taken off.
#[derive(Debug)]
pub(super) struct RequestBody {
    body: GitBody,
    idle_limit: Duration,
    gzip: Option<GzDecoder<Vec<u8>>>,
    /// Gzipped bytes that wait to be unpacked.
    packed: Bytes,
}

impl RequestBody {
    /// A body that is read as it is, or unpacked when `gzipped`.
    pub(super) fn new(body: GitBody, gzipped: bool, idle_limit: Duration) -> Self {
        let gzip = gzipped.then(|| GzDecoder::new(Vec::new()));
        Self { body, idle_limit, gzip, packed: Bytes::new() }
    }

    /// The next piece, never empty; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            if let Some(piece) = self.unpack()? {
                return Ok(Some(piece));
            }
            let Some(received) = self.receive().await? else {
                return self.finish();
            };
            match self.gzip {
                Some(_) => self.packed = received,
                None if received.is_empty() => {}
                None => return Ok(Some(received)),
            }
        }
    }

    /// The whole body, at most `cap` bytes.
    pub(super) async fn collect(mut self, cap: usize) -> Result<Bytes, BodyError> {
        let mut whole = Vec::new();
        while let Some(piece) = self.next().await? {
            if whole.len() + piece.len() > cap {
                return Err(BodyError::TooLarge(cap));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.into())
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            let frame = tokio::time::timeout(self.idle_limit, self.body.frame())
                .await
                .map_err(|_| BodyError::Silent(self.idle_limit))?;
            match frame {
                None => return Ok(None),
                Some(Err(cause)) => return Err(BodyError::Broken(cause)),
                Some(Ok(frame)) => {
                    // Trailers carry nothing that git knows.
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    fn unpack(&mut self) -> Result<Option<Bytes>, BodyError> {
        let Some(gzip) = &mut self.gzip else { return Ok(None) };
        while !self.packed.is_empty() {
            let slice = self.packed.len().min(GZIP_SLICE);
            let taken = gzip.write(&self.packed[..slice]).map_err(BodyError::Gzip)?;
            if taken == 0 {
                // The stream has ended; git sends one only, so what follows is not for us.
                self.packed.clear();
            }
            self.packed.advance(taken);
            if !gzip.get_ref().is_empty() {
                return Ok(Some(std::mem::take(gzip.get_mut()).into()));
            }
        }
        Ok(None)
    }

    /// Takes what the decoder still holds and checks that the stream was whole.
    fn finish(&mut self) -> Result<Option<Bytes>, BodyError> {
        let Some(gzip) = self.gzip.take() else { return Ok(None) };
        let rest = gzip.finish().map_err(BodyError::Gzip)?;
        Ok((!rest.is_empty()).then(|| rest.into()))
    }
}
