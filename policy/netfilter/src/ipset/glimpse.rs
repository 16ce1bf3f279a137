//! Headers of all sets, listed by one thread and compared by another: the kernel takes 10 µs for each and
//! more for large ones, and whoever changes members is not to wait for that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use selvage_policy_core::ruleset::{Family, SetName};

use super::{Header, IpSets, NOT_FOUND};
use crate::error::Error;

/// Of the sets that were changed here since headers were listed, so many are looked at one by one; the next
/// ones next time.
const LOOKS: usize = 16;

/// Headers, and when their list was begun.
#[derive(Debug, Clone)]
pub struct Glimpse {
    headers: BTreeMap<SetName, Header>,
    begun: Instant,
}

/// The last glimpse, from whoever lists to whoever compares.
#[derive(Debug, Clone, Default)]
pub struct Glimpses(Arc<Mutex<Option<Glimpse>>>);

impl Glimpses {
    pub(crate) fn put(&self, glimpse: Glimpse) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(glimpse);
    }

    /// The last one, once.
    #[must_use]
    pub fn take(&self) -> Option<Glimpse> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.take()
    }
}

impl IpSets {
    /// Lists headers to be compared, by this one or another.
    ///
    /// *Errors*, *Cost*: as [`IpSets::list`].
    pub fn glimpse(&mut self) -> Result<Glimpse, Error> {
        let begun = Instant::now();
        let headers = self.list()?.into_iter();
        Ok(Glimpse {
            headers: headers.map(|it| (it.name.clone(), it)).collect(),
            begun,
        })
    }

    /// See [`crate::Kernel::sets_changed`].
    pub(crate) fn differing(
        &mut self,
        family: Family,
        expected: &BTreeMap<&SetName, Option<u32>>,
        glimpse: &Glimpse,
    ) -> Result<BTreeSet<SetName>, Error> {
        let (mut differing, mut moving) = (BTreeSet::new(), Vec::new());
        for (name, members) in expected {
            if !self.differs(family, name, *members, glimpse.headers.get(*name)) {
                continue;
            }
            let known = self.known.get(*name);
            if known.is_some_and(|known| known.seen >= glimpse.begun) {
                moving.push((*name, *members));
            } else {
                differing.insert((*name).clone());
            }
        }
        let looks = moving.len().min(LOOKS);
        for at in 0..looks {
            let (name, members) = moving[(self.turn + at) % moving.len()];
            let header = match self.header(name) {
                Err(error) if error.is_refusal(NOT_FOUND) => None,
                header => Some(header?),
            };
            if self.differs(family, name, members, header.as_ref()) {
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
