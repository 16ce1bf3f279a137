//! Ipset's messages: numbers from `linux/netfilter/ipset/ip_set.h`, members to bytes and back.

use std::borrow::Borrow;
use std::iter::Peekable;
use std::net::IpAddr;

use ipnet::IpNet;
use selvage_policy_core::ruleset::{Family, Member, Protocol, SetKind, SetName};

use super::Header;
use crate::message::{ATTRIBUTE_MAX, Attributes, Message};

/// `NFNL_SUBSYS_IPSET`.
const SUBSYSTEM: u8 = 6;

/// `IPSET_ATTR_LINENO`, at both levels: the number of a member, and of the one that was refused.
pub(crate) const LINE: u16 = 9;

/// `IPSET_FLAG_LIST_HEADER`.
pub(super) const FLAG_HEADERS_ONLY: u32 = 1 << 2;
/// `IPSET_FLAG_LIST_SETNAME`: names, and nothing else.
pub(super) const FLAG_NAMES_ONLY: u32 = 1 << 1;

/// A `hash` set has 64 buckets at least; the kernel rounds up to a power of two.
const BUCKETS_MIN: u32 = 64;
/// 8 bytes each: beyond a million buckets the table grows by itself, seldom enough.
const BUCKETS_MAX: u32 = 1 << 20;

/// The most that one member takes in a message: nest, IPv6 address, prefix, port, protocol, line.
const MEMBER_MAX: usize = 4 + 24 + 8 + 8 + 8 + 8;

/// Attributes of commands.
pub(super) mod attribute {
    pub(in crate::ipset) const PROTOCOL: u16 = 1;
    pub(in crate::ipset) const SET_NAME: u16 = 2;
    pub(in crate::ipset) const TYPE_NAME: u16 = 3;
    pub(in crate::ipset) const SET_NAME_2: u16 = 3;
    pub(in crate::ipset) const REVISION: u16 = 4;
    pub(in crate::ipset) const FAMILY: u16 = 5;
    pub(in crate::ipset) const FLAGS: u16 = 6;
    pub(in crate::ipset) const DATA: u16 = 7;
    pub(in crate::ipset) const MEMBERS: u16 = 8;
    pub(in crate::ipset) const LINE: u16 = super::LINE;
    pub(in crate::ipset) const PROTOCOL_OLDEST: u16 = 10;

    /// Inside [`DATA`] of a set.
    pub(super) const INITVAL: u16 = 17;
    pub(in crate::ipset) const HASH_SIZE: u16 = 18;
    pub(in crate::ipset) const MAX_ELEMENTS: u16 = 19;
    pub(super) const ELEMENTS: u16 = 24;
    pub(super) const REFERENCES: u16 = 25;

    /// Inside [`DATA`] of a member; the timeout, in seconds, also of a set.
    pub(in crate::ipset) const IP: u16 = 1;
    pub(super) const PREFIX: u16 = 3;
    pub(in crate::ipset) const PORT: u16 = 4;
    pub(in crate::ipset) const TIMEOUT: u16 = 6;
    pub(in crate::ipset) const TRANSPORT: u16 = 7;
    pub(in crate::ipset) const IP_2: u16 = 20;

    /// Inside [`IP`].
    pub(super) const IPV4: u16 = 1;
    pub(super) const IPV6: u16 = 2;
}

/// `enum ipset_cmd`, what we use of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Protocol = 1,
    Create = 2,
    Destroy = 3,
    Flush = 4,
    Swap = 6,
    List = 7,
    Add = 9,
    Del = 10,
    Header = 12,
    Type = 13,
}

impl Command {
    pub(super) fn message(self, flags: u16, family: u8) -> Message {
        Message::new(SUBSYSTEM, self as u8, flags, family)
    }
}

/// What happens to members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Add,
    Remove,
}

impl Change {
    pub(super) fn command(self) -> Command {
        match self {
            Self::Add => Command::Add,
            Self::Remove => Command::Del,
        }
    }

    /// For messages.
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Add => "add to",
            Self::Remove => "remove from",
        }
    }
}

/// `AF_INET` and `AF_INET6`.
pub(super) fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

pub(super) fn type_name(kind: SetKind) -> &'static str {
    match kind {
        SetKind::Net => "hash:net",
        SetKind::NetPort => "hash:net,port",
        SetKind::Guard => "hash:ip,port,ip",
    }
}

