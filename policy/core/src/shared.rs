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
/// chunks of a set of 100,000 is 6 kB.
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
    chunks: Arc<Vec<Arc<Vec<T>>>>,
    len: usize,
}

/// The members in order.
#[derive(Debug, Clone)]
pub struct Iter<'a, T> {
    chunks: Flat<'a, T>,
    left: usize,
}

type Flat<'a, T> = FlatMap<
    slice::Iter<'a, Arc<Vec<T>>>,
    slice::Iter<'a, T>,
    fn(&Arc<Vec<T>>) -> slice::Iter<'_, T>,
>;

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
            chunks: self.chunks.iter().flat_map(|chunk| chunk.iter()),
            left: self.len,
        }
    }

    /// Whether it has a member.
    #[must_use]
    pub fn contains(&self, member: &T) -> bool {
        self.chunks
            .get(self.chunk_of(member))
            .is_some_and(|chunk| chunk.binary_search(member).is_ok())
    }

    /// Adds a member; says whether it is new.
    pub fn insert(&mut self, member: T) -> bool {
        let at = self.chunk_of(&member);
        // Behind the last of all: into the last chunk.
        let at = at.min(self.chunks.len().saturating_sub(1));
        let Some(chunk) = self.chunks.get(at) else {
            self.chunks = Arc::new(vec![Arc::new(vec![member])]);
            self.len = 1;
            return true;
        };
        let Err(place) = chunk.binary_search(&member) else {
            return false;
        };
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[at]);
        if chunk.len() == chunk.capacity() {
            chunk.reserve_exact(8);
        }
        chunk.insert(place, member);
        if chunk.len() > CHUNK_MAX {
            let half = chunk.split_off(CHUNK_MAX / 2);
            chunk.shrink_to_fit();
            chunks.insert(at + 1, Arc::new(half));
        }
        self.len += 1;
        true
    }

    /// Takes a member out; says whether it was there.
    pub fn remove(&mut self, member: &T) -> bool {
        let at = self.chunk_of(member);
        let Some(Ok(place)) = self.chunks.get(at).map(|chunk| chunk.binary_search(member)) else {
            return false;
        };
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[at]);
        chunk.remove(place);
        let left = chunk.len();
        let joined = |other: Option<&Arc<Vec<T>>>| {
            other.is_some_and(|other| left + other.len() <= CHUNK_MAX / 2)
        };
        if left == 0 {
            chunks.remove(at);
        } else if joined(chunks.get(at + 1)) {
            let next = chunks.remove(at + 1);
            Arc::make_mut(&mut chunks[at]).extend_from_slice(&next);
        } else if at > 0 && joined(chunks.get(at - 1)) {
            let last = chunks.remove(at);
            Arc::make_mut(&mut chunks[at - 1]).extend_from_slice(&last);
        }
        self.len -= 1;
        true
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
        self.chunks
            .partition_point(|chunk| chunk.last().is_some_and(|last| last < member))
    }

    /// Of members in order, each once.
    fn of_sorted(members: &[T]) -> Self {
        let chunks = members.chunks(CHUNK_FILLED);
        Self {
            chunks: Arc::new(chunks.map(|chunk| Arc::new(chunk.to_vec())).collect()),
            len: members.len(),
        }
    }
}

/// A place in a set.
struct Cursor<'a, T> {
    chunks: &'a [Arc<Vec<T>>],
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
        Some(self.chunks.first()?[self.place])
    }

    fn step(&mut self) {
        self.place += 1;
        if self
            .chunks
            .first()
            .is_some_and(|chunk| self.place == chunk.len())
        {
            self.chunks = &self.chunks[1..];
            self.place = 0;
        }
    }

    /// Past chunks that both stand at the beginning of.
    fn skip_shared(&mut self, other: &mut Self) {
        while let (0, 0, [own, rest @ ..], [their, others @ ..]) =
            (self.place, other.place, self.chunks, other.chunks)
            && Arc::ptr_eq(own, their)
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_shared_set_is_a_set_and_its_clones_stay_as_they_were(
            first in prop::collection::btree_set(0..900_u16, 0..900),
            before in changes(),
            after in changes(),
        ) {
            let mut model = first.clone();
            let mut set: Shared<u16> = first.iter().copied().collect();
            change(&mut set, &mut model, &before);
            let (old, old_model) = (set.clone(), model.clone());
            change(&mut set, &mut model, &after);
            for (set, model) in [(&set, &model), (&old, &old_model)] {
                prop_assert!(set.iter().eq(model));
                prop_assert_eq!(set.len(), model.len());
                prop_assert!((0..900).all(|number| set.contains(&number) == model.contains(&number)));
                prop_assert!(set.chunks.iter().all(|chunk| (1..=CHUNK_MAX).contains(&chunk.len())));
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
        let chunks = new
            .chunks
            .iter()
            .filter(|chunk| !old.chunks.iter().any(|old| Arc::ptr_eq(old, chunk)));
        assert_eq!(chunks.count(), 1);
    }
}
