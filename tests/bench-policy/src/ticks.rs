//! A packet each millisecond, each a new flow or all of one, and when those that arrived were sent.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use selvage_tests::Netns;

use crate::process::{pause, wait_for};

/// Between packets.
pub const TICK: Duration = Duration::from_millis(1);

/// How long a receiver may sleep through the end.
const LOOK: Duration = Duration::from_millis(50);

/// Room for seconds of packets: on a busy machine the receiver may not run for one.
const ROOM: usize = 16 << 20;

/// How long a connection may take to be made.
const PATIENCE: Duration = Duration::from_secs(5);

/// Packets carry nanoseconds since here.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// When those packets were sent that arrived, in the order in which they did.
#[derive(Debug, Default)]
pub struct Arrived(Mutex<Vec<Instant>>);

impl Arrived {
    fn sent(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first one.
    pub fn first(&self) -> Option<Instant> {
        self.sent().first().copied()
    }

    /// The last one.
    pub fn last(&self) -> Option<Instant> {
        self.sent().last().copied()
    }

    /// The first one that was sent after a moment.
    pub fn first_after(&self, when: Instant) -> Option<Instant> {
        self.sent().iter().find(|sent| **sent > when).copied()
    }

    /// How many were sent after a moment.
    pub fn count_after(&self, when: Instant) -> usize {
        let sent = self.sent();
        sent.iter().rev().take_while(|sent| **sent > when).count()
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.sent().len()
    }
}

/// What a packet carries: when it was sent.
fn stamp() -> [u8; 8] {
    let since = u64::try_from(EPOCH.elapsed().as_nanos()).unwrap_or(u64::MAX);
    since.to_be_bytes()
}

fn sent_at(stamp: [u8; 8]) -> Instant {
    *EPOCH + Duration::from_nanos(u64::from_be_bytes(stamp))
}

/// Does something each millisecond until told to stop: how often it came off.
fn each_tick(stop: &AtomicBool, mut act: impl FnMut() -> bool) -> usize {
    let mut done = 0;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        done += usize::from(act());
        next += TICK;
        pause(next.saturating_duration_since(Instant::now()));
    }
    done
}

/// Sends from `from` until told to stop: how many left.
///
/// What the sender's own kernel refuses (no route, no address yet) counts as not sent.
///
/// *Errors*: the namespace cannot be entered.
pub fn send(netns: &Netns, from: Ipv4Addr, to: SocketAddrV4, stop: &AtomicBool) -> Result<usize> {
    netns.run(|| {
        each_tick(stop, || {
            // A socket each: its port is a new one.
            let sent = UdpSocket::bind((from, 0)).and_then(|socket| socket.send_to(&stamp(), to));
            sent.is_ok()
        })
    })
}

/// [`send`] from one socket: all of one flow, which conntrack calls established once it is answered.
///
/// *Errors*: no socket.
pub fn stream(netns: &Netns, from: Ipv4Addr, to: SocketAddrV4, stop: &AtomicBool) -> Result<usize> {
    let socket = netns.run(|| UdpSocket::bind((from, 0)))??;
    Ok(each_tick(stop, || socket.send_to(&stamp(), to).is_ok()))
}

/// Notes what arrives, and answers it if asked to, until told to stop and nothing comes any more: how
/// many packets its socket had no room for. Those came, too.
///
/// *Errors*: the port is taken.
pub fn receive(
    netns: &Netns,
    at: SocketAddrV4,
    answers: bool,
    arrived: &Arrived,
    stop: &AtomicBool,
) -> Result<usize> {
    let (socket, mut table) = netns.run(|| -> Result<_> {
        // Of this namespace, whoever reads it.
        Ok((
            UdpSocket::bind(at)?,
            File::open("/proc/thread-self/net/udp")?,
        ))
    })??;
    set_socket_recv_buffer_size_force(&socket, ROOM)?;
    socket.set_read_timeout(Some(LOOK))?;
    let mut bytes = [0; 8];
    loop {
        match socket.recv_from(&mut bytes) {
            Ok((8, from)) => {
                arrived.sent().push(sent_at(bytes));
                if answers {
                    // One that cannot be sent is not waited for.
                    let _ = socket.send_to(&bytes, from);
                }
            }
            Ok(_) => {}
            Err(_) if stop.load(Ordering::Relaxed) => break,
            Err(_) => {}
        }
    }
    let mut text = String::new();
    table.read_to_string(&mut text)?;
    dropped(&text, at.port()).context("the receiving socket is not in the table")
}

/// What the table of UDP sockets (`net/ipv4/udp.c`, `udp4_format_sock`) says was dropped at a port.
fn dropped(table: &str, port: u16) -> Option<usize> {
    let ours = format!(":{port:04X}");
    let lines = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut at = lines.filter(|line| line.get(1).is_some_and(|local| local.ends_with(&ours)));
    at.next()?.last()?.parse().ok()
}

/// Connects and writes until told to stop; what cannot be written is not.
///
/// *Errors*: it cannot connect.
pub fn upload(netns: &Netns, to: SocketAddrV4, stop: &AtomicBool) -> Result<()> {
    // Whoever accepts may not listen yet.
    let mut stream = wait_for(&format!("a connection to {to}"), PATIENCE, || {
        let made = netns.run(|| TcpStream::connect_timeout(&SocketAddr::V4(to), PATIENCE))?;
        match made {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(None),
            Err(error) => Err(error).with_context(|| format!("connect to {to}")),
        }
    })?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    each_tick(stop, || stream.write_all(&stamp()).is_ok());
    Ok(())
}

/// Notes what arrives on connections until told to stop.
///
/// *Errors*: the port is taken.
pub fn accept(netns: &Netns, at: SocketAddrV4, arrived: &Arrived, stop: &AtomicBool) -> Result<()> {
    let listener = netns.run(|| TcpListener::bind(at))??;
    // On a listener this bounds accept(2).
    set_socket_timeout(&listener, Timeout::Recv, Some(LOOK))?;
    std::thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            if let Ok((stream, _)) = listener.accept() {
                scope.spawn(move || read(stream, arrived, stop));
            }
        }
    });
    Ok(())
}

fn read(mut stream: TcpStream, arrived: &Arrived, stop: &AtomicBool) {
    let mut waiting = Vec::new();
    let mut bytes = [0; 1024];
    // The listener's patience is handed down.
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut bytes) {
            Ok(0) => return,
            Ok(length) => waiting.extend_from_slice(&bytes[..length]),
            Err(_) => continue,
        }
        let whole = waiting.len() / 8 * 8;
        let stamps = waiting.drain(..whole).collect::<Vec<u8>>();
        let (stamps, _) = stamps.as_chunks();
        arrived
            .sent()
            .extend(stamps.iter().map(|stamp| sent_at(*stamp)));
    }
}

/// What a thread of the traffic came to.
///
/// *Errors*: the thread's own.
pub fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(ended) => ended,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[cfg(test)]
mod tests {
    use super::dropped;

    #[test]
    fn drops_are_those_of_the_sockets_own_port() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
             1: 0100007F:270F 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 3\n\
             2: 0100007F:270E 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 17\n";
        assert_eq!(dropped(table, 9998), Some(17));
        assert_eq!(dropped(table, 9997), None);
    }
}
