//! Which selectors a pod can come under at all, by what they insist on: so that a pod is held
//! against a few of them and not against all.

use std::collections::BTreeMap;

use crate::model::{Labels, NamespaceName, Namespaces, PeerSelector, Pod, Selector};

/// Selectors by number, arranged by one thing that each insists on.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    by_namespace: BTreeMap<NamespaceName, Vec<usize>>,
    by_label: ByLabel,
    by_namespace_label: ByLabel,
    others: Vec<usize>,
}

/// By key and value of a label.
#[derive(Debug, Default)]
struct ByLabel(BTreeMap<String, BTreeMap<String, Vec<usize>>>);

impl ByLabel {
    /// Whether the selector insists on a label, and is here then.
    fn insert(&mut self, number: usize, selector: &Selector) -> bool {
        let Some((key, values)) = selector.wanted_label() else {
            return false;
        };
        let by_value = self.0.entry(key.to_owned()).or_default();
        for value in values {
            by_value.entry(value.to_owned()).or_default().push(number);
        }
        true
    }

    fn remove(&mut self, number: usize, selector: &Selector) -> bool {
        let Some((key, values)) = selector.wanted_label() else {
            return false;
        };
        if let Some(by_value) = self.0.get_mut(key) {
            for value in values {
                if let Some(numbers) = by_value.get_mut(value) {
                    numbers.retain(|other| *other != number);
                    if numbers.is_empty() {
                        by_value.remove(value);
                    }
                }
            }
            if by_value.is_empty() {
                self.0.remove(key);
            }
        }
        true
    }

    fn collect(&self, labels: &Labels, numbers: &mut Vec<usize>) {
        for (key, by_value) in &self.0 {
            let value = labels.get(key);
            numbers.extend(
                value
                    .and_then(|value| by_value.get(value))
                    .into_iter()
                    .flatten(),
            );
        }
    }
}

impl Candidates {
    /// Adds a selector under its number.
    pub(super) fn insert(&mut self, number: usize, selector: &PeerSelector) {
        match &selector.namespaces {
            Namespaces::Named(name) => {
                let numbers = self.by_namespace.entry(name.clone()).or_default();
                numbers.push(number);
            }
            Namespaces::Matching(namespaces) => {
                if !self.by_label.insert(number, &selector.pods)
                    && !self.by_namespace_label.insert(number, namespaces)
                {
                    self.others.push(number);
                }
            }
        }
    }

    /// Takes a selector out that was added so.
    pub(super) fn remove(&mut self, number: usize, selector: &PeerSelector) {
        match &selector.namespaces {
            Namespaces::Named(name) => {
                if let Some(numbers) = self.by_namespace.get_mut(name) {
                    numbers.retain(|other| *other != number);
                    if numbers.is_empty() {
                        self.by_namespace.remove(name);
                    }
                }
            }
            Namespaces::Matching(namespaces) => {
                if !self.by_label.remove(number, &selector.pods)
                    && !self.by_namespace_label.remove(number, namespaces)
                {
                    self.others.retain(|other| *other != number);
                }
            }
        }
    }

    /// Adds to `numbers` the selectors that may select a pod of a namespace with such labels, each
    /// once; the rest does not. Without labels the namespace isn't known.
    pub(super) fn collect(&self, pod: &Pod, namespace: Option<&Labels>, numbers: &mut Vec<usize>) {
        let named = self.by_namespace.get(&pod.key.namespace);
        numbers.extend(named.into_iter().flatten());
        let Some(namespace) = namespace else {
            return;
        };
        numbers.extend(&self.others);
        self.by_label.collect(&pod.labels, numbers);
        self.by_namespace_label.collect(namespace, numbers);
    }
}
