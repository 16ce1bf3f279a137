//! A profile in use: its rules, and the sets that these match on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::feed::Feed;
use super::fill::Filled;
use super::source::Sources;
use super::{Active, Profile};
use crate::compile::profile;
use crate::fold::{Contents, Folded, SetId, Stamp};
use crate::index::census::Census;
use crate::index::members::Source;
use crate::model::{NamedPort, PeerSelector};
use crate::ruleset::{Chain, ChainName, Family};

/// A profile in use.
#[derive(Debug)]
pub(super) struct InUse {
    /// How many pods have it.
    pub(super) users: usize,
    pub(super) folded: Folded,
    /// Members that no pod is behind, as it is folded.
    pub(super) blocks: usize,
    /// Where it is laid out apart for the budget's sake: how many members of its sets then have no
    /// pod behind them.
    pub(super) apart: Option<usize>,
    /// The sources of its sets as it is folded, as often as they are in there.
    pub(super) sources: Vec<usize>,
    /// The sets that its rules match on, as often as they do.
    pub(super) feeds: Vec<usize>,
    chains: BTreeMap<Family, Vec<(ChainName, Chain)>>,
}

impl InUse {
    /// One that has one user, and no rules yet.
    pub(super) fn new(folded: Folded, sources: Vec<usize>, families: &BTreeSet<Family>) -> Self {
        Self {
            users: 1,
            blocks: folded.block_members(families),
            folded,
            apart: None,
            sources,
            feeds: Vec::new(),
            chains: BTreeMap::new(),
        }
    }

    /// Its policies say something else.
    pub(super) fn set_folded(&mut self, folded: Folded, families: &BTreeSet<Family>) {
        self.blocks = folded.block_members(families);
        if let Some(blocks) = &mut self.apart {
            *blocks = folded.apart().block_members(families);
        }
        self.folded = folded;
    }

    /// Uses the sources of all that a profile allows.
    pub(super) fn acquire(
        folded: &Folded,
        sources: &mut Sources,
        new: &mut Vec<usize>,
    ) -> Vec<usize> {
        let mut numbers = Vec::new();
        for contents in folded.buckets().filter_map(|bucket| bucket.set()) {
            for (_, source) in sources_of(contents) {
                numbers.push(sources.acquire(source, new));
            }
        }
        numbers
    }

    /// The chain that its pods go to.
    pub(super) fn entry(&self) -> &ChainName {
        self.folded.chain()
    }

    pub(super) fn chains(&self, family: Family) -> &[(ChainName, Chain)] {
        self.chains.get(&family).map_or(&[], Vec::as_slice)
    }
}

/// The sources that fill a set, each with what its members carry there.
fn sources_of(contents: &Contents) -> impl Iterator<Item = (Stamp, Source)> {
    let source = |selector: &PeerSelector, port: Option<&NamedPort>| Source {
        selector: selector.clone(),
        port: port.cloned(),
    };
    let stamped = contents
        .selectors()
        .map(move |(stamp, selector)| (stamp, source(selector, None)));
    let named = contents
        .named()
        .map(move |(named, selector)| (None, source(selector, Some(named))));
    stamped.chain(named)
}

impl Active {
    /// Writes profiles' rules anew and finds their sets, and says which of these are to be filled.
    /// Those that a profile had so far are `dropped`, once: what it has still, it has twice.
    pub(super) fn lay_out(
        &mut self,
        profiles: &BTreeSet<Arc<Profile>>,
        dropped: &mut Vec<usize>,
    ) -> BTreeSet<usize> {
        let mut refill = BTreeSet::new();
        for profile in profiles {
            let Some(in_use) = self.profiles.get(profile) else {
                continue;
            };
            let laid_out = match in_use.apart {
                Some(_) => in_use.folded.apart(),
                None => in_use.folded.clone(),
            };
            let sets = laid_out
                .buckets()
                .filter_map(|bucket| bucket.set().cloned());
            let feeds: Vec<usize> = sets
                .map(|contents| self.acquire_feed(contents, &mut refill))
                .collect();
            let chains = self.families.iter().map(|family| {
                let name = |set: &SetId| self.feeds.shared_name(set, *family).clone();
                let is_void = |contents: &Contents| self.is_void(contents, *family);
                let stages = profile::stages(profile.direction, &laid_out, is_void, name);
                let logged = |(name, chain): (ChainName, Chain)| match self.deny_log {
                    Some(group) => {
                        // Whichever of its chains drops: the profile's is what is looked for.
                        let chain = chain.logging_drops(group, laid_out.chain());
                        (name, chain)
                    }
                    None => (name, chain),
                };
                (*family, stages.into_iter().map(logged).collect())
            });
            let chains = chains.collect();
            if let Some(in_use) = self.profiles.get_mut(profile) {
                in_use.chains = chains;
                dropped.append(&mut std::mem::replace(&mut in_use.feeds, feeds));
            }
        }
        refill
    }

