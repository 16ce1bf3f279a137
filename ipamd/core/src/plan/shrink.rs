//! Giving back: what serves nobody any more, and what is more than the targets ask for.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;

use super::View;
use crate::action::Action;
use crate::cloud::PREFIX_ADDRESSES;
use crate::ids::EniId;
use crate::limits::Mode;
use crate::pool::{Block, Eni, HOLD, Kind};

/// Between two decreases: one is a call or three.
const DECREASE_GAP: Duration = Duration::from_secs(30);
/// An interface younger than this is not removed.
const MIN_ENI_AGE: Duration = Duration::from_secs(60);

impl View<'_> {
    /// `over`: so many addresses more than the targets ask for.
    pub(super) fn shrink(&self, busy: &BTreeSet<EniId>, over: u32) -> Option<Action> {
        let resting = self
            .pool
            .last_decrease
            .is_some_and(|last| self.now.since(last) < DECREASE_GAP);
        if resting {
            return None;
        }
        let idle: Vec<&Eni> = self
            .pool
            .enis
            .values()
            .filter(|eni| eni.stage.is_ready() && eni.is_idle(self.now) && !busy.contains(&eni.id))
            .collect();
        self.drain(&idle)
            .or_else(|| self.remove(&idle, over))
            .or_else(|| self.give_back(&idle, over))
            .or_else(|| self.give_back_odd(&idle))
    }

    /// Interfaces that may not serve (any more) give back what no pod has, and go when none has anything.
    fn drain(&self, idle: &[&Eni]) -> Option<Action> {
        let drained = idle.iter().filter(|eni| !self.pool.serves(eni));
        drained
            .clone()
            .find(|eni| self.is_removable(eni))
            .map(|eni| Action::TearDown {
                eni: eni.id.clone(),
            })
            .or_else(|| {
                drained.clone().find_map(|eni| {
                    let free = eni.blocks().filter(|block| block.is_wholly_free(self.now));
                    self.unassign(eni, free.map(Block::net))
                })
            })
    }

    /// A whole interface: the largest that is not more than what is over; or one that has had no block for a while.
    fn remove(&self, idle: &[&Eni], over: u32) -> Option<Action> {
        let serving = idle.iter().filter(|eni| self.pool.serves(eni));
        serving
            .filter(|eni| self.is_removable(eni))
            .filter(|eni| {
                let bare = eni.blocks.is_empty() && self.now.since(eni.moved) > HOLD;
                bare || (over > 0 && !eni.blocks.is_empty() && eni.total() <= over)
            })
            .max_by_key(|eni| (eni.total(), eni.device_index()))
            .map(|eni| Action::TearDown {
                eni: eni.id.clone(),
            })
    }

    fn is_removable(&self, eni: &Eni) -> bool {
        eni.ours
            && !eni.primary
            && self.now.since(eni.since) >= MIN_ENI_AGE
            && eni.is_wholly_free(self.now)
    }

    /// Blocks from the interface that is nearest to being empty. In ENI mode only whole interfaces go.
    fn give_back(&self, idle: &[&Eni], over: u32) -> Option<Action> {
        let blocks = match self.mode() {
            Mode::Addresses => self.targets.by_addresses().map(|_| over)?,
            Mode::Prefixes => over / PREFIX_ADDRESSES,
            Mode::Ipv6 => 0,
        };
        if blocks == 0 {
            return None;
        }
        let free = |eni: &Eni| -> Vec<IpNet> {
            eni.blocks()
                .filter(|block| self.pool.suits(block) && block.is_wholly_free(self.now))
                .map(Block::net)
                .collect()
        };
        let (eni, free) = idle
            .iter()
            .filter(|eni| self.pool.serves(eni))
            .map(|eni| (eni, free(eni)))
            .filter(|(_, free)| !free.is_empty())
            .min_by_key(|(eni, _)| (eni.primary, eni.assigned(), eni.device_index()))?;
        // The last ones: pods get the first, so the last are least likely to be anyone's memory.
        let count = usize::try_from(blocks).unwrap_or(usize::MAX);
        self.unassign(eni, free.into_iter().rev().take(count))
    }

    /// Blocks of the kind that the mode does not ask for. Single addresses stay while their subnet has no prefix: the
    /// next pod that waits would ask for them again.
    fn give_back_odd(&self, idle: &[&Eni]) -> Option<Action> {
        let serving = idle.iter().filter(|eni| self.pool.serves(eni));
        serving
            .filter(|eni| {
                self.mode() != Mode::Prefixes
                    || self.pool.askable(&eni.subnet_id, Kind::Prefix, self.now) > 0
            })
            .find_map(|eni| {
                let odd = eni
                    .blocks()
                    .filter(|block| !self.pool.suits(block) && block.is_wholly_free(self.now));
                self.unassign(eni, odd.map(Block::net))
            })
    }
}
