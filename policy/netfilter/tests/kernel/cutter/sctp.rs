//! SCTP by hand: the kernel has no SCTP sockets, but tracks and matches its packets.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, recv, sendto, socket,
};
use selvage_tests::{Place, Pod};

use super::talk::Speaker;
use super::world::World;

/// `IPPROTO_SCTP`.
const SCTP: u8 = 132;

/// Chunk types.
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const HEARTBEAT: u8 = 4;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;

/// The client's port; the server's tells associations apart.
const CLIENT_PORT: u16 = 5000;

/// Each side's verification tag, which the other's packets bear.
const CLIENT_TAG: u32 = 0x1111_1111;
const SERVER_TAG: u32 = 0x2222_2222;

/// How long silence lasts before it counts as such.
const SILENCE: Duration = Duration::from_millis(200);

/// One end: a raw socket, and where to.
struct End {
    socket: OwnedFd,
    peer: IpAddr,
    from: u16,
    to: u16,
    /// What it writes into its packets.
    tag: u32,
}

pub struct Association {
    client: End,
    server: End,
    speaker: Speaker,
}

impl Association {
    /// Shakes hands.
    pub fn open(world: &World, port: u16, speaker: Speaker) -> Result<Self> {
        let client = End::open(
            &world.client,
            world.server_address,
            CLIENT_PORT,
            port,
            SERVER_TAG,
        )?;
        let server = End::open(
            &world.server,
            world.client_address,
            port,
            CLIENT_PORT,
            CLIENT_TAG,
        )?;
        let begin = |tag: u32| {
            [
                &tag.to_be_bytes()[..],
                &[0, 0, 255, 255, 0, 1, 0, 1, 0, 0, 0, 1],
            ]
            .concat()
        };
        for (from, to, tag, kind, body) in [
            (&client, &server, 0, INIT, begin(CLIENT_TAG)),
            (&server, &client, CLIENT_TAG, INIT_ACK, begin(SERVER_TAG)),
            (&client, &server, SERVER_TAG, COOKIE_ECHO, vec![0; 4]),
            (&server, &client, CLIENT_TAG, COOKIE_ACK, vec![]),
        ] {
            from.send(tag, kind, &body)?;
            ensure!(to.count()? == 1, "chunk {kind} did not arrive");
        }
        Ok(Self {
            client,
            server,
            speaker,
        })
    }

    /// Data, `count` times from whoever speaks; how many arrived.
    pub fn talk(&self, count: usize) -> Result<usize> {
        self.exchange(DATA, count, self.speaker.client(), self.speaker.server())
    }

    /// A heartbeat from either end; how many arrived.
    pub fn heartbeats(&self) -> Result<usize> {
        self.exchange(HEARTBEAT, 1, true, true)
    }

    fn exchange(&self, kind: u8, count: usize, client: bool, server: bool) -> Result<usize> {
        // A DATA chunk's own header, or a heartbeat's information.
        let body = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
        for _ in 0..count {
            for (end, _) in [(&self.client, client), (&self.server, server)]
                .iter()
                .filter(|(_, speaks)| *speaks)
            {
                end.send(end.tag, kind, &body)?;
            }
        }
        Ok(self.client.count()? + self.server.count()?)
    }
}

impl End {
    fn open(pod: &Pod, peer: IpAddr, from: u16, to: u16, tag: u32) -> Result<Self> {
        let family = match peer {
            IpAddr::V4(_) => AddressFamily::INET,
            IpAddr::V6(_) => AddressFamily::INET6,
        };
        let protocol = Protocol::from_raw(u32::from(SCTP).try_into()?);
        let socket = pod
            .netns()
            .run(|| socket(family, SocketType::RAW, Some(protocol)))??;
        set_socket_timeout(&socket, Timeout::Recv, Some(SILENCE))?;
        Ok(Self {
            socket,
            peer,
            from,
            to,
            tag,
        })
    }

    fn send(&self, tag: u32, kind: u8, body: &[u8]) -> Result<()> {
        let mut packet = Vec::new();
        packet.extend(self.from.to_be_bytes());
        packet.extend(self.to.to_be_bytes());
        packet.extend(tag.to_be_bytes());
        packet.extend([0; 4]);
        // A DATA chunk that is whole.
        packet.extend([kind, if kind == DATA { 3 } else { 0 }]);
        packet.extend(u16::try_from(4 + body.len())?.to_be_bytes());
        packet.extend(body);
        let sum = crc32c(&packet);
        packet[8..12].copy_from_slice(&sum.to_le_bytes());
        let to = SocketAddr::new(self.peer, 0);
        sendto(&self.socket, &packet, SendFlags::empty(), &to)?;
        Ok(())
    }

    /// Packets of this association that have arrived, until there is silence.
    fn count(&self) -> Result<usize> {
        let mut buffer = [0; 256];
        let mut arrived = 0;
        // A raw IPv4 socket brings the IP header along.
        let start = if self.peer.is_ipv4() { 20 } else { 0 };
        let ports = [self.to.to_be_bytes(), self.from.to_be_bytes()].concat();
        while let Ok((length, _)) = recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
            arrived += usize::from(buffer[..length].get(start..start + 4) == Some(&ports[..]));
            if arrived == 1 && self.hand_shaking(&buffer[start..length]) {
                return Ok(arrived);
            }
        }
        Ok(arrived)
    }

    /// During the handshake packets come one by one: there is no need to wait for silence.
    fn hand_shaking(&self, packet: &[u8]) -> bool {
        packet
            .get(12)
            .is_some_and(|kind| [INIT, INIT_ACK, COOKIE_ECHO, COOKIE_ACK].contains(kind))
    }
}

/// The checksum of SCTP (RFC 9260, appendix A): conntrack takes no packet without it.
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
