//! The poll of sets' headers, a few at a time: the kernel is not asked for all of them in one go, since for as
//! long as it answers (60 ms for 600 sets with 900,000 members) a processor does nothing else.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use selvage_policy_core::ruleset::SetName;

use crate::error::Error;
use crate::ipset::{Glimpse, Glimpses, Header, IpSets};

/// Between two looks; a round has so many of them as fit its pace.
const SLICE: Duration = Duration::from_millis(6);

/// What is not as it was the last time is told no more often than this.
const TELL: Duration = Duration::from_millis(90);

/// Bounds each exchange with the kernel.
const PATIENCE: Duration = Duration::from_secs(10);

/// Goes round all sets.
pub(super) struct Headers {
    pace: Duration,
    sets: IpSets,
    glimpses: Glimpses,
    /// The sets of this round that are still to be looked at, from the last to the first.
    ahead: Vec<SetName>,
    /// How many of them at a time.
    together: usize,
    begun: Instant,
    /// What this round has seen.
    round: Glimpse,
    /// What the last look at each set showed.
    last: BTreeMap<SetName, Option<Header>>,
    /// What is not as it was then, until it is told.
    news: Glimpse,
    told: Instant,
    due: Instant,
}

impl Headers {
    /// The first round begins when one pace has gone by.
    pub(super) fn open(pace: Duration, now: Instant) -> Result<Self, Error> {
        Ok(Self {
            pace,
            sets: IpSets::open(PATIENCE)?,
            glimpses: Glimpses::default(),
            ahead: Vec::new(),
            together: 0,
            begun: now,
            round: Glimpse::default(),
            last: BTreeMap::new(),
            news: Glimpse::default(),
            told: now,
            due: now + pace,
        })
    }

    /// Where what is told is found.
    pub(super) fn glimpses(&self) -> Glimpses {
        self.glimpses.clone()
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Looks at a few, if it is time: whether there is something to compare.
    pub(super) fn look(&mut self, now: Instant) -> Result<bool, Error> {
        if now < self.due {
            return Ok(false);
        }
        if self.ahead.is_empty() {
            self.ahead = self.sets.names()?;
            self.ahead.reverse();
            let slices = (self.pace.as_millis() / SLICE.as_millis()).max(1);
            let slices = usize::try_from(slices).unwrap_or(1);
            self.together = self.ahead.len().div_ceil(slices).max(1);
            self.begun = now;
        }
        for name in self
            .ahead
            .split_off(self.ahead.len().saturating_sub(self.together))
        {
            let when = Instant::now();
            let header = self.sets.find(&name)?;
            let before = self.last.insert(name.clone(), header.clone());
            if before.is_some_and(|before| before != header) {
                self.news.add(name.clone(), header.clone(), when);
            }
            self.round.add(name, header, when);
        }
        if self.ahead.is_empty() {
            self.news = Glimpse::default();
            let round = std::mem::take(&mut self.round);
            self.last.retain(|name, _| round.holds(name));
            self.glimpses.put(round.complete(self.begun));
            self.due = (self.begun + self.pace).max(now + SLICE);
            return Ok(true);
        }
        self.due = now + SLICE;
        if self.news.is_empty() || now < self.told + TELL {
            return Ok(false);
        }
        self.told = now;
        self.glimpses.put(std::mem::take(&mut self.news));
        Ok(true)
    }
}
