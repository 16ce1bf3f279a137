//! Sorted sets that are shared until somebody writes to them, and then but for the part written to.
//!
//! A set of the kernel is held three times over: by the index, by the ruleset on its way, and by
//! whoever remembers what was written. Most of it is the same most of the time.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::iter::FlatMap;
use std::slice;
use std::sync::Arc;

/// 128 members of 8 to 24 bytes: what a write copies is a few hundred nanoseconds, and the list of
/// chunks of a set of 100,000 is 25 kB.
const CHUNK_MAX: usize = 128;

/// What chunks are filled to when a set is made whole: a member more does not split one at once.
const CHUNK_FILLED: usize = 96;

/// A sorted set.
///
/// *Shape*: chunks in order, none empty. Two clones share every chunk that neither has written to
/// since.
///
/// *Cost*: a clone is a counter. A write copies one chunk, and the list of chunks when it is shared.
#[derive(Clone)]
pub struct Shared<T> {
    chunks: Arc<Vec<Chunk<T>>>,
    len: usize,
}

/// Some members in order.
#[derive(Debug, Clone)]
struct Chunk<T> {
    /// The last of them stands here too: whoever looks for a chunk reads their list alone.
    last: T,
    members: Arc<[T]>,
}

impl<T: Copy> Chunk<T> {
    /// So many members in chunks of a size.
    fn all(members: &[T], size: usize) -> impl Iterator<Item = Self> {
        members.chunks(size).map(|members| Self {
            last: members[members.len() - 1],
            members: members.into(),
        })
    }
}

/// The members in order.
#[derive(Debug, Clone)]
pub struct Iter<'a, T> {
    chunks: Flat<'a, T>,
    left: usize,
}

type Flat<'a, T> =
    FlatMap<slice::Iter<'a, Chunk<T>>, slice::Iter<'a, T>, fn(&Chunk<T>) -> slice::Iter<'_, T>>;

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        let next = self.chunks.next()?;
        self.left -= 1;
        Some(next)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<T> ExactSizeIterator for Iter<'_, T> {}

