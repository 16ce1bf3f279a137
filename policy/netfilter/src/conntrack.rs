//! The kernel's table of flows, by netlink: read without keeping it, and entries deleted one by one.
//!
//! ```text
//!   dump (the kernel picks by address) ─> Entry ─> judged by the caller ─> delete by reply tuple
//! ```
//!
//! Deleting an entry ends no flow by itself: the other side's next packet may make a new one. That
//! is what [`Cutter`] is for.

mod cutter;
mod entry;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use selvage_policy_core::ruleset::Family;

pub use cutter::{Cutter, Report, Scope};
pub use entry::{Detail, Entry, Seen, Tuple};
use entry::{attribute, family_number, parse, write_tuple};

use crate::error::Error;
use crate::message::{ACK, DUMP, Message, NO_FAMILY, messages};
use crate::socket::{Nfnetlink, TOGETHER};

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u8 = 1;

/// `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`.
const GET: u8 = 1;
const DELETE: u8 = 2;
/// `IPCTNL_MSG_CT_GET_STATS`, and `CTA_STATS_GLOBAL_ENTRIES` of its answer.
const STATS: u8 = 5;
const STATS_ENTRIES: u16 = 1;

/// `CTA_FILTER_ORIG_FLAGS` and `CTA_FILTER_REPLY_FLAGS`, with `CTA_FILTER_F_CTA_IP_SRC`.
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
const BY_SOURCE: u32 = 1;

/// `EINVAL` and `EOPNOTSUPP`: how a kernel says that it cannot pick.
const INVALID: i32 = 22;
const UNSUPPORTED: i32 = 95;
/// `ENOENT`: no such entry, or one with another id.
const NOT_FOUND: i32 = 2;

/// For more addresses than this the whole table is read once: an address costs two walks by the
/// kernel (44 ms each with 100,000 entries in 262,144 buckets), handing everything over costs five.
const WALKS: usize = 2;

/// So many entries are handed over in less time than another walk through the empty table takes, 25 ns a
/// bucket.
const FEW: u32 = 5_000;

/// What became of entries that were to be deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Deleted now.
    pub deleted: usize,
    /// Not there any more, or another flow has taken the tuple since.
    pub gone: usize,
}

/// The conntrack table of the network namespace that [`Conntrack::open`] ran in.
pub struct Conntrack {
    socket: Nfnetlink,
}

impl Conntrack {
    /// Opens a socket. `patience` bounds each dump and each batch of deletions.
    ///
    /// *Needs*: `CAP_NET_ADMIN`.
    ///
    /// *Errors*: [`Error::Socket`].
    pub fn open(patience: Duration) -> Result<Self, Error> {
        Nfnetlink::open(patience).map(|socket| Self { socket })
    }

    /// Hands every entry of a family to `each`.
    ///
    /// What comes or goes meanwhile may be missed; an entry may come twice. An entry that cannot be
    /// understood is logged and left out.
    ///
    /// *Errors*: [`Error::Silence`], [`Error::Refused`], [`Error::Socket`]; open another one then,
    /// this one may be in the middle of a dump.
    ///
    /// *Cost*: linear in all entries of the machine and of the family; nothing is kept.
    pub fn each(&mut self, family: Family, each: &mut dyn FnMut(&Entry)) -> Result<(), Error> {
        let number = match family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        self.dump(Message::new(SUBSYSTEM, GET, DUMP, number), each)
    }

    /// Hands every entry that has an address at either end ([`Entry::touches`]) to `each`.
    ///
    /// *Errors*: as [`Conntrack::each`].
    ///
    /// *Cost*: linear in the buckets and entries of the machine, but the kernel picks: a few times
    /// cheaper than [`Conntrack::each`]. Kernels that cannot pick (before 5.8) hand over everything.
    pub fn each_of(&mut self, address: IpAddr, each: &mut dyn FnMut(&Entry)) -> Result<(), Error> {
        let mut picks = true;
        let by_original = picking(address, attribute::ORIGINAL, FILTER_ORIGINAL);
        let done = self.dump(by_original, &mut |entry| {
            picks &= entry.original.source == address;
            if entry.touches(address) {
                each(entry);
            }
        });
        match done {
            Err(error) if error.is_refusal(INVALID) || error.is_refusal(UNSUPPORTED) => {
                return self.each(Family::of_address(address), &mut |entry| {
                    if entry.touches(address) {
                        each(entry);
                    }
                });
            }
            done => done?,
        }
        if !picks {
            return Ok(());
        }
        let by_reply = picking(address, attribute::REPLY, FILTER_REPLY);
        self.dump(by_reply, &mut |entry| {
            // A pod that reaches itself was in the first half.
            if entry.reply.source == address && entry.original.source != address {
                each(entry);
            }
        })
    }

