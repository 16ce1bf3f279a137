//! What the pods of this node need: their profiles, what these allow, and the sources in it.
//!
//! ```text
//! pod ──► profile ──► sources (selectors)   whose pods are counted once, whoever needs them
//!            └──────► feeds   (sets)        which sources are in it, and the members that makes
//! ```
//!
//! All are counted by use, so what nothing touched stays: a change costs what it touches.

mod budget;
mod feed;
mod fill;
mod layout;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::Arc;

use super::census::Census;
use super::members::Members;
use super::places::Places;
use super::pods::Pods;
use super::{Settings, policies_on};
use crate::fold::Folded;
use crate::model::{Direction, Labels, NamedPort, NamespaceName, Pod, PodKey, Policy, PolicyKey};
use crate::ruleset::{Chain, ChainName, Family};
pub use budget::{MEMBER_BUDGET, MemberUse};
pub(crate) use feed::Feeds;
use fill::Filled;
use layout::InUse;
use source::Sources;
pub(super) use source::State;

/// The policies that isolate some pods in a direction. Pods with the same profile share a chain
/// and its sets.
///
/// *Shape*: at least one policy, all of one namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Profile {
    /// In which direction.
    pub direction: Direction,
    /// Which policies, all of them in force together.
    pub policies: BTreeSet<PolicyKey>,
    /// The numbers that the pods call by the names in the policies' ingress rules. A name that
    /// they don't have is not here; nor is any in egress, where it is the peer that has the port.
    pub ports: BTreeMap<NamedPort, BTreeSet<NonZeroU16>>,
}

/// By which profiles a pod is isolated; `None`: it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolation {
    /// What may reach it.
    pub ingress: Option<Arc<Profile>>,
    /// What it may reach.
    pub egress: Option<Arc<Profile>>,
}

impl Isolation {
    /// What the policies make of a pod.
    pub(super) fn of(pod: &Pod, policies: &BTreeMap<PolicyKey, Policy>) -> Self {
        let profile = |direction| {
            let mut profile = Profile {
                direction,
                policies: BTreeSet::new(),
                ports: BTreeMap::new(),
            };
            for policy in policies_on(pod, direction, policies) {
                profile.policies.insert(policy.key.clone());
                if direction == Direction::Ingress {
                    for named in policy.named_ingress() {
                        let numbers: BTreeSet<NonZeroU16> = pod.numbers(named).collect();
                        if !numbers.is_empty() {
                            profile.ports.insert(named.clone(), numbers);
                        }
                    }
                }
            }
            (!profile.policies.is_empty()).then(|| Arc::new(profile))
        };
        Self {
            ingress: profile(Direction::Ingress),
            egress: profile(Direction::Egress),
        }
    }

    /// The profile of a direction.
    #[must_use]
    pub fn profile(&self, direction: Direction) -> Option<&Profile> {
        self.shared(direction).map(|profile| &**profile)
    }

    fn shared(&self, direction: Direction) -> Option<&Arc<Profile>> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

/// The chains that judge a pod's packets, those of its profiles; `None`: it is not isolated.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entries {
    ingress: Option<ChainName>,
    egress: Option<ChainName>,
}

impl Entries {
    /// The chain of a direction.
    pub(crate) fn chain(&self, direction: Direction) -> Option<&ChainName> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }

    fn set(&mut self, direction: Direction, chain: ChainName) {
        match direction {
            Direction::Ingress => self.ingress = Some(chain),
            Direction::Egress => self.egress = Some(chain),
        }
    }
}

/// What the API server and the kernel told us.
#[derive(Debug, Clone, Copy)]
pub(super) struct World<'a> {
    pub(super) places: &'a Places,
    pub(super) census: &'a Census,
    pub(super) pods: &'a Pods,
    pub(super) namespaces: &'a BTreeMap<NamespaceName, Labels>,
    pub(super) policies: &'a BTreeMap<PolicyKey, Policy>,
}

/// What is to be looked at again.
#[derive(Debug, Default)]
pub(super) struct Stale {
    /// Pods of this node, or that were.
    pub(super) pods: BTreeSet<PodKey>,
    /// Policies that say something else now.
    pub(super) policies: BTreeSet<PolicyKey>,
}

/// The part of the cluster that this node's rules are made of.
#[derive(Debug)]
pub(super) struct Active {
    families: BTreeSet<Family>,
    /// The families that any pod of the cluster has addresses of, as of the last settling.
    peopled: BTreeSet<Family>,
    deny_log: Option<u16>,
    budget: usize,
    pods: BTreeMap<PodKey, Isolation>,
    /// By the same pods.
    entries: BTreeMap<PodKey, Entries>,
    profiles: BTreeMap<Arc<Profile>, InUse>,
    sources: Sources,
    feeds: Arc<Feeds>,
    /// What is in the feeds' sets, by their numbers.
    filled: Vec<Filled>,
    /// Members of all sets.
    held: usize,
}

