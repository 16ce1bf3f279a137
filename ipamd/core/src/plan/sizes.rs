//! What the pool holds and lacks, in numbers.

use super::View;
use crate::cloud::{PREFIX_ADDRESSES, Want};
use crate::limits::Mode;
use crate::pool::{HOLD, InFlight};

/// What the pool holds, for the arithmetic. Only what may serve new pods counts, and only blocks of the kind that the
/// mode asks for; others are on their way out, and stand by themselves.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sizes {
    /// Free now or soon (A).
    pub(crate) available: u32,
    /// Held now or soon (T).
    pub(crate) total: u32,
    /// Of which pods have or had lately.
    pub(crate) used: u32,
    /// More than is used now, but not more than was lately.
    pub(crate) held_back: u32,
    /// Blocks of which no pod has or had an address lately.
    pub(crate) free_blocks: u32,
    /// Of which were asked for lately, for pods that are to come.
    pub(crate) young_blocks: u32,
    /// Addresses of these.
    pub(crate) young: u32,
    /// Blocks.
    pub(crate) blocks: u32,
    /// Addresses that EC2 has been asked for.
    pub(crate) asked: u32,
    /// Free addresses of blocks of the other kind, now or soon.
    pub(crate) spare: u32,
    /// All addresses that pods have or could be given now or soon, wherever they are.
    everything: u32,
}

impl Sizes {
    pub(crate) fn of(view: &View<'_>) -> Self {
        let View { pool, now, .. } = *view;
        let mut sizes = Self::default();
        let in_flight = pool.enis.values().filter_map(|eni| match eni.in_flight {
            Some(InFlight::Assign(want)) => Some(want),
            Some(InFlight::Attach(_) | InFlight::Other) | None => None,
        });
        let creating = pool.creating.values().map(|creating| creating.request.want);
        for want in in_flight.chain(creating) {
            let addresses = want.addresses();
            sizes.asked = sizes.asked.saturating_add(addresses);
            if suits(want, view.mode()) {
                sizes.available = sizes.available.saturating_add(addresses);
                sizes.total = sizes.total.saturating_add(addresses);
            } else {
                sizes.spare = sizes.spare.saturating_add(addresses);
            }
            sizes.everything = sizes.everything.saturating_add(addresses);
        }
        let mut used_anywhere = 0u32;
        for eni in pool.enis.values() {
            let used = eni.assigned() + eni.cooling(now);
            used_anywhere += used;
            if !eni.stage.is_coming_or_ready() {
                continue;
            }
            if !pool.serves(eni) {
                sizes.everything = sizes.everything.saturating_add(used);
                continue;
            }
            for block in eni.blocks().filter(|block| !block.is_leaving()) {
                if block.is_missing() {
                    sizes.everything = sizes.everything.saturating_add(block.assigned());
                    continue;
                }
                let (free, cooling) = (block.free(now), block.cooling(now));
                sizes.everything = sizes.everything.saturating_add(block.size());
                if view.waiting > 0 {
                    // What rests serves nobody who waits now.
                    sizes.everything = sizes.everything.saturating_sub(cooling);
                }
                if !pool.suits(block) {
                    sizes.spare = sizes.spare.saturating_add(free);
                    continue;
                }
                sizes.available = sizes.available.saturating_add(free);
                sizes.total = sizes.total.saturating_add(block.size());
                sizes.used += block.assigned() + cooling;
                sizes.blocks += 1;
                if block.is_wholly_free(now) {
                    sizes.free_blocks += 1;
                    if now.since(block.acquired) < HOLD {
                        sizes.young_blocks += 1;
                        sizes.young = sizes.young.saturating_add(block.size());
                    }
                }
            }
        }
        sizes.held_back = pool.demand.peak(used_anywhere, now) - used_anywhere;
        sizes
    }

    /// Pods that wait and that nothing is there or coming for.
    pub(crate) fn unserved(&self, view: &View<'_>) -> u32 {
        view.waiting
            .saturating_sub(self.available)
            .saturating_sub(self.spare)
    }

    /// How many addresses are lacking; 0 if none. Whether they can be had is another question.
    pub(crate) fn short(&self, view: &View<'_>) -> u32 {
        let targets = view.targets;
        // Those for whom a spare address is there need no other.
        let waiting = view.waiting.saturating_sub(self.spare);
        let below = |wanted: u32| {
            wanted
                .saturating_add(waiting)
                .saturating_sub(self.available)
        };
        let short = match (view.mode(), targets.by_addresses()) {
            (Mode::Ipv6, _) => u32::from(self.blocks == 0 && self.asked == 0),
            (Mode::Addresses | Mode::Prefixes, Some((warm, minimum))) => {
                below(warm).max(minimum.saturating_sub(self.total))
            }
            (Mode::Addresses, None) => {
                let per_eni = view.limits.places_per_eni();
                self.below_or_empty(waiting, targets.warm_enis.saturating_mul(per_eni))
            }
            (Mode::Prefixes, None) => {
                let wanted = targets.warm_prefixes.saturating_mul(PREFIX_ADDRESSES);
                self.below_or_empty(waiting, wanted)
            }
        };
        short.min(self.room(view))
    }

