//! A conntrack entry: two tuples to bytes and back. Numbers from `linux/netfilter/nfnetlink_conntrack.h`.

use std::net::IpAddr;

use crate::message::{Attributes, Message, Received};

/// Attributes of a message.
pub(super) mod attribute {
    pub(in crate::conntrack) const ORIGINAL: u16 = 1;
    pub(in crate::conntrack) const REPLY: u16 = 2;
    pub(in crate::conntrack) const ID: u16 = 12;
    pub(in crate::conntrack) const ZONE: u16 = 18;
    pub(in crate::conntrack) const FILTER: u16 = 25;

    /// Inside a tuple.
    pub(in crate::conntrack) const TUPLE_IP: u16 = 1;
    pub(super) const TUPLE_PROTO: u16 = 2;
    pub(super) const TUPLE_ZONE: u16 = 3;

    /// Inside [`TUPLE_IP`].
    pub(in crate::conntrack) const V4_SOURCE: u16 = 1;
    pub(super) const V4_DESTINATION: u16 = 2;
    pub(in crate::conntrack) const V6_SOURCE: u16 = 3;
    pub(super) const V6_DESTINATION: u16 = 4;

    /// Inside [`TUPLE_PROTO`].
    pub(super) const NUMBER: u16 = 1;
    pub(super) const SOURCE_PORT: u16 = 2;
    pub(super) const DESTINATION_PORT: u16 = 3;
    /// Id, type and code of ICMP; of ICMPv6 the next three.
    pub(super) const ICMP: [u16; 3] = [4, 5, 6];
    pub(super) const ICMP6: [u16; 3] = [7, 8, 9];
}

/// `IPPROTO_ICMPV6`.
const ICMP6: u8 = 58;

/// One direction of a flow, as its packets arrive at the node: before any translation of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Who sends.
    pub source: IpAddr,
    /// Whom to, of the same family.
    pub destination: IpAddr,
    /// What else tells flows apart.
    pub detail: Detail,
    /// The conntrack zone of this direction alone; zones of whole entries are in [`Entry::zone`].
    pub zone: Option<u16>,
}

/// What tells the flows between two addresses apart, beside the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Detail {
    /// TCP, UDP, SCTP and whatever else has ports (GRE's keys count).
    Ports {
        /// The sender's.
        source: u16,
        /// The receiver's.
        destination: u16,
    },
    /// ICMP and ICMPv6.
    Icmp {
        /// The identifier of an echo; 0 of others.
        id: u16,
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
    },
    /// A protocol that conntrack knows by number only.
    None,
}

/// One conntrack entry.
///
/// *Shape*: both tuples are of one family and one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// The number of the protocol above IP.
    pub protocol: u8,
    /// The direction of the first packet.
    pub original: Tuple,
    /// The direction of the answers. Its source is whoever really answers: behind a Service the
    /// pod, not the Service.
    pub reply: Tuple,
    /// What the kernel calls it. It depends on the entry's place in memory and its original tuple.
    pub id: Option<u32>,
    /// The conntrack zone of both directions; `None` is zone 0 or one for a direction.
    pub zone: Option<u16>,
}

/// The first packet of a flow as table mangle's chain FORWARD sees it: after a Service's address
/// became a pod's, before the source is masqueraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seen {
    /// Who began.
    pub source: IpAddr,
    /// Who answers.
    pub destination: IpAddr,
    /// The number of the protocol above IP.
    pub protocol: u8,
    /// Where the answering side listens; `None` for a protocol without ports.
    pub destination_port: Option<u16>,
}

impl Entry {
    /// What rules saw of its first packet.
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen {
            source: self.original.source,
            destination: self.reply.source,
            protocol: self.protocol,
            destination_port: match self.reply.detail {
                Detail::Ports { source, .. } => Some(source),
                Detail::Icmp { .. } | Detail::None => None,
            },
        }
    }

    /// Whether an address is at either end, as [`Entry::seen`] means it.
    #[must_use]
    pub fn touches(&self, address: IpAddr) -> bool {
        self.original.source == address || self.reply.source == address
    }
}

