//! A TCP connection that is never idle: what a pod that keeps running would notice.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use selvage_nodenet::NetNs;

/// A connection that waits longer is broken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two messages.
const PAUSE: Duration = Duration::from_millis(2);

/// It goes on for so many messages after it was told to end: what was done meanwhile must have left it whole, however
/// quickly it was done.
const AFTERWARDS: u32 = 50;

/// What came of a connection.
#[derive(Debug)]
pub struct Told {
    /// Messages that were answered.
    pub answered: u32,
    /// The longest wait for an answer.
    pub longest: Duration,
}

/// A connection under way.
pub struct Stream {
    name: String,
    stop: Arc<AtomicBool>,
    client: JoinHandle<std::io::Result<Told>>,
    server: JoinHandle<std::io::Result<()>>,
    /// The source that the server sees.
    pub source: IpAddr,
}

fn within<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    let netns = NetNs::open(Path::new(&format!("/run/netns/{netns}"))).unwrap();
    netns.run(work).unwrap()
}

impl Stream {
    /// Connects from a namespace, by `to`, to where `server` listens in another one.
    pub fn begin(from: (&str, &str), to: SocketAddr, server: (&str, SocketAddr)) -> Self {
        let name = format!("{} to {to}", from.0);
        let listener = within(server.0, || TcpListener::bind(server.1).unwrap());
        let at = SocketAddr::new(from.1.parse().unwrap(), 0);
        let client = within(from.0, || connect(at, to));
        let mut client = client.unwrap_or_else(|error| panic!("{name}: {error}"));
        let (mut accepted, seen) = listener.accept().unwrap();
        for stream in [&client, &accepted] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let client = std::thread::spawn(move || {
            let mut told = Told {
                answered: 0,
                longest: Duration::ZERO,
            };
            let mut left = AFTERWARDS;
            while left > 0 {
                left -= u32::from(stopped.load(Ordering::Relaxed));
                let asked = Instant::now();
                client.write_all(b"?")?;
                client.read_exact(&mut [0])?;
                told.longest = told.longest.max(asked.elapsed());
                told.answered += 1;
                pause();
            }
            Ok(told)
        });
        let server = std::thread::spawn(move || {
            let mut byte = [0];
            while accepted.read(&mut byte)? == 1 {
                accepted.write_all(&byte)?;
            }
            Ok(())
        });
        Stream {
            name,
            stop,
            client,
            server,
            source: seen.ip(),
        }
    }

    /// Ends it, some messages later: everything that was asked must have been answered.
    pub fn end(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        let told = self.client.join().unwrap();
        let told = told.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        self.server.join().unwrap().unwrap();
        told
    }
}

/// From an address of the namespace's own choice, or from a given one.
fn connect(at: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket(family, SocketType::STREAM, None)?;
    bind(&socket, &at)?;
    // Bounded by the kernel's own retries, which end with the test.
    connect(&socket, &to)?;
    Ok(TcpStream::from(socket))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a connection that is not idle and does not eat the processor either"
)]
fn pause() {
    std::thread::sleep(PAUSE);
}
