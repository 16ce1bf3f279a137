//! Who is where, and who selects whom: the state between watch and compile.
//!
//! ```text
//! Event ──► stores: pods, namespaces, policies
//!             │
//!             ├─► members of each selector in use, counted by reference ──► Delta.members
//!             └─► local pods, their profiles, what these allow          ──► Delta.recompile
//! ```
//!
//! Only policies that isolate a pod of this node are folded, and only their selectors are
//! counted. The state depends on the objects, never on the order of events between objects.

mod active;
mod candidates;
mod event;
mod members;

use std::collections::{BTreeMap, BTreeSet};

pub use active::{Isolation, Profile};
pub use event::{Delta, Event, MemberChange, Resource, Settings};

use crate::fold::Folded;
use crate::model::{
    Direction, Labels, NamespaceName, PeerSelector, Pod, PodKey, Policy, PolicyKey,
};
use crate::ruleset::Interface;
use active::Active;
use members::{Members, Touched};

/// What the API server told us, arranged for compiling.
#[derive(Debug)]
pub struct Index {
    settings: Settings,
    pods: BTreeMap<PodKey, Pod>,
    namespaces: BTreeMap<NamespaceName, Labels>,
    policies: BTreeMap<PolicyKey, Policy>,
    unseen: Unseen,
    /// What the local pods need. Stale while `dirty`, except for members, which always are right.
    active: Active,
    dirty: bool,
}

/// What a relist in progress has not confirmed yet; `None` when there is no relist.
#[derive(Debug, Default)]
struct Unseen {
    pods: Option<BTreeSet<PodKey>>,
    namespaces: Option<BTreeSet<NamespaceName>>,
    policies: Option<BTreeSet<PolicyKey>>,
}

