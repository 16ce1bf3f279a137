//! What a profile allows, folded: all rules of all its policies, sorted by the packets they are
//! about. A packet meets one rule per kind of traffic, however many policies and rules there are.
//!
//! | traffic               | peers in               | rule                                   |
//! |-----------------------|------------------------|----------------------------------------|
//! | everything            | one `hash:net`         | one                                    |
//! | all of a protocol     | a `hash:net` each      | one for each protocol                  |
//! | single ports          | one `hash:net,port`    | one, for all ports and protocols       |
//! | a range of ports      | a `hash:net` each      | one for each distinct range            |
//!
//! Who may send everything needs no set, except on single ports, where it is two halves: so the
//! number of rules doesn't grow with ports.
//!
//! A port by name is a single port. In ingress the profile says which: its pods call the same
//! numbers by the name. In egress each peer pod has its own, and is in the set with it.
//!
//! Peers times ports are members, in each profile anew. Where that is too much ([`crate::index`]
//! has a budget), a profile is laid out [`apart`]: rules that name the port, and sets that all
//! profiles share.

mod apart;
mod name;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::index::Profile;
use crate::model::{AddressSet, Direction, NamedPort, Peer, PeerSelector, Peers, Rule, Traffic};
use crate::ruleset::{ChainName, Family, Member, PortRange, Protocol, SetName};
pub(crate) use name::SetId;

/// Protocol and port of a member; `None` in sets without ports.
pub(crate) type Stamp = Option<(Protocol, u16)>;

/// The packets that one rule of a chain is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// All.
    Any,
    /// All of a protocol.
    Protocol(Protocol),
    /// Those to single ports, of whatever protocol: the set knows which.
    SinglePorts,
    /// Those to a range of ports.
    Range(Protocol, PortRange),
}

/// What a profile allows.
///
/// *Shape*: folded, one bucket for each kind of traffic; laid out apart, one for each peer in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Folded {
    chain: ChainName,
    buckets: Vec<Bucket>,
}

impl Folded {
    /// Folds the rules of a profile's policies.
    pub(crate) fn of<'a>(profile: &Profile, rules: impl Iterator<Item = &'a Rule>) -> Self {
        let mut buckets: BTreeMap<Kind, Gathered<'a>> = BTreeMap::new();
        let mut bucket = |kind: Kind, act: &dyn Fn(&mut Gathered<'a>)| {
            act(buckets.entry(kind).or_insert_with(|| Gathered {
                contents: Contents::new(SetId::new(profile, kind)),
                blocks: BTreeMap::new(),
            }));
        };
        for rule in rules {
            for traffic in &*rule.traffic {
                let (kind, stamp) = sorted(*traffic);
                bucket(kind, &|bucket| bucket.allow(stamp, &rule.peers));
            }
            for named in &*rule.named {
                bucket(Kind::SinglePorts, &|bucket| match profile.direction {
                    Direction::Ingress => {
                        for number in profile.ports.get(named).into_iter().flatten() {
                            let stamp = Some((named.protocol, number.get()));
                            bucket.allow(stamp, &rule.peers);
                        }
                    }
                    Direction::Egress => bucket.contents.allow_named(named, &rule.peers),
                });
            }
        }
        let buckets = buckets.into_iter();
        let mut buckets: BTreeMap<Kind, Contents> = buckets
            .map(|(kind, gathered)| (kind, gathered.joined()))
            .collect();
        // Everything from everybody: nothing is left to ask.
        if buckets.get(&Kind::Any).is_some_and(Contents::is_everyone) {
            buckets.retain(|kind, _| *kind == Kind::Any);
        }
        let buckets = buckets.into_iter().map(|(kind, contents)| Bucket {
            kind,
            contents: Arc::new(contents),
        });
        Self {
            chain: name::chain(profile),
            buckets: buckets.collect(),
        }
    }

    /// The chain that the profile's pods share.
    pub(crate) fn chain(&self) -> &ChainName {
        &self.chain
    }

    /// The buckets, in order of traffic.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.buckets.iter()
    }

    /// How many members no pod is behind, in these families: those of blocks.
    pub(crate) fn block_members(&self, families: &BTreeSet<Family>) -> usize {
        let mut sets: BTreeMap<&SetName, usize> = BTreeMap::new();
        for bucket in &self.buckets {
            let Some(contents) = bucket.set() else {
                continue;
            };
            sets.entry(contents.id().name(Family::V4))
                .or_insert_with(|| {
                    let families = families.iter();
                    families
                        .map(|family| contents.block_members(*family).count())
                        .sum()
                });
        }
        sets.values().sum()
    }
}

