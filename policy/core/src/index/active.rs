//! What the pods of this node need: their profiles, what these allow, and the sources in it.

mod feed;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::Arc;

use super::candidates::Candidates;
use super::event::MemberChange;
use super::members::{Members, Source, Touched};
use super::places::{Placed, Places};
use super::policies_on;
use crate::fold::{Folded, Stamp};
use crate::model::{Direction, Labels, NamedPort, NamespaceName, Pod, PodKey, Policy, PolicyKey};
use crate::ruleset::{Family, Member, SetName};
pub(crate) use feed::{Feed, Feeds};

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
    pub ingress: Option<Profile>,
    /// What it may reach.
    pub egress: Option<Profile>,
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
            (!profile.policies.is_empty()).then_some(profile)
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
    sources: Vec<Counted>,
    by_source: BTreeMap<Source, usize>,
    candidates: Candidates,
    feeds: Arc<Feeds>,
}

/// A source in use.
#[derive(Debug)]
struct Counted {
    source: Source,
    /// Shared with judges that look at it as it was: copied on the first change then.
    members: Arc<Members>,
    /// The feeds that it is part of, and what its members carry there.
    feeds: Vec<(usize, Stamp)>,
}

impl Counted {
    /// The member that an element is in one of the feeds.
    fn member(&self, (address, own): super::members::Element, stamp: Stamp) -> Member {
        Member {
            net: address.into(),
            port: if self.source.port.is_some() {
                own
            } else {
                stamp
            },
        }
    }
}

impl Active {
    pub(super) fn pods(&self) -> &BTreeMap<PodKey, Isolation> {
        &self.pods
    }

    pub(super) fn profiles(&self) -> impl Iterator<Item = (&Profile, &Folded)> {
        self.profiles.iter()
    }

