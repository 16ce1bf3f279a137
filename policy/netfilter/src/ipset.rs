//! Our ipsets, by netlink: created with room, filled in batches, swapped, read back.
//!
//! A member costs 0.3 µs in a batch of a thousand and 3 µs alone; through the `ipset` tool alone
//! it costs a process, 1 ms. Every operation names its set with a [`SetName`], so none can touch
//! a set of somebody else's.

mod fill;
mod glimpse;
mod guard;
mod wire;

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use selvage_policy_core::index::MemberChanges;
use selvage_policy_core::ruleset::{Family, Member, MemberSet, Set, SetKind, SetName};

use crate::error::Error;
use crate::message::{ACK, CREATE, DUMP, EXCLUSIVE, Message, NO_FAMILY};
use crate::socket::{Nfnetlink, Reply, TOGETHER};

use fill::room_for;
pub use glimpse::{Glimpse, Glimpses};
pub use guard::Unasked;
pub(crate) use wire::LINE;
use wire::{Change, Command, attribute};

/// `IPSET_PROTOCOL`, the newest we speak, and the oldest: 6 lacks nothing that we use.
const PROTOCOL: u8 = 7;
const PROTOCOL_OLDEST: u8 = 6;

/// `ENOENT`.
const NOT_FOUND: i32 = 2;
/// `EBUSY`: somebody is reading the set.
const BEING_READ: i32 = 16;
/// `IPSET_ERR_BUSY`: somebody refers to the set.
const ERROR_BUSY: i32 = 4100;
/// `IPSET_ERR_HASH_FULL`: `maxelem` is reached.
const ERROR_FULL: i32 = 4352;

/// So many sets are made together. Of a few, each has what it is made with read back by itself.
const MANY: usize = 8;

/// What iptables-nft deletes is freed by a worker, later, and refers to its sets until then.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// ipset's own error numbers in words.
pub(crate) fn explain(number: i32) -> Option<&'static str> {
    Some(match number {
        4097 => "ipset: protocol version not supported",
        4098 => "ipset: the kernel knows no such type, family or revision",
        4099 => "ipset: the kernel's limit on the number of sets is reached",
        ERROR_BUSY => "ipset: the set is in use",
        4101 => "ipset: a set of the second name exists",
        4102 => "ipset: the two sets are of different types",
        4103 => "ipset: it exists already, or is not there",
        4104 => "ipset: bad prefix length",
        4106 => "ipset: wrong address family",
        4108 => "ipset: the set is referred to",
        4109 => "ipset: an IPv4 address was expected",
        4110 => "ipset: an IPv6 address was expected",
        ERROR_FULL => "ipset: the set is full",
        4353 => "ipset: an element that means nothing",
        4354 => "ipset: bad protocol",
        4355 => "ipset: the protocol is missing",
        _ => return None,
    })
}

/// What the kernel says about a set of ours, members aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: SetName,
    /// Its type; `None` when it is none that we make.
    pub kind: Option<SetKind>,
    /// The family of its members; `None` when it has none that we know.
    pub family: Option<Family>,
    /// How many members it holds.
    pub members: u32,
    /// How many it can hold (`maxelem`).
    pub room: u32,
    /// How many rules and sets refer to it.
    pub references: u32,
    /// A number that the kernel drew for its table (`initval`): another set, another number. 0 from
    /// kernels that don't tell.
    pub identity: u32,
}

/// What doesn't change about a set for as long as it is the same one.
#[derive(Debug, Clone, Copy)]
struct Known {
    identity: u32,
    /// `None` for a type that we don't make.
    shape: Option<(Family, SetKind)>,
    /// When it was made, read or changed here last.
    seen: Instant,
}

/// The ipsets of the network namespace that [`IpSets::open`] ran in.
///
/// *Cost*: one long-lived socket; 3 µs for each request beside what it carries.
pub struct IpSets {
    socket: Nfnetlink,
    protocol: u8,
    /// What bore each name when it was made here or last read.
    known: BTreeMap<SetName, Known>,
    /// What the kernel has said about types: it is asked once about each.
    revisions: BTreeMap<(Family, SetKind), u8>,
    /// Where the next look at sets that change all the time begins.
    turn: usize,
}