impl Index {
    /// An index that has seen nothing.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            pods: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            policies: BTreeMap::new(),
            unseen: Unseen::default(),
            active: Active::default(),
            dirty: true,
        }
    }

    /// Takes in one event and says what follows from it.
    ///
    /// *Cost*: a pod, linear in the selectors in use; a namespace, that times its pods; a policy,
    /// linear in the pods of this node. What [`Delta::recompile`] asks for is paid for in
    /// [`crate::compile::compile`], once however many events asked.
    pub fn apply(&mut self, event: Event) -> Delta {
        let mut touched = Touched::default();
        match event {
            Event::PodApplied(pod) => {
                if let Some(unseen) = &mut self.unseen.pods {
                    unseen.remove(&pod.key);
                }
                self.put_pod(pod, &mut touched);
            }
            Event::PodDeleted(key, uid) => {
                // A later pod of the same name may be known already from another watch.
                if self.pods.get(&key).is_some_and(|pod| pod.uid == uid) {
                    self.delete_pod(&key, &mut touched);
                }
            }
            Event::NamespaceApplied(namespace) => {
                if let Some(unseen) = &mut self.unseen.namespaces {
                    unseen.remove(&namespace.name);
                }
                self.set_namespace(&namespace.name, Some(namespace.labels), &mut touched);
            }
            Event::NamespaceDeleted(name) => self.set_namespace(&name, None, &mut touched),
            Event::PolicyApplied(policy) => {
                if let Some(unseen) = &mut self.unseen.policies {
                    unseen.remove(&policy.key);
                }
                let key = policy.key.clone();
                self.set_policy(&key, Some(policy));
            }
            Event::PolicyDeleted(key) => self.set_policy(&key, None),
            Event::RelistStarted(resource) => self.relist_started(resource),
            Event::RelistDone(resource) => self.relist_done(resource, &mut touched),
        }
        self.delta(&touched)
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
            let previous = std::mem::take(&mut self.active);
            self.active = previous.rebuilt(
                &self.settings.node,
                &self.pods,
                &self.namespaces,
                &self.policies,
            );
            self.dirty = false;
        }
    }

    /// The profiles in use and what they allow. Settled by the caller.
    pub(crate) fn profiles(&self) -> impl Iterator<Item = (&Profile, &Folded)> {
        self.active.profiles()
    }

    /// The addresses of the pods that a selector in use selects. Settled by the caller.
    pub(crate) fn members(&self, selector: &PeerSelector) -> &Members {
        self.active.members(selector)
    }

    /// Isolation by pod. Settled by the caller.
    pub(crate) fn isolation(&self) -> &BTreeMap<PodKey, Isolation> {
        self.active.pods()
    }

    fn put_pod(&mut self, pod: Pod, touched: &mut Touched) {
        let previous = self.pods.get(&pod.key);
        if previous == Some(&pod) {
            return;
        }
        let node = &self.settings.node;
        let was_local = previous.is_some_and(|pod| pod.is_enforced_on(node));
        let is_local = pod.is_enforced_on(node);
        let relabelled = previous.is_none_or(|previous| previous.labels != pod.labels);
        if was_local != is_local || (is_local && relabelled && self.reprofiled(&pod)) {
            self.dirty = true;
        }
        let labels = self.namespaces.get(&pod.key.namespace);
        self.active
            .move_pod(previous, Some(&pod), labels, labels, touched);
        self.pods.insert(pod.key.clone(), pod);
    }

    fn delete_pod(&mut self, key: &PodKey, touched: &mut Touched) {
        if let Some(unseen) = &mut self.unseen.pods {
            unseen.remove(key);
        }
        let Some(pod) = self.pods.remove(key) else {
            return;
        };
        self.dirty |= pod.is_enforced_on(&self.settings.node);
        let labels = self.namespaces.get(&key.namespace);
        self.active
            .move_pod(Some(&pod), None, labels, labels, touched);
    }

    /// Whether a local pod's labels put it under other policies than it was compiled for.
    fn reprofiled(&self, pod: &Pod) -> bool {
        let now = Isolation::of(pod, &self.policies);
        self.active.pods().get(&pod.key) != Some(&now)
    }

    fn set_namespace(
        &mut self,
        name: &NamespaceName,
        labels: Option<Labels>,
        touched: &mut Touched,
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
        for pod in pods_of(&self.pods, name) {
            let pod = Some(pod);
            self.active
                .move_pod(pod, pod, previous.as_ref(), labels.as_ref(), touched);
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
        let node = &self.settings.node;
        let concerned = pods_of(&self.pods, &key.namespace)
            .filter(|pod| pod.is_enforced_on(node))
            .any(|pod| {
                let selects = |policy: &Option<Policy>| {
                    policy
                        .as_ref()
                        .is_some_and(|policy| policy.subject.matches(&pod.labels))
                };
                selects(&previous) || selects(&policy)
            });
        self.dirty |= concerned;
    }

    fn relist_started(&mut self, resource: Resource) {
        match resource {
            Resource::Pods => self.unseen.pods = Some(self.pods.keys().cloned().collect()),
            Resource::Namespaces => {
                self.unseen.namespaces = Some(self.namespaces.keys().cloned().collect());
            }
            Resource::Policies => {
                self.unseen.policies = Some(self.policies.keys().cloned().collect());
            }
        }
    }

    fn relist_done(&mut self, resource: Resource, touched: &mut Touched) {
        match resource {
            Resource::Pods => {
                for key in self.unseen.pods.take().unwrap_or_default() {
                    self.delete_pod(&key, touched);
                }
            }
            Resource::Namespaces => {
                for name in self.unseen.namespaces.take().unwrap_or_default() {
                    self.set_namespace(&name, None, touched);
                }
            }
            Resource::Policies => {
                for key in self.unseen.policies.take().unwrap_or_default() {
                    self.set_policy(&key, None);
                }
            }
        }
    }

    fn delta(&self, touched: &Touched) -> Delta {
        let mut delta = Delta {
            recompile: self.dirty,
            ..Delta::default()
        };
        if !self.dirty {
            self.active
                .member_changes(touched, &self.settings.families, &mut delta.members);
        }
        delta
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

/// The pods of a namespace, in order.
fn pods_of<'a>(
    pods: &'a BTreeMap<PodKey, Pod>,
    namespace: &'a NamespaceName,
) -> impl Iterator<Item = &'a Pod> {
    let first = PodKey {
        namespace: namespace.clone(),
        name: String::new(),
    };
    pods.range(first..)
        .take_while(move |(key, _)| key.namespace == *namespace)
        .map(|(_, pod)| pod)
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
