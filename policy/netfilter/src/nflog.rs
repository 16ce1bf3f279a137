//! Packets that rules log to a group (`-j NFLOG --nflog-group N`), as the rule saw them.
//!
//! ```text
//!   rule ─> kernel's queue (100 packets or 0.1 s) ─> socket buffer ─> Logged
//!                                    what doesn't fit is counted ──> lost()
//! ```

mod header;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rtnetlink::sys::Socket;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

pub use header::{Header, parse_header};

use crate::error::Error;
use crate::listen::{self, Heard};
use crate::message::{ACK, Attributes, Message, NO_FAMILY, Received, messages};
use crate::socket::Nfnetlink;

/// `NFNL_SUBSYS_ULOG`, with `NFULNL_MSG_PACKET` and `NFULNL_MSG_CONFIG`.
const SUBSYSTEM: u8 = 4;
const PACKET: u16 = u16::from_be_bytes([SUBSYSTEM, 0]);
const CONFIG: u16 = u16::from_be_bytes([SUBSYSTEM, 1]);

/// Attributes of [`CONFIG`]: `NFULA_CFG_*`.
const CONFIG_COMMAND: u16 = 1;
const CONFIG_MODE: u16 = 2;
const CONFIG_TIMEOUT: u16 = 4;
const CONFIG_FLAGS: u16 = 6;
/// `NFULNL_CFG_CMD_BIND`.
const BIND: u8 = 1;
/// `NFULNL_COPY_PACKET`.
const COPY_PACKET: u8 = 2;
/// `NFULNL_CFG_F_SEQ`: number the packets, so that gaps show.
const NUMBERED: u16 = 1;

/// Attributes of [`PACKET`]: `NFULA_*`.
const INTERFACE_IN: u16 = 4;
const INTERFACE_OUT: u16 = 5;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
const SEQUENCE: u16 = 12;

/// Bytes of each packet: IPv6's header, 80 bytes of extensions, ports.
const COPY: u32 = 128;

/// Hundredths of a second that the kernel collects packets for.
const COLLECT: u32 = 10;

/// Room for some 5,000 packets.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Datagrams that are read before the caller has its turn; each holds up to 100 packets.
const AT_ONCE: usize = 16;

/// A packet that a rule logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logged<'a> {
    /// The rule's `--nflog-prefix`, 63 bytes at most; empty when it has none, or none in UTF-8.
    pub prefix: &'a str,
    /// Index of the interface it came in by.
    pub interface_in: Option<u32>,
    /// Index of the interface it was to leave by.
    pub interface_out: Option<u32>,
    /// Its headers; `None` when they cannot be read.
    pub header: Option<Header>,
}

/// One group of the network namespace that [`Nflog::open`] ran in.
///
/// Its descriptor ([`AsFd`]) is readable when [`Nflog::receive`] has something to read. The group
/// is free again when this is dropped.
pub struct Nflog {
    socket: Socket,
    buffer: Vec<u8>,
    count: Count,
}

/// How many packets should have come.
#[derive(Debug, Default)]
struct Count {
    next: u32,
    lost: u64,
}

impl Count {
    fn saw(&mut self, sequence: u32) {
        self.lost += u64::from(sequence.wrapping_sub(self.next));
        self.next = sequence.wrapping_add(1);
    }
}

impl AsFd for Nflog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Nflog {
    /// Takes a group, for both families. `patience` bounds this call only.
    ///
    /// *Needs*: `CAP_NET_ADMIN`.
    ///
    /// *Errors*: [`Error::Refused`] (EPERM) when somebody has the group already; [`Error::Socket`],
    /// [`Error::Silence`].
    pub fn open(group: u16, patience: Duration) -> Result<Self, Error> {
        let mut requests = Nfnetlink::open(patience)?;
        requests.make_room(RECEIVE_BUFFER)?;
        let about = || Message::with_resource(CONFIG, ACK, NO_FAMILY, group);
        let object = || format!("take NFLOG group {group}");
        let mut bind = about();
        bind.bytes(CONFIG_COMMAND, &[BIND]);
        requests.request(&object, bind)?;
        let mut mode = about();
        let mut range = COPY.to_be_bytes().to_vec();
        range.extend([COPY_PACKET, 0]);
        mode.bytes(CONFIG_MODE, &range)
            .net_u32(CONFIG_TIMEOUT, COLLECT)
            .net_u16(CONFIG_FLAGS, NUMBERED);
        let mut count = Count::default();
        // The first packets may come before the acknowledgement.
        for reply in requests.request(&object, mode)? {
            if let Some(sequence) = reply.attributes().u32(SEQUENCE) {
                count.saw(sequence);
            }
        }
        Ok(Self {
            socket: requests.into_socket(),
            buffer: Vec::with_capacity(listen::BUFFER),
            count,
        })
    }

