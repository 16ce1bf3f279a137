//! Members into sets and out of them, in batches, and more room for a set that is full.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::iter::Peekable;
use std::time::Instant;

use selvage_policy_core::ruleset::{Family, Member, SetKind, SetName};

use super::wire::{self, Change, attribute};
use super::{ERROR_FULL, IpSets, about_one};
use crate::error::Error;
use crate::message::{ACK, Message, NO_FAMILY};
use crate::socket::TOGETHER;

/// Members below this many fit without a new table.
const ROOM: u32 = 1 << 16;

/// 16 million members are half a gigabyte of kernel memory: a set that wants more is a mistake.
const ROOM_MAX: u32 = 1 << 24;

/// Bytes in one datagram, unless one message alone is longer.
const DATAGRAM: usize = 1 << 15;

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
        check(name, family, kind, members.clone())?;
        self.touch(name);
        let mut rest = members.peekable();
        let mut line = 0;
        while rest.peek().is_some() {
            let message = self.filling(change, ACK, name, &mut rest, &mut line);
            let object = || format!("{} set {name}", change.verb());
            if let Err(error) = self.socket.request(&object, message) {
                // It may be another set by now.
                self.known.remove(name);
                return Err(error);
            }
        }
        Ok(())
    }

    /// As [`IpSets::change`] for each of many sets, in as few datagrams as will do: the kernel is asked
    /// once for dozens of sets. `between` is called after each. The answer is those that are full, and lack
    /// some of theirs.
    pub(super) fn change_all<'a>(
        &mut self,
        change: Change,
        members: impl Iterator<Item = (&'a SetName, impl Iterator<Item: Borrow<Member>> + Clone)>,
        between: &mut dyn FnMut(),
    ) -> Result<BTreeSet<&'a SetName>, Error> {
        let mut full = BTreeSet::new();
        let mut batch = Vec::new();
        let mut size = 0;
        for (name, members) in members {
            let (family, kind) = self.shape(name)?;
            check(name, family, kind, members.clone())?;
            let mut rest = members.peekable();
            let mut line = 0;
            while rest.peek().is_some() {
                let message = self.filling(change, 0, name, &mut rest, &mut line);
                if batch.len() == TOGETHER || size + message.len() > DATAGRAM {
                    self.send_all(change, std::mem::take(&mut batch), &mut full)?;
                    between();
                    size = 0;
                }
                size += message.len();
                batch.push((name, message));
            }
        }
        if !batch.is_empty() {
            self.send_all(change, batch, &mut full)?;
            between();
        }
        Ok(full)
    }

    fn send_all<'a>(
        &mut self,
        change: Change,
        batch: Vec<(&'a SetName, Message)>,
        full: &mut BTreeSet<&'a SetName>,
    ) -> Result<(), Error> {
        let (names, messages): (Vec<&SetName>, Vec<Message>) = batch.into_iter().unzip();
        let about = |which: u32| usize::try_from(which).ok().and_then(|it| names.get(it));
        let mut refused = None;
        let object = || format!("{} sets", change.verb());
        let done = self.socket.each(&object, messages, &mut |which, refusal| {
            let name = about(which).copied();
            if refusal.number == ERROR_FULL {
                full.extend(name);
                return None;
            }
            refused = name;
            Some(refusal)
        });
        for name in &names {
            self.touch(name);
        }
        if let Some(name) = refused {
            // It may be another set by now.
            self.known.remove(name);
        }
        done.map_err(|error| about_one(error, refused.as_ref(), change.verb()))
    }

    fn touch(&mut self, name: &SetName) {
        if let Some(known) = self.known.get_mut(name) {
            known.seen = Instant::now();
        }
    }

    /// A message that takes as many of a set's members as it holds.
    fn filling(
        &self,
        change: Change,
        flags: u16,
        name: &SetName,
        rest: &mut Peekable<impl Iterator<Item: Borrow<Member>>>,
        line: &mut u32,
    ) -> Message {
        let mut message = change.command().message(flags, NO_FAMILY);
        message
            .u8(attribute::PROTOCOL, self.protocol)
            .text(attribute::SET_NAME, name.as_str())
            // The presence of this one asks for the number of a refused member.
            .net_u32(attribute::LINE, 0)
            .nested(attribute::MEMBERS, |nest| {
                wire::write_members(nest, rest, line);
            });
        message
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

/// Refuses members that a set of that kind cannot have, before the kernel is asked.
fn check(
    name: &SetName,
    family: Family,
    kind: SetKind,
    members: impl Iterator<Item: Borrow<Member>>,
) -> Result<(), Error> {
    for member in members {
        let member: Member = *member.borrow();
        if let Some(problem) = wire::misfit(&member, family, kind) {
            return Err(Error::BadMember {
                set: name.clone(),
                member,
                problem,
            });
        }
    }
    Ok(())
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