impl<T: Ord + Copy> Shared<T> {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self {
            chunks: Arc::default(),
            len: 0,
        }
    }

    /// How many members it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The members in order.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, T> {
        Iter {
            chunks: self.chunks.iter().flat_map(|chunk| chunk.members.iter()),
            left: self.len,
        }
    }

    /// Whether it has a member.
    #[must_use]
    pub fn contains(&self, member: &T) -> bool {
        self.chunks
            .get(self.chunk_of(member))
            .is_some_and(|chunk| chunk.members.binary_search(member).is_ok())
    }

    /// Adds a member; says whether it is new.
    pub fn insert(&mut self, member: T) -> bool {
        let mut new = false;
        self.change(&[(member, true)], |_, _| new = true);
        new
    }

    /// Takes a member out; says whether it was there.
    pub fn remove(&mut self, member: &T) -> bool {
        let mut was_there = false;
        self.change(&[(*member, false)], |_, _| was_there = true);
        was_there
    }

    /// Puts members in (`true`) and takes others out, and tells of those that were not in it, or
    /// were.
    ///
    /// *Shape*: the changes are in order, each member once.
    ///
    /// *Cost*: a copy of each chunk that changes, and of their list when that is shared.
    pub fn change(&mut self, mut changes: &[(T, bool)], mut tell: impl FnMut(T, bool)) {
        let mut merged = Vec::with_capacity(CHUNK_MAX + changes.len().min(CHUNK_MAX));
        let mut at = 0;
        while let [(first, _), ..] = changes {
            at += self.chunks[at..].partition_point(|chunk| chunk.last < *first);
            // Behind the last of all: into the last chunk.
            at = at.min(self.chunks.len().saturating_sub(1));
            let here = match self.chunks.get(at) {
                Some(chunk) if at + 1 < self.chunks.len() => {
                    changes.partition_point(|(member, _)| *member <= chunk.last)
                }
                Some(_) | None => changes.len(),
            };
            let (here, later) = changes.split_at(here);
            changes = later;
            merged.clear();
            let chunk = self.chunks.get(at).map_or(&[][..], |chunk| &*chunk.members);
            let before = chunk.len();
            if merge(chunk, here, &mut merged, &mut tell) {
                self.len = self.len - before + merged.len();
                at = self.replace(at, &mut merged);
            }
        }
    }

    /// Puts members in the place of a chunk, joined with one beside it when both are small. Says
    /// where they now begin.
    fn replace(&mut self, at: usize, members: &mut Vec<T>) -> usize {
        let chunks = Arc::make_mut(&mut self.chunks);
        let (mut first, mut next) = (at, chunks.len().min(at + 1));
        let count = members.len();
        let joins = |chunk: &&Chunk<T>| count + chunk.members.len() <= CHUNK_MAX / 2;
        if let Some(chunk) = chunks.get(next).filter(joins) {
            members.extend_from_slice(&chunk.members);
            next += 1;
        } else if let Some(chunk) = chunks[..first].last().filter(joins) {
            members.splice(0..0, chunk.members.iter().copied());
            first -= 1;
        }
        let size = if members.len() > CHUNK_MAX {
            CHUNK_FILLED
        } else {
            CHUNK_MAX
        };
        let mut new = Chunk::all(members, size);
        if next - first == 1
            && members.len() <= size
            && let Some(one) = new.next()
        {
            chunks[first] = one;
        } else {
            chunks.splice(first..next, new);
        }
        first
    }

    /// What this one has and the other has not, and the other way round; each in order.
    ///
    /// *Cost*: linear in the chunks that they do not share.
    #[must_use]
    pub fn difference(&self, other: &Self) -> (Vec<T>, Vec<T>) {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        if Arc::ptr_eq(&self.chunks, &other.chunks) {
            return (ours, theirs);
        }
        let (mut one, mut two) = (Cursor::new(self), Cursor::new(other));
        loop {
            one.skip_shared(&mut two);
            match (one.get(), two.get()) {
                (None, None) => return (ours, theirs),
                (Some(own), None) => {
                    ours.push(own);
                    one.step();
                }
                (None, Some(own)) => {
                    theirs.push(own);
                    two.step();
                }
                (Some(own), Some(their)) => match own.cmp(&their) {
                    Ordering::Less => {
                        ours.push(own);
                        one.step();
                    }
                    Ordering::Greater => {
                        theirs.push(their);
                        two.step();
                    }
                    Ordering::Equal => {
                        one.step();
                        two.step();
                    }
                },
            }
        }
    }

    /// The first chunk whose last member is not before this one: where it is, if it is anywhere.
    fn chunk_of(&self, member: &T) -> usize {
        self.chunks.partition_point(|chunk| chunk.last < *member)
    }

    /// Of members in order, each once.
    fn of_sorted(members: &[T]) -> Self {
        Self {
            chunks: Arc::new(Chunk::all(members, CHUNK_FILLED).collect()),
            len: members.len(),
        }
    }
}

/// Writes what is left of members after changes, and tells of those changes that are some; says
/// whether any is.
fn merge<T: Ord + Copy>(
    mut members: &[T],
    changes: &[(T, bool)],
    merged: &mut Vec<T>,
    tell: &mut impl FnMut(T, bool),
) -> bool {
    let mut changed = false;
    for (member, goes_in) in changes {
        let before = members.partition_point(|other| other < member);
        merged.extend_from_slice(&members[..before]);
        members = &members[before..];
        let is_in = members.first() == Some(member);
        if is_in {
            members = &members[1..];
        }
        if *goes_in {
            merged.push(*member);
        }
        if is_in != *goes_in {
            tell(*member, *goes_in);
            changed = true;
        }
    }
    merged.extend_from_slice(members);
    changed
}

/// A place in a set.
struct Cursor<'a, T> {
    chunks: &'a [Chunk<T>],
    place: usize,
}

impl<'a, T: Copy> Cursor<'a, T> {
    fn new(set: &'a Shared<T>) -> Self {
        Self {
            chunks: &set.chunks,
            place: 0,
        }
    }

    fn get(&self) -> Option<T> {
        Some(self.chunks.first()?.members[self.place])
    }

    fn step(&mut self) {
        self.place += 1;
        if self
            .chunks
            .first()
            .is_some_and(|chunk| self.place == chunk.members.len())
        {
            self.chunks = &self.chunks[1..];
            self.place = 0;
        }
    }

    /// Past chunks that both stand at the beginning of.
    fn skip_shared(&mut self, other: &mut Self) {
        while let (0, 0, [own, rest @ ..], [their, others @ ..]) =
            (self.place, other.place, self.chunks, other.chunks)
            && Arc::ptr_eq(&own.members, &their.members)
        {
            self.chunks = rest;
            other.chunks = others;
        }
    }
}