fn sorted(traffic: Traffic) -> (Kind, Stamp) {
    match traffic {
        Traffic::Any => (Kind::Any, None),
        Traffic::Protocol(protocol) => (Kind::Protocol(protocol), None),
        Traffic::Ports(protocol, ports) => match ports.single() {
            Some(port) => (Kind::SinglePorts, Some((protocol, port))),
            None => (Kind::Range(protocol, ports), None),
        },
    }
}

/// Who may send one kind of traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bucket {
    kind: Kind,
    contents: Arc<Contents>,
}

impl Bucket {
    /// Which packets.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The set that its peers are in; `None` when its rule needs none.
    pub(crate) fn set(&self) -> Option<&Arc<Contents>> {
        (!self.contents.is_everyone()).then_some(&self.contents)
    }
}

/// The contents of one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    set: SetId,
    /// By protocol and port; under `None` alone when the set has no ports.
    fills: BTreeMap<Stamp, Fill>,
    /// Pods with the numbers that they call by a name.
    named: BTreeMap<NamedPort, BTreeSet<PeerSelector>>,
}

/// Who may, on one port or on all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Fill {
    everyone: bool,
    selectors: BTreeSet<PeerSelector>,
    blocks: AddressSet,
}

/// Contents that rules are still added to.
struct Gathered<'a> {
    contents: Contents,
    /// By what they carry, to be joined at once: one after the other would cost the square.
    blocks: BTreeMap<Stamp, Vec<&'a AddressSet>>,
}

impl<'a> Gathered<'a> {
    fn allow(&mut self, stamp: Stamp, peers: &'a Peers) {
        let fill = self.contents.fills.entry(stamp).or_default();
        match peers {
            _ if fill.everyone => {}
            Peers::Everyone => {
                *fill = Fill {
                    everyone: true,
                    ..Fill::default()
                };
            }
            Peers::Listed(listed) => {
                for peer in listed {
                    match peer {
                        Peer::Pods(selector) => {
                            if !fill.selectors.contains(selector) {
                                fill.selectors.insert(selector.clone());
                            }
                        }
                        Peer::Addresses(addresses) => {
                            self.blocks.entry(stamp).or_default().push(addresses);
                        }
                    }
                }
            }
        }
    }

    fn joined(mut self) -> Contents {
        for (stamp, blocks) in self.blocks {
            let fill = self.contents.fills.entry(stamp).or_default();
            if !fill.everyone {
                fill.blocks = AddressSet::union(blocks);
            }
        }
        self.contents
    }
}

impl Contents {
    fn new(set: SetId) -> Self {
        Self {
            set,
            fills: BTreeMap::new(),
            named: BTreeMap::new(),
        }
    }

    /// Only a pod calls a number by a name: everybody is all pods, and a block is nobody.
    fn allow_named(&mut self, named: &NamedPort, peers: &Peers) {
        let selectors = self.named.entry(named.clone()).or_default();
        match peers {
            Peers::Everyone => {
                selectors.insert(PeerSelector::all_pods());
            }
            Peers::Listed(listed) => {
                selectors.extend(listed.iter().filter_map(|peer| match peer {
                    Peer::Pods(selector) => Some(selector.clone()),
                    Peer::Addresses(_) => None,
                }));
            }
        }
    }

    /// Which set.
    pub(crate) fn id(&self) -> &SetId {
        &self.set
    }

    fn is_everyone(&self) -> bool {
        self.fills.get(&None).is_some_and(|fill| fill.everyone)
    }

    /// The selectors in it, each with what its pods' members carry.
    pub(crate) fn selectors(&self) -> impl Iterator<Item = (Stamp, &PeerSelector)> {
        self.fills
            .iter()
            .flat_map(|(stamp, fill)| fill.selectors.iter().map(|selector| (*stamp, selector)))
    }

    /// The selectors whose pods' members carry the numbers that these pods call by a name.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&NamedPort, &PeerSelector)> {
        self.named
            .iter()
            .flat_map(|(named, selectors)| selectors.iter().map(move |selector| (named, selector)))
    }

    /// The members that no pod is behind.
    pub(crate) fn block_members(&self, family: Family) -> impl Iterator<Item = Member> {
        self.fills.iter().flat_map(move |(stamp, fill)| {
            let nets: Vec<IpNet> = if fill.everyone {
                family.halves().to_vec()
            } else {
                fill.blocks.member_nets(family)
            };
            nets.into_iter().map(|net| Member { net, port: *stamp })
        })
    }

    /// Whether every member that the set can have is a pod's.
    pub(crate) fn is_of_pods(&self, family: Family) -> bool {
        let mut fills = self.fills.values();
        fills.all(|fill| !fill.everyone && fill.blocks.is_empty_of(family))
    }

    /// Whether a member that no pod is behind holds an address.
    pub(crate) fn blocks_hold(&self, address: IpAddr, stamp: Stamp) -> bool {
        self.fills
            .get(&stamp)
            .is_some_and(|fill| fill.everyone || fill.blocks.contains(address))
    }
}
