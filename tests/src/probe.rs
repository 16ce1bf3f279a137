//! Can this one reach that one? Asked with packets.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::command::run;
use crate::netns::Place;
use crate::pod::Pod;
use crate::server::is_timeout;

/// How long silence lasts before it counts as [`Outcome::Dropped`].
///
/// Far above a round trip between namespaces on a busy machine (milliseconds), below the first
/// retransmission of a SYN (1 s).
pub const PATIENCE: Duration = Duration::from_millis(700);

/// What [`probe`] can speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A connection and one echoed message.
    Tcp,
    /// One echoed datagram.
    Udp,
}

/// What became of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An echo came back.
    Reached,
    /// Nothing came back.
    Dropped,
    /// The other end answered that nobody listens: packets pass both ways.
    Refused,
}

/// Probes a pod's own address from `from`.
///
/// *Panics*: on an error that is none of the outcomes (no route, no descriptor): the fixture is wrong.
#[must_use]
pub fn probe(from: &impl Place, to: &Pod, protocol: Protocol, port: u16) -> Outcome {
    probe_at(from, protocol, SocketAddrV4::new(to.address(), port))
}

/// [`probe`], at any address: a Service's, for instance.
///
/// *Panics*: as [`probe`].
#[must_use]
pub fn probe_at(from: &impl Place, protocol: Protocol, to: SocketAddrV4) -> Outcome {
    let result = from.netns().run(|| match protocol {
        Protocol::Tcp => tcp(to),
        Protocol::Udp => udp(to),
    });
    match result.expect("the namespace of a live pod can be entered") {
        Ok(outcome) => outcome,
        Err(error) if is_timeout(&error) => Outcome::Dropped,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Outcome::Refused,
        Err(error) => panic!("probe {protocol:?} {to}: {error}"),
    }
}

fn tcp(to: SocketAddrV4) -> std::io::Result<Outcome> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(to), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"probe")?;
    stream.read_exact(&mut [0; 5])?;
    Ok(Outcome::Reached)
}

fn udp(to: SocketAddrV4) -> std::io::Result<Outcome> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"probe")?;
    socket.recv(&mut [0; 5])?;
    Ok(Outcome::Reached)
}

/// Sends one datagram from `pod` with `source` as its source address, whoever that belongs to.
///
/// Whether it arrived is for the receiver to say ([`crate::Server::sources`]): the answer, if any,
/// goes to the owner of the address.
///
/// *Errors*: the address cannot be put on the pod.
pub fn send_from(pod: &Pod, source: Ipv4Addr, to: SocketAddrV4) -> Result<()> {
    let name = pod.interface();
    run(&format!("ip -n {name} addr add {source}/32 dev eth0"))?;
    let sent = pod.netns().run(|| -> std::io::Result<()> {
        let socket = UdpSocket::bind((source, 0))?;
        socket.send_to(b"spoof", to).map(drop)
    })?;
    run(&format!("ip -n {name} addr del {source}/32 dev eth0"))?;
    sent.with_context(|| format!("send from {source} to {to}"))
}

/// Opens a TCP connection that stays open, to see what becomes of it.
///
/// *Errors*: it cannot be opened.
pub fn connect(from: &impl Place, to: SocketAddrV4) -> Result<Flow> {
    let stream = from
        .netns()
        .run(|| TcpStream::connect_timeout(&SocketAddr::V4(to), PATIENCE))?;
    let stream = stream.with_context(|| format!("connect to {to}"))?;
    Ok(Flow {
        stream,
        exchanges: 0,
    })
}

/// An established TCP connection to an echo server.
#[derive(Debug)]
pub struct Flow {
    stream: TcpStream,
    exchanges: u32,
}

impl Flow {
    /// Sends a new message and waits for its echo: does the flow still pass, both ways?
    ///
    /// *Errors*: the connection broke, which is something else than silence.
    pub fn passes(&mut self) -> Result<bool> {
        self.exchanges += 1;
        let message = self.exchanges.to_be_bytes();
        let deadline = Instant::now() + PATIENCE;
        self.stream.write_all(&message).context("send on a flow")?;
        let mut echo = [0; 4];
        // Echoes of earlier messages may come first, retransmitted.
        while echo != message {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read_exact(&mut echo) {
                Ok(()) => {}
                Err(error) if is_timeout(&error) => return Ok(false),
                Err(error) => return Err(error).context("read on a flow"),
            }
        }
        Ok(true)
    }
}
