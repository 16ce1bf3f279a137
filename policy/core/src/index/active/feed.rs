//! What fills each set, so that an address can be followed into it, and a set be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::fold::{Bucket, SetId, Stamp};
use crate::index::members::Element;
use crate::ruleset::{Family, Member, SetName};

/// All sets of the profiles.
#[derive(Debug, Default)]
pub(crate) struct Feeds {
    all: Vec<Feed>,
    by_set: BTreeMap<SetName, usize>,
}

impl Feeds {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn push(&mut self, feed: Feed) {
        for name in &feed.names {
            self.by_set.insert(name.clone(), self.all.len());
        }
        self.all.push(feed);
    }

    pub(super) fn get(&self, number: usize) -> &Feed {
        &self.all[number]
    }

    /// In no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Feed> {
        self.all.iter()
    }

    /// What fills a set.
    pub(crate) fn filling(&self, set: &SetName) -> Option<&Feed> {
        self.by_set.get(set).map(|number| &self.all[*number])
    }
}

/// What fills one set of each family.
#[derive(Debug)]
pub(crate) struct Feed {
    id: SetId,
    names: [SetName; 2],
    bucket: Bucket,
    /// Sources of addresses, by what these then carry.
    stamped: BTreeMap<Stamp, Vec<usize>>,
    /// Sources of addresses with ports of their own.
    named: Vec<usize>,
    /// Blocks of single addresses: where a pod has one, it comes and goes without effect.
    hosts: BTreeSet<Member>,
}

impl Feed {
    /// One without sources yet; `None` for a bucket that needs no set.
    pub(super) fn of(bucket: &Bucket) -> Option<Self> {
        let id = bucket.set()?.clone();
        let hosts = [Family::V4, Family::V6]
            .into_iter()
            .flat_map(|family| bucket.block_members(family))
            .filter(|member| member.net.prefix_len() == member.net.max_prefix_len())
            .collect();
        Some(Self {
            names: [id.name(Family::V4), id.name(Family::V6)],
            id,
            bucket: bucket.clone(),
            stamped: BTreeMap::new(),
            named: Vec::new(),
            hosts,
        })
    }

    pub(super) fn add(&mut self, stamp: Stamp, source: usize) {
        self.stamped.entry(stamp).or_default().push(source);
    }

    pub(super) fn add_named(&mut self, source: usize) {
        self.named.push(source);
    }

    pub(crate) fn id(&self) -> &SetId {
        &self.id
    }

    pub(super) fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    pub(crate) fn name(&self, family: Family) -> &SetName {
        match family {
            Family::V4 => &self.names[0],
            Family::V6 => &self.names[1],
        }
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
        self.bucket.blocks_hold(address, stamp) || self.has_pod(address, stamp, has)
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
