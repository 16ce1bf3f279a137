//! A packet each millisecond that policy allows, one that it forbids, and who got through.

use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use selvage_tests::{Place, Pod};

const PORT: u16 = 9000;
const EACH: Duration = Duration::from_millis(1);

/// How long a packet that was sent may be under way.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// Packets under way between pods; joined by [`Traffic::end`].
pub struct Traffic {
    stop: Arc<AtomicBool>,
    allowed: Stream,
    forbidden: Stream,
    /// Ends with the packets that came and that its socket had no room for.
    receiving: JoinHandle<Result<u64>>,
    received: Arc<Counts>,
}

struct Stream {
    sent: Arc<AtomicU64>,
    sending: JoinHandle<Result<()>>,
}

#[derive(Default)]
struct Counts {
    allowed: AtomicU64,
    forbidden: AtomicU64,
}

/// What happened to the packets.
#[derive(Debug)]
pub struct Outcome {
    pub allowed_sent: u64,
    pub allowed_lost: u64,
    pub forbidden_sent: u64,
    pub forbidden_passed: u64,
}

/// A socket in a pod. It speaks to nobody who answers, so that conntrack never calls the flow
/// established and each packet is judged anew.
fn socket(pod: &Pod, at: SocketAddr) -> Result<UdpSocket> {
    let socket = pod.netns().run(|| UdpSocket::bind(at))?;
    socket.with_context(|| format!("bind in {}", pod.interface()))
}

/// What the table of UDP sockets (`net/ipv4/udp.c`, `udp4_format_sock`; IPv6's is alike) says was dropped at ours: on a busy machine
/// the receiver may not run for a second, and its socket is full. Those packets came: no rule has dropped them.
fn unheard(sockets: &mut File) -> Result<u64> {
    let mut table = String::new();
    sockets.read_to_string(&mut table)?;
    let ours = format!(":{PORT:04X}");
    let line = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|line| line.get(1).is_some_and(|local| local.ends_with(&ours)))
        .context("the receiving socket is not in the table")?;
    let drops = line.last().context("a line of the table is empty")?;
    Ok(drops.parse()?)
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(ended) => ended,
        Err(_) => bail!("a thread of the traffic panicked"),
    }
}

impl Traffic {
    /// From `may` and from `must_not` to a pod, each with the address that it uses.
    pub fn start(
        may: (&Pod, IpAddr),
        must_not: (&Pod, IpAddr),
        to: (&Pod, IpAddr),
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (to, address) = to;
        let target = SocketAddr::new(address, PORT);
        let received = Arc::new(Counts::default());
        let receiver = socket(to, target)?;
        receiver.set_read_timeout(Some(EACH * 20))?;
        let table = match address {
            IpAddr::V4(_) => "/proc/thread-self/net/udp",
            IpAddr::V6(_) => "/proc/thread-self/net/udp6",
        };
        // Of the pod's namespace, whoever reads it.
        let mut sockets = to.netns().run(|| File::open(table))??;
        let receiving = thread::spawn({
            let (stop, counts) = (Arc::clone(&stop), Arc::clone(&received));
            let allowed = may.1;
            move || {
                let mut quiet_since = None;
                let mut buffer = [0; 16];
                loop {
                    if let Ok((_, from)) = receiver.recv_from(&mut buffer) {
                        let count = if from.ip() == allowed {
                            &counts.allowed
                        } else {
                            &counts.forbidden
                        };
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    if stop.load(Ordering::Relaxed) {
                        let since = *quiet_since.get_or_insert_with(Instant::now);
                        if since.elapsed() > UNDER_WAY {
                            return unheard(&mut sockets);
                        }
                    }
                }
            }
        });
        let stream = |(from, own): (&Pod, IpAddr)| -> Result<Stream> {
            let sender = socket(from, SocketAddr::new(own, 0))?;
            let sent = Arc::new(AtomicU64::new(0));
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&sent));
            let sending = thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    sender.send_to(b"packet", target)?;
                    count.fetch_add(1, Ordering::Relaxed);
                    thread::park_timeout(EACH);
                }
                Ok(())
            });
            Ok(Stream { sent, sending })
        };
        Ok(Self {
            allowed: stream(may)?,
            forbidden: stream(must_not)?,
            stop,
            receiving,
            received,
        })
    }

    /// Stops, waits for what is under way, and counts.
    pub fn end(self) -> Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        joined(self.allowed.sending)?;
        joined(self.forbidden.sending)?;
        let unheard = joined(self.receiving)?;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (allowed_sent, passed) = (count(&self.allowed.sent), count(&self.received.allowed));
        Ok(Outcome {
            allowed_sent,
            allowed_lost: allowed_sent.saturating_sub(passed + unheard),
            forbidden_sent: count(&self.forbidden.sent),
            forbidden_passed: count(&self.received.forbidden),
        })
    }
}
