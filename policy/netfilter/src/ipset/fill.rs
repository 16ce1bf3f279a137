//! Members into sets and out of them, in batches, and more room for a set that is full.

use std::borrow::Borrow;
use std::collections::BTreeSet;

use selvage_policy_core::ruleset::{Family, Member, SetKind, SetName};

use super::IpSets;
use super::wire::{self, Change, attribute};
use crate::error::Error;

/// Members below this many fit without a new table.
const ROOM: u32 = 1 << 16;

/// 16 million members are half a gigabyte of kernel memory: a set that wants more is a mistake.
const ROOM_MAX: u32 = 1 << 24;

/// While a full set is rebuilt with more room, the new one bears this name.
const REBUILD: &str = "selvage-rebuild";

impl IpSets {
    pub(super) fn change(
        &mut self,
        change: Change,
        name: &SetName,
        family: Family,
        kind: SetKind,
        members: impl Iterator<Item: Borrow<Member>> + Clone,
    ) -> Result<(), Error> {
        for member in members.clone() {
            let member: Member = *member.borrow();
            if let Some(problem) = wire::misfit(&member, family, kind) {
                return Err(Error::BadMember {
                    set: name.clone(),
                    member,
                    problem,
                });
            }
        }
        let mut rest = members.peekable();
        let mut line = 0;
        while rest.peek().is_some() {
            let mut message = self.about(change.command(), name);
            // The presence of this one asks for the number of a refused member.
            message.net_u32(attribute::LINE, 0);
            message.nested(attribute::MEMBERS, |nest| {
                wire::write_members(nest, &mut rest, &mut line);
            });
            let object = || format!("{} set {name}", change.verb());
            if let Err(error) = self.socket.request(&object, message) {
                // It may be another set by now.
                self.known.remove(name);
                return Err(error);
            }
        }
        Ok(())
    }

    /// A copy of the set with more room takes its place.
    pub(super) fn rebuild(&mut self, name: &SetName, more: &BTreeSet<Member>) -> Result<(), Error> {
        let rebuilt = SetName::new(REBUILD).expect("the name is well formed");
        let (header, mut members) = self.read(name)?;
        let (Some(family), Some(kind)) = (header.family, header.kind) else {
            return Err(Error::Garbled {
                object: format!("read set {name}"),
                problem: "not a type of ours",
            });
        };
        members.extend(more);
        // A crash may have left one behind.
        if self.list()?.iter().any(|found| found.name == rebuilt) {
            self.destroy(&rebuilt)?;
        }
        let expected = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let room = room_for(name, expected.max(header.room))?;
        self.make(&rebuilt, family, kind, room, expected)?;
        self.change(Change::Add, &rebuilt, family, kind, members.iter())
            .and_then(|()| self.swap(name, &rebuilt))
            .inspect_err(|_| {
                let _ = self.destroy(&rebuilt);
            })?;
        self.destroy(&rebuilt)
    }
}

/// Four times what is expected, so that a set seldom has to be rebuilt.
pub(super) fn room_for(name: &SetName, expected: u32) -> Result<u32, Error> {
    if expected > ROOM_MAX {
        return Err(Error::TooManyMembers {
            set: name.clone(),
            limit: ROOM_MAX,
        });
    }
    Ok(expected.saturating_mul(4).clamp(ROOM, ROOM_MAX))
}

#[cfg(test)]
mod tests {
    use super::{ROOM, ROOM_MAX, room_for};
    use selvage_policy_core::ruleset::SetName;

    #[test]
    fn a_set_has_room_to_grow_and_a_limit() {
        let name = SetName::new("selvage-a").unwrap();
        for (expected, room) in [
            (0, Some(ROOM)),
            (ROOM, Some(4 * ROOM)),
            (ROOM_MAX, Some(ROOM_MAX)),
            (ROOM_MAX + 1, None),
        ] {
            assert_eq!(room_for(&name, expected).ok(), room, "{expected} members");
        }
    }
}
