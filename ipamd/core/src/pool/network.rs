//! Where new interfaces are made, and which interfaces may serve pods: custom networking, subnets by tag, what is known
//! of their room.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Block, Eni, Pool};
use crate::cloud::{CloudError, CloudErrorKind, SubnetFacts, TAG_SUBNET, TAG_SUBNET_CLUSTER, Want};
use crate::ids::{SecurityGroupId, SubnetId, Timestamp};
use crate::limits::Mode;

/// Subnets are looked at again before an interface is made, if the last look is older than this.
pub(crate) const SUBNETS_STALE: Duration = Duration::from_secs(3600);
/// And every so often in any case: somebody may exclude a subnet.
pub(crate) const SUBNETS_REFRESH: Duration = Duration::from_secs(12 * 3600);
/// How long a subnet without addresses, or an instance without room for interfaces, is left alone.
pub(crate) const EXHAUSTED_PAUSE: Duration = Duration::from_secs(120);
/// A node that still has a free address leaves such a subnet alone twice as long each time, so often: sixteen minutes.
const PATIENCE: u32 = 3;

/// A node's ENIConfig: where the interfaces of its pods are made under custom networking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniConfig {
    /// Name of the object.
    pub name: String,
    /// Subnet.
    pub subnet_id: SubnetId,
    /// Security groups; empty: those of the primary interface.
    pub security_groups: Vec<SecurityGroupId>,
}

/// What the pool knows of the network around the node.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    /// Under custom networking; else unused. `Err` says what is missing and where to look.
    pub(crate) eni_config: Result<EniConfig, String>,
    /// As DescribeSubnets told; `None` until it has answered, in whatever way.
    pub(crate) subnets: Option<Subnets>,
    pub(crate) describing: bool,
    pub(crate) rooms: BTreeMap<(SubnetId, Kind), Room>,
}

/// An answer of DescribeSubnets.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subnets {
    /// Empty if it was refused: then the primary interface's subnet is all there is.
    list: Vec<SubnetFacts>,
    at: Timestamp,
}

/// What can run out in a subnet, each by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Address,
    Prefix,
    Ipv6,
}

impl From<Want> for Kind {
    fn from(want: Want) -> Self {
        match want {
            Want::Addresses(_) => Kind::Address,
            Want::Prefixes(_) => Kind::Prefix,
            Want::Ipv6Prefix => Kind::Ipv6,
        }
    }
}

/// What we know of a subnet's room.
#[derive(Debug, Clone, Default)]
pub(crate) struct Room {
    /// Not asked before this.
    paused_until: Option<Timestamp>,
    /// Not asked before this while the node has a free address.
    patient_until: Option<Timestamp>,
    /// Refusals since something was given.
    refusals: u32,
    /// After a refusal: ask for no more than this at once; grows with success.
    pub(crate) ask: Option<u32>,
    /// Why it cannot be used at all, in the cloud's words.
    wrong: Option<String>,
}

/// Where an interface can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Site {
    pub(crate) subnet_id: SubnetId,
    pub(crate) security_groups: Vec<SecurityGroupId>,
}

/// Why there is nowhere to make an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoSite {
    /// Subnets have not been looked at yet.
    Unknown,
    /// No ENIConfig: in whose words.
    NoEniConfig(String),
    /// The ENIConfig's subnet is not one of the node's zone.
    Elsewhere {
        /// The ENIConfig.
        name: String,
        /// Its subnet.
        subnet: SubnetId,
    },
    /// Every subnet of the zone is kept from pods by its tags.
    Excluded,
}

impl Network {
    pub(crate) fn new() -> Self {
        Self {
            eni_config: Err("the node's ENIConfig has not been read yet".into()),
            subnets: None,
            describing: false,
            rooms: BTreeMap::new(),
        }
    }
}

impl Pool {
    /// Under custom networking: where interfaces are made from now on, or what is missing and where to look. What is
    /// attached in another subnet serves no new pods and goes when its last pod has gone.
    pub fn set_eni_config(&mut self, eni_config: Result<EniConfig, String>) {
        self.network.eni_config = eni_config;
    }

    /// The security groups that interfaces get where no ENIConfig names others: the primary interface's. Those that were
    /// made for this instance follow; under custom networking what is attached stays as it is.
    pub fn set_security_groups(&mut self, security_groups: Vec<SecurityGroupId>) {
        self.security_groups = security_groups;
    }

    /// The security groups that an interface should have and has not, as far as we know.
    pub(crate) fn missing_groups(&self, eni: &Eni) -> Option<BTreeSet<SecurityGroupId>> {
        if self.settings.custom_networking || !eni.ours || eni.primary {
            return None;
        }
        let wanted: BTreeSet<SecurityGroupId> = self.security_groups.iter().cloned().collect();
        let others = eni.groups.as_ref().is_some_and(|has| *has != wanted);
        (others && !wanted.is_empty() && eni.refused_groups.as_ref() != Some(&wanted))
            .then_some(wanted)
    }

