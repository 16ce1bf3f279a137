//! An echo server in a pod, which remembers who spoke to it.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::netns::Netns;
use crate::probe::Protocol;

/// How long a blocked read or accept goes without looking whether to stop.
const TICK: Duration = Duration::from_millis(20);

/// An echo server; it stops when dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sources: Mutex<Vec<IpAddr>>,
}

impl Shared {
    fn saw(&self, source: IpAddr) {
        self.sources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(source);
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Server {
    pub(crate) fn start(netns: &Netns, protocol: Protocol, port: u16) -> Result<Self> {
        let any = (Ipv4Addr::UNSPECIFIED, port);
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        // A socket stays in the namespace it was opened in, so only opening needs to be there.
        let thread = match protocol {
            Protocol::Tcp => {
                let listener = netns.run(|| TcpListener::bind(any))?;
                let listener = listener.with_context(|| format!("listen on tcp {port}"))?;
                // On a listener this bounds accept(2).
                set_socket_timeout(&listener, Timeout::Recv, Some(TICK))?;
                thread::spawn(move || serve_tcp(&listener, &theirs))
            }
            Protocol::Udp => {
                let socket = netns.run(|| UdpSocket::bind(any))?;
                let socket = socket.with_context(|| format!("listen on udp {port}"))?;
                socket.set_read_timeout(Some(TICK))?;
                thread::spawn(move || serve_udp(&socket, &theirs))
            }
        };
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Whom the server heard from: the source of each connection and each datagram, oldest first.
    #[must_use]
    pub fn sources(&self) -> Vec<IpAddr> {
        self.shared
            .sources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in the server has been printed; the test that missed its echo fails itself.
            let _ = thread.join();
        }
    }
}

fn serve_tcp(listener: &TcpListener, shared: &Shared) {
    thread::scope(|scope| {
        while !shared.stopping() {
            if let Ok((stream, peer)) = listener.accept() {
                shared.saw(peer.ip());
                scope.spawn(move || echo(stream, shared));
            }
        }
    });
}

fn echo(mut stream: TcpStream, shared: &Shared) {
    let mut buffer = [0; 256];
    if stream.set_read_timeout(Some(TICK)).is_err() {
        return;
    }
    while !shared.stopping() {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
            Err(error) if is_timeout(&error) => {}
            Err(_) => return,
        }
    }
}

fn serve_udp(socket: &UdpSocket, shared: &Shared) {
    let mut buffer = [0; 256];
    while !shared.stopping() {
        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            shared.saw(peer.ip());
            // A reply that policy drops looks sent; one that cannot be routed is the test's matter.
            let _ = socket.send_to(&buffer[..length], peer);
        }
    }
}

pub(crate) fn is_timeout(error: &std::io::Error) -> bool {
    // SO_RCVTIMEO ends a read with EAGAIN, connect_timeout with ETIMEDOUT.
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