/// The newest revision that ipset 7.17 knows.
pub(super) fn revision_known(kind: SetKind) -> u8 {
    match kind {
        SetKind::Net => 7,
        SetKind::NetPort => 8,
        SetKind::Guard => 5,
    }
}

/// Buckets for as many members as expected. The kernel makes a table larger when a bucket has twelve, which
/// waits for a grace period, 4 to 8 ms: with four times as many members at the soonest. More buckets would make
/// each look at a header dearer, which walks through all of them.
pub(super) fn hash_size(expected: u32) -> u32 {
    expected.clamp(BUCKETS_MIN, BUCKETS_MAX).next_power_of_two()
}

/// Why a member cannot be in such a set.
pub(super) fn misfit(member: &Member, family: Family, kind: SetKind) -> Option<&'static str> {
    if Family::of(&member.net) != family {
        return Some("wrong address family");
    }
    if member.net.prefix_len() == 0 {
        return Some("a /0 is refused by the kernel: write it as two halves");
    }
    match (kind, member.port) {
        (SetKind::Net, None) | (SetKind::NetPort, Some(_)) => None,
        (SetKind::Net, Some(_)) => Some("the set has no ports"),
        (SetKind::NetPort, None) => Some("the set has ports"),
        (SetKind::Guard, _) => Some("the set has other members"),
    }
}

/// Writes as many members as one message holds.
pub(super) fn write_members(
    nest: &mut Message,
    members: &mut Peekable<impl Iterator<Item: Borrow<Member>>>,
    line: &mut u32,
) {
    let start = nest.len();
    while nest.len() - start + MEMBER_MAX + 4 <= ATTRIBUTE_MAX {
        let Some(member) = members.next() else {
            return;
        };
        *line += 1;
        nest.nested(attribute::DATA, |data| {
            write_member(data, member.borrow(), *line)
        });
    }
}

fn write_member(data: &mut Message, member: &Member, line: u32) {
    write_address(data, attribute::IP, member.net.network());
    data.u8(attribute::PREFIX, member.net.prefix_len());
    if let Some((protocol, port)) = member.port {
        data.net_u16(attribute::PORT, port)
            .u8(attribute::TRANSPORT, protocol.number());
    }
    data.net_u32(LINE, line);
}

pub(super) fn write_address(data: &mut Message, kind: u16, address: IpAddr) {
    data.nested(kind, |ip| {
        match address {
            IpAddr::V4(address) => ip.address(attribute::IPV4, &address.octets()),
            IpAddr::V6(address) => ip.address(attribute::IPV6, &address.octets()),
        };
    });
}

/// The header in a reply; `None` when the set's name is none of ours.
pub(super) fn header(attributes: Attributes<'_>) -> Option<Header> {
    let name = SetName::new(attributes.text(attribute::SET_NAME)?).ok()?;
    let kind = match attributes.text(attribute::TYPE_NAME)? {
        "hash:net" => Some(SetKind::Net),
        "hash:net,port" => Some(SetKind::NetPort),
        "hash:ip,port,ip" => Some(SetKind::Guard),
        _ => None,
    };
    let family = match attributes.u8(attribute::FAMILY)? {
        2 => Some(Family::V4),
        10 => Some(Family::V6),
        _ => None,
    };
    let data = attributes.nested(attribute::DATA);
    let number = |kind| data.and_then(|data| data.u32(kind)).unwrap_or(0);
    Some(Header {
        name,
        kind,
        family,
        members: number(attribute::ELEMENTS),
        room: number(attribute::MAX_ELEMENTS),
        references: number(attribute::REFERENCES),
        identity: number(attribute::INITVAL),
    })
}

/// The members in a reply; `None` for one that cannot be understood.
pub(super) fn members(
    attributes: Attributes<'_>,
    kind: SetKind,
) -> impl Iterator<Item = Option<Member>> {
    attributes
        .nested(attribute::MEMBERS)
        .into_iter()
        .flatten()
        .map(move |(_, data)| member(Attributes(data), kind))
}

