//! Packets from one pod to another, timed from the sender's side: it runs the whole path, both
//! veths, the filter and the receiver's queue, in its own system call.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fd::OwnedFd;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
use rustix::thread::{CpuSet, sched_setaffinity};
use selvage_tests::Pod;

/// Packets in one go: what the receiver's queue holds.
pub const BURST: u16 = 500;

const QUEUE: usize = 4 << 20;

/// Where the receiver listens; connections take turns on ports above it.
pub const PORT: u16 = 9000;
const PORTS: u16 = 8;

const PATIENCE: Duration = Duration::from_secs(2);

/// Keeps the calling thread on one processor.
///
/// *Errors*: it may not run there.
pub fn stay(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).context("stay on one processor")
}

/// A sender and a receiver.
pub struct Path {
    raw: OwnedFd,
    receiver: UdpSocket,
    established: UdpSocket,
    from: Ipv4Addr,
    to: Ipv4Addr,
    port: u16,
}

impl Path {
    /// Opens the sockets and sees a first flow answered.
    ///
    /// *Errors*: nothing comes through.
    pub fn open(from: &Pod, to: &Pod) -> Result<Self> {
        use selvage_tests::Place;
        let (source, target) = (from.address(), to.address());
        let receiver = to.netns().run(|| -> Result<UdpSocket> {
            let socket = UdpSocket::bind((target, PORT))?;
            set_socket_recv_buffer_size_force(&socket, QUEUE)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        })??;
        let (raw, established) = from.netns().run(|| -> Result<(OwnedFd, UdpSocket)> {
            // IPPROTO_RAW: we write the IP header ourselves, so any source port is a new flow.
            let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW))?;
            let socket = UdpSocket::bind((source, 0))?;
            socket.connect((target, PORT))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok((raw, socket))
        })??;
        let path = Self {
            raw,
            receiver,
            established,
            from: source,
            to: target,
            port: 1024,
        };
        path.answer()?;
        Ok(path)
    }

    /// Makes the established flow one.
    fn answer(&self) -> Result<()> {
        self.established.send(b"first")?;
        let (_, from) = self
            .receiver
            .recv_from(&mut [0; 16])
            .context("no first packet")?;
        self.receiver.send_to(b"answer", from)?;
        self.established.recv(&mut [0; 16]).context("no answer")?;
        Ok(())
    }

    /// Nanoseconds that each of [`BURST`] first packets takes.
    ///
    /// *Errors*: one did not arrive.
    pub fn first(&mut self) -> Result<f64> {
        let packets: Vec<[u8; 32]> = (0..BURST)
            .map(|_| {
                self.port = if self.port == u16::MAX {
                    1024
                } else {
                    self.port + 1
                };
                packet(self.from, self.to, self.port)
            })
            .collect();
        let to = SocketAddrV4::new(self.to, PORT);
        let began = Instant::now();
        for packet in &packets {
            sendto(&self.raw, packet, SendFlags::empty(), &to)?;
        }
        let took = began.elapsed();
        self.drain()?;
        Ok(each(took))
    }

    /// Nanoseconds that each of [`BURST`] packets of an answered flow takes.
    ///
    /// *Errors*: one did not arrive.
    pub fn established(&mut self) -> Result<f64> {
        let began = Instant::now();
        for _ in 0..BURST {
            self.established.send(&[0; 4])?;
        }
        let took = began.elapsed();
        self.drain()?;
        Ok(each(took))
    }

    fn drain(&self) -> Result<()> {
        for number in 0..BURST {
            self.receiver
                .recv(&mut [0; 16])
                .with_context(|| format!("{number} of {BURST} packets arrived"))?;
        }
        Ok(())
    }
}

fn each(took: Duration) -> f64 {
    took.as_secs_f64() * 1e9 / f64::from(BURST)
}

/// An IPv4 header, a UDP header and four bytes. The kernel fills in the header's checksum, and a
/// UDP checksum of 0 means none.
fn packet(from: Ipv4Addr, to: Ipv4Addr, port: u16) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = 0x45;
    bytes[2..4].copy_from_slice(&32_u16.to_be_bytes());
    bytes[8] = 64;
    bytes[9] = 17;
    bytes[12..16].copy_from_slice(&from.octets());
    bytes[16..20].copy_from_slice(&to.octets());
    bytes[20..22].copy_from_slice(&port.to_be_bytes());
    bytes[22..24].copy_from_slice(&PORT.to_be_bytes());
    bytes[24..26].copy_from_slice(&12_u16.to_be_bytes());
    bytes
}

/// A TCP server in a pod: one byte in, one byte out, closed.
pub struct Server<'scope> {
    stop: &'scope AtomicBool,
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Serves in `pod` on a thread of `scope` until the answer is dropped.
///
/// *Errors*: a port is taken.
pub fn serve<'scope, 'env>(
    scope: &'scope std::thread::Scope<'scope, 'env>,
    pod: &'env Pod,
    stop: &'env AtomicBool,
    cpu: usize,
) -> Result<Server<'env>> {
    use selvage_tests::Place;
    for port in PORT..PORT + PORTS {
        let listener = pod
            .netns()
            .run(|| TcpListener::bind((pod.address(), port)))??;
        listener.set_nonblocking(true)?;
        scope.spawn(move || {
            let _ = stay(cpu);
            serve_port(&listener, stop);
        });
    }
    Ok(Server { stop })
}

fn serve_port(listener: &TcpListener, stop: &AtomicBool) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let wait = Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, _)) => {
                // A client that gave up is its own figure's loss.
                let _ = stream.set_nonblocking(false);
                let mut byte = [0];
                let _ = stream
                    .read_exact(&mut byte)
                    .and_then(|()| stream.write_all(&byte));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&wait));
            }
            Err(_) => return,
        }
    }
}

/// Connections a second from `pod` to a server at `to`: connected, asked, answered, closed.
///
/// *Errors*: one failed.
pub fn connections(pod: &Pod, to: Ipv4Addr, length: Duration, cpu: usize) -> Result<f64> {
    use selvage_tests::Place;
    pod.netns().run(|| -> Result<f64> {
        stay(cpu)?;
        let began = Instant::now();
        let mut done = 0_u32;
        while began.elapsed() < length {
            let port = PORT + u16::try_from(done % u32::from(PORTS))?;
            let mut stream = TcpStream::connect((to, port))?;
            stream.write_all(&[1])?;
            stream.read_exact(&mut [0])?;
            // The end of the stream: the server closed first.
            ensure!(stream.read(&mut [0])? == 0, "the server said more");
            done += 1;
        }
        Ok(f64::from(done) / began.elapsed().as_secs_f64())
    })?
}
