//! Which selectors a pod can come under at all, by what they insist on: so that a pod is held
//! against a few of them and not against all.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{NamespaceName, Namespaces, PeerSelector, Pod};

/// Selectors by number, arranged by one thing that each insists on.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    by_namespace: BTreeMap<NamespaceName, Vec<usize>>,
    by_label: BTreeMap<String, BTreeMap<String, Vec<usize>>>,
    others: Vec<usize>,
}

impl Candidates {
    /// Adds a selector under its number.
    pub(super) fn insert(&mut self, number: usize, selector: &PeerSelector) {
        let namespace = match &selector.namespaces {
            Namespaces::Named(name) => Some(name),
            Namespaces::Matching(_) => None,
        };
        if let Some(name) = namespace {
            let numbers = self.by_namespace.entry(name.clone()).or_default();
            numbers.push(number);
        } else if let Some((key, values)) = selector.pods.wanted_label() {
            let by_value = self.by_label.entry(key.to_owned()).or_default();
            for value in values {
                by_value.entry(value.clone()).or_default().push(number);
            }
        } else {
            self.others.push(number);
        }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.by_namespace.is_empty() && self.by_label.is_empty() && self.others.is_empty()
    }

    /// Adds to `numbers` the selectors that may select a pod; the rest does not.
    pub(super) fn collect(&self, pod: &Pod, numbers: &mut BTreeSet<usize>) {
        numbers.extend(&self.others);
        numbers.extend(
            self.by_namespace
                .get(&pod.key.namespace)
                .into_iter()
                .flatten(),
        );
        for (key, by_value) in &self.by_label {
            let value = pod.labels.get(key);
            numbers.extend(
                value
                    .and_then(|value| by_value.get(value))
                    .into_iter()
                    .flatten(),
            );
        }
    }
}
