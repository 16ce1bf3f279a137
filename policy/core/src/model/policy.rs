//! Policies: whom they isolate, and whom they let through.

use std::fmt;

use super::{AddressSet, NamespaceName, Selector};
use crate::ruleset::{PortRange, Protocol};

/// Which policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// Its namespace.
    pub namespace: NamespaceName,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// What a policy says, as far as it was understood.
///
/// *Shape*: what was not understood is in here as what it must not allow: a rule that is missing,
/// a subject that is the whole namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Which one.
    pub key: PolicyKey,
    /// The pods of its namespace that it isolates.
    pub subject: Selector,
    /// What may reach them; `None` when it doesn't speak about ingress.
    pub ingress: Option<Box<[Rule]>>,
    /// What they may reach; `None` when it doesn't speak about egress.
    pub egress: Option<Box<[Rule]>>,
}

impl Policy {
    /// The ports by name that its ingress rules speak of: each subject has numbers of its own.
    pub fn named_ingress(&self) -> impl Iterator<Item = &NamedPort> {
        self.ingress
            .iter()
            .flatten()
            .flat_map(|rule| rule.named.iter())
    }

    /// The rules of a direction; `None` when the policy doesn't isolate in it.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// One thing that is allowed: these peers on any of this traffic.
///
/// *Shape*: traffic and names are in order, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// With whom.
    pub peers: Peers,
    /// Which packets.
    pub traffic: Box<[Traffic]>,
    /// Which packets, too: those to ports that the pod they go to calls by these names.
    pub named: Box<[NamedPort]>,
}

/// A port by name: its number is what the pod that a packet goes to calls so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// Of which protocol; a port of another protocol is not meant, whatever its name.
    pub protocol: Protocol,
    /// Its name.
    pub name: PortName,
}

impl fmt::Display for NamedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.protocol, self.name)
    }
}

/// The name of a port.
///
/// *Shape*: an IANA service name as Kubernetes checks it: 1 to 15 of `[a-z0-9-]`, at least one
/// letter, no dash at an end nor beside another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName(Box<str>);

/// 15: the API's limit (RFC 6335).
const PORT_NAME_MAX: usize = 15;

impl PortName {
    /// Takes a name that a port can have; `None` for any other text.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let well_formed = (1..=PORT_NAME_MAX).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && name.bytes().any(|b| b.is_ascii_lowercase())
            && !name.starts_with('-')
            && !name.ends_with('-')
            && !name.contains("--");
        well_formed.then(|| Self(name.into()))
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// With whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peers {
    /// Anybody: pods, nodes and the world.
    Everyone,
    /// Any of these.
    Listed(Box<[Peer]>),
}

/// Some peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Pods, by label.
    Pods(PeerSelector),
    /// Addresses, whoever has them.
    Addresses(Box<AddressSet>),
}

/// Pods of some namespaces, by label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerSelector {
    /// In which namespaces.
    pub namespaces: Namespaces,
    /// Which pods there.
    pub pods: Selector,
}

impl PeerSelector {
    /// All pods of the cluster.
    #[must_use]
    pub fn all_pods() -> Self {
        Self {
            namespaces: Namespaces::Matching(Selector::everything()),
            pods: Selector::everything(),
        }
    }
}

/// Which namespaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// One, known by name: the policy's own.
    Named(NamespaceName),
    /// Those with such labels.
    Matching(Selector),
}

/// Which packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// All of them, ICMP and the unknown included.
    Any,
    /// All of a protocol.
    Protocol(Protocol),
    /// Those to some destination ports of a protocol.
    Ports(Protocol, PortRange),
}
