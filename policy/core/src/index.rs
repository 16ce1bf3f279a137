//! Who is where, and who selects whom: the state between watch and compile.
//!
//! ```text
//! Event ──► stores: pods, namespaces, policies
//!             │
//!             ├─► members of each selector in use, counted by reference ──► MemberChanges
//!             └─► local pods, their profiles, what these allow          ──► Delta.recompile
//! ```
//!
//! Only policies that isolate a pod of this node are folded, and only their selectors are
//! counted. The state depends on the objects, never on the order of events between objects.
//!
//! Where a pod of this node has its addresses from the kernel's routes, `Routes` is one more object.

mod active;
mod candidates;
mod census;
mod event;
mod local;
mod members;
mod places;
mod pods;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use active::{Isolation, MEMBER_BUDGET, MemberUse, Profile};
pub use event::{Delta, Event, MemberChange, MemberChanges, Resource, Settings};
pub use local::{LocalPod, Unenforced};

use crate::model::{Direction, Labels, NamespaceName, Pod, PodKey, Policy, PolicyKey};
use crate::ruleset::{Chain, ChainName, Family, Interface};
use active::{Active, Stale, World};
pub(crate) use active::{Entries, Feeds};
use census::Census;
pub(crate) use members::Members;
use members::Touched;
pub(crate) use places::Veths;
use places::{Placed, Places};
use pods::Pods;

/// What the API server told us, arranged for compiling.
#[derive(Debug)]
pub struct Index {
    settings: Settings,
    pods: Pods,
    namespaces: BTreeMap<NamespaceName, Labels>,
    policies: BTreeMap<PolicyKey, Policy>,
    places: Places,
    census: Census,
    unseen: Unseen,
    /// What the local pods need, but for what is `stale`, and members for what was `touched`.
    active: Active,
    stale: Stale,
    /// What sets have not followed yet: many events share the work.
    touched: Touched,
    /// How members differ from what was compiled last, since that was asked last.
    changes: MemberChanges,
    /// Whether something was told that changes chains or whole sets.
    dirty: bool,
    /// Chains that were compiled last: what is the same is shared with what is compiled next.
    frames: BTreeMap<Family, BTreeMap<ChainName, Chain>>,
}

/// What a relist in progress has not confirmed yet; `None` when there is no relist. [`Pods`] know
/// that themselves.
#[derive(Debug, Default)]
struct Unseen {
    namespaces: Option<BTreeSet<NamespaceName>>,
    policies: Option<BTreeSet<PolicyKey>>,
    routes: Option<BTreeSet<String>>,
}

/// What one event did, beside what the stores keep.
#[derive(Debug, Default)]
struct Effects {
    touched: Touched,
    left: BTreeSet<IpAddr>,
    gone: BTreeSet<IpAddr>,
}

