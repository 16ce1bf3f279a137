//! The same call without a runtime: the plugin's whole life is one call, and it has one thread.
//!
//! ```text
//! connect ── request out (one send) ── meanwhile() ── reply in ── done
//!                                 └─ ipamd works ─┘
//! ```
//!
//! h2 is told of a stream that takes every byte at once and sends them when it is flushed, so that preface,
//! settings and request leave together; ipamd is woken once. What it cannot read yet is waited for with `poll`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::{Response, Status};

use super::transport::{Transport, converse};
use super::{CallError, ConnectError, Deadlines};

/// What is read at once. An answer has some 300 bytes; a page that is not touched costs nothing.
const READ: usize = 2048;

/// Connects to the daemon at `socket` and makes one call; blocks the calling thread. `meanwhile` is done when the
/// request has gone out and before the reply is looked for, and not at all if the call fails before that.
///
/// *Errors*: as [`super::call`]. *Needs*: write permission on the socket. *Cost*: one connection, one send, and
/// usually one receive.
pub fn call<T>(
    socket: &Path,
    deadlines: Deadlines,
    work: impl AsyncFnOnce(Transport) -> Result<Response<T>, Status>,
    meanwhile: impl FnOnce(),
) -> Result<T, CallError> {
    let stream = Rc::new(open(socket, deadlines.connect)?);
    let conversation = converse(Stream::new(stream.clone()), work, meanwhile);
    let deadline = Instant::now() + deadlines.reply;
    match wait_for(conversation, &*stream, deadline) {
        Ok(Some(reply)) => Ok(reply?.into_inner()),
        Ok(None) => Err(super::silent(socket, deadlines).into()),
        Err(error) => Err(Status::unavailable(format!("wait for ipamd: {error}")).into()),
    }
}

/// A connected socket whose sends end at a deadline.
fn open(path: &Path, within: Duration) -> Result<OwnedFd, ConnectError> {
    let refused = |errno: Errno| ConnectError::Refused {
        path: path.to_owned(),
        source: errno.into(),
    };
    let address = SocketAddrUnix::new(path).map_err(refused)?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(refused)?;
    // It also ends a connect to a daemon whose queue is full.
    set_socket_timeout(&socket, Timeout::Send, Some(within)).map_err(refused)?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                return Err(ConnectError::Timeout {
                    path: path.to_owned(),
                    after: within,
                });
            }
            Err(errno) => return Err(refused(errno)),
        }
    }
}

/// Polls a future whose only events are bytes on a socket and its own wakes; `None` if the deadline passes.
fn wait_for<F: Future>(
    future: F,
    socket: impl AsFd,
    deadline: Instant,
) -> io::Result<Option<F::Output>> {
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(woken.clone());
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Ok(Some(output));
        }
        if woken.0.swap(false, Ordering::Relaxed) {
            continue;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let left = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A connected socket as h2 wants it.
struct Stream {
    socket: Rc<OwnedFd>,
    unsent: Vec<u8>,
}

impl Stream {
    fn new(socket: Rc<OwnedFd>) -> Self {
        Stream {
            socket,
            unsent: Vec::with_capacity(1024),
        }
    }

    /// Sends all that was written. Waits if it must: a request is far smaller than a socket's buffer.
    fn send_all(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.unsent.len() {
            match send(&*self.socket, &self.unsent[sent..], SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.unsent.clear();
        Ok(())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; READ];
        let room = buffer.remaining().min(READ);
        loop {
            match recv(&*self.socket, &mut bytes[..room], RecvFlags::DONTWAIT) {
                Ok((count, _)) => {
                    buffer.put_slice(&bytes[..count]);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Poll::Pending,
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unsent.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.send_all())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
