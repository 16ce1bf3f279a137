//! What to do next: AWS's arithmetic over the pool, one step an interface, one change of size at a time.
//!
//! A available, T total, C what an interface can give, W and M the warm and minimum targets:
//!
//! | mode | too few | too many |
//! |---|---|---|
//! | W or M set | max(W − A, M − T, 0) addresses short | min(A − W, T − M) over |
//! | else | A < WARM_ENI_TARGET × C, or target 0 and A = 0 | A ≥ (WARM_ENI_TARGET + 1) × C |
//!
//! Addresses that rest after a pod are in T, not in A. What has been asked for is in both.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::action::Action;
use crate::ids::{EniId, Timestamp};
use crate::limits::Limits;
use crate::pool::{Eni, Place, Pool, Slot, Stage};

/// Between two decreases: a pool that breathes with its pods should not call EC2 with each breath.
const DECREASE_GAP: Duration = Duration::from_secs(30);
/// An interface younger than this is not removed.
const MIN_ENI_AGE: Duration = Duration::from_secs(60);

/// What the pool should hold, in the words of AWS's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets {
    /// WARM_ENI_TARGET: spare interfaces' worth of free addresses. Ignored if one of the next two is set.
    pub warm_enis: u32,
    /// WARM_IP_TARGET: free addresses.
    pub warm_ips: Option<u32>,
    /// MINIMUM_IP_TARGET: addresses in all.
    pub minimum_ips: Option<u32>,
    /// MAX_ENI: interfaces at most, if fewer than the instance can have.
    pub max_enis: Option<u32>,
    /// Pods at most: no growth from there on.
    pub max_pods: Option<u32>,
}

impl Default for Targets {
    fn default() -> Self {
        Self {
            warm_enis: 1,
            warm_ips: None,
            minimum_ips: None,
            max_enis: None,
            max_pods: None,
        }
    }
}

impl Targets {
    /// Interfaces at most: MAX_ENI, and what the instance can have.
    pub fn enis(&self, limits: &Limits) -> u32 {
        self.max_enis
            .unwrap_or(u32::MAX)
            .clamp(1, limits.enis().max(1))
    }

    fn by_addresses(&self) -> Option<(u32, u32)> {
        match (self.warm_ips, self.minimum_ips) {
            (None, None) => None,
            (warm, minimum) => Some((warm.unwrap_or(0), minimum.unwrap_or(0))),
        }
    }
}

/// What the pool holds, for the arithmetic.
struct Sizes {
    /// Free now or soon (A).
    available: u32,
    /// Held now or soon (T).
    total: u32,
}

/// The actions to begin now. Each interface has at most one under way; at most one of all changes the pool's size.
///
/// *Shape*: in order of interface; the change of size, if any, comes last.
pub fn plan(pool: &Pool, targets: &Targets, limits: &Limits, now: Timestamp) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut taken: BTreeSet<u16> = pool.foreign.values().copied().collect();
    taken.extend(pool.enis.values().filter_map(Eni::device_index));
    for eni in pool.enis.values() {
        let Some(action) = step(eni, pool, targets, limits, &mut taken, now) else {
            continue;
        };
        if action.is_local() || !pool.throttle.pausing(now) {
            actions.push(action);
        }
    }
    let busy: BTreeSet<EniId> = actions.iter().filter_map(Action::eni).cloned().collect();
    if !pool.throttle.pausing(now) {
        actions.extend(change_of_size(pool, targets, limits, &busy, now));
    }
    actions
}

/// The next step of one interface on its way, whatever the pool's size.
fn step(
    eni: &Eni,
    pool: &Pool,
    targets: &Targets,
    limits: &Limits,
    taken: &mut BTreeSet<u16>,
    now: Timestamp,
) -> Option<Action> {
    if eni.in_flight.is_some() || eni.retry.pausing(now) {
        return None;
    }
    let id = eni.id.clone();
    if eni.unsure {
        return Some(Action::Describe { eni: id });
    }
    match &eni.stage {
        Stage::Detached => {
            let attached = attached(pool);
            let index = (1..=u16::MAX).find(|index| !taken.contains(index))?;
            if attached < targets.enis(limits) && !eni_limit(pool, now) {
                taken.insert(index);
                Some(Action::Attach {
                    eni: id,
                    device_index: index,
                })
            } else if eni.ours && eni.assigned() == 0 {
                Some(Action::Delete { eni: id })
            } else {
                None
            }
        }
        Stage::Attached(Place { attachment, .. }) => Some(Action::Keep {
            eni: id,
            attachment: attachment.clone(),
        }),
        Stage::Kept(_) => Some(Action::SetUp { eni: id }),
        Stage::Ready(_) => {
            let leaving: BTreeSet<Ipv4Addr> = eni
                .slots()
                .filter(|(_, slot)| slot.is_leaving())
                .map(|(address, _)| address)
                .collect();
            (!leaving.is_empty()).then_some(Action::Unassign {
                eni: id,
                addresses: leaving,
            })
        }
        Stage::Leaving(_) => Some(Action::TearDown { eni: id }),
        Stage::Down(Place { attachment, .. }) => Some(Action::Detach {
            eni: id,
            attachment: attachment.clone(),
        }),
        Stage::Discarded => Some(Action::Delete { eni: id }),
    }
}

