//! A connection that knows when it last wrote.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::store::Moments;

/// What a connection has been given and has yet to write.
#[derive(Debug, Default)]
pub(super) struct Wire(Mutex<Vec<(u64, Arc<Moments>)>>);

impl Wire {
    /// The body hands this version to the connection now.
    pub(super) fn given(&self, version: u64, moments: Arc<Moments>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((version, moments));
    }

    fn wrote(&self, when: Instant) {
        let given = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for (version, moments) in given {
            moments.wrote(version, when);
        }
    }
}

/// A socket under TLS: what leaves it has been written.
pub(super) struct Stamped {
    stream: TcpStream,
    wire: Arc<Wire>,
}

impl Stamped {
    pub(super) fn new(stream: TcpStream, wire: Arc<Wire>) -> Self {
        Self { stream, wire }
    }
}

impl AsyncRead for Stamped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stamped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.wire.wrote(Instant::now());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, buffers))?;
        self.wire.wrote(Instant::now());
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