    /// [`Conntrack::each_of`] for several addresses, of any family: each entry once.
    ///
    /// *Errors*: as [`Conntrack::each`].
    ///
    /// *Cost*: of two walks for each address, or of [`Conntrack::each`], whichever is less; nothing where
    /// there are no entries.
    pub fn each_of_all(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        each: &mut dyn FnMut(&Entry),
    ) -> Result<(), Error> {
        let entries = self.count()?;
        if entries == 0 {
            return Ok(());
        }
        for family in [Family::V4, Family::V6] {
            let theirs = || {
                addresses
                    .iter()
                    .copied()
                    .filter(move |&address| Family::of_address(address) == family)
            };
            let count = theirs().count();
            if count == 0 {
                continue;
            }
            if count > WALKS || entries <= FEW {
                self.each(family, &mut |entry| {
                    if addresses.contains(&entry.original.source)
                        || addresses.contains(&entry.reply.source)
                    {
                        each(entry);
                    }
                })?;
                continue;
            }
            for address in theirs() {
                // An entry between two of them belongs to the lesser.
                let mine = |entry: &Entry| {
                    !theirs()
                        .take_while(|&other| other < address)
                        .any(|other| entry.touches(other))
                };
                self.each_of(address, &mut |entry| {
                    if mine(entry) {
                        each(entry);
                    }
                })?;
            }
        }
        Ok(())
    }

    /// How many entries there are in this namespace, with those that are not in the table yet. Of a kernel
    /// that does not tell, as many as can be.
    ///
    /// *Errors*: [`Error::Silence`], [`Error::Refused`], [`Error::Socket`].
    pub fn count(&mut self) -> Result<u32, Error> {
        let object = || "count conntrack entries".to_owned();
        let message = Message::new(SUBSYSTEM, STATS, ACK, NO_FAMILY);
        match self.socket.request(&object, message) {
            Err(error) if error.is_refusal(INVALID) || error.is_refusal(UNSUPPORTED) => {
                Ok(u32::MAX)
            }
            replies => Ok(replies?
                .iter()
                .find_map(|reply| reply.attributes().u32(STATS_ENTRIES))
                .unwrap_or(u32::MAX)),
        }
    }

    /// Deletes entries, each by its reply tuple, zone and id.
    ///
    /// A flow that has taken the tuple since has another id and stays, unless its original tuple is
    /// the same too and the kernel put it in the same place: then it is the same flow to any rule.
    ///
    /// *Errors*: [`Error::Refused`], naming the entry; [`Error::Silence`], [`Error::Socket`].
    ///
    /// *Cost*: 2 µs an entry.
    pub fn delete(&mut self, entries: &[Entry]) -> Result<Deleted, Error> {
        let mut done = Deleted::default();
        for batch in entries.chunks(TOGETHER) {
            let mut gone = 0;
            let mut bad = None;
            let requests = batch.iter().map(deletion).collect();
            let object = || "delete conntrack entries".to_owned();
            let result = self.socket.each(&object, requests, &mut |which, refusal| {
                if refusal.number == NOT_FOUND {
                    gone += 1;
                    return None;
                }
                bad = usize::try_from(which).ok();
                Some(refusal)
            });
            result.map_err(|error| match (error, bad.and_then(|at| batch.get(at))) {
                (Error::Refused { source, .. }, Some(entry)) => Error::Refused {
                    object: format!("delete conntrack entry {entry:?}"),
                    source,
                },
                (error, _) => error,
            })?;
            done.gone += gone;
            done.deleted += batch.len() - gone;
        }
        Ok(done)
    }

    fn dump(&mut self, message: Message, each: &mut dyn FnMut(&Entry)) -> Result<(), Error> {
        let mut strange = 0_u64;
        let object = || "read conntrack entries".to_owned();
        self.socket
            .stream(&object, message, &mut |message| match parse(message) {
                Some(entry) => each(&entry),
                None => strange += 1,
            })?;
        if strange > 0 {
            tracing::warn!(
                entries = strange,
                "conntrack entries that cannot be understood are left alone"
            );
        }
        Ok(())
    }
}

/// The entries in a datagram, whoever made it up: what the reading of the kernel's answers rests on.
///
/// *Shape*: in order; messages that are no entries are left out.
pub fn entries(datagram: &[u8]) -> impl Iterator<Item = Entry> {
    messages(datagram).filter_map(|message| parse(&message))
}

/// A dump of the entries with a tuple whose source is `address`.
fn picking(address: IpAddr, tuple: u16, flags: u16) -> Message {
    let mut message = Message::new(SUBSYSTEM, GET, DUMP, family_number(address));
    message
        .nested(tuple, |tuple| {
            tuple.nested(attribute::TUPLE_IP, |ip| {
                match address {
                    IpAddr::V4(it) => ip.address(attribute::V4_SOURCE, &it.octets()),
                    IpAddr::V6(it) => ip.address(attribute::V6_SOURCE, &it.octets()),
                };
            });
        })
        .nested(attribute::FILTER, |filter| {
            // The only numbers here that are in the machine's own order.
            filter.bytes(flags, &BY_SOURCE.to_ne_bytes());
        });
    message
}

