//! What the pods that a selector selects put into sets, counted, so that the last pod of an
//! address takes it away.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::fold::Stamp;
use crate::model::{Labels, NamedPort, Namespaces, PeerSelector};

use super::places::Placed;

/// Something that sets are filled from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source {
    /// Which pods.
    pub(crate) selector: PeerSelector,
    /// Their addresses with the numbers that they call so; `None`: their addresses alone.
    pub(crate) port: Option<NamedPort>,
}

/// An address; with protocol and number where the source has a port.
pub(crate) type Element = (IpAddr, Stamp);

impl Source {
    /// What a pod gives. A namespace that isn't known yet has no labels to select it by, not even
    /// by the empty selector.
    pub(super) fn elements(&self, placed: &Placed<'_>, namespace: Option<&Labels>) -> Vec<Element> {
        let pod = placed.pod;
        let namespace_selected = match &self.selector.namespaces {
            Namespaces::Named(name) => pod.key.namespace == *name,
            Namespaces::Matching(namespaces) => {
                namespace.is_some_and(|labels| namespaces.matches(labels))
            }
        };
        let selected =
            namespace_selected && pod.is_selectable() && self.selector.pods.matches(&pod.labels);
        if !selected {
            return Vec::new();
        }
        let addresses = placed.addresses.iter().copied();
        match &self.port {
            None => addresses.map(|address| (address, None)).collect(),
            Some(named) => addresses
                .flat_map(|address| {
                    pod.numbers(named)
                        .map(move |number| (address, Some((named.protocol, number.get()))))
                })
                .collect(),
        }
    }
}

/// Elements, each with how many selected pods have it: a terminating pod and its successor may
/// share an address for a while.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Members(BTreeMap<Element, u32>);

impl Members {
    /// The elements, in order.
    pub(crate) fn elements(&self) -> impl Iterator<Item = Element> {
        self.0.keys().copied()
    }

    pub(crate) fn contains(&self, element: Element) -> bool {
        self.0.contains_key(&element)
    }

    pub(super) fn add(&mut self, element: Element) {
        *self.0.entry(element).or_default() += 1;
    }

    pub(super) fn remove(&mut self, element: Element) {
        if let Some(count) = self.0.get_mut(&element) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&element);
            }
        }
    }
}

/// Which elements of which sources an event touched, and whether they were there before it.
#[derive(Debug, Default)]
pub(super) struct Touched(BTreeMap<(usize, Element), bool>);

impl Touched {
    /// Notes how it was, the first time it is called for an element of a source.
    pub(super) fn note(&mut self, source: usize, element: Element, before: bool) {
        self.0.entry((source, element)).or_insert(before);
    }

    /// What it was, if it was touched.
    pub(super) fn before(&self, source: usize, element: Element) -> Option<bool> {
        self.0.get(&(source, element)).copied()
    }

    /// Everything that was touched: source, element, whether it was there.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, Element, bool)> {
        self.0
            .iter()
            .map(|((source, element), before)| (*source, *element, *before))
    }
}
