//! What the pods of this node need: their profiles, what these allow, and the selectors in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::candidates::Candidates;
use super::event::MemberChange;
use super::members::{Members, Touched, selects};
use super::policies_on;
use crate::fold::{Bucket, Folded};
use crate::model::{
    Direction, Labels, NamespaceName, NodeName, PeerSelector, Pod, PodKey, Policy, PolicyKey,
};
use crate::ruleset::{Family, SetName};

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
}

/// By which profiles a pod is isolated; `None`: it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolation {
    /// What may reach it.
    pub ingress: Option<Profile>,
    /// What it may reach.
    pub egress: Option<Profile>,
}

impl Isolation {
    /// What the policies make of a pod.
    pub(super) fn of(pod: &Pod, policies: &BTreeMap<PolicyKey, Policy>) -> Self {
        let profile = |direction| {
            let policies: BTreeSet<PolicyKey> = policies_on(pod, direction, policies)
                .map(|policy| policy.key.clone())
                .collect();
            (!policies.is_empty()).then_some(Profile {
                direction,
                policies,
            })
        };
        Self {
            ingress: profile(Direction::Ingress),
            egress: profile(Direction::Egress),
        }
    }

    /// The profile of a direction.
    #[must_use]
    pub fn profile(&self, direction: Direction) -> Option<&Profile> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

/// The part of the cluster that this node's rules are made of.
#[derive(Debug, Default)]
pub(super) struct Active {
    pods: BTreeMap<PodKey, Isolation>,
    profiles: BTreeMap<Profile, Folded>,
    selectors: Vec<Selected>,
    by_selector: BTreeMap<PeerSelector, usize>,
    candidates: Candidates,
    feeds: Vec<Feed>,
}

/// A selector in use.
#[derive(Debug)]
struct Selected {
    selector: PeerSelector,
    members: Members,
    /// The feeds that it is part of.
    feeds: Vec<usize>,
}

/// The part of a set that one kind of traffic of one profile fills.
#[derive(Debug)]
struct Feed {
    /// Which set, in each family.
    sets: BTreeMap<Family, SetName>,
    bucket: Bucket,
    selectors: Vec<usize>,
    /// Blocks of single addresses: where a pod has one, it comes and goes without effect.
    hosts: BTreeSet<IpNet>,
}

impl Active {
    pub(super) fn pods(&self) -> &BTreeMap<PodKey, Isolation> {
        &self.pods
    }

    pub(super) fn profiles(&self) -> impl Iterator<Item = (&Profile, &Folded)> {
        self.profiles.iter()
    }

    pub(super) fn members(&self, selector: &PeerSelector) -> &Members {
        let index = self.by_selector[selector];
        &self.selectors[index].members
    }

    /// The same, made anew from the stores. Members of selectors that stay in use are kept.
    pub(super) fn rebuilt(
        mut self,
        node: &NodeName,
        pods: &BTreeMap<PodKey, Pod>,
        namespaces: &BTreeMap<NamespaceName, Labels>,
        policies: &BTreeMap<PolicyKey, Policy>,
    ) -> Self {
        let mut fresh = Self::default();
        for pod in pods.values().filter(|pod| pod.is_enforced_on(node)) {
            let isolation = Isolation::of(pod, policies);
            for direction in [Direction::Ingress, Direction::Egress] {
                if let Some(profile) = isolation.profile(direction)
                    && !fresh.profiles.contains_key(profile)
                {
                    let rules = profile
                        .policies
                        .iter()
                        .filter_map(|key| policies.get(key)?.rules(direction))
                        .flatten();
                    fresh
                        .profiles
                        .insert(profile.clone(), Folded::of(profile, rules));
                }
            }
            fresh.pods.insert(pod.key.clone(), isolation);
        }
        let profiles = std::mem::take(&mut fresh.profiles);
        let mut new = Candidates::default();
        for folded in profiles.values() {
            for bucket in folded.buckets() {
                fresh.feed(bucket, &mut self, &mut new);
            }
        }
        fresh.profiles = profiles;
        fresh.count(&new, pods, namespaces);
        fresh
    }

