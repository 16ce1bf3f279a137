//! The addresses that a selector selects, counted, so that the last pod of an address takes it away.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::{Labels, Namespaces, PeerSelector, Pod};

/// Addresses, each with how many selected pods have it: a terminating pod and its successor may
/// share one for a while.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Members(BTreeMap<IpAddr, u32>);

impl Members {
    /// The addresses, in order.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0.keys().copied()
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.0.contains_key(&address)
    }

    pub(super) fn add(&mut self, address: IpAddr) {
        *self.0.entry(address).or_default() += 1;
    }

    pub(super) fn remove(&mut self, address: IpAddr) {
        if let Some(count) = self.0.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&address);
            }
        }
    }
}

/// Which addresses of which selectors an event touched, and whether they were members before it.
#[derive(Debug, Default)]
pub(super) struct Touched(BTreeMap<(usize, IpAddr), bool>);

impl Touched {
    /// Notes how it was, the first time it is called for an address of a selector.
    pub(super) fn note(&mut self, selector: usize, address: IpAddr, before: bool) {
        self.0.entry((selector, address)).or_insert(before);
    }

    /// What it was, if it was touched.
    pub(super) fn before(&self, selector: usize, address: IpAddr) -> Option<bool> {
        self.0.get(&(selector, address)).copied()
    }

    /// Everything that was touched: selector, address, whether it was a member.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, IpAddr, bool)> {
        self.0
            .iter()
            .map(|((selector, address), before)| (*selector, *address, *before))
    }
}

/// Whether a selector selects a pod as a peer. A namespace that isn't known yet has no labels to
/// select it by, not even by the empty selector.
pub(super) fn selects(selector: &PeerSelector, pod: &Pod, namespace: Option<&Labels>) -> bool {
    let namespace_selected = match &selector.namespaces {
        Namespaces::Named(name) => pod.key.namespace == *name,
        Namespaces::Matching(namespaces) => {
            namespace.is_some_and(|labels| namespaces.matches(labels))
        }
    };
    namespace_selected && pod.is_selectable() && selector.pods.matches(&pod.labels)
}