fn change_of_size(
    pool: &Pool,
    targets: &Targets,
    limits: &Limits,
    busy: &BTreeSet<EniId>,
    now: Timestamp,
) -> Option<Action> {
    if let Some(creating) = &pool.creating {
        // Its fate decides what else is needed.
        return (!creating.in_flight && !pool.growth.pausing(now))
            .then(|| Action::Create(creating.request.clone()));
    }
    if pool
        .enis
        .values()
        .any(|e| e.in_flight.is_some_and(|count| count > 0))
    {
        return None;
    }
    let sizes = sizes(pool, now);
    let short = short(&sizes, targets, limits);
    if short > 0 {
        grow(pool, targets, limits, busy, short, now)
    } else {
        shrink(pool, targets, limits, busy, &sizes, now)
    }
}

/// How many addresses the pool lacks; 0 if none. Whether they can be had is another question.
pub(crate) fn shortage(pool: &Pool, targets: &Targets, limits: &Limits, now: Timestamp) -> u32 {
    short(&sizes(pool, now), targets, limits)
}

fn sizes(pool: &Pool, now: Timestamp) -> Sizes {
    let asked = pool
        .enis
        .values()
        .filter_map(|e| e.in_flight)
        .chain(pool.creating.as_ref().map(|c| c.request.addresses))
        .sum::<u32>();
    let serving = pool.enis.values().filter(|e| e.stage.is_coming_or_ready());
    let mut sizes = Sizes {
        available: asked,
        total: asked,
    };
    for eni in serving {
        sizes.available += eni.free(now);
        sizes.total += eni.total();
    }
    sizes
}

fn short(sizes: &Sizes, targets: &Targets, limits: &Limits) -> u32 {
    let per_eni = limits.pod_addresses_per_eni();
    let room = targets
        .max_pods
        .map_or(u32::MAX, |pods| pods.saturating_sub(sizes.total));
    if room == 0 {
        return 0;
    }
    match targets.by_addresses() {
        Some((warm, minimum)) => {
            let short = warm.saturating_sub(sizes.available);
            short.max(minimum.saturating_sub(sizes.total))
        }
        None => {
            let wanted = targets.warm_enis.saturating_mul(per_eni);
            let low = sizes.available < wanted || (targets.warm_enis == 0 && sizes.available == 0);
            if low { per_eni } else { 0 }
        }
    }
}

fn grow(
    pool: &Pool,
    targets: &Targets,
    limits: &Limits,
    busy: &BTreeSet<EniId>,
    short: u32,
    now: Timestamp,
) -> Option<Action> {
    fill(pool, limits, busy, short, now).or_else(|| create(pool, targets, limits, short, now))
}

/// More addresses for an interface that has room: the primary first, then the fullest.
fn fill(
    pool: &Pool,
    limits: &Limits,
    busy: &BTreeSet<EniId>,
    short: u32,
    now: Timestamp,
) -> Option<Action> {
    pool.enis
        .values()
        .filter(|e| e.stage.is_ready() && e.is_idle(now) && !busy.contains(&e.id))
        .filter_map(|e| {
            let held = u32::try_from(e.slots.len()).unwrap_or(u32::MAX);
            let room = limits.pod_addresses_per_eni().saturating_sub(held);
            let count = askable(pool, &e.subnet_id, now).min(room).min(short);
            (count > 0).then_some((e, count))
        })
        .min_by_key(|(e, _)| (!e.primary, std::cmp::Reverse(e.assigned())))
        .map(|(e, count)| Action::Assign {
            eni: e.id.clone(),
            count,
        })
}

fn create(
    pool: &Pool,
    targets: &Targets,
    limits: &Limits,
    short: u32,
    now: Timestamp,
) -> Option<Action> {
    // One that is on its way brings what it brings before another is made.
    let on_the_way = pool
        .enis
        .values()
        .any(|e| e.stage.is_coming_or_ready() && !e.stage.is_ready());
    if on_the_way
        || pool.growth.pausing(now)
        || eni_limit(pool, now)
        || managed(pool) >= targets.enis(limits)
    {
        return None;
    }
    let count = short
        .min(limits.pod_addresses_per_eni())
        .min(askable(pool, &pool.subnet_id, now));
    (count > 0).then(|| Action::Create(pool.new_request(count, now)))
}

