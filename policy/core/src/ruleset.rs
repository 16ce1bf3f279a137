//! What the kernel should hold: chains of rules, and the sets they match on.

pub mod name;

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

pub use name::{ChainName, SetName};

/// An address family; each has its own tables, sets and tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4: `iptables`, `family inet`.
    V4,
    /// IPv6: `ip6tables`, `family inet6`.
    V6,
}

impl Family {
    /// The family of a block.
    #[must_use]
    pub fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// The block that holds every address of the family.
    #[must_use]
    pub fn everything(self) -> IpNet {
        match self {
            Self::V4 => IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
            Self::V6 => IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
        }
    }
}

/// A transport protocol that NetworkPolicy can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Protocol {
    /// The number in the IP header (IANA).
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// The type of an ipset, which fixes the shape of its members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// `hash:net`: blocks.
    Net,
    /// `hash:net,port`: a block with a protocol and one port.
    NetPort,
}

/// One member of a set.
///
/// *Shape*: `net` is truncated (no host bits) and never a `/0`, which the kernel refuses: write it
/// as two halves. `port` is present exactly in sets of kind [`SetKind::NetPort`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The block; a pod is a /32 or /128.
    pub net: IpNet,
    /// Protocol and destination port.
    pub port: Option<(Protocol, u16)>,
}