impl<T: Ord + Copy> Default for Shared<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Ord + Copy> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len
            && (Arc::ptr_eq(&self.chunks, &other.chunks) || self.iter().eq(other.iter()))
    }
}

impl<T: Ord + Copy> Eq for Shared<T> {}

impl<T: Ord + Copy> PartialEq<BTreeSet<T>> for Shared<T> {
    fn eq(&self, other: &BTreeSet<T>) -> bool {
        self.len == other.len() && self.iter().eq(other)
    }
}

impl<T: Ord + Copy + fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl<T: Ord + Copy> FromIterator<T> for Shared<T> {
    fn from_iter<I: IntoIterator<Item = T>>(members: I) -> Self {
        members.into_iter().collect::<Vec<T>>().into()
    }
}

impl<T: Ord + Copy> From<Vec<T>> for Shared<T> {
    fn from(mut members: Vec<T>) -> Self {
        // Not `sort_unstable`: what comes here is mostly a few sorted runs.
        members.sort();
        members.dedup();
        Self::of_sorted(&members)
    }
}

impl<'a, T: Ord + Copy> IntoIterator for &'a Shared<T> {
    type Item = &'a T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn changes() -> impl Strategy<Value = Vec<(bool, u16)>> {
        prop::collection::vec((any::<bool>(), 0..900_u16), 0..1500)
    }

    fn change(set: &mut Shared<u16>, model: &mut BTreeSet<u16>, changes: &[(bool, u16)]) {
        for (goes_in, number) in changes {
            if *goes_in {
                assert_eq!(set.insert(*number), model.insert(*number));
            } else {
                assert_eq!(set.remove(number), model.remove(number));
            }
        }
    }

    /// The same, all at once.
    fn change_at_once(
        set: &mut Shared<u16>,
        model: &mut BTreeSet<u16>,
        changes: &BTreeMap<u16, bool>,
    ) {
        let mut told = Vec::new();
        let all: Vec<(u16, bool)> = changes.iter().map(|(number, it)| (*number, *it)).collect();
        set.change(&all, |number, goes_in| told.push((number, goes_in)));
        let mut want = all;
        want.retain(|(number, goes_in)| {
            if *goes_in {
                model.insert(*number)
            } else {
                model.remove(number)
            }
        });
        assert_eq!(told, want);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_shared_set_is_a_set_and_its_clones_stay_as_they_were(
            first in prop::collection::btree_set(0..900_u16, 0..900),
            before in changes(),
            after in changes(),
            at_once in prop::collection::vec(
                prop::collection::btree_map(0..900_u16, any::<bool>(), 0..900), 0..4,
            ),
        ) {
            let mut model = first.clone();
            let mut set: Shared<u16> = first.iter().copied().collect();
            change(&mut set, &mut model, &before);
            let (old, old_model) = (set.clone(), model.clone());
            change(&mut set, &mut model, &after);
            for changes in &at_once {
                change_at_once(&mut set, &mut model, changes);
            }
            for (set, model) in [(&set, &model), (&old, &old_model)] {
                prop_assert!(set.iter().eq(model));
                prop_assert_eq!(set.len(), model.len());
                prop_assert!((0..900).all(|number| set.contains(&number) == model.contains(&number)));
                let is_well_formed = set.chunks.iter().all(|chunk| {
                    (1..=CHUNK_MAX).contains(&chunk.members.len())
                        && chunk.members.last() == Some(&chunk.last)
                });
                prop_assert!(is_well_formed);
            }
            let (added, gone) = set.difference(&old);
            prop_assert!(added.iter().eq(model.difference(&old_model)));
            prop_assert!(gone.iter().eq(old_model.difference(&model)));
            prop_assert_eq!(set == old, model == old_model);
        }
    }

    #[test]
    fn a_write_leaves_all_chunks_but_one_shared() {
        let old: Shared<u32> = (0..10_000).map(|number| number * 2).collect();
        let mut new = old.clone();
        new.insert(7_777);
        new.remove(&7_776);
        let chunks = new.chunks.iter().filter(|chunk| {
            let mut olds = old.chunks.iter();
            !olds.any(|old| Arc::ptr_eq(&old.members, &chunk.members))
        });
        assert_eq!(chunks.count(), 1);
    }
}