impl Active {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            families: settings.families.clone(),
            peopled: BTreeSet::new(),
            deny_log: settings.deny_log,
            budget: MEMBER_BUDGET,
            pods: BTreeMap::new(),
            entries: BTreeMap::new(),
            profiles: BTreeMap::new(),
            sources: Sources::default(),
            feeds: Arc::default(),
            filled: Vec::new(),
            held: 0,
        }
    }

    pub(super) fn pods(&self) -> &BTreeMap<PodKey, Isolation> {
        &self.pods
    }

    /// The chains that each pod's packets go to.
    pub(super) fn entries(&self) -> &BTreeMap<PodKey, Entries> {
        &self.entries
    }

    /// The chains of all profiles.
    pub(super) fn chains(&self, family: Family) -> impl Iterator<Item = &(ChainName, Chain)> {
        self.profiles
            .values()
            .flat_map(move |in_use| in_use.chains(family))
    }

    pub(super) fn feeds(&self) -> &Arc<Feeds> {
        &self.feeds
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Arc<Members>> {
        self.sources.members()
    }

    /// Whether a policy is part of what was settled last.
    pub(super) fn uses(&self, policy: &PolicyKey) -> bool {
        let mut profiles = self.profiles.keys();
        profiles.any(|profile| profile.policies.contains(policy))
    }

    /// Brings profiles, sources and sets up to date with the stores.
    ///
    /// *Cost*: linear in what is stale, in the members of the sets it is about, and in the number of
    /// profiles; selectors new in use are counted over the pods of their namespaces.
    pub(super) fn settle(&mut self, stale: &Stale, world: &World<'_>) {
        let mut new = Vec::new();
        let mut changed = self.profile_pods(stale, world, &mut new);
        // Numbers and sets that nobody needs are given back last: what is needed again keeps them.
        let mut unused = Vec::new();
        let mut dropped = Vec::new();
        self.profiles.retain(|profile, in_use| {
            let used = in_use.users > 0;
            if !used {
                unused.append(&mut in_use.sources);
                dropped.append(&mut in_use.feeds);
                changed.remove(profile);
            }
            used
        });
        for (profile, in_use) in &mut self.profiles {
            let said_anew = !profile.policies.is_disjoint(&stale.policies);
            if !said_anew || changed.contains(profile) {
                continue;
            }
            let folded = world.fold(profile);
            if folded != in_use.folded {
                let sources = InUse::acquire(&folded, &mut self.sources, &mut new);
                unused.append(&mut std::mem::replace(&mut in_use.sources, sources));
                in_use.set_folded(folded, &self.families);
                changed.insert(profile.clone());
            }
        }
        self.sources.count(&new, world);
        changed.extend(self.balance());
        let peopled = world.census.peopled();
        if self.peopled != peopled {
            self.peopled = peopled;
            changed.extend(self.profiles.keys().cloned());
        }
        let refill = self.lay_out(&changed, &mut dropped);
        self.fill(&refill);
        for feed in dropped {
            self.drop_feed(feed);
        }
        for source in unused {
            self.sources.release(source);
        }
    }

    /// Sorts stale pods into profiles, and says which of these are new.
    fn profile_pods(
        &mut self,
        stale: &Stale,
        world: &World<'_>,
        new: &mut Vec<usize>,
    ) -> BTreeSet<Arc<Profile>> {
        let mut made = BTreeSet::new();
        for key in &stale.pods {
            let pod = world.pods.get(key);
            let isolation = pod
                .filter(|pod| world.places.is_local(pod))
                .map(|pod| Isolation::of(pod, world.policies));
            let mut entries = Entries::default();
            for direction in Direction::BOTH {
                let isolation = isolation.as_ref();
                let Some(profile) = isolation.and_then(|it| it.shared(direction)) else {
                    continue;
                };
                if let Some(in_use) = self.profiles.get_mut(profile) {
                    in_use.users += 1;
                    entries.set(direction, in_use.entry().clone());
                } else {
                    let folded = world.fold(profile);
                    let sources = InUse::acquire(&folded, &mut self.sources, new);
                    let in_use = InUse::new(folded, sources, &self.families);
                    entries.set(direction, in_use.entry().clone());
                    self.profiles.insert(profile.clone(), in_use);
                    made.insert(profile.clone());
                }
            }
            let before = match isolation {
                Some(isolation) => {
                    self.entries.insert(key.clone(), entries);
                    self.pods.insert(key.clone(), isolation)
                }
                None => {
                    self.entries.remove(key);
                    self.pods.remove(key)
                }
            };
            for direction in Direction::BOTH {
                let before = before.as_ref();
                if let Some(profile) = before.and_then(|it| it.shared(direction))
                    && let Some(in_use) = self.profiles.get_mut(profile)
                {
                    in_use.users -= 1;
                }
            }
        }
        made
    }
}

impl World<'_> {
    /// What the policies of a profile allow together.
    fn fold(&self, profile: &Profile) -> Folded {
        let rules = profile.policies.iter().filter_map(|key| {
            let policy = self.policies.get(key)?;
            policy.rules(profile.direction)
        });
        Folded::of(profile, rules.flatten())
    }
}
