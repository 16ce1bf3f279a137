//! The members of each set, kept as they should be.

use std::collections::{BTreeMap, BTreeSet};

use super::{Active, State};
use crate::index::event::MemberChange;
use crate::index::members::Touched;
use crate::ruleset::{Family, Member, MemberSet, Set, SetName};

/// What is in a feed's sets.
#[derive(Debug, Default)]
pub(super) struct Filled {
    /// How often profiles' rules match on the set.
    pub(super) users: usize,
    v4: MemberSet,
    v6: MemberSet,
}

impl Filled {
    pub(super) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    fn of(&self, family: Family) -> &MemberSet {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn of_mut(&mut self, family: Family) -> &mut MemberSet {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

impl Active {
    /// The sets, whole; one without members is there too, if it can have any.
    pub(in crate::index) fn sets(&self, family: Family) -> impl Iterator<Item = (SetName, Set)> {
        let feeds = self.feeds.iter();
        let feeds = feeds.filter(move |(_, feed)| !self.is_void(feed.contents(), family));
        feeds.map(move |(number, feed)| {
            let set = Set {
                kind: feed.id().kind(),
                members: self.filled[number].of(family).clone(),
            };
            (feed.name(family).clone(), set)
        })
    }

    /// Fills sets from their sources.
    pub(super) fn fill(&mut self, feeds: &BTreeSet<usize>) {
        for number in feeds {
            let Some(feed) = self.feeds.get(*number) else {
                continue;
            };
            self.held -= self.filled[*number].len();
            for family in &self.families {
                let pods = feed.parts().flat_map(|(stamp, source)| {
                    let counted = self.sources.get(source);
                    let elements = counted.members.elements();
                    elements
                        .filter(|(address, _)| Family::of_address(*address) == *family)
                        .map(move |element| counted.member(element, stamp))
                });
                let members = feed.contents().block_members(*family).chain(pods).collect();
                *self.filled[*number].of_mut(*family) = members;
            }
            self.held += self.filled[*number].len();
        }
    }

    /// Moves a pod from one state to another, in its sources and their sets' members.
    pub(in crate::index) fn move_pod(
        &mut self,
        before: Option<State<'_>>,
        after: Option<State<'_>>,
        touched: &mut Touched,
    ) {
        self.sources.move_pod(before, after, touched);
    }

    /// Brings the sets up to date with what an event did to the sources, and says what that changed:
    /// a member goes in with the first part of a set that has it, and out with the last.
    pub(in crate::index) fn follow(
        &mut self,
        touched: &Touched,
    ) -> BTreeMap<SetName, MemberChange> {
        let mut concerned: BTreeSet<(usize, Member)> = BTreeSet::new();
        for (source, element) in touched.iter() {
            if !self.families.contains(&Family::of_address(element.0)) {
                continue;
            }
            let counted = self.sources.get(source);
            for (feed, stamp) in &counted.feeds {
                concerned.insert((*feed, counted.member(element, *stamp)));
            }
        }
        let mut changes: BTreeMap<SetName, MemberChange> = BTreeMap::new();
        for (number, member) in concerned {
            let Some(feed) = self.feeds.get(number) else {
                continue;
            };
            let has = |source: usize, element| self.sources.get(source).members.contains(element);
            let family = Family::of(&member.net);
            let is = feed.holds(&member, has);
            let members = self.filled[number].of_mut(family);
            let name = || feed.name(family).clone();
            if is {
                if members.insert(member) {
                    self.held += 1;
                    changes.entry(name()).or_default().add.insert(member);
                }
            } else if members.remove(&member) {
                self.held -= 1;
                changes.entry(name()).or_default().remove.insert(member);
            }
        }
        changes
    }
}
