//! The sources in use: what pods they have, and which sets that fills.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::World;
use crate::fold::Stamp;
use crate::index::candidates::Candidates;
use crate::index::members::{Element, Members, Source, Touched};
use crate::index::places::Placed;
use crate::model::{Labels, NamespaceName, Namespaces};
use crate::ruleset::{Family, Member};

/// A pod where it is, under its namespace's labels; `None`: the namespace isn't known.
pub(in crate::index) type State<'a> = (&'a Placed<'a>, Option<&'a Labels>);

/// Sources by number. A number is a source's for as long as somebody uses it.
#[derive(Debug, Default)]
pub(super) struct Sources {
    all: Vec<Counted>,
    free: Vec<usize>,
    by_source: BTreeMap<Arc<Source>, usize>,
    candidates: Candidates,
}

/// A source in use.
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// `None` when the number is free.
    source: Option<Arc<Source>>,
    /// How often profiles' rules name it.
    users: usize,
    /// Shared with judges that look at it as it was: copied on the first change then.
    pub(super) members: Arc<Members>,
    /// The feeds that it is part of, and what its members carry there.
    pub(super) feeds: Vec<(usize, Stamp)>,
}

impl Counted {
    /// The member that an element is in one of the feeds.
    pub(super) fn member(&self, (address, own): Element, stamp: Stamp) -> Member {
        let named = self
            .source
            .as_ref()
            .is_some_and(|source| source.port.is_some());
        Member {
            net: address.into(),
            port: if named { own } else { stamp },
        }
    }

    /// Adds what a pod gives.
    fn elements(&self, state: Option<State<'_>>, elements: &mut Vec<Element>) {
        if let (Some((placed, namespace)), Some(source)) = (state, &self.source) {
            source.elements(placed, namespace, elements);
        }
    }
}

impl Sources {
    pub(super) fn get(&self, number: usize) -> &Counted {
        &self.all[number]
    }

    pub(super) fn get_mut(&mut self, number: usize) -> &mut Counted {
        &mut self.all[number]
    }

    /// The number of a source that is in use.
    pub(super) fn number(&self, source: &Source) -> Option<usize> {
        self.by_source.get(source).copied()
    }

    /// How many members of these families each has, by number.
    pub(super) fn sizes(&self, families: &BTreeSet<Family>) -> Vec<usize> {
        let members = self.members();
        members.map(|members| members.len_of(families)).collect()
    }

    /// By number; of a free one, nothing.
    pub(super) fn members(&self) -> impl Iterator<Item = &Arc<Members>> {
        self.all.iter().map(|counted| &counted.members)
    }

    /// Uses a source once more. One that is new goes to `new`, to be counted.
    pub(super) fn acquire(&mut self, source: Source, new: &mut Vec<usize>) -> usize {
        let number = match self.by_source.get(&source) {
            Some(number) => *number,
            None => {
                let number = self.free.pop().unwrap_or_else(|| {
                    self.all.push(Counted::default());
                    self.all.len() - 1
                });
                let source = Arc::new(source);
                self.candidates.insert(number, &source.selector);
                self.by_source.insert(source.clone(), number);
                self.all[number].source = Some(source);
                new.push(number);
                number
            }
        };
        self.all[number].users += 1;
        number
    }

    /// Uses a source once less.
    pub(super) fn release(&mut self, number: usize) {
        let counted = &mut self.all[number];
        counted.users -= 1;
        if counted.users > 0 {
            return;
        }
        if let Some(source) = std::mem::take(counted).source {
            self.candidates.remove(number, &source.selector);
            self.by_source.remove(&source);
        }
        self.free.push(number);
    }

    /// Counts the members of new sources: the pods of the namespaces that they speak of, once.
    pub(super) fn count(&mut self, new: &[usize], world: &World<'_>) {
        let mut candidates = Candidates::default();
        let mut namespaces: BTreeSet<&NamespaceName> = BTreeSet::new();
        let sources: Vec<(usize, Arc<Source>)> = new
            .iter()
            .filter_map(|number| Some((*number, self.all[*number].source.clone()?)))
            .collect();
        for (number, source) in &sources {
            candidates.insert(*number, &source.selector);
            match &source.selector.namespaces {
                Namespaces::Named(name) => {
                    namespaces.insert(name);
                }
                Namespaces::Matching(selector) => {
                    let all = world.namespaces.iter();
                    let matching = all.filter(|(_, labels)| selector.matches(labels));
                    namespaces.extend(matching.map(|(name, _)| name));
                }
            }
        }
        let mut found: Vec<Vec<Element>> = vec![Vec::new(); self.all.len()];
        let mut numbers = Vec::new();
        for name in namespaces {
            let labels = world.namespaces.get(name);
            for pod in world.pods.of(name) {
                numbers.clear();
                candidates.collect(pod, labels, &mut numbers);
                if numbers.is_empty() {
                    continue;
                }
                let placed = world.places.place(pod);
                for number in &numbers {
                    let found = &mut found[*number];
                    self.all[*number].elements(Some((&placed, labels)), found);
                }
            }
        }
        for number in new {
            let elements = std::mem::take(&mut found[*number]);
            self.all[*number].members = Arc::new(elements.into_iter().collect());
        }
    }

    /// Moves a pod from one state to another in every source: other labels, other addresses,
    /// other ports, or a namespace with other labels.
    pub(super) fn move_pod(
        &mut self,
        before: Option<State<'_>>,
        after: Option<State<'_>>,
        touched: &mut Touched,
    ) {
        let mut numbers = Vec::new();
        for (placed, labels) in before.into_iter().chain(after) {
            self.candidates.collect(placed.pod, labels, &mut numbers);
        }
        numbers.sort_unstable();
        numbers.dedup();
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for number in numbers {
            let counted = &mut self.all[number];
            old.clear();
            new.clear();
            counted.elements(before, &mut old);
            counted.elements(after, &mut new);
            if old == new {
                continue;
            }
            let members = Arc::make_mut(&mut counted.members);
            for element in old.iter().filter(|element| !new.contains(element)) {
                members.remove(*element);
                touched.note(number, *element);
            }
            for element in new.iter().filter(|element| !old.contains(element)) {
                members.add(*element);
                touched.note(number, *element);
            }
        }
    }
}
