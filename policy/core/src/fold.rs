//! What a profile allows, folded: all rules of all its policies, sorted by the packets they are
//! about. A packet meets one rule per kind of traffic, however many policies and rules there are.
//!
//! | traffic               | peers in               | rule                                   |
//! |-----------------------|------------------------|----------------------------------------|
//! | single ports          | one `hash:net,port`    | one, for all ports and protocols       |
//! | everything            | one `hash:net`         | one                                    |
//! | all of a protocol     | a `hash:net` each      | one for each protocol                  |
//! | a range of ports      | a `hash:net` each      | one for each distinct range            |
//!
//! Who may send everything needs no set, except on single ports, where it is two halves: so the
//! number of rules doesn't grow with ports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use crate::index::Profile;
use crate::model::{AddressSet, Direction, Peer, PeerSelector, Peers, Rule, Traffic};
use crate::ruleset::marker::hex;
use crate::ruleset::{ChainName, Family, Member, SetKind, SetName};

/// 8 bytes of SHA-256 name a chain or a set: profiles of a node are hundreds, not billions.
const NAME_HASH_BYTES: usize = 8;

/// What a profile allows.
///
/// *Shape*: one bucket for each kind of traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Folded {
    chain: ChainName,
    buckets: BTreeMap<Traffic, Bucket>,
}

impl Folded {
    /// Folds the rules of a profile's policies.
    pub(crate) fn of<'a>(profile: &Profile, rules: impl Iterator<Item = &'a Rule>) -> Self {
        let mut buckets: BTreeMap<Traffic, Bucket> = BTreeMap::new();
        for rule in rules {
            for traffic in &rule.traffic {
                buckets
                    .entry(*traffic)
                    .or_insert_with(|| Bucket::new(profile, *traffic))
                    .allow(&rule.peers);
            }
        }
        // Everything from everybody: nothing is left to ask.
        if buckets.get(&Traffic::Any).is_some_and(|any| any.everyone) {
            buckets.retain(|traffic, _| *traffic == Traffic::Any);
        }
        Self {
            chain: chain_name(profile),
            buckets,
        }
    }

    /// The chain that the profile's pods share.
    pub(crate) fn chain(&self) -> &ChainName {
        &self.chain
    }

    /// The buckets, in order of traffic.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.buckets.values()
    }
}

/// Who may send one kind of traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bucket {
    traffic: Traffic,
    set: SetId,
    everyone: bool,
    selectors: BTreeSet<PeerSelector>,
    blocks: AddressSet,
}

impl Bucket {
    fn new(profile: &Profile, traffic: Traffic) -> Self {
        Self {
            traffic,
            set: SetId::new(profile, traffic),
            everyone: false,
            selectors: BTreeSet::new(),
            blocks: AddressSet::default(),
        }
    }

    fn allow(&mut self, peers: &Peers) {
        match peers {
            _ if self.everyone => {}
            Peers::Everyone => {
                self.everyone = true;
                self.selectors.clear();
                self.blocks = AddressSet::default();
            }
            Peers::Listed(listed) => {
                for peer in listed {
                    match peer {
                        Peer::Pods(selector) => {
                            self.selectors.insert(selector.clone());
                        }
                        Peer::Addresses(addresses) => self.blocks.extend(addresses),
                    }
                }
            }
        }
    }

    /// Which packets.
    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// The set that its peers are in; `None` when its rule needs none.
    pub(crate) fn set(&self) -> Option<&SetId> {
        (!self.everyone || self.port().is_some()).then_some(&self.set)
    }

    /// The selectors whose members are peers.
    pub(crate) fn selectors(&self) -> &BTreeSet<PeerSelector> {
        &self.selectors
    }

    /// The blocks that are peers, as members have them.
    pub(crate) fn block_nets(&self, family: Family) -> Vec<IpNet> {
        if self.everyone {
            family.halves().to_vec()
        } else {
            self.blocks.member_nets(family)
        }
    }

    /// A peer as a member of the set.
    pub(crate) fn member(&self, net: IpNet) -> Member {
        Member {
            net,
            port: self.port(),
        }
    }

    fn port(&self) -> Option<(crate::ruleset::Protocol, u16)> {
        match self.traffic {
            Traffic::Any | Traffic::Protocol(_) => None,
            Traffic::Ports(protocol, ports) => Some((protocol, ports.single()?)),
        }
    }
}

/// Which set: named by what it is for, never by what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetId {
    kind: SetKind,
    direction: char,
    purpose: char,
    hash: String,
}

impl SetId {
    fn new(profile: &Profile, traffic: Traffic) -> Self {
        let (kind, purpose, detail) = match traffic {
            Traffic::Any => (SetKind::Net, 'a', String::new()),
            Traffic::Protocol(protocol) => (SetKind::Net, 'n', protocol.to_string()),
            Traffic::Ports(protocol, ports) => match ports.single() {
                Some(_) => (SetKind::NetPort, 'p', String::new()),
                None => (SetKind::Net, 'r', format!("{protocol} {ports}")),
            },
        };
        Self {
            kind,
            direction: letter(profile.direction),
            purpose,
            hash: hash(profile, &detail),
        }
    }

    /// Its kind.
    pub(crate) fn kind(&self) -> SetKind {
        self.kind
    }

    /// Its name in a family.
    pub(crate) fn name(&self, family: Family) -> SetName {
        let digit = match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        SetName::new(&format!("selvage-{}{digit}-{self}", self.direction))
            .expect("29 bytes of letters, digits and dashes")
    }
}

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.purpose, self.hash)
    }
}

fn chain_name(profile: &Profile) -> ChainName {
    let hash = hash(profile, "");
    ChainName::new(&format!("selvage-{}-{hash}", letter(profile.direction)))
        .expect("26 bytes of letters, digits and dashes")
}

fn letter(direction: Direction) -> char {
    match direction {
        Direction::Ingress => 'i',
        Direction::Egress => 'e',
    }
}

/// Names can hold neither a space nor a line break, so no two profiles have the same text.
fn hash(profile: &Profile, detail: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("{} {detail}\n", profile.direction));
    for policy in &profile.policies {
        hasher.update(format!("{policy}\n"));
    }
    hex(&hasher.finalize()[..NAME_HASH_BYTES])
}