    /// The subnets as last told by EC2.
    pub fn subnets(&self) -> &[SubnetFacts] {
        self.network
            .subnets
            .as_ref()
            .map_or(&[], |known| &known.list)
    }

    /// Whether a pod may be given an address of this interface.
    pub fn serves(&self, eni: &Eni) -> bool {
        if self.settings.custom_networking {
            let elsewhere = match &self.network.eni_config {
                Ok(config) => eni.subnet_id != config.subnet_id,
                // Not known (yet): who serves goes on serving.
                Err(_) => false,
            };
            return !eni.primary && !elsewhere;
        }
        !self.is_excluded(&eni.subnet_id)
    }

    /// Whether a block is of the kind that the mode asks for; others are used last and given back when free.
    pub(crate) fn suits(&self, block: &Block) -> bool {
        match self.settings.mode {
            Mode::Addresses => !block.is_prefix(),
            Mode::Prefixes | Mode::Ipv6 => block.is_prefix(),
        }
    }

    /// Takes in what DescribeSubnets answered. A refusal leaves the primary interface's subnet, for a while.
    pub(crate) fn described_subnets(
        &mut self,
        answer: Result<Vec<SubnetFacts>, CloudError>,
        now: Timestamp,
    ) {
        self.network.describing = false;
        match answer {
            Ok(list) => self.network.subnets = Some(Subnets { list, at: now }),
            // Asked again as soon as the bucket allows: what may be excluded is not to be used meanwhile.
            Err(error) if error.kind == CloudErrorKind::Throttled => {}
            Err(error) => {
                self.last_failure = Some(error.to_string());
                let known = self.network.subnets.get_or_insert_default();
                known.at = now;
            }
        }
    }

    /// Whether subnets are to be looked at: they never were, or long ago, or somebody is about to choose one.
    pub(crate) fn wants_subnets(&self, choosing: bool, now: Timestamp) -> bool {
        if self.network.describing {
            return false;
        }
        match &self.network.subnets {
            None => true,
            Some(known) => {
                let stale = if choosing {
                    SUBNETS_STALE
                } else {
                    SUBNETS_REFRESH
                };
                now.since(known.at) > stale
            }
        }
    }

    /// Where an interface could be made, the best place first.
    pub(crate) fn sites(&self, kind: Kind, now: Timestamp) -> Result<Vec<Site>, NoSite> {
        if self.settings.custom_networking {
            return self.custom_site().map(|site| vec![site]);
        }
        let known = self.network.subnets.as_ref().ok_or(NoSite::Unknown)?;
        let mut offered: Vec<&SubnetFacts> = known
            .list
            .iter()
            .filter(|subnet| self.is_offered(subnet))
            .collect();
        // A subnet that has just refused comes after those that have not.
        offered.sort_by_key(|subnet| {
            let limited = self.askable(&subnet.id, kind, now) < u32::MAX;
            (limited, std::cmp::Reverse(subnet.available))
        });
        let mut ids: Vec<SubnetId> = offered.iter().map(|subnet| subnet.id.clone()).collect();
        // EC2 did not say: the primary interface's subnet is there in any case.
        let told = known.list.iter().any(|subnet| subnet.id == self.subnet_id);
        if !told {
            ids.push(self.subnet_id.clone());
        }
        if ids.is_empty() {
            return Err(NoSite::Excluded);
        }
        let site = |subnet_id| Site {
            subnet_id,
            security_groups: self.security_groups.clone(),
        };
        Ok(ids.into_iter().map(site).collect())
    }

    fn custom_site(&self) -> Result<Site, NoSite> {
        let config = self
            .network
            .eni_config
            .as_ref()
            .map_err(|words| NoSite::NoEniConfig(words.clone()))?;
        if self.network.subnets.is_none() {
            // Whether it is in the node's zone is told before anything is made in it.
            return Err(NoSite::Unknown);
        }
        let list = self.subnets();
        let elsewhere =
            !list.is_empty() && !list.iter().any(|subnet| subnet.id == config.subnet_id);
        if elsewhere {
            // Attaching would fail, after an interface was made.
            return Err(NoSite::Elsewhere {
                name: config.name.clone(),
                subnet: config.subnet_id.clone(),
            });
        }
        let groups = match config.security_groups.as_slice() {
            [] => &self.security_groups,
            some => some,
        };
        Ok(Site {
            subnet_id: config.subnet_id.clone(),
            security_groups: groups.to_vec(),
        })
    }