impl Index {
    /// An index that has seen nothing.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            places: Places::new(settings.node.clone(), settings.prefix.clone()),
            census: Census::default(),
            active: Active::new(&settings),
            settings,
            pods: Pods::default(),
            namespaces: BTreeMap::new(),
            policies: BTreeMap::new(),
            unseen: Unseen::default(),
            stale: Stale::default(),
            touched: Touched::default(),
            changes: MemberChanges::new(),
            dirty: true,
            frames: BTreeMap::new(),
        }
    }

    /// With room for so many members of sets, instead of [`MEMBER_BUDGET`]. Profiles that would go
    /// beyond are laid out with more rules and fewer members: the heaviest first, and until three
    /// quarters are enough.
    #[must_use]
    pub fn with_member_budget(mut self, members: usize) -> Self {
        self.active.set_budget(members);
        self
    }

    /// How much of the member budget is in use.
    #[must_use]
    pub fn member_use(&self) -> MemberUse {
        self.active.member_use()
    }

    /// Whether a profile is laid out apart, for the budget's sake, as of the last settling.
    #[must_use]
    pub fn is_apart(&self, profile: &Profile) -> bool {
        self.active.is_apart(profile)
    }

    /// Takes in one event and says what follows from it.
    ///
    /// *Cost*: a pod, linear in the selectors in use that insist on a label or namespace of its own;
    /// a namespace, that times its pods; a policy, linear in its namespace's pods of this node. What [`Delta::recompile`] asks for is paid for in
    /// [`crate::compile::compile`], once however many events asked.
    pub fn apply(&mut self, event: Event) -> Delta {
        let mut effects = Effects::default();
        match event {
            Event::PodApplied(pod) => self.put_pod(pod, &mut effects),
            Event::PodDeleted(key, uid) => {
                // A later pod of the same name may be known already from another watch.
                if self.pods.get(&key).is_some_and(|pod| pod.uid == uid) {
                    self.delete_pod(&key, &mut effects);
                }
            }
            Event::NamespaceApplied(namespace) => {
                if let Some(unseen) = &mut self.unseen.namespaces {
                    unseen.remove(&namespace.name);
                }
                self.set_namespace(&namespace.name, Some(namespace.labels), &mut effects);
            }
            Event::NamespaceDeleted(name) => self.set_namespace(&name, None, &mut effects),
            Event::PolicyApplied(policy) => {
                if let Some(unseen) = &mut self.unseen.policies {
                    unseen.remove(&policy.key);
                }
                let key = policy.key.clone();
                self.set_policy(&key, Some(policy));
            }
            Event::PolicyDeleted(key) => self.set_policy(&key, None),
            Event::Routes {
                interface,
                addresses,
            } => {
                if let Some(unseen) = &mut self.unseen.routes {
                    unseen.remove(&interface);
                }
                self.set_routes(interface, addresses, &mut effects);
            }
            Event::RelistStarted(resource) => self.relist_started(resource),
            Event::RelistDone(resource) => self.relist_done(resource, &mut effects),
        }
        self.delta(effects)
    }

    /// How members of sets differ from what was compiled last, or from when this was asked last; `None`
    /// when chains are to be compiled instead: the compiled sets hold the changes.
    ///
    /// *Cost*: linear in the members that events have touched, however many events there were.
    pub fn take_member_changes(&mut self) -> Option<MemberChanges> {
        self.follow();
        if self.dirty {
            return None;
        }
        self.active.complete(&mut self.changes);
        Some(std::mem::take(&mut self.changes))
    }

    /// Brings the members of sets up to date with the stores, before anybody reads them or gives a
    /// source's number to another.
    fn follow(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        if !touched.is_empty() {
            self.active.follow(touched, &mut self.changes);
            self.dirty |= self.active.is_over_budget();
        }
    }

    /// Everything of a family is compiled: what changes from here on is the difference.
    pub(crate) fn compiled(&mut self, family: Family) {
        self.changes.retain(|set, _| set.family() != Some(family));
    }

    /// What the node enforces, by pod, for logs and metrics. Settles first, as compiling does.
    pub fn local_pods(&mut self) -> &BTreeMap<PodKey, Isolation> {
        self.settle();
        self.active.pods()
    }

    /// How many pods, namespaces and policies are known.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            pods: self.pods.len(),
            namespaces: self.namespaces.len(),
            policies: self.policies.len(),
        }
    }

    /// The settings it was made with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The name of the host end of a pod's veth on this node.
    #[must_use]
    pub fn veth(&self, pod: &PodKey) -> Interface {
        self.settings.prefix.veth(pod.namespace.as_str(), &pod.name)
    }

    /// Brings what the local pods need up to date with the stores.
    pub(crate) fn settle(&mut self) {
        if self.dirty {
            self.settle_now();
        }
    }

    /// The same, and takes the occasion to fold again what was laid out apart.
    pub(crate) fn settle_and_fold(&mut self) {
        self.follow();
        if self.dirty || self.active.is_any_apart() {
            self.settle_now();
        }
    }

    fn settle_now(&mut self) {
        self.follow();
        let world = World {
            places: &self.places,
            census: &self.census,
            pods: &self.pods,
            namespaces: &self.namespaces,
            policies: &self.policies,
        };
        self.active.settle(&std::mem::take(&mut self.stale), &world);
        self.dirty = false;
    }

    /// Keeps chains to share with what is compiled next; gives back those that are kept, for each
    /// that is equal.
    pub(crate) fn share(&mut self, family: Family, chains: &mut BTreeMap<ChainName, Chain>) {
        let kept = self.frames.entry(family).or_default();
        for (name, chain) in chains.iter_mut() {
            if let Some(same) = kept.get(name).filter(|kept| *kept == chain) {
                *chain = same.clone();
            }
        }
        kept.clone_from(chains);
    }

    fn put_pod(&mut self, pod: Pod, effects: &mut Effects) {
        let previous = self.pods.get(&pod.key);
        if previous == Some(&pod) {
            self.pods.confirm(&pod.key);
            return;
        }
        let was_local = previous.is_some_and(|previous| self.places.is_local(previous));
        let is_local = self.places.is_local(&pod);
        let changed = previous
            .is_none_or(|previous| previous.labels != pod.labels || previous.ports != pod.ports);
        // Another pod under the same name has the same rules, but somebody waits for them anew.
        let rewired = previous.is_some_and(|previous| {
            previous.interfaces != pod.interfaces || previous.uid != pod.uid
        });
        if was_local != is_local || (is_local && (rewired || (changed && self.reprofiled(&pod)))) {
            self.dirty = true;
            self.stale.pods.insert(pod.key.clone());
        }
        let labels = self.namespaces.get(&pod.key.namespace);
        let before = previous.map(|pod| self.places.place(pod));
        let after = self.places.place(&pod);
        self.active.move_pod(
            before.as_ref().map(|placed| (placed, labels)),
            Some((&after, labels)),
            &mut effects.touched,
        );
        self.places
            .note(before.as_ref(), Some(&after), &mut effects.left);
        self.census.note(before.as_ref(), Some(&after));
        self.pods.put(pod);
    }

    fn delete_pod(&mut self, key: &PodKey, effects: &mut Effects) {
        let Some(pod) = self.pods.remove(key) else {
            return;
        };
        if self.places.is_local(&pod) {
            self.dirty = true;
            self.stale.pods.insert(key.clone());
        }
        let labels = self.namespaces.get(&key.namespace);
        let before = self.places.place(&pod);
        self.active
            .move_pod(Some((&before, labels)), None, &mut effects.touched);
        effects.gone.extend(before.addresses.iter());
        self.places.note(Some(&before), None, &mut effects.left);
        self.census.note(Some(&before), None);
    }

    fn set_routes(
        &mut self,
        interface: String,
        addresses: BTreeSet<IpAddr>,
        effects: &mut Effects,
    ) {
        let keys = self.places.pods_at(&interface);
        let pods: Vec<&Pod> = keys.iter().filter_map(|key| self.pods.get(key)).collect();
        let before: Vec<Placed<'_>> = pods.iter().map(|pod| self.places.place(pod)).collect();
        self.places.set_routes(interface, addresses);
        for before in before {
            let after = self.places.place(before.pod);
            let labels = self.namespaces.get(&after.pod.key.namespace);
            self.active.move_pod(
                Some((&before, labels)),
                Some((&after, labels)),
                &mut effects.touched,
            );
            self.places
                .note(Some(&before), Some(&after), &mut effects.left);
            self.census.note(Some(&before), Some(&after));
        }
    }

    /// Whether a local pod's labels or ports put it under another profile than it was compiled for.
    fn reprofiled(&self, pod: &Pod) -> bool {
        let now = Isolation::of(pod, &self.policies);
        self.active.pods().get(&pod.key) != Some(&now)
    }

    fn set_namespace(
        &mut self,
        name: &NamespaceName,
        labels: Option<Labels>,
        effects: &mut Effects,
    ) {
        if labels.is_none()
            && let Some(unseen) = &mut self.unseen.namespaces
        {
            unseen.remove(name);
        }
        let previous = match labels.clone() {
            Some(labels) => self.namespaces.insert(name.clone(), labels),
            None => self.namespaces.remove(name),
        };
        if previous == labels {
            return;
        }
        for pod in self.pods.of(name) {
            let placed = self.places.place(pod);
            self.active.move_pod(
                Some((&placed, previous.as_ref())),
                Some((&placed, labels.as_ref())),
                &mut effects.touched,
            );
        }
    }

    fn set_policy(&mut self, key: &PolicyKey, policy: Option<Policy>) {
        if policy.is_none()
            && let Some(unseen) = &mut self.unseen.policies
        {
            unseen.remove(key);
        }
        let previous = match policy.clone() {
            Some(policy) => self.policies.insert(key.clone(), policy),
            None => self.policies.remove(key),
        };
        if previous == policy {
            return;
        }
        let selects = |policy: &Option<Policy>, pod: &Pod| {
            let subject = policy.as_ref().map(|policy| &policy.subject);
            subject.is_some_and(|subject| subject.matches(&pod.labels))
        };
        let mut concerned = false;
        for pod in self.places.local_in(&key.namespace) {
            let Some(pod) = self.pods.get(pod) else {
                continue;
            };
            if selects(&previous, pod) || selects(&policy, pod) {
                self.stale.pods.insert(pod.key.clone());
                concerned = true;
            }
        }
        // Also where its pods went or were relabelled since: others may come to the same profile.
        if concerned || self.active.uses(key) {
            self.stale.policies.insert(key.clone());
        }
        self.dirty |= concerned;
    }

    fn relist_started(&mut self, resource: Resource) {
        match resource {
            Resource::Pods => self.pods.relist_started(),
            Resource::Namespaces => {
                self.unseen.namespaces = Some(self.namespaces.keys().cloned().collect());
            }
            Resource::Policies => {
                self.unseen.policies = Some(self.policies.keys().cloned().collect());
            }
            Resource::Routes => self.unseen.routes = Some(self.places.routed().cloned().collect()),
        }
    }

    fn relist_done(&mut self, resource: Resource, effects: &mut Effects) {
        match resource {
            Resource::Pods => {
                for key in self.pods.relist_done() {
                    self.delete_pod(&key, effects);
                }
            }
            Resource::Namespaces => {
                for name in self.unseen.namespaces.take().unwrap_or_default() {
                    self.set_namespace(&name, None, effects);
                }
            }
            Resource::Policies => {
                for key in self.unseen.policies.take().unwrap_or_default() {
                    self.set_policy(&key, None);
                }
            }
            Resource::Routes => {
                for interface in self.unseen.routes.take().unwrap_or_default() {
                    self.set_routes(interface, BTreeSet::new(), effects);
                }
            }
        }
    }

    fn delta(&mut self, effects: Effects) -> Delta {
        self.dirty |= self.active.is_laid_out_for_other_families(&self.census);
        let Effects {
            touched,
            left,
            mut gone,
        } = effects;
        let members = !touched.is_empty();
        if !members {
            gone.clear();
        }
        self.touched.extend(touched);
        Delta {
            recompile: self.dirty,
            members,
            left,
            gone,
        }
    }
}

/// How much is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Pods of the whole cluster.
    pub pods: usize,
    /// Namespaces.
    pub namespaces: usize,
    /// Policies, those of other nodes' pods included.
    pub policies: usize,
}

/// The policies of a namespace that select a pod and isolate it in a direction.
fn policies_on<'a>(
    pod: &'a Pod,
    direction: Direction,
    policies: &'a BTreeMap<PolicyKey, Policy>,
) -> impl Iterator<Item = &'a Policy> {
    let first = PolicyKey {
        namespace: pod.key.namespace.clone(),
        name: String::new(),
    };
    policies
        .range(first..)
        .take_while(move |(key, _)| key.namespace == pod.key.namespace)
        .map(|(_, policy)| policy)
        .filter(move |policy| {
            policy.rules(direction).is_some() && policy.subject.matches(&pod.labels)
        })
}
