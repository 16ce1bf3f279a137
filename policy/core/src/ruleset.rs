//! What the kernel should hold: chains of rules, and the sets they match on.
//!
//! A [`Ruleset`] is whole and of one address family. It says nothing of how it gets into the
//! kernel: [`crate::plan`] takes the difference to what is there, [`crate::render`] writes the text.

pub mod interface;
pub mod marker;
pub mod members;
pub mod name;
pub mod rule;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

pub use interface::{BadPrefix, Interface, VethPrefix};
pub use marker::Marker;
pub use members::MemberSet;
pub use name::{ChainName, SetName};
pub use rule::{Action, Chain, FlowState, Match, PortRange, Rule, Side};

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

    /// The family of an address.
    #[must_use]
    pub fn of_address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
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

    /// The two halves of the family's addresses: how a `/0` is written in a set.
    #[must_use]
    pub fn halves(self) -> [IpNet; 2] {
        match self {
            Self::V4 => [
                IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 1),
                IpNet::new_assert(Ipv4Addr::new(128, 0, 0, 0).into(), 1),
            ],
            Self::V6 => [
                IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 1),
                IpNet::new_assert(Ipv6Addr::new(0x8000, 0, 0, 0, 0, 0, 0, 0).into(), 1),
            ],
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
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
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The protocol of a number in the IP header, if policies can name it.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.number() == number)
    }

    /// The number in the IP header (IANA).
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// The type of an ipset, which fixes the shape of its members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// `hash:net`: blocks.
    Net,
    /// `hash:net,port`: a block with a protocol and one port.
    NetPort,
    /// `hash:ip,port,ip` with timeouts: server, its protocol and port, client. Who cuts flows fills
    /// it, and members leave it by themselves: they are never compared, nor planned.
    Guard,
}

/// One member of a set.
///
/// *Shape*: `net` is truncated (no host bits) and never a `/0`, which the kernel refuses: write it
/// as two halves. `port` is present exactly in sets of kind [`SetKind::NetPort`]. Those of kind
/// [`SetKind::Guard`] have no members here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The block; a pod is a /32 or /128.
    pub net: IpNet,
    /// Protocol and destination port.
    pub port: Option<(Protocol, u16)>,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            None => write!(f, "{}", self.net),
            Some((protocol, port)) => write!(f, "{},{protocol}:{port}", self.net),
        }
    }
}

/// The set of flows that were cut and may not be begun again from the other side, in a family:
/// see [`SetKind::Guard`].
#[must_use]
pub fn guard_set(family: Family) -> SetName {
    let name = match family {
        Family::V4 => "selvage-cut4",
        Family::V6 => "selvage-cut6",
    };
    SetName::new(name).expect("a constant")
}

/// For how long the answering side of a flow that was cut must not speak first, from when it last
/// tried: longer than the kernel keeps a UDP flow that both sides spoke in
/// (`nf_conntrack_udp_timeout_stream`, 120 s), which it would be.
pub const GUARD_SECONDS: u32 = 300;

/// A set and everything in it.
///
/// *Shape*: every member is of the ruleset's family and of `kind`'s shape. May be empty: a set
/// without members matches nothing, which is what a selector that selects nobody must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its type.
    pub kind: SetKind,
    /// What is in it.
    pub members: MemberSet,
}

/// A chain of the kernel's own that we hook into, in table `mangle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BaseChain {
    /// Before the routing decision: the only place that accepts the `rpfilter` match.
    Prerouting,
    /// Everything that passes through the node, after DNAT and routing.
    Forward,
}

impl BaseChain {
    /// The name that iptables gives it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Forward => "FORWARD",
        }
    }
}

/// A rule without conditions in a base chain that jumps to a chain of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hook {
    /// Where it is.
    pub base: BaseChain,
    /// Where it jumps to.
    pub target: ChainName,
}

/// Everything of ours that the kernel should hold for one family.
///
/// *Shape*: closed. Each chain that a rule or a hook names is in `chains`, each set that a rule
/// matches is in `sets`, and nothing is there that no hook leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// The family of the tables, and of every member.
    pub family: Family,
    /// How packets get in.
    pub hooks: BTreeSet<Hook>,
    /// Chains by name.
    pub chains: BTreeMap<ChainName, Chain>,
    /// Sets by name. Names are unique over both families.
    pub sets: BTreeMap<SetName, Set>,
}

impl Ruleset {
    /// Nothing at all: what a node without us holds. Planning for it removes everything of ours.
    #[must_use]
    pub fn empty(family: Family) -> Self {
        Self {
            family,
            hooks: BTreeSet::new(),
            chains: BTreeMap::new(),
            sets: BTreeMap::new(),
        }
    }
}
