//! Sockets that only listen: what the kernel sends by itself, with overruns noticed.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use rtnetlink::sys::Socket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};

use crate::error::Error;
use crate::message::{Received, messages};

/// Longer than any datagram of notifications or logged packets.
pub(crate) const BUFFER: usize = 128 * 1024;

/// `MSG_DONTWAIT`.
const AT_ONCE: i32 = 0x40;

/// `ENOBUFS`.
const OVERRUN: i32 = 105;

/// What one look into the queue brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    Datagram,
    Nothing,
    /// The kernel had no room and left something out, after what is still queued.
    Overrun,
}

/// Gives a socket a receive buffer of `size` bytes, or as much as it may have.
pub(crate) fn make_room(socket: &Socket, size: usize) -> Result<(), Error> {
    set_socket_recv_buffer_size_force(socket, size)
        // Not in a user namespace, where the system's limit holds.
        .or_else(|_| set_socket_recv_buffer_size(socket, size))
        .map_err(|errno| Error::Socket {
            what: "set receive buffer",
            source: errno.into(),
        })
}

/// Waits until there is something to receive, or `deadline`.
pub(crate) fn wait(socket: &Socket, deadline: Instant) -> Result<(), Error> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(
            &mut [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)],
            Some(&left),
        ) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                return Err(Error::Socket {
                    what: "wait",
                    source: errno.into(),
                });
            }
        }
    }
}

/// Takes one datagram, without waiting, and hands over its messages.
pub(crate) fn receive(
    socket: &Socket,
    buffer: &mut Vec<u8>,
    each: &mut dyn FnMut(&Received<'_>),
) -> Result<Heard, Error> {
    loop {
        buffer.clear();
        match socket.recv(buffer, AT_ONCE) {
            Ok(_) => {
                for message in messages(buffer) {
                    each(&message);
                }
                return Ok(Heard::Datagram);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Heard::Nothing),
            Err(error) if error.raw_os_error() == Some(OVERRUN) => return Ok(Heard::Overrun),
            Err(source) => {
                return Err(Error::Socket {
                    what: "receive",
                    source,
                });
            }
        }
    }
}
