//! The members of each set, kept as they should be.

use std::collections::BTreeSet;

use super::source::Counted;
use super::{Active, State};
use crate::index::event::{MemberChange, MemberChanges};
use crate::index::members::{Element, Touched};
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
    /// The sets, whole and in order; one without members is there too, if it can have any.
    pub(in crate::index) fn sets(&self, family: Family) -> impl Iterator<Item = (SetName, Set)> {
        let feeds = self.feeds.in_order(family);
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
                let blocks: MemberSet = feed.contents().block_members(*family).collect();
                let pods = feed
                    .parts()
                    .map(|(stamp, source)| (self.sources.get(source).members.set(), stamp));
                let all = [(&blocks, None)].into_iter().chain(pods);
                *self.filled[*number].of_mut(*family) = MemberSet::union(*family, all);
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

    /// Brings the sets up to date with what events did to the sources, and notes what that changed:
    /// a member goes in with the first part of a set that has it, and out with the last.
    pub(in crate::index) fn follow(&mut self, touched: Touched, changes: &mut MemberChanges) {
        let touched: Vec<(&Counted, Element)> = touched
            .into_sorted()
            .into_iter()
            .filter(|(_, element)| self.families.contains(&Family::of_address(element.0)))
            .map(|(source, element)| (self.sources.get(source), element))
            .collect();
        let mut counts = vec![0; self.filled.len()];
        for (counted, _) in &touched {
            for (feed, _) in &counted.feeds {
                counts[*feed] += 1;
            }
        }
        // By feed: members that may have come or gone, and whether every source has to be asked, since
        // the one that was touched has it no more.
        let mut concerned: Vec<Vec<(Member, bool)>> =
            counts.into_iter().map(Vec::with_capacity).collect();
        for (counted, element) in touched {
            let asked = !counted.members.contains(element);
            for (feed, stamp) in &counted.feeds {
                concerned[*feed].push((counted.member(element, *stamp), asked));
            }
        }
        for (number, mut members) in concerned.into_iter().enumerate() {
            let Some(feed) = self.feeds.get(number).filter(|_| !members.is_empty()) else {
                continue;
            };
            // Of equals that comes first of which it is known that a source has it.
            members.sort_unstable();
            members.dedup_by_key(|(member, _)| *member);
            let has = |source: usize, element| self.sources.get(source).members.contains(element);
            let members: Vec<(Member, bool)> = members
                .into_iter()
                .map(|(member, asked)| (member, !asked || feed.holds(&member, has)))
                .collect();
            let family = |(member, _): &(Member, bool)| Family::of(&member.net);
            for members in members.chunk_by(|one, other| family(one) == family(other)) {
                let family = family(&members[0]);
                let room = || Vec::with_capacity(members.len());
                let (mut add, mut remove) = (room(), room());
                let set = self.filled[number].of_mut(family);
                set.change(members, |member, goes_in| {
                    let changed = if goes_in { &mut add } else { &mut remove };
                    changed.push(member);
                });
                self.held = self.held + add.len() - remove.len();
                if add.is_empty() && remove.is_empty() {
                    continue;
                }
                match changes.get_mut(feed.name(family)) {
                    Some(change) => change.then(add, remove),
                    None => {
                        let change = MemberChange {
                            add: add.into_iter().collect(),
                            remove: remove.into_iter().collect(),
                            ..MemberChange::default()
                        };
                        changes.insert(feed.name(family).clone(), change);
                    }
                }
            }
        }
    }

    /// Completes changes: with all that is in each set now, and without those that came to nothing or are of
    /// sets that are no more.
    pub(in crate::index) fn complete(&self, changes: &mut MemberChanges) {
        changes.retain(|name, change| {
            let filled = self.feeds.number(name).and_then(|it| self.filled.get(it));
            let (Some(filled), Some(family)) = (filled, name.family()) else {
                return false;
            };
            change.members = filled.of(family).clone();
            !(change.add.is_empty() && change.remove.is_empty())
        });
    }
}
