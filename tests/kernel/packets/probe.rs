//! One flow's first packet: does it arrive?

use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, recv, sendto, socket,
};
use selvage_oracle::probe::{Probe, Traffic};
use selvage_tests::Netns;

/// `IPPROTO_SCTP`.
const SCTP: u8 = 132;

/// The first of a hundred protocols that nobody has (IANA), and that have no ports. Each probe has its
/// own: between two addresses one protocol is one flow, and the other direction its reply.
const UNASSIGNED: u8 = 143;

/// Whether it arrives. Nobody listens: a TCP or UDP packet that arrives is refused, and the refusal
/// comes back as part of the flow. The kernel may have no SCTP sockets, so its packets are made by
/// hand and looked for where they should arrive.
pub(super) fn reaches(
    from: &Netns,
    to: &Netns,
    number: u16,
    probe: &Probe,
    patience: Duration,
) -> Result<bool> {
    let address = probe.to.address();
    match probe.traffic {
        Traffic::Tcp(port) => {
            let to = SocketAddr::new(address, port);
            outcome(from.run(|| TcpStream::connect_timeout(&to, patience).map(drop))?)
        }
        Traffic::Udp(port) => {
            let to = SocketAddr::new(address, port);
            outcome(from.run(|| udp(to, patience))?)
        }
        Traffic::Sctp(port) => by_hand(
            from,
            to,
            address,
            SCTP,
            &init(20_000 + number, port),
            patience,
        ),
        Traffic::Other => {
            let marked = [&number.to_be_bytes()[..], b"selvage"].concat();
            let protocol = UNASSIGNED + u8::try_from(number % 100)?;
            by_hand(from, to, address, protocol, &marked, patience)
        }
    }
}

fn outcome(result: Result<(), Error>) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Ok(true),
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Ok(false),
            _ => bail!(error),
        },
    }
}

fn udp(to: SocketAddr, patience: Duration) -> Result<(), Error> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"probe")?;
    socket.recv(&mut [0; 16]).map(drop)
}

fn by_hand(
    from: &Netns,
    to: &Netns,
    address: IpAddr,
    protocol: u8,
    packet: &[u8],
    patience: Duration,
) -> Result<bool> {
    let family = match address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let protocol = Protocol::from_raw(u32::from(protocol).try_into()?);
    let open = || socket(family, SocketType::RAW, Some(protocol));
    let (sender, receiver) = (from.run(open)??, to.run(open)??);
    let until = Instant::now() + patience;
    sendto(
        &sender,
        packet,
        SendFlags::empty(),
        &SocketAddr::new(address, 0),
    )?;
    // A raw socket of IPv4 brings the header along.
    let start = if address.is_ipv4() { 20 } else { 0 };
    let mut buffer = [0; 256];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        set_socket_timeout(&receiver, Timeout::Recv, Some(left))?;
        match recv(&receiver, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _)) if buffer[..length].get(start..) == Some(packet) => return Ok(true),
            // Somebody else's probe.
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(false),
            Err(error) => bail!(error),
        }
    }
}

/// An association's first packet (RFC 9260): a common header, and an INIT chunk of 20 bytes.
fn init(from: u16, to: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(from.to_be_bytes());
    packet.extend(to.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    packet.extend([
        0x11, 0x11, 0x11, 0x11, 0, 0, 255, 255, 0, 1, 0, 1, 0, 0, 0, 1,
    ]);
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// SCTP's checksum (RFC 9260, appendix A): conntrack calls a packet without it invalid.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg());
        }
    }
    !sum
}
