//! What fills each set, so that an address can be followed into it, and a set be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::fold::{Contents, SetId, Stamp};
use crate::index::members::Element;
use crate::ruleset::{Family, Member, SetName};

/// All sets of the profiles, by number.
#[derive(Debug, Clone, Default)]
pub(crate) struct Feeds {
    all: Vec<Option<Arc<Feed>>>,
    free: Vec<usize>,
    by_set: BTreeMap<SetName, usize>,
}

impl Feeds {
    /// Gives a feed a number.
    pub(super) fn push(&mut self, feed: Feed) -> usize {
        let number = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        });
        for name in feed.names() {
            self.by_set.insert(name.clone(), number);
        }
        self.all[number] = Some(Arc::new(feed));
        number
    }

    /// Puts another in the place of one, for the same set.
    pub(super) fn replace(&mut self, number: usize, feed: Feed) {
        self.all[number] = Some(Arc::new(feed));
    }

    pub(super) fn remove(&mut self, number: usize) -> Option<Arc<Feed>> {
        let feed = self.all[number].take()?;
        for name in feed.names() {
            self.by_set.remove(name);
        }
        self.free.push(number);
        Some(feed)
    }

    pub(super) fn get(&self, number: usize) -> Option<&Arc<Feed>> {
        self.all.get(number)?.as_ref()
    }

    /// With their numbers, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Feed)> {
        let all = self.all.iter().enumerate();
        all.filter_map(|(number, feed)| Some((number, &**feed.as_ref()?)))
    }

    /// The same, in order of the names that their sets have in a family.
    pub(super) fn in_order(&self, family: Family) -> impl Iterator<Item = (usize, &Feed)> {
        self.by_set.iter().filter_map(move |(name, number)| {
            let feed = self.get(*number)?;
            (feed.name(family) == name).then_some((*number, &**feed))
        })
    }

    /// The number of what fills a set.
    pub(super) fn number(&self, set: &SetName) -> Option<usize> {
        self.by_set.get(set).copied()
    }

    /// A set's name, in the memory that all who use the set share.
    pub(super) fn shared_name<'a>(&'a self, set: &'a SetId, family: Family) -> &'a SetName {
        let name = set.name(family);
        self.filling(name).map_or(name, |feed| feed.name(family))
    }

    /// What fills a set.
    pub(crate) fn filling(&self, set: &SetName) -> Option<&Feed> {
        self.get(self.number(set)?).map(|feed| &**feed)
    }
}

/// What fills one set of each family.
#[derive(Debug)]
pub(crate) struct Feed {
    contents: Arc<Contents>,
    /// Sources of addresses, by what these then carry.
    stamped: BTreeMap<Stamp, Vec<usize>>,
    /// Sources of addresses with ports of their own.
    named: Vec<usize>,
    /// Blocks of single addresses: where a pod has one, it comes and goes without effect.
    hosts: BTreeSet<Member>,
}

impl Feed {
    /// One without sources yet.
    pub(super) fn of(contents: Arc<Contents>) -> Self {
        let hosts = [Family::V4, Family::V6]
            .into_iter()
            .flat_map(|family| contents.block_members(family))
            .filter(|member| member.net.prefix_len() == member.net.max_prefix_len())
            .collect();
        Self {
            contents,
            stamped: BTreeMap::new(),
            named: Vec::new(),
            hosts,
        }
    }

    pub(super) fn add(&mut self, stamp: Stamp, source: usize) {
        self.stamped.entry(stamp).or_default().push(source);
    }

    pub(super) fn add_named(&mut self, source: usize) {
        self.named.push(source);
    }

    pub(crate) fn id(&self) -> &SetId {
        self.contents.id()
    }

    pub(super) fn contents(&self) -> &Arc<Contents> {
        &self.contents
    }

    pub(crate) fn name(&self, family: Family) -> &SetName {
        self.id().name(family)
    }

    fn names(&self) -> [&SetName; 2] {
        [Family::V4, Family::V6].map(|family| self.name(family))
    }

    /// Its sources, each with what the addresses carry here.
    pub(super) fn parts(&self) -> impl Iterator<Item = (Stamp, usize)> {
        let stamped = self
            .stamped
            .iter()
            .flat_map(|(stamp, sources)| sources.iter().map(|source| (*stamp, *source)));
        stamped.chain(self.named.iter().map(|source| (None, *source)))
    }

    /// Whether a pod's member is in the set, going by what the sources have.
    pub(super) fn holds(&self, member: &Member, has: impl Fn(usize, Element) -> bool) -> bool {
        self.hosts.contains(member) || self.has_pod(member.net.addr(), member.port, has)
    }

    /// Whether the set holds an address, going by what the sources have.
    pub(crate) fn matches(
        &self,
        address: IpAddr,
        stamp: Stamp,
        has: impl Fn(usize, Element) -> bool,
    ) -> bool {
        self.contents.blocks_hold(address, stamp) || self.has_pod(address, stamp, has)
    }

    fn has_pod(&self, address: IpAddr, stamp: Stamp, has: impl Fn(usize, Element) -> bool) -> bool {
        let stamped = self.stamped.get(&stamp).into_iter().flatten();
        stamped
            .into_iter()
            .any(|source| has(*source, (address, None)))
            || self
                .named
                .iter()
                .any(|source| has(*source, (address, stamp)))
    }
}