impl IpSets {
    /// Opens the socket and agrees with the kernel on a protocol.
    ///
    /// *Needs*: `CAP_NET_ADMIN`, and the kernel module `ip_set`, which the kernel loads if it may.
    ///
    /// *Errors*: [`Error::Socket`]; [`Error::Refused`] without the capability or the module.
    pub fn open(patience: Duration) -> Result<Self, Error> {
        let mut socket = Nfnetlink::open(patience)?;
        let object = || "agree on ipset's protocol".to_owned();
        let mut ask = Command::Protocol.message(ACK, NO_FAMILY);
        ask.u8(attribute::PROTOCOL, PROTOCOL);
        let replies = socket.request(&object, ask)?;
        let garbled = |problem| Error::Garbled {
            object: object(),
            problem,
        };
        let answer = replies
            .first()
            .ok_or_else(|| garbled("no answer"))?
            .attributes();
        let newest = answer
            .u8(attribute::PROTOCOL)
            .ok_or_else(|| garbled("no version"))?;
        let oldest = answer.u8(attribute::PROTOCOL_OLDEST).unwrap_or(newest);
        if newest < PROTOCOL_OLDEST || oldest > PROTOCOL {
            return Err(garbled("no version in common"));
        }
        Ok(Self {
            socket,
            protocol: newest.min(PROTOCOL),
            known: BTreeMap::new(),
            revisions: BTreeMap::new(),
            turn: 0,
        })
    }

    /// Makes a set with room for `expected` members at least, and puts `members` in.
    ///
    /// *Errors*: [`Error::Refused`] when a set of that name exists; [`Error::BadMember`];
    /// [`Error::TooManyMembers`]. A set that could not be filled is taken away again.
    pub fn create<M>(
        &mut self,
        name: &SetName,
        family: Family,
        kind: SetKind,
        members: M,
    ) -> Result<(), Error>
    where
        M: IntoIterator<Item: Borrow<Member>, IntoIter: Clone>,
    {
        let members = members.into_iter();
        let (expected, room) = size(name, kind, members.clone().count())?;
        self.make(name, family, kind, room, expected)?;
        self.change(Change::Add, name, family, kind, members)
            .inspect_err(|_| {
                // The error is told; what is left over bears our prefix and is swept next time.
                let _ = self.destroy(name);
            })
    }

    /// Makes sets of a family in this order, empty, with room for their members at least, in as few exchanges as will do.
    /// The kernel finds a set by its name the sooner, the earlier it was made.
    ///
    /// *Errors*: as [`IpSets::create`]; some sets are there then.
    ///
    /// *Cost*: for each set the kernel looks through all there are.
    pub fn make_sets(&mut self, family: Family, sets: &[(&SetName, &Set)]) -> Result<(), Error> {
        // A look at all headers is cheaper than one at each where most tables are new, and so empty: it costs
        // what all of them are long.
        if sets.len() < MANY.max(self.known.len()) {
            for (name, set) in sets {
                let (expected, room) = size(name, set.kind, set.members.len())?;
                self.make(name, family, set.kind, room, expected)?;
            }
            return Ok(());
        }
        self.make_all(family, sets)?;
        let names: BTreeSet<&SetName> = sets.iter().map(|(name, _)| *name).collect();
        let headers = self.list()?;
        for header in headers.iter().filter(|it| names.contains(&it.name)) {
            self.recognise(header);
        }
        Ok(())
    }

    /// Fills sets that [`IpSets::make_sets`] has made. `between` is called after each exchange with the kernel.
    ///
    /// *Errors*: as [`IpSets::add`]; some sets are filled then and some are not.
    ///
    /// *Cost*: 0.4 µs a member; and for each set the kernel looks through all there are.
    pub fn fill_sets(
        &mut self,
        sets: &[(&SetName, &Set)],
        between: &mut dyn FnMut(),
    ) -> Result<(), Error> {
        let add = sets.iter().map(|(name, set)| (*name, set.members.iter()));
        let full = self.change_all(Change::Add, add, between)?;
        for (name, set) in sets.iter().filter(|(name, _)| full.contains(name)) {
            let members: BTreeSet<Member> = set.members.iter().collect();
            self.rebuild(name, &members)?;
        }
        Ok(())
    }

    /// Puts members into a set; those that are there already stay. Makes room if it is full.
    ///
    /// *Errors*: [`Error::BadMember`] before anything is done; [`Error::Refused`] when there is no
    /// such set or the kernel refuses a member: those before it are in.
    ///
    /// *Cost*: linear in members, 0.4 µs each; 4 µs for one.
    pub fn add(&mut self, name: &SetName, members: &BTreeSet<Member>) -> Result<(), Error> {
        let (family, kind) = self.shape(name)?;
        match self.change(Change::Add, name, family, kind, members.iter()) {
            Err(error) if error.is_refusal(ERROR_FULL) => self.rebuild(name, members),
            done => done,
        }
    }