    /// How many addresses there may be more before there are as many as pods.
    fn room(&self, view: &View<'_>) -> u32 {
        let pods = view.targets.max_pods.unwrap_or(u32::MAX);
        pods.saturating_sub(self.everything)
    }

    /// How many addresses to ask for where `need` are lacking and something is asked anyway. Where single addresses are
    /// counted, as many pods as came within the last minute may come within the next; where whole interfaces are, one
    /// that is asked is asked for all it can take. Never more than the node may have pods.
    pub(crate) fn eager(&self, view: &View<'_>, need: u32) -> u32 {
        let ask = match (view.mode(), view.targets.by_addresses()) {
            (Mode::Addresses, Some(_)) => need.max(view.pool.demand.trend(view.now)),
            (Mode::Addresses, None) => {
                let per_eni = view.limits.places_per_eni().max(1);
                need.div_ceil(per_eni).saturating_mul(per_eni)
            }
            (Mode::Prefixes, None) => need.max(view.pool.demand.trend(view.now)),
            (Mode::Prefixes, Some(_)) | (Mode::Ipv6, _) => need,
        };
        ask.min(self.room(view)).max(need)
    }

    /// What rests after a pod is not there: who waits does not get it. With target 0 one address is wanted when there
    /// is none.
    fn below_or_empty(&self, waiting: u32, wanted: u32) -> u32 {
        wanted
            .max(1)
            .saturating_add(waiting)
            .saturating_sub(self.available)
    }

    /// How many addresses there are too many; with prefixes, in whole ones. What was used or asked for lately, or is on its
    /// way, stays. In
    /// ENI mode only a whole interface's worth counts, and what stays after its removal must still be enough.
    pub(crate) fn over(&self, view: &View<'_>) -> u32 {
        let targets = view.targets;
        let available = self.available.saturating_sub(self.held_back);
        match (view.mode(), targets.by_addresses()) {
            (Mode::Ipv6, _) => 0,
            (Mode::Addresses, Some((warm, minimum))) => available
                .saturating_sub(warm.max(self.young.saturating_add(self.asked)))
                .min(self.total.saturating_sub(minimum)),
            (Mode::Addresses, None) => {
                let per_eni = view.limits.places_per_eni();
                let high = targets.warm_enis.saturating_add(1).saturating_mul(per_eni);
                // With target 0 one address must stay, or the next plan would ask for an interface again.
                let keep = targets.warm_enis.saturating_mul(per_eni).max(1);
                if available >= high {
                    available.saturating_sub(keep)
                } else {
                    0
                }
            }
            (Mode::Prefixes, Some((warm, minimum))) => {
                let wanted = self
                    .used
                    .saturating_add(self.held_back)
                    .saturating_add(warm);
                let needed = prefixes(wanted.max(minimum));
                let old = self.free_blocks.saturating_sub(self.young_blocks);
                self.blocks.saturating_sub(needed).min(old) * PREFIX_ADDRESSES
            }
            (Mode::Prefixes, None) => {
                let free = self.free_blocks.saturating_sub(prefixes(self.held_back));
                let in_use = self.available
                    - self
                        .free_blocks
                        .saturating_mul(PREFIX_ADDRESSES)
                        .min(self.available);
                // With target 0 one address must stay.
                let keep = targets.warm_prefixes.max(u32::from(in_use == 0));
                let keep = keep.max(self.young_blocks);
                free.saturating_sub(keep) * PREFIX_ADDRESSES
            }
        }
    }
}

/// Prefixes that hold so many addresses.
pub(crate) fn prefixes(addresses: u32) -> u32 {
    addresses.div_ceil(PREFIX_ADDRESSES)
}

/// Whether what is asked for is of the kind that the mode asks for.
fn suits(want: Want, mode: Mode) -> bool {
    match (want, mode) {
        (Want::Addresses(_), Mode::Addresses)
        | (Want::Prefixes(_), Mode::Prefixes)
        | (Want::Ipv6Prefix, Mode::Ipv6) => true,
        (Want::Addresses(_), Mode::Prefixes | Mode::Ipv6)
        | (Want::Prefixes(_), Mode::Addresses | Mode::Ipv6)
        | (Want::Ipv6Prefix, Mode::Addresses | Mode::Prefixes) => false,
    }
}
