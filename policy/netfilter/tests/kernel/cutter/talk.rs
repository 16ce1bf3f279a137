//! Flows that talk by themselves until they are finished, and count what arrives.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use selvage_tests::Place;

use super::world::World;

/// Between two messages.
const PACE: Duration = Duration::from_millis(1);
/// How long a blocked call goes without looking whether to stop.
const TICK: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    Client,
    Server,
    Both,
    /// Only after [`Flow::speak`].
    ClientLater,
    ServerLater,
}

impl Speaker {
    pub fn client(self) -> bool {
        matches!(self, Self::Client | Self::Both | Self::ClientLater)
    }

    pub fn server(self) -> bool {
        matches!(self, Self::Server | Self::Both | Self::ServerLater)
    }

    fn at_once(self) -> bool {
        !matches!(self, Self::ClientLater | Self::ServerLater)
    }
}

#[derive(Default)]
struct Shared {
    speak: AtomicBool,
    stop: AtomicBool,
    sent: AtomicU64,
    arrived: AtomicU64,
}

impl Shared {
    fn is(flag: &AtomicBool) -> bool {
        flag.load(Ordering::Relaxed)
    }
}

/// A flow and the threads that keep it going.
pub struct Flow {
    shared: Arc<Shared>,
    speakers: Vec<JoinHandle<()>>,
    listeners: Vec<JoinHandle<()>>,
    ends: (SocketAddr, SocketAddr),
}

/// Lets time go by.
#[expect(
    clippy::disallowed_methods,
    reason = "what passes meanwhile is the test"
)]
pub fn pass(time: Duration) {
    thread::sleep(time);
}

impl Flow {
    /// A connection to `to`, where `port` of the server answers.
    pub fn tcp(world: &World, to: SocketAddr, port: u16, speaker: Speaker) -> Result<Self> {
        let any = SocketAddr::new(world.server_address, port);
        let listener = world.server.netns().run(|| TcpListener::bind(any))??;
        let client = world
            .client
            .netns()
            .run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?
            .with_context(|| format!("connect to {to}"))?;
        let (server, _) = listener.accept()?;
        let ends = (client.local_addr()?, server.local_addr()?);
        let mut flow = Self::new(speaker, ends);
        // Both sides have spoken: conntrack knows it as established for good.
        (&client).write_all(b"hello")?;
        (&server).read_exact(&mut [0; 5])?;
        for (stream, speaks, bulk) in [
            (client, speaker.client(), speaker == Speaker::Client),
            (server, speaker.server(), false),
        ] {
            stream.set_read_timeout(Some(TICK))?;
            stream.set_write_timeout(Some(TICK))?;
            let ours = stream.try_clone()?;
            flow.listen(move |buffer| {
                let length = (&ours).read(buffer).ok()?;
                // The end of the stream comes at once, again and again.
                (length > 0).then_some(length as u64)
            });
            if speaks {
                let message = vec![7; if bulk { 65536 } else { 100 }];
                flow.talk(!bulk, move || (&stream).write(&message).is_ok());
            }
        }
        Ok(flow)
    }

    /// Datagrams to `to`, where `port` of the server answers; both sides have spoken once.
    pub fn udp(world: &World, to: SocketAddr, port: u16, speaker: Speaker) -> Result<Self> {
        let bind = |pod: &selvage_tests::Pod, at: SocketAddr| -> Result<UdpSocket> {
            let socket = pod.netns().run(|| UdpSocket::bind(at))??;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            Ok(socket)
        };
        let server = bind(&world.server, SocketAddr::new(world.server_address, port))?;
        let client = bind(&world.client, SocketAddr::new(world.client_address, 0))?;
        client.connect(to)?;
        client.send(b"hello")?;
        let (_, peer) = server
            .recv_from(&mut [0; 8])
            .context("the first datagram")?;
        server.connect(peer)?;
        server.send(b"hello")?;
        client.recv(&mut [0; 8]).context("its answer")?;
        let ends = (client.local_addr()?, server.local_addr()?);
        let mut flow = Self::new(speaker, ends);
        for (socket, speaks) in [(client, speaker.client()), (server, speaker.server())] {
            socket.set_read_timeout(Some(TICK))?;
            let ours = socket.try_clone()?;
            flow.listen(move |buffer| ours.recv(buffer).ok().map(|_| 1));
            if speaks {
                flow.talk(true, move || socket.send(&[7; 100]).is_ok());
            }
        }
        Ok(flow)
    }

    fn new(speaker: Speaker, ends: (SocketAddr, SocketAddr)) -> Self {
        let shared = Shared::default();
        shared.speak.store(speaker.at_once(), Ordering::Relaxed);
        Self {
            shared: Arc::new(shared),
            speakers: Vec::new(),
            listeners: Vec::new(),
            ends,
        }
    }

    fn listen(&mut self, mut hear: impl FnMut(&mut [u8]) -> Option<u64> + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.listeners.push(thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while !Shared::is(&shared.stop) {
                match hear(&mut buffer) {
                    Some(count) => {
                        shared.arrived.fetch_add(count, Ordering::Relaxed);
                    }
                    None => pass(PACE),
                }
            }
        }));
    }

    fn talk(&mut self, paced: bool, mut say: impl FnMut() -> bool + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.speakers.push(thread::spawn(move || {
            while !Shared::is(&shared.stop) {
                let said = Shared::is(&shared.speak) && say();
                if said {
                    shared.sent.fetch_add(1, Ordering::Relaxed);
                }
                if paced || !said {
                    pass(PACE);
                }
            }
        }));
    }

    /// The client's and the server's own addresses and ports.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        self.ends
    }

    /// Lets those speak who waited.
    pub fn speak(&self) {
        self.shared.speak.store(true, Ordering::Relaxed);
    }

    /// Messages that were said.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Bytes (TCP) or datagrams (UDP) that arrived, at both ends together.
    pub fn arrived(&self) -> u64 {
        self.shared.arrived.load(Ordering::Relaxed)
    }

    /// Ends a flow of datagrams and says how many did not arrive.
    pub fn lost(self) -> Result<u64> {
        self.shared.speak.store(false, Ordering::Relaxed);
        pass(Duration::from_millis(300));
        let sent = self.sent();
        Ok(sent - self.finish()?)
    }

    /// Ends it; what arrived at last, or was said when nothing was to be heard.
    pub fn finish(self) -> Result<u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.speakers.into_iter().chain(self.listeners) {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread of a flow panicked"))?;
        }
        Ok(self.shared.arrived.load(Ordering::Relaxed))
    }
}