    /// Takes members out of a set; those that are not there are no matter.
    ///
    /// *Errors*: as [`IpSets::add`].
    pub fn remove(&mut self, name: &SetName, members: &BTreeSet<Member>) -> Result<(), Error> {
        let (family, kind) = self.shape(name)?;
        self.change(Change::Remove, name, family, kind, members.iter())
    }

    /// Changes members of many sets: whatever goes in goes in before anything goes out, and `between` is
    /// told of the moment. Makes room where a set is full.
    ///
    /// *Errors*: as [`IpSets::add`]; some sets are changed then and some are not.
    ///
    /// *Cost*: 2 µs a set beside its members, and 0.4 µs a member.
    pub fn change_members(
        &mut self,
        changes: &MemberChanges,
        between: &mut dyn FnMut(),
    ) -> Result<(), Error> {
        let add = changes
            .iter()
            .map(|(name, change)| (name, change.add.iter()));
        for full in self.change_all(Change::Add, add, &mut || {})? {
            self.rebuild(full, &changes[full].add)?;
        }
        between();
        let remove = changes
            .iter()
            .map(|(name, change)| (name, change.remove.iter()));
        self.change_all(Change::Remove, remove, &mut || {})
            .map(drop)
    }

    /// Takes every member out of a set.
    ///
    /// *Errors*: [`Error::Refused`] when there is no such set.
    pub fn flush(&mut self, name: &SetName) -> Result<(), Error> {
        let object = || format!("flush set {name}");
        let message = self.about(Command::Flush, name);
        self.socket.request(&object, message).map(drop)
    }

    /// Destroys a set; one that is not there is no matter. Waits a little for references that are
    /// already on their way out.
    ///
    /// *Errors*: [`Error::InUse`] when a rule refers to it.
    pub fn destroy(&mut self, name: &SetName) -> Result<(), Error> {
        let deadline = Instant::now() + BUSY_PATIENCE;
        while !self.destroy_now(name)? {
            if Instant::now() >= deadline {
                return Err(Error::InUse { set: name.clone() });
            }
            crate::pause(BUSY_PAUSE);
        }
        Ok(())
    }

    /// Destroys a set, unless it is in use: then the answer is no.
    pub(crate) fn destroy_now(&mut self, name: &SetName) -> Result<bool, Error> {
        let object = || format!("destroy set {name}");
        // Without this flag newer kernels don't tell whether there was a set.
        let mut message = self.about(Command::Destroy, name);
        message.add_flags(EXCLUSIVE);
        match self.socket.request(&object, message) {
            Err(error) if error.is_refusal(ERROR_BUSY) => return Ok(false),
            Err(error) if error.is_refusal(NOT_FOUND) => {}
            done => drop(done?),
        }
        self.known.remove(name);
        Ok(true)
    }

    /// Exchanges the contents of two sets of the same type, in one step, under their references.
    /// Waits a little for somebody who is reading one.
    ///
    /// *Errors*: [`Error::Refused`] when one is missing, is being read all the time, or the types
    /// differ.
    pub fn swap(&mut self, one: &SetName, other: &SetName) -> Result<(), Error> {
        let deadline = Instant::now() + BUSY_PATIENCE;
        let object = || format!("swap sets {one} and {other}");
        loop {
            let mut message = self.about(Command::Swap, one);
            message.text(attribute::SET_NAME_2, other.as_str());
            match self.socket.request(&object, message) {
                Err(error) if error.is_refusal(BEING_READ) && Instant::now() < deadline => {
                    crate::pause(BUSY_PAUSE);
                }
                done => {
                    drop(done?);
                    break;
                }
            }
        }
        let (was_one, was_other) = (self.known.remove(one), self.known.remove(other));
        self.known.extend(was_other.map(|it| (one.clone(), it)));
        self.known.extend(was_one.map(|it| (other.clone(), it)));
        Ok(())
    }

    /// From now on, this is the set that is meant by its name.
    pub(crate) fn recognise(&mut self, header: &Header) {
        let known = Known {
            identity: header.identity,
            shape: header.family.zip(header.kind),
            seen: Instant::now(),
        };
        self.known.insert(header.name.clone(), known);
    }

