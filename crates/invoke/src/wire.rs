//! A socket that sends small messages in the cheapest way.
//!
//! A head and a small body are two slices. Gathering them in the kernel costs more than copying
//! them into one, and `send` of one slice costs less than `writev` of it.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Slices that together are no longer than this are copied into one.
const COPY_MAX: usize = 4096;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A TCP connection that speaks HTTP.
#[derive(Debug)]
pub struct Wire(TokioIo<TcpStream>);

impl Wire {
    /// Wraps a connection; small messages leave at once.
    pub fn new(stream: TcpStream) -> Self {
        // A peer that has gone already shows at the first read.
        drop(stream.set_nodelay(true));
        Self(TokioIo::new(stream))
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = slices {
            return Pin::new(&mut self.0).poll_write(context, only);
        }
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if length > COPY_MAX {
            return Pin::new(&mut self.0).poll_write_vectored(context, slices);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            for slice in slices {
                scratch.extend_from_slice(slice);
            }
            Pin::new(&mut self.0).poll_write(context, scratch)
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
