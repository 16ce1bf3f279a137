//! What the pods that a selector selects put into sets, counted, so that the last pod of an
//! address takes it away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::fold::Stamp;
use crate::model::{Labels, NamedPort, Namespaces, PeerSelector};

use super::places::Placed;
use crate::ruleset::{Family, Member, MemberSet};

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
    /// Adds what a pod gives. A namespace that isn't known yet has no labels to select it by, not
    /// even by the empty selector.
    pub(super) fn elements(
        &self,
        placed: &Placed<'_>,
        namespace: Option<&Labels>,
        elements: &mut Vec<Element>,
    ) {
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
            return;
        }
        let addresses = placed.addresses.iter();
        match &self.port {
            None => elements.extend(addresses.map(|address| (address, None))),
            Some(named) => elements.extend(addresses.flat_map(|address| {
                pod.numbers(named)
                    .map(move |number| (address, Some((named.protocol, number.get()))))
            })),
        }
    }
}

/// An element as a member.
fn single((address, port): Element) -> Member {
    Member {
        net: address.into(),
        port,
    }
}

/// Elements, each with how many selected pods have it: a terminating pod and its successor may
/// share an address for a while.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Members {
    elements: MemberSet,
    /// How many pods beside the first have an element.
    more: BTreeMap<Element, u32>,
}

impl Members {
    /// The elements as members, in order.
    pub(super) fn set(&self) -> &MemberSet {
        &self.elements
    }

    /// How many elements of these families there are.
    pub(super) fn len_of(&self, families: &BTreeSet<Family>) -> usize {
        let families = families.iter();
        families.map(|family| self.elements.len_of(*family)).sum()
    }

    pub(crate) fn contains(&self, element: Element) -> bool {
        self.elements.contains(&single(element))
    }

    pub(super) fn add(&mut self, element: Element) {
        if !self.elements.insert(single(element)) {
            *self.more.entry(element).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, element: Element) {
        match self.more.get_mut(&element) {
            Some(count) => {
                *count -= 1;
                if *count == 0 {
                    self.more.remove(&element);
                }
            }
            None => {
                self.elements.remove(&single(element));
            }
        }
    }
}

/// An element as often as pods have it.
impl FromIterator<Element> for Members {
    fn from_iter<I: IntoIterator<Item = Element>>(elements: I) -> Self {
        let mut all: Vec<Element> = elements.into_iter().collect();
        all.sort_unstable();
        let mut more = BTreeMap::new();
        for pair in all.windows(2) {
            if pair[0] == pair[1] {
                *more.entry(pair[0]).or_default() += 1;
            }
        }
        Self {
            elements: all.into_iter().map(single).collect(),
            more,
        }
    }
}

/// Which elements of which sources events touched.
#[derive(Debug, Default)]
pub(super) struct Touched {
    all: Vec<(usize, Element)>,
    /// How many were left when they were last sorted.
    sorted: usize,
}

/// Sorting fewer isn't worth it.
const SORT_MIN: usize = 1024;

impl Touched {
    /// Notes an element of a source.
    pub(super) fn note(&mut self, source: usize, element: Element) {
        self.all.push((source, element));
    }

    /// Adds what else was touched. Of equals one is kept: while nobody asks, the same pods may come
    /// and go for long.
    pub(super) fn extend(&mut self, other: Self) {
        self.all.extend(other.all);
        if self.all.len() > SORT_MIN.max(2 * self.sorted) {
            self.sort();
        }
    }

    /// Whether nothing was.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Everything that was touched, once.
    pub(super) fn into_sorted(mut self) -> Vec<(usize, Element)> {
        self.sort();
        self.all
    }

    fn sort(&mut self) {
        self.all.sort_unstable();
        self.all.dedup();
        self.sorted = self.all.len();
    }
}