    /// Our sets of both families, by name.
    ///
    /// *Cost*: linear in all sets there are, 10 µs each, and in their tables, which the kernel counts:
    /// 3 ms for a set of 100,000 members.
    pub fn list(&mut self) -> Result<Vec<Header>, Error> {
        let replies = self.list_with("list sets", wire::FLAG_HEADERS_ONLY)?;
        let mut headers: Vec<Header> = replies
            .iter()
            .filter_map(|reply| wire::header(reply.attributes()))
            .collect();
        headers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(headers)
    }

    /// The names of our sets of both families.
    ///
    /// *Cost*: linear in all sets there are, 0.2 µs each.
    pub(crate) fn names(&mut self) -> Result<Vec<SetName>, Error> {
        let replies = self.list_with("list the names of sets", wire::FLAG_NAMES_ONLY)?;
        let names = replies.iter().filter_map(|reply| {
            let name = reply.attributes().text(attribute::SET_NAME)?;
            SetName::new(name).ok()
        });
        Ok(names.collect())
    }

    /// All sets there are, as much of each as the flags ask for.
    fn list_with(&mut self, object: &str, flags: u32) -> Result<Vec<Reply>, Error> {
        let mut message = Command::List.message(DUMP, NO_FAMILY);
        message
            .u8(attribute::PROTOCOL, self.protocol)
            .net_u32(attribute::FLAGS, flags);
        self.socket.dump(&|| object.to_owned(), &message)
    }

    /// A set's header and members; of a guard set the header alone.
    ///
    /// *Errors*: [`Error::Refused`] when there is no such set; [`Error::Garbled`] when it is of a
    /// type that we don't make.
    ///
    /// *Cost*: linear in members, 0.4 µs each.
    pub fn read(&mut self, name: &SetName) -> Result<(Header, MemberSet), Error> {
        let object = || format!("read set {name}");
        let mut message = self.about(Command::List, name);
        message.add_flags(DUMP);
        let replies = self.socket.dump(&object, &message)?;
        let garbled = |problem| Error::Garbled {
            object: object(),
            problem,
        };
        // A large set comes in parts; the first has the header.
        let header = replies
            .iter()
            .find_map(|reply| wire::header(reply.attributes()))
            .ok_or_else(|| garbled("no header"))?;
        let kind = match header.kind.ok_or_else(|| garbled("not a type of ours"))? {
            kind @ (SetKind::Net | SetKind::NetPort) => kind,
            // Who fills it reads it.
            SetKind::Guard => return Ok((header, MemberSet::new())),
        };
        let members = replies
            .iter()
            .flat_map(|reply| wire::members(reply.attributes(), kind))
            .collect::<Option<MemberSet>>()
            .ok_or_else(|| garbled("a member that is none"))?;
        Ok((header, members))
    }

    /// A set's header alone.
    fn header(&mut self, name: &SetName) -> Result<Header, Error> {
        let object = || format!("look at set {name}");
        let mut message = self.about(Command::List, name);
        message.add_flags(DUMP);
        message.net_u32(attribute::FLAGS, wire::FLAG_HEADERS_ONLY);
        let replies = self.socket.dump(&object, &message)?;
        replies
            .iter()
            .find_map(|reply| wire::header(reply.attributes()))
            .ok_or_else(|| Error::Garbled {
                object: object(),
                problem: "no header",
            })
    }

    /// Family and type of an existing set.
    fn shape(&mut self, name: &SetName) -> Result<(Family, SetKind), Error> {
        if let Some(shape) = self.known.get(name).and_then(|known| known.shape) {
            return Ok(shape);
        }
        let object = || format!("look at set {name}");
        let message = self.about(Command::Header, name);
        let replies = self.socket.request(&object, message)?;
        replies
            .iter()
            .find_map(|reply| wire::header(reply.attributes()))
            .and_then(|header| Some((header.family?, header.kind?)))
            .ok_or_else(|| Error::Garbled {
                object: object(),
                problem: "not a type of ours",
            })
    }

    fn make(
        &mut self,
        name: &SetName,
        family: Family,
        kind: SetKind,
        room: u32,
        expected: u32,
    ) -> Result<(), Error> {
        let object = || format!("create set {name}");
        self.known.remove(name);
        let message = self.making(ACK, name, family, kind, room, expected)?;
        self.socket.request(&object, message)?;
        let header = self.header(name)?;
        self.recognise(&header);
        Ok(())
    }

