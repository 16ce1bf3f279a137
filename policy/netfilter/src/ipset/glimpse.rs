//! Headers of sets, looked at by one thread and compared by another: the kernel takes 10 µs for each and more
//! for large ones, and whoever changes members is not to wait for that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use selvage_policy_core::observe::SetState;
use selvage_policy_core::ruleset::{Family, SetKind, SetName};

use super::{Header, IpSets, NOT_FOUND};
use crate::error::Error;

/// Of the sets that were changed here since their headers were looked at, so many are looked at one by one;
/// the next ones next time.
const LOOKS: usize = 2;

/// Headers, as they were at some time.
#[derive(Debug, Clone, Default)]
pub struct Glimpse {
    /// Each with when it was asked for; `None` for a set that was not there.
    headers: BTreeMap<SetName, (Option<Header>, Instant)>,
    /// If all sets that there were at a time are in it: that time.
    complete: Option<Instant>,
}

/// What was seen and not yet compared, from whoever looks to whoever compares.
#[derive(Debug, Clone, Default)]
pub struct Glimpses(Arc<Mutex<Option<Glimpse>>>);

impl Glimpse {
    pub(crate) fn add(&mut self, name: SetName, header: Option<Header>, when: Instant) {
        self.headers.insert(name, (header, when));
    }

    /// All sets that there were at that time are in it.
    pub(crate) fn complete(mut self, since: Instant) -> Self {
        self.complete = Some(since);
        self
    }

    pub(crate) fn holds(&self, name: &SetName) -> bool {
        self.headers.contains_key(name)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }
}

impl Glimpses {
    /// Adds to what was seen; a complete one takes its place, since a set that is not in it is not there.
    pub(crate) fn put(&self, glimpse: Glimpse) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match last.as_mut().filter(|_| glimpse.complete.is_none()) {
            Some(seen) => seen.headers.extend(glimpse.headers),
            None => *last = Some(glimpse),
        }
    }

    /// All that was seen, once.
    #[must_use]
    pub fn take(&self) -> Option<Glimpse> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.take()
    }
}

/// How many members a header should show, where that is known.
fn counted(set: &SetState) -> Option<u32> {
    match set {
        SetState::Known {
            kind: SetKind::Net | SetKind::NetPort,
            members,
        } => u32::try_from(members.len()).ok(),
        // Theirs come and go by their own clock.
        SetState::Known {
            kind: SetKind::Guard,
            ..
        }
        | SetState::Foreign => None,
    }
}

impl IpSets {
    /// Looks at all headers at once.
    ///
    /// *Errors*, *Cost*: as [`IpSets::list`].
    pub fn glimpse(&mut self) -> Result<Glimpse, Error> {
        let begun = Instant::now();
        let headers = self.list()?.into_iter();
        let glimpse = Glimpse {
            headers: headers
                .map(|it| (it.name.clone(), (Some(it), begun)))
                .collect(),
            complete: None,
        };
        Ok(glimpse.complete(begun))
    }

    /// A set's header, if there is such a set.
    pub(crate) fn find(&mut self, name: &SetName) -> Result<Option<Header>, Error> {
        match self.header(name) {
            Err(error) if error.is_refusal(NOT_FOUND) => Ok(None),
            header => header.map(Some),
        }
    }

    /// See [`crate::Kernel::sets_changed`].
    pub(crate) fn differing(
        &mut self,
        family: Family,
        expected: &BTreeMap<SetName, SetState>,
        glimpse: &Glimpse,
    ) -> Result<BTreeSet<SetName>, Error> {
        let (mut differing, mut moving) = (BTreeSet::new(), Vec::new());
        let mut compare = |name: &SetName, state, header: Option<&Header>, when: Instant| {
            let members = counted(state);
            if !self.differs(family, name, members, header) {
                return;
            }
            let known = self.known.get(name);
            if known.is_some_and(|known| known.seen >= when) {
                moving.push((name.clone(), members));
            } else {
                differing.insert(name.clone());
            }
        };
        for (name, (header, when)) in &glimpse.headers {
            if let Some(state) = expected.get(name) {
                compare(name, state, header.as_ref(), *when);
            }
        }
        let Some(complete) = glimpse.complete else {
            return Ok(differing);
        };
        for (name, state) in expected {
            if !glimpse.holds(name) {
                compare(name, state, None, complete);
            }
        }
        let looks = moving.len().min(LOOKS);
        for at in 0..looks {
            let (name, members) = &moving[(self.turn + at) % moving.len()];
            let header = self.find(name)?;
            if self.differs(family, name, *members, header.as_ref()) {
                differing.insert(name.clone());
            }
        }
        self.turn = self.turn.wrapping_add(looks);
        Ok(differing)
    }

    fn differs(
        &self,
        family: Family,
        name: &SetName,
        members: Option<u32>,
        header: Option<&Header>,
    ) -> bool {
        let Some(header) = header else { return true };
        let known = self.known.get(name);
        header.kind.is_none()
            || header.family != Some(family)
            || members.is_some_and(|members| members != header.members)
            || known.is_some_and(|known| known.identity != header.identity)
            || header.references == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> SetName {
        SetName::new(text).unwrap()
    }

    fn of(sets: &[&str]) -> Glimpse {
        let mut glimpse = Glimpse::default();
        for set in sets {
            glimpse.add(name(set), None, Instant::now());
        }
        glimpse
    }

    #[test]
    fn parts_add_up_until_a_whole_one_comes_which_knows_of_no_others() {
        let glimpses = Glimpses::default();
        assert!(glimpses.take().is_none());
        glimpses.put(of(&["selvage-a", "selvage-b"]).complete(Instant::now()));
        glimpses.put(of(&["selvage-c"]));
        let both = glimpses.take().unwrap();
        assert!(both.complete.is_some() && both.holds(&name("selvage-a")));
        assert!(both.holds(&name("selvage-c")));
        assert!(glimpses.take().is_none(), "once");
        glimpses.put(of(&["selvage-a"]));
        glimpses.put(of(&["selvage-b"]).complete(Instant::now()));
        assert!(!glimpses.take().unwrap().holds(&name("selvage-a")));
    }
}