    /// Whether a set can have no member: only pods are in it, and none has an address of the family.
    pub(super) fn is_void(&self, contents: &Contents, family: Family) -> bool {
        !self.peopled.contains(&family) && contents.is_of_pods(family)
    }

    /// Whether the first pod of a family has come since the last settling, or the last one gone, and with it sets that
    /// only pods are in.
    pub(in crate::index) fn is_laid_out_for_other_families(&self, census: &Census) -> bool {
        let peopled = census.peopled();
        let mut turned = peopled.symmetric_difference(&self.peopled);
        turned.any(|family| {
            let mut feeds = self.feeds.iter();
            self.families.contains(family)
                && feeds.any(|(_, feed)| feed.contents().is_of_pods(*family))
        })
    }

    /// Uses the feed of a set once more, changed to these contents if it has others.
    fn acquire_feed(&mut self, contents: Arc<Contents>, refill: &mut BTreeSet<usize>) -> usize {
        let known = self.feeds.number(contents.id().name(Family::V4));
        let number = match known {
            Some(number) => {
                let same = self
                    .feeds
                    .get(number)
                    .is_some_and(|feed| *feed.contents() == contents);
                if !same {
                    self.detach(number);
                    let feed = self.feed(contents);
                    Arc::make_mut(&mut self.feeds).replace(number, feed);
                    self.attach(number);
                    refill.insert(number);
                }
                number
            }
            None => {
                let feed = self.feed(contents);
                let number = Arc::make_mut(&mut self.feeds).push(feed);
                if self.filled.len() <= number {
                    self.filled.resize_with(number + 1, Filled::default);
                }
                self.attach(number);
                refill.insert(number);
                number
            }
        };
        self.filled[number].users += 1;
        number
    }

    /// Uses a feed once less.
    pub(super) fn drop_feed(&mut self, number: usize) {
        let filled = &mut self.filled[number];
        filled.users -= 1;
        if filled.users > 0 {
            return;
        }
        self.held -= std::mem::take(filled).len();
        self.detach(number);
        Arc::make_mut(&mut self.feeds).remove(number);
    }

    /// What fills a set: sources that are in use by whoever needs the set.
    fn feed(&self, contents: Arc<Contents>) -> Feed {
        let mut feed = Feed::of(contents.clone());
        for (stamp, source) in sources_of(&contents) {
            let Some(number) = self.sources.number(&source) else {
                continue;
            };
            if source.port.is_some() {
                feed.add_named(number);
            } else {
                feed.add(stamp, number);
            }
        }
        feed
    }

    /// Tells a feed's sources of it.
    fn attach(&mut self, number: usize) {
        let Some(feed) = self.feeds.get(number) else {
            return;
        };
        for (stamp, source) in feed.parts() {
            self.sources.get_mut(source).feeds.push((number, stamp));
        }
    }

    /// The other way round.
    fn detach(&mut self, number: usize) {
        let Some(feed) = self.feeds.get(number) else {
            return;
        };
        let sources: BTreeSet<usize> = feed.parts().map(|(_, source)| source).collect();
        for source in sources {
            let feeds = &mut self.sources.get_mut(source).feeds;
            feeds.retain(|(feed, _)| *feed != number);
        }
    }
}