fn deletion(entry: &Entry) -> Message {
    let family = family_number(entry.reply.source);
    let mut message = Message::new(SUBSYSTEM, DELETE, 0, family);
    // Without a tuple this message would empty the whole table.
    write_tuple(&mut message, attribute::REPLY, entry.protocol, &entry.reply);
    if let Some(zone) = entry.zone {
        message.net_u16(attribute::ZONE, zone);
    }
    if let Some(id) = entry.id {
        message.net_u32(attribute::ID, id);
    }
    message
}

/// The request that deletes an entry, as bytes.
#[cfg(feature = "fuzzing")]
pub(crate) fn deletion_of(entry: &Entry) -> Vec<u8> {
    deletion(entry).finish(0)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::{Detail, Entry, Tuple, attribute, deletion, entries, write_tuple};
    use crate::message::Message;

    fn tuple(source: &str, destination: &str, detail: Detail) -> Tuple {
        Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            detail,
            zone: None,
        }
    }

    /// A connection through a Service: the client knows 10.96.0.1:80, the pod listens on 8080.
    fn through_a_service() -> Entry {
        let ports = |source, destination| Detail::Ports {
            source,
            destination,
        };
        Entry {
            protocol: 6,
            original: tuple("10.40.0.1", "10.96.0.1", ports(4000, 80)),
            reply: tuple("10.40.0.2", "10.40.0.1", ports(8080, 4000)),
            id: Some(7),
            zone: None,
        }
    }

    fn entry(original: Tuple, reply: Tuple, protocol: u8) -> Entry {
        Entry {
            protocol,
            original,
            reply,
            id: Some(0xdead_beef),
            zone: Some(9),
        }
    }

    /// An entry as the kernel writes it.
    fn written(entry: &Entry) -> Vec<u8> {
        let mut message = Message::new(1, 0, 0, 2);
        write_tuple(
            &mut message,
            attribute::ORIGINAL,
            entry.protocol,
            &entry.original,
        );
        write_tuple(&mut message, attribute::REPLY, entry.protocol, &entry.reply);
        if let Some(id) = entry.id {
            message.net_u32(attribute::ID, id);
        }
        if let Some(zone) = entry.zone {
            message.net_u16(attribute::ZONE, zone);
        }
        message.finish(1)
    }

    #[test]
    fn entries_of_every_kind_survive_the_wire() {
        let ports = Detail::Ports {
            source: 1,
            destination: 65535,
        };
        let echo = |kind| Detail::Icmp {
            id: 77,
            kind,
            code: 0,
        };
        let mut zoned = tuple("fd00::2", "fd00::1", ports);
        zoned.zone = Some(3);
        for given in [
            through_a_service(),
            entry(tuple("fd00::1", "fd00::2", ports), zoned, 132),
            entry(
                tuple("10.0.0.1", "10.0.0.2", echo(8)),
                tuple("10.0.0.2", "10.0.0.1", echo(0)),
                1,
            ),
            entry(
                tuple("fd00::1", "fd00::2", echo(128)),
                tuple("fd00::2", "fd00::1", echo(129)),
                58,
            ),
            entry(
                tuple("10.0.0.1", "10.0.0.2", Detail::None),
                tuple("10.0.0.2", "10.0.0.1", Detail::None),
                50,
            ),
        ] {
            assert_eq!(
                entries(&written(&given)).collect::<Vec<_>>(),
                [given],
                "{given:?}"
            );
        }
    }

    #[test]
    fn a_service_is_judged_by_the_pod_behind_it() {
        let seen = through_a_service().seen();
        assert_eq!(seen.source, "10.40.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(seen.destination, "10.40.0.2".parse::<IpAddr>().unwrap());
        assert_eq!((seen.protocol, seen.destination_port), (6, Some(8080)));
    }

    #[test]
    fn an_entry_of_two_families_or_two_protocols_is_none() {
        let mut mixed = through_a_service();
        mixed.reply = tuple("fd00::1", "fd00::2", Detail::None);
        assert_eq!(entries(&written(&mixed)).count(), 0);
    }

    #[test]
    fn a_deletion_always_names_a_tuple_for_without_one_it_would_empty_the_table() {
        let bytes = deletion(&through_a_service()).finish(1);
        let message = crate::message::messages(&bytes).next().unwrap();
        let reply = message.attributes().nested(attribute::REPLY).unwrap();
        assert!(reply.find(attribute::TUPLE_IP).is_some());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = entries(&bytes).count();
        }

        #[test]
        fn no_damage_to_an_entry_makes_the_reading_panic(
            at in 0_usize..200, value: u8, length in 0_usize..200,
        ) {
            let mut bytes = written(&through_a_service());
            let end = bytes.len();
            bytes[at % end] = value;
            bytes.truncate(end - length % end);
            let _ = entries(&bytes).count();
        }
    }
}
