//! Ends flows for good: a guard against revival, deletion, another look.
//!
//! ```text
//!   new rules are in force ─> look: which entries are forbidden? ─> guard ─> delete ─┐
//!                               ^────────── until a look finds nothing more ─────────┘
//! ```
//!
//! The guard comes before the deletion, because the other side's next packet comes microseconds
//! after it. A second look catches what was on its way through the node during the first: past
//! the old rules, but not in the table yet.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use selvage_policy_core::ruleset::Family;

use super::entry::{Detail, Entry};
use super::{Conntrack, Deleted};
use crate::error::Error;
use crate::ipset::{IpSets, Unasked};

/// Protocols whose flows cannot be revived by the side that answers: rules drop what belongs to no
/// flow and opens none (TCP, SCTP), or conntrack takes no answer for a beginning (ICMP, ICMPv6).
const NOT_REVIVED: [u8; 4] = [6, 132, 1, 58];

/// Looks at most. Each one after the second means that flows were made during the one before it.
const LOOKS: u32 = 5;

/// Before another look: a packet is through the node long before, scheduling included.
const SETTLE: Duration = Duration::from_millis(2);

/// Which entries to look at.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// All of these families.
    Families(&'a [Family]),
    /// Those with one of these addresses at either end ([`Entry::touches`]).
    Addresses(&'a BTreeSet<IpAddr>),
}

/// What was cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The entries that were deleted, in the order of the looks.
    pub cut: Vec<Entry>,
    /// How many members the guard's sets got.
    pub guarded: usize,
    /// How many looks it took: 2 when all went well.
    pub looks: u32,
    /// Forbidden entries of the last look, when that one still found some: cut again later.
    pub unfinished: usize,
}

/// Cuts flows.
pub struct Cutter {
    conntrack: Conntrack,
    sets: IpSets,
    guard: Duration,
}

impl Cutter {
    /// Opens its sockets. `guard` is how long the answering side of a cut flow must not speak first,
    /// `patience` bounds each request to the kernel.
    ///
    /// *Errors*: as [`Conntrack::open`] and [`IpSets::open`].
    pub fn open(guard: Duration, patience: Duration) -> Result<Self, Error> {
        Ok(Self {
            conntrack: Conntrack::open(patience)?,
            sets: IpSets::open(patience)?,
            guard,
        })
    }

    /// Cuts what `forbidden` says of the entries in `scope`; entries it allows are not touched.
    ///
    /// The rules that forbid them must be in force, and match on the guard's sets: before that, a
    /// flow is back with its next packet.
    ///
    /// *Errors*: as [`Conntrack::each_of_all`], [`Conntrack::delete`] and [`IpSets::guard`]; when
    /// the guard cannot be set, everything is deleted all the same. Open another cutter then.
    ///
    /// *Cost*: two looks, each as [`Conntrack::each_of_all`] or [`Conntrack::each`]; keeps the
    /// forbidden entries, about 100 bytes each.
    pub fn cut(
        &mut self,
        scope: Scope<'_>,
        forbidden: &dyn Fn(&Entry) -> bool,
    ) -> Result<Report, Error> {
        let mut report = Report::default();
        let mut unguarded = Ok(());
        loop {
            report.looks += 1;
            let found = self.look(scope, forbidden)?;
            let members: BTreeSet<Unasked> = found.iter().filter_map(unasked).collect();
            match self.sets.guard(&members, self.guard) {
                Ok(()) => report.guarded += members.len(),
                Err(error) => unguarded = Err(error),
            }
            self.delete(&found)?;
            let over = found.is_empty() && report.looks >= 2;
            if over || report.looks == LOOKS {
                report.unfinished = found.len();
                report.cut.extend(found);
                break;
            }
            report.cut.extend(found);
            crate::pause(SETTLE);
        }
        unguarded.map(|()| report)
    }

    /// Deletes every entry that has an address at either end: it has left its pod, and what comes
    /// from or to it next is somebody else's.
    ///
    /// *Errors*: as [`Conntrack::each_of`] and [`Conntrack::delete`].
    pub fn forget(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Deleted, Error> {
        let found = self.look(Scope::Addresses(addresses), &|_| true)?;
        self.delete(&found)
    }

    fn look(
        &mut self,
        scope: Scope<'_>,
        forbidden: &dyn Fn(&Entry) -> bool,
    ) -> Result<Vec<Entry>, Error> {
        let mut found = Vec::new();
        let mut keep = |entry: &Entry| {
            if forbidden(entry) {
                found.push(*entry);
            }
        };
        match scope {
            Scope::Families(families) => {
                if self.conntrack.count()? == 0 {
                    return Ok(found);
                }
                for &family in families {
                    self.conntrack.each(family, &mut keep)?;
                }
            }
            Scope::Addresses(addresses) => self.conntrack.each_of_all(addresses, &mut keep)?,
        }
        // A dump of a changing table may bring an entry twice.
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn delete(&mut self, entries: &[Entry]) -> Result<Deleted, Error> {
        self.conntrack.delete(entries)
    }
}

/// Who must not speak first once the entry is gone.
fn unasked(entry: &Entry) -> Option<Unasked> {
    (!NOT_REVIVED.contains(&entry.protocol)).then_some(Unasked {
        server: entry.reply.source,
        protocol: entry.protocol,
        port: match entry.reply.detail {
            Detail::Ports { source, .. } => source,
            Detail::Icmp { .. } | Detail::None => 0,
        },
        client: entry.reply.destination,
    })
}