    /// Adds a bucket's feed. A selector that was in use keeps its members; else it is put among
    /// the `new`, to be counted.
    fn feed(&mut self, bucket: &Bucket, previous: &mut Self, new: &mut Candidates) {
        let Some(set) = bucket.set() else {
            return;
        };
        let feed = self.feeds.len();
        let mut selectors = Vec::new();
        for selector in bucket.selectors() {
            let known = self.by_selector.get(selector).copied();
            let index = known.unwrap_or_else(|| self.select(selector, previous, new));
            self.selectors[index].feeds.push(feed);
            selectors.push(index);
        }
        let families = [Family::V4, Family::V6];
        let hosts = families
            .iter()
            .flat_map(|family| bucket.block_nets(*family))
            .filter(|net| net.prefix_len() == net.max_prefix_len())
            .collect();
        self.feeds.push(Feed {
            sets: families
                .iter()
                .map(|family| (*family, set.name(*family)))
                .collect(),
            bucket: bucket.clone(),
            selectors,
            hosts,
        });
    }

    fn select(
        &mut self,
        selector: &PeerSelector,
        previous: &mut Self,
        new: &mut Candidates,
    ) -> usize {
        let number = self.selectors.len();
        let members = match previous.by_selector.get(selector) {
            Some(index) => std::mem::take(&mut previous.selectors[*index].members),
            None => {
                new.insert(number, selector);
                Members::default()
            }
        };
        self.selectors.push(Selected {
            selector: selector.clone(),
            members,
            feeds: Vec::new(),
        });
        self.candidates.insert(number, selector);
        self.by_selector.insert(selector.clone(), number);
        number
    }

    /// Counts the members of new selectors: all pods, once.
    fn count(
        &mut self,
        new: &Candidates,
        pods: &BTreeMap<PodKey, Pod>,
        namespaces: &BTreeMap<NamespaceName, Labels>,
    ) {
        let mut numbers = BTreeSet::new();
        for pod in pods.values() {
            numbers.clear();
            new.collect(pod, &mut numbers);
            for number in &numbers {
                let selected = &mut self.selectors[*number];
                if selects(&selected.selector, pod, namespaces.get(&pod.key.namespace)) {
                    for address in &pod.addresses {
                        selected.members.add(*address);
                    }
                }
            }
        }
    }

    /// Moves a pod from one state to another in every selector: other labels, other addresses,
    /// or a namespace with other labels.
    pub(super) fn move_pod(
        &mut self,
        before: Option<&Pod>,
        after: Option<&Pod>,
        labels_before: Option<&Labels>,
        labels_after: Option<&Labels>,
        touched: &mut Touched,
    ) {
        let mut numbers = BTreeSet::new();
        for pod in before.into_iter().chain(after) {
            self.candidates.collect(pod, &mut numbers);
        }
        for index in numbers {
            let selected = &mut self.selectors[index];
            let of = |pod: Option<&Pod>, labels| -> BTreeSet<IpAddr> {
                pod.filter(|pod| selects(&selected.selector, pod, labels))
                    .map(|pod| pod.addresses.clone())
                    .unwrap_or_default()
            };
            let (old, new) = (of(before, labels_before), of(after, labels_after));
            for address in old.symmetric_difference(&new) {
                touched.note(index, *address, selected.members.contains(*address));
                if new.contains(address) {
                    selected.members.add(*address);
                } else {
                    selected.members.remove(*address);
                }
            }
        }
    }

    /// What an event did to the sets: an address goes in with the first part of a set that has
    /// it, and out with the last.
    pub(super) fn member_changes(
        &self,
        touched: &Touched,
        families: &BTreeSet<Family>,
        changes: &mut BTreeMap<SetName, MemberChange>,
    ) {
        for (index, address, before) in touched.iter() {
            let selected = &self.selectors[index];
            let family = Family::of_address(address);
            if before == selected.members.contains(address) || !families.contains(&family) {
                continue;
            }
            for feed in &selected.feeds {
                let feed = &self.feeds[*feed];
                let net = IpNet::from(address);
                let member = |index: &usize| self.selectors[*index].members.contains(address);
                let was_member = |index: &usize| {
                    touched
                        .before(*index, address)
                        .unwrap_or_else(|| member(index))
                };
                let host = feed.hosts.contains(&net);
                let was = host || feed.selectors.iter().any(was_member);
                let is = host || feed.selectors.iter().any(member);
                if was == is {
                    continue;
                }
                let change = changes.entry(feed.sets[&family].clone()).or_default();
                let member = feed.bucket.member(net);
                if is {
                    change.add.insert(member);
                } else {
                    change.remove.insert(member);
                }
            }
        }
    }
}