/// `AF_INET` or `AF_INET6`.
pub(super) fn family_number(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

/// The entry in a message; `None` when it cannot be understood.
pub(super) fn parse(message: &Received<'_>) -> Option<Entry> {
    let attributes = message.attributes();
    let (protocol, original) = parse_tuple(attributes.nested(attribute::ORIGINAL)?)?;
    let (answering, reply) = parse_tuple(attributes.nested(attribute::REPLY)?)?;
    let one_family = family_number(original.source) == family_number(reply.source);
    (protocol == answering && one_family).then_some(Entry {
        protocol,
        original,
        reply,
        id: attributes.u32(attribute::ID),
        zone: attributes.u16(attribute::ZONE),
    })
}

fn parse_tuple(tuple: Attributes<'_>) -> Option<(u8, Tuple)> {
    let ip = tuple.nested(attribute::TUPLE_IP)?;
    let v4 = |kind| Some(<[u8; 4]>::try_from(ip.find(kind)?).ok()?.into());
    let v6 = |kind| Some(<[u8; 16]>::try_from(ip.find(kind)?).ok()?.into());
    let (source, destination): (IpAddr, IpAddr) = match v4(attribute::V4_SOURCE) {
        Some(source) => (source, v4(attribute::V4_DESTINATION)?),
        None => (v6(attribute::V6_SOURCE)?, v6(attribute::V6_DESTINATION)?),
    };
    let proto = tuple.nested(attribute::TUPLE_PROTO)?;
    let icmp = |[id, kind, code]: [u16; 3]| {
        Some(Detail::Icmp {
            id: proto.u16(id)?,
            kind: proto.u8(kind)?,
            code: proto.u8(code)?,
        })
    };
    let ports = || {
        Some(Detail::Ports {
            source: proto.u16(attribute::SOURCE_PORT)?,
            destination: proto.u16(attribute::DESTINATION_PORT)?,
        })
    };
    let detail = ports()
        .or_else(|| icmp(attribute::ICMP))
        .or_else(|| icmp(attribute::ICMP6))
        .unwrap_or(Detail::None);
    let tuple = Tuple {
        source,
        destination,
        detail,
        zone: tuple.u16(attribute::TUPLE_ZONE),
    };
    Some((proto.u8(attribute::NUMBER)?, tuple))
}

pub(super) fn write_tuple(message: &mut Message, kind: u16, protocol: u8, tuple: &Tuple) {
    message.nested(kind, |message| {
        message.nested(attribute::TUPLE_IP, |ip| {
            match (tuple.source, tuple.destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    ip.address(attribute::V4_SOURCE, &source.octets())
                        .address(attribute::V4_DESTINATION, &destination.octets());
                }
                (source, destination) => {
                    ip.address(attribute::V6_SOURCE, &as_v6(source))
                        .address(attribute::V6_DESTINATION, &as_v6(destination));
                }
            }
        });
        message.nested(attribute::TUPLE_PROTO, |proto| {
            proto.u8(attribute::NUMBER, protocol);
            match tuple.detail {
                Detail::Ports {
                    source,
                    destination,
                } => {
                    proto
                        .net_u16(attribute::SOURCE_PORT, source)
                        .net_u16(attribute::DESTINATION_PORT, destination);
                }
                Detail::Icmp { id, kind, code } => {
                    let kinds = if protocol == ICMP6 {
                        attribute::ICMP6
                    } else {
                        attribute::ICMP
                    };
                    proto
                        .net_u16(kinds[0], id)
                        .u8(kinds[1], kind)
                        .u8(kinds[2], code);
                }
                Detail::None => {}
            }
        });
        if let Some(zone) = tuple.zone {
            message.net_u16(attribute::TUPLE_ZONE, zone);
        }
    });
}

fn as_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