    /// Waits until `deadline` at most and hands over what is there: how many packets, 0 at the
    /// deadline. A deadline in the past does not wait. Under a flood it returns in between.
    ///
    /// *Errors*: [`Error::Socket`].
    pub fn receive(
        &mut self,
        deadline: Instant,
        mut each: impl FnMut(Logged<'_>),
    ) -> Result<usize, Error> {
        let mut handed = 0;
        loop {
            listen::wait(&self.socket, deadline)?;
            for _ in 0..AT_ONCE {
                let count = &mut self.count;
                let heard = listen::receive(&self.socket, &mut self.buffer, &mut |message| {
                    if message.kind != PACKET {
                        return;
                    }
                    let attributes = message.attributes();
                    if let Some(sequence) = attributes.u32(SEQUENCE) {
                        count.saw(sequence);
                    }
                    handed += 1;
                    each(parse(attributes));
                })?;
                match heard {
                    // What an overrun left out shows as a gap.
                    Heard::Datagram | Heard::Overrun => {}
                    Heard::Nothing => break,
                }
            }
            if handed > 0 || Instant::now() >= deadline {
                return Ok(handed);
            }
        }
    }

    /// How many packets the kernel logged that were not handed over, up to the last one that was.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.count.lost
    }
}

fn parse(attributes: Attributes<'_>) -> Logged<'_> {
    Logged {
        prefix: attributes.text(PREFIX).unwrap_or_default(),
        interface_in: attributes.u32(INTERFACE_IN),
        interface_out: attributes.u32(INTERFACE_OUT),
        header: attributes.find(PAYLOAD).and_then(parse_header),
    }
}

/// The name of an interface of the calling thread's network namespace, by its number; `None` when
/// it is gone.
#[must_use]
pub fn interface_name(index: u32) -> Option<String> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    );
    rustix::net::netdevice::index_to_name(socket.ok()?, index).ok()
}

/// The logged packets in a datagram, whoever made it up: what [`Nflog::receive`] rests on.
///
/// *Shape*: in order; other messages are left out.
pub fn packets(datagram: &[u8]) -> impl Iterator<Item = Logged<'_>> {
    messages(datagram)
        .filter(|message: &Received<'_>| message.kind == PACKET)
        .map(|message| parse(message.attributes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Count, PACKET, PAYLOAD, PREFIX, packets};
    use crate::message::Message;

    #[test]
    fn gaps_are_counted_also_where_the_numbers_begin_again() {
        let mut count = Count {
            next: u32::MAX - 1,
            lost: 0,
        };
        for sequence in [u32::MAX - 1, u32::MAX, 2, 3] {
            count.saw(sequence);
        }
        assert_eq!(count.lost, 2);
    }

    #[test]
    fn a_prefix_that_is_no_text_is_empty_and_a_payload_that_is_no_packet_has_no_header() {
        let mut message = Message::with_resource(PACKET, 0, 2, 0);
        message
            .bytes(PREFIX, &[0xff, 0xfe, 0])
            .bytes(PAYLOAD, &[1, 2]);
        let bytes = message.finish(0);
        let found: Vec<_> = packets(&bytes).collect();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].prefix, found[0].header), ("", None));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut message = Message::plain(PACKET, 0, &bytes).finish(0);
            let _ = packets(&message).count();
            message.truncate(bytes.len());
            let _ = packets(&message).count();
        }
    }
}