    /// Whether new interfaces may be made in a subnet: the primary interface's unless it is excluded, others only where
    /// a tag offers them.
    fn is_offered(&self, subnet: &SubnetFacts) -> bool {
        if subnet.id == self.subnet_id {
            return !self.is_kept_from_pods(subnet);
        }
        let tagged = subnet.tags.get(TAG_SUBNET).is_some_and(|v| !v.is_empty());
        self.settings.subnet_discovery && tagged && !self.is_kept_from_pods(subnet)
    }

    fn is_excluded(&self, subnet: &SubnetId) -> bool {
        let known = self.subnets().iter().find(|known| known.id == *subnet);
        known.is_some_and(|subnet| self.is_kept_from_pods(subnet))
    }

    /// Whether a subnet's tags keep our pods out: `0`, or clusters that we are not. An empty value is no tag; without a
    /// name of our own we cannot tell whose a subnet is.
    fn is_kept_from_pods(&self, subnet: &SubnetFacts) -> bool {
        if subnet.tags.get(TAG_SUBNET).is_some_and(|v| v == "0") {
            return true;
        }
        if self.settings.cluster.is_empty() || !self.settings.subnet_discovery {
            return false;
        }
        let mut clusters = subnet
            .tags
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .filter_map(|(key, _)| key.strip_prefix(TAG_SUBNET_CLUSTER))
            .peekable();
        clusters.peek().is_some() && !clusters.any(|name| name == self.settings.cluster)
    }

    /// How many of a kind the subnet may be asked for at once; 0 while it rests.
    pub(crate) fn askable(&self, subnet: &SubnetId, kind: Kind, now: Timestamp) -> u32 {
        match self.network.rooms.get(&(subnet.clone(), kind)) {
            None => u32::MAX,
            Some(room) if self.rests(room, now).is_some() => 0,
            Some(room) => room.ask.unwrap_or(u32::MAX),
        }
    }

    /// Until when a subnet rests, if it does.
    fn rests(&self, room: &Room, now: Timestamp) -> Option<Timestamp> {
        let until = match self.has_free(now) {
            true => room.paused_until.max(room.patient_until),
            false => room.paused_until,
        };
        until.filter(|until| now < *until)
    }

    /// Whether a subnet has refused since it last gave something.
    pub(crate) fn is_refused(&self) -> bool {
        self.network.rooms.values().any(|room| room.refusals > 0)
    }

    /// The subnet had fewer than what was asked: ask for one; if it was one, leave the subnet alone.
    pub(crate) fn exhausted(&mut self, subnet: &SubnetId, want: Want, now: Timestamp) {
        let pause = self.jitter.spread_up(EXHAUSTED_PAUSE);
        let key = (subnet.clone(), Kind::from(want));
        let room = self.network.rooms.entry(key).or_default();
        room.wrong = None;
        room.ask = Some(1);
        if want.count() <= 1 {
            room.paused_until = Some(now + pause);
            room.patient_until = Some(now + pause * (1 << room.refusals.min(PATIENCE)));
            room.refusals += 1;
        }
    }

    /// The subnet cannot be used at all, whatever is asked of it, for the reason in `words`.
    pub(crate) fn shut(&mut self, subnet: &SubnetId, words: &str, now: Timestamp) {
        for kind in [Kind::Address, Kind::Prefix, Kind::Ipv6] {
            let room = self
                .network
                .rooms
                .entry((subnet.clone(), kind))
                .or_default();
            room.paused_until = Some(now + EXHAUSTED_PAUSE);
            room.wrong = Some(words.to_owned());
        }
    }

    /// Why a subnet that rests cannot be used at all, and when it is asked again.
    pub(crate) fn wrong_subnet(&self, kind: Kind, now: Timestamp) -> Option<(&str, Timestamp)> {
        let rooms = self.network.rooms.iter();
        rooms
            .filter(|((_, of), _)| *of == kind)
            .find_map(|(_, room)| {
                let until = self.rests(room, now)?;
                Some((room.wrong.as_deref()?, until))
            })
    }

    /// The subnet gave what was asked: ask for more the next time.
    pub(crate) fn widen(&mut self, subnet: &SubnetId, want: Want) {
        let key = (subnet.clone(), Kind::from(want));
        if let Some(room) = self.network.rooms.get_mut(&key) {
            room.paused_until = None;
            room.patient_until = None;
            room.refusals = 0;
            room.wrong = None;
            room.ask = room.ask.map(|ask| ask.saturating_mul(2));
        }
    }

    /// The subnets that rest, for what, and until when.
    pub(crate) fn resting_subnets(
        &self,
        now: Timestamp,
    ) -> impl Iterator<Item = (&SubnetId, Kind, Timestamp)> {
        self.network
            .rooms
            .iter()
            .filter_map(move |((subnet, kind), room)| {
                let until = self.rests(room, now)?;
                Some((subnet, *kind, until))
            })
    }
}