    /// Makes sets, empty and with room for their members.
    fn make_all(&mut self, family: Family, sets: &[(&SetName, &Set)]) -> Result<(), Error> {
        for sets in sets.chunks(TOGETHER) {
            let mut messages = Vec::with_capacity(sets.len());
            for (name, set) in sets {
                let (expected, room) = size(name, set.kind, set.members.len())?;
                self.known.remove(*name);
                messages.push(self.making(0, name, family, set.kind, room, expected)?);
            }
            let mut refused = None;
            let object = || "create sets".to_owned();
            let made = self.socket.each(&object, messages, &mut |which, refusal| {
                refused = usize::try_from(which).ok().and_then(|it| sets.get(it));
                Some(refusal)
            });
            made.map_err(|error| about_one(error, refused.map(|(name, _)| name), "create"))?;
        }
        Ok(())
    }

    fn making(
        &mut self,
        flags: u16,
        name: &SetName,
        family: Family,
        kind: SetKind,
        room: u32,
        expected: u32,
    ) -> Result<Message, Error> {
        let revision = self.revision(family, kind)?;
        let mut message = Command::Create.message(flags | EXCLUSIVE | CREATE, NO_FAMILY);
        message
            .u8(attribute::PROTOCOL, self.protocol)
            .text(attribute::SET_NAME, name.as_str())
            .text(attribute::TYPE_NAME, wire::type_name(kind))
            .u8(attribute::REVISION, revision)
            .u8(attribute::FAMILY, wire::family_number(family))
            .nested(attribute::DATA, |data| {
                data.net_u32(attribute::HASH_SIZE, wire::hash_size(expected))
                    .net_u32(attribute::MAX_ELEMENTS, room);
                match kind {
                    SetKind::Net | SetKind::NetPort => {}
                    // That there is a timeout makes that members can have one; 0: of their own only.
                    SetKind::Guard => {
                        data.net_u32(attribute::TIMEOUT, 0);
                    }
                }
            });
        Ok(message)
    }

    /// The newest revision of a type that both the kernel and common `ipset` tools know: a set of
    /// a newer one would make `ipset list` on the node fail.
    fn revision(&mut self, family: Family, kind: SetKind) -> Result<u8, Error> {
        if let Some(revision) = self.revisions.get(&(family, kind)) {
            return Ok(*revision);
        }
        let object = || format!("ask for set type {}", wire::type_name(kind));
        let mut message = Command::Type.message(ACK, NO_FAMILY);
        message
            .u8(attribute::PROTOCOL, self.protocol)
            .text(attribute::TYPE_NAME, wire::type_name(kind))
            .u8(attribute::FAMILY, wire::family_number(family));
        let replies = self.socket.request(&object, message)?;
        let revision = replies
            .first()
            .and_then(|reply| reply.attributes().u8(attribute::REVISION))
            .map(|newest| newest.min(wire::revision_known(kind)))
            .ok_or_else(|| Error::Garbled {
                object: object(),
                problem: "no revision",
            })?;
        self.revisions.insert((family, kind), revision);
        Ok(revision)
    }

    fn about(&self, command: Command, name: &SetName) -> Message {
        let mut message = command.message(ACK, NO_FAMILY);
        message
            .u8(attribute::PROTOCOL, self.protocol)
            .text(attribute::SET_NAME, name.as_str());
        message
    }
}

/// How many members a set of a kind is made for, and how many it can hold.
fn size(name: &SetName, kind: SetKind, members: usize) -> Result<(u32, u32), Error> {
    let expected = u32::try_from(members).unwrap_or(u32::MAX);
    let room = match kind {
        SetKind::Net | SetKind::NetPort => room_for(name, expected)?,
        SetKind::Guard => guard::ROOM,
    };
    Ok((expected, room))
}

/// An error about many sets, if it is about one of them, says so.
fn about_one(error: Error, refused: Option<&&SetName>, verb: &str) -> Error {
    match (error, refused) {
        (Error::Refused { source, .. }, Some(name)) => {
            let object = format!("{verb} set {name}");
            Error::Refused { object, source }
        }
        (error, _) => error,
    }
}

/// The headers and members that a datagram says, whoever made it up; each member written and read
/// again.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_any(datagram: &[u8]) -> (Vec<Header>, Vec<(Member, Option<Member>)>) {
    let attributes = || crate::message::messages(datagram).map(|it| it.attributes());
    let members = [SetKind::Net, SetKind::NetPort]
        .into_iter()
        .flat_map(|kind| {
            let members = attributes().flat_map(move |it| wire::members(it, kind));
            members.flatten().map(move |member| {
                let again = wire::again(&member, kind);
                (member, again)
            })
        });
    (
        attributes().filter_map(wire::header).collect(),
        members.collect(),
    )
}
