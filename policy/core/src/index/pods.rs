//! The pods of the cluster. They are most of what an agent remembers, so each is held once, key
//! included, in a piece of memory of its own: the tree above holds nothing but where they are.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;

use crate::model::{NamespaceName, Pod, PodKey};

/// Pods, in order of their keys.
#[derive(Debug, Default)]
pub(super) struct Pods {
    held: BTreeSet<Held>,
    /// Which relist it is: a pod that was seen before that, and not since, is unconfirmed.
    relist: u64,
    relisting: bool,
}

/// One pod.
#[derive(Debug)]
struct Held(Box<Entry>);

#[derive(Debug)]
struct Entry {
    pod: Pod,
    seen_in: u64,
}

impl Held {
    fn key(&self) -> &PodKey {
        &self.0.pod.key
    }
}

impl Borrow<PodKey> for Held {
    fn borrow(&self) -> &PodKey {
        self.key()
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(other.key())
    }
}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Held {}

impl Pods {
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn get(&self, key: &PodKey) -> Option<&Pod> {
        self.held.get(key).map(|held| &held.0.pod)
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Pod> {
        self.held.iter().map(|held| &held.0.pod)
    }

    /// Those of a namespace, in order.
    pub(super) fn of(&self, namespace: &NamespaceName) -> impl Iterator<Item = &Pod> {
        let first = PodKey {
            namespace: namespace.clone(),
            name: String::new(),
        };
        self.held
            .range(first..)
            .map(|held| &held.0.pod)
            .take_while(move |pod| pod.key.namespace == *namespace)
    }

    /// Puts a pod in the place of the one of its name.
    pub(super) fn put(&mut self, pod: Pod) {
        let seen_in = self.relist;
        self.held.replace(Held(Box::new(Entry { pod, seen_in })));
    }

    pub(super) fn remove(&mut self, key: &PodKey) -> Option<Pod> {
        self.held.take(key).map(|held| held.0.pod)
    }

    /// A relist begins: all pods are unconfirmed.
    pub(super) fn relist_started(&mut self) {
        self.relist += 1;
        self.relisting = true;
    }

    /// A pod is as it was.
    pub(super) fn confirm(&mut self, key: &PodKey) {
        if self.relisting
            && let Some(mut held) = self.held.take(key)
        {
            held.0.seen_in = self.relist;
            self.held.insert(held);
        }
    }

    /// A relist is done: what it has not confirmed. Nothing if none was under way.
    pub(super) fn relist_done(&mut self) -> Vec<PodKey> {
        if !std::mem::take(&mut self.relisting) {
            return Vec::new();
        }
        let entries = self.held.iter().map(|held| &*held.0);
        entries
            .filter(|entry| entry.seen_in != self.relist)
            .map(|entry| entry.pod.key.clone())
            .collect()
    }
}
