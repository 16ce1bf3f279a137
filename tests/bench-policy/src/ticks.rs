//! A packet each millisecond, each a new flow, and when those that arrived were sent.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use selvage_tests::Netns;

use crate::process::pause;

/// Between packets.
pub const TICK: Duration = Duration::from_millis(1);

/// How long a receiver may sleep through the end.
const LOOK: Duration = Duration::from_millis(50);

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

    /// How many.
    pub fn count(&self) -> usize {
        self.sent().len()
    }
}

/// Sends from `from` until told to stop: how many left.
///
/// What the sender's own kernel refuses (no route, no address yet) counts as not sent.
///
/// *Errors*: the namespace cannot be entered.
pub fn send(netns: &Netns, from: Ipv4Addr, to: SocketAddrV4, stop: &AtomicBool) -> Result<usize> {
    netns.run(|| {
        let mut left = 0;
        let mut next = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let since = u64::try_from(EPOCH.elapsed().as_nanos()).unwrap_or(u64::MAX);
            // A socket each: its port is a new one.
            let sent = UdpSocket::bind((from, 0))
                .and_then(|socket| socket.send_to(&since.to_be_bytes(), to));
            left += usize::from(sent.is_ok());
            next += TICK;
            pause(next.saturating_duration_since(Instant::now()));
        }
        left
    })
}

/// Notes what arrives until told to stop.
///
/// *Errors*: the port is taken.
pub fn receive(
    netns: &Netns,
    at: SocketAddrV4,
    arrived: &Arrived,
    stop: &AtomicBool,
) -> Result<()> {
    let socket = netns.run(|| UdpSocket::bind(at))??;
    socket.set_read_timeout(Some(LOOK))?;
    let mut bytes = [0; 8];
    while !stop.load(Ordering::Relaxed) {
        if let Ok(8) = socket.recv(&mut bytes) {
            let sent = *EPOCH + Duration::from_nanos(u64::from_be_bytes(bytes));
            arrived.sent().push(sent);
        }
    }
    Ok(())
}