fn member(data: Attributes<'_>, kind: SetKind) -> Option<Member> {
    let ip = data.nested(attribute::IP)?;
    let (address, longest): (IpAddr, u8) =
        match (ip.find(attribute::IPV4), ip.find(attribute::IPV6)) {
            (Some(octets), _) => (<[u8; 4]>::try_from(octets).ok()?.into(), 32),
            (None, Some(octets)) => (<[u8; 16]>::try_from(octets).ok()?.into(), 128),
            (None, None) => return None,
        };
    let prefix = data.u8(attribute::PREFIX).unwrap_or(longest);
    let port = match kind {
        SetKind::Net => None,
        SetKind::NetPort => Some((
            transport(data.u8(attribute::TRANSPORT)?)?,
            data.u16(attribute::PORT)?,
        )),
        SetKind::Guard => return None,
    };
    Some(Member {
        net: IpNet::new(address, prefix).ok()?.trunc(),
        port,
    })
}

fn transport(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.number() == number)
}

/// A member, written and read.
#[cfg(feature = "fuzzing")]
pub(super) fn again(given: &Member, kind: SetKind) -> Option<Member> {
    let mut message = Command::Add.message(0, 0);
    write_members(&mut message, &mut [given].into_iter().peekable(), &mut 0);
    let bytes = message.finish(0);
    let received = crate::message::messages(&bytes).next()?;
    member(received.attributes().nested(attribute::DATA)?, kind)
}

#[cfg(test)]
mod tests {
    use super::{Command, attribute, hash_size, member, misfit, write_members};
    use crate::message::{ATTRIBUTE_MAX, Attributes, messages};
    use selvage_policy_core::ruleset::{Family, Member, Protocol, SetKind};

    fn a(net: &str, port: Option<(Protocol, u16)>) -> Member {
        Member {
            net: net.parse().unwrap(),
            port,
        }
    }

    #[test]
    fn members_survive_the_wire() {
        for (kind, given) in [
            (SetKind::Net, a("10.0.0.0/8", None)),
            (SetKind::Net, a("fd00::1/128", None)),
            (
                SetKind::NetPort,
                a("10.1.2.3/32", Some((Protocol::Udp, 53))),
            ),
            (
                SetKind::NetPort,
                a("fd00::/64", Some((Protocol::Sctp, 65535))),
            ),
        ] {
            let mut message = Command::Add.message(0, 0);
            write_members(&mut message, &mut [given].iter().peekable(), &mut 0);
            let bytes = message.finish(1);
            let received = messages(&bytes).next().unwrap();
            let data = received.attributes().nested(attribute::DATA).unwrap();
            assert_eq!(member(data, kind), Some(given));
        }
    }

    #[test]
    fn a_full_message_fits_its_length_field() {
        let members: Vec<Member> = (0..3000u16)
            .map(|port| a("fd00::/64", Some((Protocol::Sctp, port))))
            .collect();
        let mut rest = members.iter().peekable();
        let mut line = 0;
        let mut counts = Vec::new();
        while rest.peek().is_some() {
            let before = line;
            let mut message = Command::Add.message(0, 0);
            message.nested(attribute::MEMBERS, |nest| {
                write_members(nest, &mut rest, &mut line);
            });
            assert!(message.len() < ATTRIBUTE_MAX + 24);
            counts.push(line - before);
        }
        assert_eq!(counts.iter().sum::<u32>(), 3000);
        assert!(counts[0] >= 1000, "{counts:?}");
    }

    #[test]
    fn what_cannot_be_a_member_is_named_before_the_kernel_is_asked() {
        let port = Some((Protocol::Tcp, 80));
        for (member, kind, fits) in [
            (a("10.0.0.0/8", None), SetKind::Net, true),
            (a("10.0.0.0/8", port), SetKind::NetPort, true),
            (a("0.0.0.0/0", None), SetKind::Net, false),
            (a("0.0.0.0/1", None), SetKind::Net, true),
            (a("10.0.0.0/8", port), SetKind::Net, false),
            (a("10.0.0.0/8", None), SetKind::NetPort, false),
            (a("fd00::/8", None), SetKind::Net, false),
        ] {
            let problem = misfit(&member, Family::V4, kind);
            assert_eq!(problem.is_none(), fits, "{member} in {kind:?}: {problem:?}");
        }
    }

    #[test]
    fn a_table_has_a_bucket_for_each_member_or_up_to_two() {
        for (expected, buckets) in [(0, 64), (65, 128), (1000, 1024), (u32::MAX, 1 << 20)] {
            assert_eq!(hash_size(expected), buckets, "{expected} members");
        }
    }

    #[test]
    fn a_member_without_an_address_is_none() {
        assert_eq!(member(Attributes(&[]), SetKind::Net), None);
    }
}
