//! A TCP connection as hyper writes to it: few and small system calls, and an eye on whether the
//! peer still takes what is written.
//!
//! Nothing here knows HTTP.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Pieces that are together no larger than this are joined: copying them costs less than having
/// the kernel gather them.
const JOINED: usize = 2048;

/// See the module.
pub(crate) struct Socket {
    inner: TokioIo<TcpStream>,
    /// Whether the peer has stopped taking what we write.
    stuck: Option<Arc<AtomicBool>>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { inner: TokioIo::new(stream), stuck: None }
    }

    /// One that tells in `stuck` whether its peer has stopped taking what we write.
    pub(crate) fn watched(stream: TcpStream, stuck: Arc<AtomicBool>) -> Self {
        Self { inner: TokioIo::new(stream), stuck: Some(stuck) }
    }

    fn note<T>(&self, polled: Poll<T>) -> Poll<T> {
        if let Some(stuck) = &self.stuck {
            stuck.store(polled.is_pending(), Ordering::Relaxed);
        }
        polled
    }
}

impl hyper::rt::Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.note(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = Pin::new(&mut self.inner);
        let mut joined = [0; JOINED];
        let polled = match join(&mut joined, pieces) {
            Some(bytes) => inner.poll_write(cx, bytes),
            None => inner.poll_write_vectored(cx, pieces),
        };
        self.note(polled)
    }
}

/// All pieces in one, if there is room.
fn join<'a>(room: &'a mut [u8; JOINED], pieces: &'a [io::IoSlice<'_>]) -> Option<&'a [u8]> {
    if let [piece] = pieces {
        return Some(piece);
    }
    let mut end = 0;
    for piece in pieces {
        let begin = end;
        end += piece.len();
        room.get_mut(begin..end)?.copy_from_slice(piece);
    }
    room.get(..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_joined_in_order_and_large_ones_are_left_alone() {
        let check = |pieces: &[&[u8]], expected: Option<&[u8]>| {
            let slices: Vec<_> = pieces.iter().map(|piece| io::IoSlice::new(piece)).collect();
            assert_eq!(join(&mut [0; JOINED], &slices), expected);
        };
        check(&[b"head", b"", b"body"], Some(b"headbody"));
        check(&[], Some(b""));
        let large = vec![1; JOINED];
        check(&[&large], Some(&large));
        check(&[b"head", &large], None);
        check(&[&large, b""], Some(&large));
    }
}