fn shrink(
    pool: &Pool,
    targets: &Targets,
    limits: &Limits,
    busy: &BTreeSet<EniId>,
    sizes: &Sizes,
    now: Timestamp,
) -> Option<Action> {
    if pool
        .last_decrease
        .is_some_and(|last| now.since(last) < DECREASE_GAP)
    {
        return None;
    }
    let idle = |e: &&Eni| e.stage.is_ready() && e.is_idle(now) && !busy.contains(&e.id);
    let removable = |e: &&Eni| {
        e.ours
            && !e.primary
            && now.since(e.since) >= MIN_ENI_AGE
            && e.slots().all(|(_, slot)| match slot {
                Slot::Free { .. } => true,
                Slot::Cooling { until } => *until <= now,
                Slot::Assigned { .. } | Slot::Leaving { .. } => false,
            })
    };
    let over = over(sizes, targets, limits);
    let whole = pool
        .enis
        .values()
        .filter(idle)
        .filter(removable)
        .filter(|e| e.total() <= over)
        .max_by_key(|e| (e.total(), e.device_index()));
    if let Some(eni) = whole.filter(|_| over > 0) {
        return Some(Action::TearDown {
            eni: eni.id.clone(),
        });
    }
    targets.by_addresses()?;
    // Single addresses: from the interface that is nearest to being empty.
    let eni = pool
        .enis
        .values()
        .filter(idle)
        .filter(|e| e.free(now) > 0)
        .min_by_key(|e| (e.primary, e.assigned(), e.device_index()))
        .filter(|_| over > 0)?;
    let addresses = eni
        .slots()
        .filter(|(_, slot)| slot.is_free(now))
        .map(|(address, _)| address)
        .rev_take(over);
    Some(Action::Unassign {
        eni: eni.id.clone(),
        addresses,
    })
}

/// How many addresses there are too many. In ENI mode only a whole interface's worth counts, and what stays after its
/// removal must still be enough.
fn over(sizes: &Sizes, targets: &Targets, limits: &Limits) -> u32 {
    match targets.by_addresses() {
        Some((warm, minimum)) => sizes
            .available
            .saturating_sub(warm)
            .min(sizes.total.saturating_sub(minimum)),
        None => {
            let per_eni = limits.pod_addresses_per_eni();
            let high = targets.warm_enis.saturating_add(1).saturating_mul(per_eni);
            // With target 0 one address must stay, or the next tick would ask for an interface again.
            let keep = targets.warm_enis.saturating_mul(per_eni).max(1);
            if sizes.available >= high {
                sizes.available.saturating_sub(keep)
            } else {
                0
            }
        }
    }
}

/// How many addresses the subnet may be asked for at once; 0 while it rests.
fn askable(pool: &Pool, subnet: &crate::ids::SubnetId, now: Timestamp) -> u32 {
    match pool.rooms.get(subnet) {
        None => u32::MAX,
        Some(room) if room.paused_until.is_some_and(|until| now < until) => 0,
        Some(room) => room.ask.unwrap_or(u32::MAX),
    }
}

fn eni_limit(pool: &Pool, now: Timestamp) -> bool {
    pool.eni_limit_until.is_some_and(|until| now < until)
}

/// Interfaces that take one of the instance's places now.
fn attached(pool: &Pool) -> u32 {
    let ours = pool.enis.values().filter(|e| e.stage.place().is_some());
    let attaching = pool
        .enis
        .values()
        .filter(|e| e.stage == Stage::Detached && e.in_flight.is_some());
    let count = ours.count() + attaching.count() + pool.foreign.len();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Interfaces that take a place, or want one.
pub(crate) fn managed(pool: &Pool) -> u32 {
    let ours = pool
        .enis
        .values()
        .filter(|e| e.stage != Stage::Discarded)
        .count();
    u32::try_from(ours + pool.foreign.len()).unwrap_or(u32::MAX)
}

trait RevTake {
    fn rev_take(self, n: u32) -> BTreeSet<Ipv4Addr>;
}

impl<I: Iterator<Item = Ipv4Addr>> RevTake for I {
    /// The last `n`: pods get the first ones, so the last are least likely to be anyone's memory.
    fn rev_take(self, n: u32) -> BTreeSet<Ipv4Addr> {
        let mut all: Vec<Ipv4Addr> = self.collect();
        all.reverse();
        all.truncate(usize::try_from(n).unwrap_or(usize::MAX));
        all.into_iter().collect()
    }
}
