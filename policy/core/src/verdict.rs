//! Whether a flow that is established may go on: for whoever cuts those that may not.
//!
//! [`Index::judge`] takes a picture of what is in force; [`Judge::verdict`] then answers for any
//! flow, on whichever thread. It walks the same chains as `crate::eval`, by the same function,
//! and asks the sources of the sets instead of the sets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::fold::Stamp;
use crate::index::{Entries, Feeds, Index, Members};
use crate::model::{Direction, PodKey};
use crate::ruleset::{Chain, ChainName, Family, Protocol, SetName};
use crate::walk::{Ground, Packet, Walked, walk};

/// A flow, as mangle FORWARD saw its first packet: after DNAT, before SNAT. Of a conntrack entry,
/// from the source of the original tuple to the source of the reply tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Who began it.
    pub source: IpAddr,
    /// With whom.
    pub destination: IpAddr,
    /// Protocol and destination port; `None` for protocols that policies can't name.
    pub port: Option<(Protocol, u16)>,
}

impl Flow {
    /// A flow of the protocol with a number (IANA), to a port if it has ports.
    #[must_use]
    pub fn new(
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        destination_port: Option<u16>,
    ) -> Self {
        Self {
            source,
            destination,
            port: Protocol::from_number(protocol).zip(destination_port),
        }
    }
}

/// What the policies say of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on.
    Allowed,
    /// It may not.
    Forbidden {
        /// The pod of this node whose policies forbid it.
        pod: PodKey,
        /// In which of its directions.
        direction: Direction,
    },
    /// No pod of this node has an end of it.
    NotOurs,
}

/// What is in force, as it was at one moment.
///
/// *Shape*: whole and by itself; later events don't change it. It shares the index's members: those
/// of a source that changes while it lives are copied once.
#[derive(Debug, Clone)]
pub struct Judge {
    families: BTreeSet<Family>,
    pods: BTreeMap<IpAddr, Vec<LocalEnd>>,
    chains: BTreeMap<Family, BTreeMap<ChainName, Chain>>,
    feeds: Arc<Feeds>,
    members: Vec<Arc<Members>>,
}

/// A pod of this node, and the chains that judge it.
#[derive(Debug, Clone)]
struct LocalEnd {
    pod: PodKey,
    entries: Entries,
}

impl Index {
    /// What is in force now, to judge flows by. Settles first, as compiling does.
    ///
    /// *Cost*: linear in the pods of this node, their profiles' rules and the selectors in use; no
    /// set is copied.
    pub fn judge(&mut self) -> Judge {
        self.settle();
        let families = &self.settings().families;
        let chains = families.iter().map(|family| {
            let chains = self.profile_chains(*family).cloned();
            (*family, chains.collect())
        });
        let chains: BTreeMap<Family, BTreeMap<ChainName, Chain>> = chains.collect();
        let end = |pod: &PodKey| {
            Some(LocalEnd {
                pod: pod.clone(),
                entries: self.entries().get(pod)?.clone(),
            })
        };
        let pods = self.owners().iter().map(|(address, pods)| {
            let ends: Vec<LocalEnd> = pods.iter().filter_map(end).collect();
            (*address, ends)
        });
        Judge {
            pods: pods.collect(),
            families: families.clone(),
            chains,
            feeds: self.feeds().clone(),
            members: self.members().cloned().collect(),
        }
    }
}

impl Judge {
    /// What the policies say of a flow.
    ///
    /// *Needs*: a flow that passes FORWARD. One with an end on the node itself (a probe, the
    /// kubelet) is never filtered, and not to be asked about.
    ///
    /// Where two pods of this node have the address and no route says whose it is, each must
    /// allow the flow: a flow that is cut is begun anew and then judged by its interface.
    ///
    /// *Cost*: two walks through a profile's chain, a microsecond or so.
    #[must_use]
    pub fn verdict(&self, flow: &Flow) -> Verdict {
        let family = Family::of_address(flow.source);
        let pods = |address| self.pods.get(address).map_or(&[][..], Vec::as_slice);
        let (from, to) = (pods(&flow.source), pods(&flow.destination));
        if (from.is_empty() && to.is_empty()) || !self.families.contains(&family) {
            return Verdict::NotOurs;
        }
        // A pod always reaches itself.
        if from
            .iter()
            .any(|end| to.iter().any(|other| other.pod == end.pod))
        {
            return Verdict::Allowed;
        }
        let packet = Packet::first("", "", flow.source, flow.destination, flow.port);
        let ground = InFamily {
            judge: self,
            family,
        };
        for (ends, direction) in [(from, Direction::Egress), (to, Direction::Ingress)] {
            for end in ends {
                let Some(chain) = end.entries.chain(direction) else {
                    continue;
                };
                match walk(&ground, chain, &packet) {
                    Walked::Returned => {}
                    Walked::Dropped => {
                        return Verdict::Forbidden {
                            pod: end.pod.clone(),
                            direction,
                        };
                    }
                }
            }
        }
        Verdict::Allowed
    }
}

struct InFamily<'a> {
    judge: &'a Judge,
    family: Family,
}

impl Ground for InFamily<'_> {
    fn chain(&self, name: &ChainName) -> Option<&Chain> {
        self.judge.chains.get(&self.family)?.get(name)
    }

    fn holds(&self, set: &SetName, address: IpAddr, stamp: Stamp) -> bool {
        let has = |source: usize, element| self.judge.members[source].contains(element);
        self.judge
            .feeds
            .filling(set)
            .is_some_and(|feed| feed.matches(address, stamp, has))
    }
}