    pub(super) fn feeds(&self) -> &Arc<Feeds> {
        &self.feeds
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Arc<Members>> {
        self.sources.iter().map(|counted| &counted.members)
    }

    /// The members of a set, as they should be.
    pub(super) fn set_members(&self, feed: &Feed, family: Family) -> BTreeSet<Member> {
        let pods = feed.parts().flat_map(|(stamp, source)| {
            let counted = &self.sources[source];
            let elements = counted.members.elements();
            elements.map(move |element| counted.member(element, stamp))
        });
        feed.bucket()
            .block_members(family)
            .chain(pods.filter(|member| Family::of(&member.net) == family))
            .collect()
    }

    /// The same, made anew from the stores. Members of sources that stay in use are kept.
    pub(super) fn rebuilt(
        mut self,
        places: &Places,
        pods: &BTreeMap<PodKey, Pod>,
        namespaces: &BTreeMap<NamespaceName, Labels>,
        policies: &BTreeMap<PolicyKey, Policy>,
    ) -> Self {
        let mut fresh = Self::default();
        for pod in places.local().keys().filter_map(|key| pods.get(key)) {
            let isolation = Isolation::of(pod, policies);
            for direction in Direction::BOTH {
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
        let mut feeds = Feeds::default();
        for bucket in profiles.values().flat_map(Folded::buckets) {
            let Some(mut feed) = Feed::of(bucket) else {
                continue;
            };
            let number = feeds.len();
            for (stamp, selector) in bucket.selectors() {
                let source = Source {
                    selector: selector.clone(),
                    port: None,
                };
                let source = fresh.select(source, &mut self, &mut new);
                fresh.sources[source].feeds.push((number, stamp));
                feed.add(stamp, source);
            }
            for (named, selector) in bucket.named() {
                let source = Source {
                    selector: selector.clone(),
                    port: Some(named.clone()),
                };
                let source = fresh.select(source, &mut self, &mut new);
                fresh.sources[source].feeds.push((number, None));
                feed.add_named(source);
            }
            feeds.push(feed);
        }
        fresh.profiles = profiles;
        fresh.feeds = Arc::new(feeds);
        fresh.count(&new, places, pods, namespaces);
        fresh
    }

    /// The number of a source. One that was in use keeps its members; else it is put among the
    /// `new`, to be counted.
    fn select(&mut self, source: Source, previous: &mut Self, new: &mut Candidates) -> usize {
        if let Some(number) = self.by_source.get(&source) {
            return *number;
        }
        let number = self.sources.len();
        let members = match previous.by_source.get(&source) {
            Some(index) => std::mem::take(&mut previous.sources[*index].members),
            None => {
                new.insert(number, &source.selector);
                Arc::default()
            }
        };
        self.candidates.insert(number, &source.selector);
        self.by_source.insert(source.clone(), number);
        self.sources.push(Counted {
            source,
            members,
            feeds: Vec::new(),
        });
        number
    }

    /// Counts the members of new sources: all pods, once.
    fn count(
        &mut self,
        new: &Candidates,
        places: &Places,
        pods: &BTreeMap<PodKey, Pod>,
        namespaces: &BTreeMap<NamespaceName, Labels>,
    ) {
        if new.is_empty() {
            return;
        }
        let mut numbers = BTreeSet::new();
        for pod in pods.values() {
            numbers.clear();
            new.collect(pod, &mut numbers);
            if numbers.is_empty() {
                continue;
            }
            let placed = places.place(pod);
            for number in &numbers {
                let counted = &mut self.sources[*number];
                let namespace = namespaces.get(&pod.key.namespace);
                let members = Arc::make_mut(&mut counted.members);
                for element in counted.source.elements(&placed, namespace) {
                    members.add(element);
                }
            }
        }
    }

    /// Moves a pod from one state to another in every source: other labels, other addresses,
    /// other ports, or a namespace with other labels.
    pub(super) fn move_pod(
        &mut self,
        before: Option<(&Placed<'_>, Option<&Labels>)>,
        after: Option<(&Placed<'_>, Option<&Labels>)>,
        touched: &mut Touched,
    ) {
        let mut numbers = BTreeSet::new();
        for (placed, _) in before.into_iter().chain(after) {
            self.candidates.collect(placed.pod, &mut numbers);
        }
        for index in numbers {
            let counted = &mut self.sources[index];
            let of = |state: Option<(&Placed<'_>, Option<&Labels>)>| -> BTreeSet<_> {
                state
                    .map(|(placed, namespace)| counted.source.elements(placed, namespace))
                    .unwrap_or_default()
                    .into_iter()
                    .collect()
            };
            let (old, new) = (of(before), of(after));
            if old == new {
                continue;
            }
            let members = Arc::make_mut(&mut counted.members);
            for element in old.symmetric_difference(&new) {
                touched.note(index, *element, members.contains(*element));
                if new.contains(element) {
                    members.add(*element);
                } else {
                    members.remove(*element);
                }
            }
        }
    }

    /// What an event did to the sets: a member goes in with the first part of a set that has it,
    /// and out with the last.
    pub(super) fn member_changes(
        &self,
        touched: &Touched,
        families: &BTreeSet<Family>,
        changes: &mut BTreeMap<SetName, MemberChange>,
    ) {
        let now = |source: usize, element| self.sources[source].members.contains(element);
        let then = |source: usize, element| {
            touched
                .before(source, element)
                .unwrap_or_else(|| now(source, element))
        };
        for (index, element, before) in touched.iter() {
            let counted = &self.sources[index];
            let family = Family::of_address(element.0);
            if before == counted.members.contains(element) || !families.contains(&family) {
                continue;
            }
            for (feed, stamp) in &counted.feeds {
                let feed = self.feeds.get(*feed);
                let member = counted.member(element, *stamp);
                let (was, is) = (feed.holds(&member, then), feed.holds(&member, now));
                if was == is {
                    continue;
                }
                let change = changes.entry(feed.name(family).clone()).or_default();
                if is {
                    change.add.insert(member);
                } else {
                    change.remove.insert(member);
                }
            }
        }
    }
}
