//! What was made, or made again, on the host: by kind for a metric, in words for the log.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use super::HostError;

/// The kinds of things that are made, and repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The node's rules: 1024, 1535.
    NodeRule,
    /// An interface's link: up, its MTU.
    EniLink,
    /// An interface's own address.
    EniAddress,
    /// The routes of an interface's table, or one in main that would take the primary interface's traffic.
    EniRoute,
    /// An interface's rule: 32765.
    EniRule,
    /// A pod's rules: 512, 1536.
    PodRule,
    /// The route to a pod.
    PodRoute,
    /// The hardware address of a pod's veth on the host.
    VethMac,
    /// An address for pods that the host had as its own.
    HostAddress,
    /// Chains and jumps of the nat table.
    Nat,
    /// Rules of the mangle table.
    Mangle,
    /// Rules of filter FORWARD.
    Forward,
    /// The table of nft.
    Nft,
    /// Connections that began while nothing translated or marked them.
    Flow,
}

impl Part {
    /// All of them, in order.
    pub const ALL: [Part; 14] = [
        Part::NodeRule,
        Part::EniLink,
        Part::EniAddress,
        Part::EniRoute,
        Part::EniRule,
        Part::PodRule,
        Part::PodRoute,
        Part::VethMac,
        Part::HostAddress,
        Part::Nat,
        Part::Mangle,
        Part::Forward,
        Part::Nft,
        Part::Flow,
    ];

    /// One word, for a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Part::NodeRule => "node_rule",
            Part::EniLink => "eni_link",
            Part::EniAddress => "eni_address",
            Part::EniRoute => "eni_route",
            Part::EniRule => "eni_rule",
            Part::PodRule => "pod_rule",
            Part::PodRoute => "pod_route",
            Part::VethMac => "veth_mac",
            Part::HostAddress => "host_address",
            Part::Nat => "nat",
            Part::Mangle => "mangle",
            Part::Forward => "forward",
            Part::Nft => "nft",
            Part::Flow => "flow",
        }
    }
}

/// One thing that was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its kind.
    pub part: Part,
    /// In words: `rule 512: from all to 10.0.1.7/32 lookup 254`.
    pub what: String,
}

impl Change {
    pub(super) fn new(part: Part, what: impl Into<String>) -> Self {
        Self {
            part,
            what: what.into(),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.what.fmt(f)
    }
}

/// What came of a look at all rules and routes.
#[derive(Debug, Default)]
pub struct Looked {
    /// What was changed.
    pub changed: Vec<Change>,
    /// The pods among it: one whose lease has ended meanwhile is to be forgotten.
    pub pods: BTreeSet<IpAddr>,
    /// What could not be looked at or changed.
    pub failed: Vec<HostError>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = Part::ALL.iter().map(|part| part.name()).collect();
        assert_eq!(names.len(), Part::ALL.len());
    }
}
