//! What to do next: AWS's arithmetic over the pool, at most one action an interface.
//!
//! A available, T total, C what an interface can give, W and M the warm and minimum targets, P that of prefixes:
//!
//! | mode | too few | too many |
//! |---|---|---|
//! | W or M set | max(W − A, M − T, 0) addresses short | min(A − W, T − M) over |
//! | else, prefixes | A < 16 P, or P = 0 and A = 0 | more than P prefixes wholly free |
//! | else | A < WARM_ENI_TARGET × C, or target 0 and A = 0 | A ≥ (WARM_ENI_TARGET + 1) × C |
//!
//! Addresses that rest after a pod are in T, not in A. What has been asked for is in both. Pods that wait for an address
//! are taken off A: they are asked for at once, all of them. With prefixes what is short is rounded up to whole ones
//! and what is over down.
//!
//! While pods are coming and most of what is to be free still is, what is short is asked for a moment later, for all of
//! them at once.
//!
//! What was in use at once within the last minutes counts as in use when it comes to giving back, so that a pool that
//! breathes with its pods does not call EC2 with each breath. Nor does what was asked for within them go, for
//! it is there for pods that are to come.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::action::Action;
use crate::cloud::{Budget, PREFIX_ADDRESSES};
use crate::ids::{EniId, Timestamp};
use crate::limits::{Limits, Mode};
use crate::pool::{Block, Eni, InFlight, Place, Pool, Provisioning, Stage};

mod grow;
mod shrink;
mod sizes;

pub(crate) use sizes::Sizes;

/// What the pool should hold, in the words of AWS's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets {
    /// WARM_ENI_TARGET: spare interfaces' worth of free addresses. Ignored with prefixes, and if one of the next two is
    /// set.
    pub warm_enis: u32,
    /// WARM_PREFIX_TARGET: spare prefixes. Ignored without prefixes, and if one of the next two is set.
    pub warm_prefixes: u32,
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
            warm_prefixes: 1,
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

    /// Warm and minimum target, if either is set.
    fn by_addresses(&self) -> Option<(u32, u32)> {
        match (self.warm_ips, self.minimum_ips) {
            (None, None) => None,
            (warm, minimum) => Some((warm.unwrap_or(0), minimum.unwrap_or(0))),
        }
    }
}

/// All that a plan looks at.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) targets: &'a Targets,
    pub(crate) limits: &'a Limits,
    /// Pods that wait for an address.
    pub(crate) waiting: u32,
    pub(crate) now: Timestamp,
}

/// The actions to begin now, where `waiting` pods have asked for an address and got none. Each interface has at most
/// one under way. No more of them call EC2 than the pool's [bucket](crate::bucket) allows: the urgent ones first.
///
/// *Shape*: the most urgent first; what is asked for in one plan fits together, so begin all or the first ones.
pub fn plan(
    pool: &Pool,
    targets: &Targets,
    limits: &Limits,
    waiting: u32,
    now: Timestamp,
) -> Vec<Action> {
    let view = View {
        pool,
        targets,
        limits,
        waiting,
        now,
    };
    let mut reads = pool.bucket.available(Budget::Read, now);
    let mut changes = pool.bucket.available(Budget::Change, now);
    let mut actions = view.wanted();
    actions.sort_by_key(urgency);
    actions.retain(|action| {
        let Some(budget) = action.operation().and_then(|operation| operation.budget()) else {
            return true;
        };
        let left = match budget {
            Budget::Read => &mut reads,
            Budget::Change => &mut changes,
        };
        let allowed =
            *left > 0 && (urgency(action) < Urgency::CanWait || pool.bucket.is_calm(budget, now));
        *left -= u32::from(allowed);
        allowed
    });
    actions
}

/// How much pods depend on an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// Brings addresses, or what is needed to know whether they come.
    Brings,
    /// Ends what has been begun.
    Ends,
    /// Nobody waits for it.
    CanWait,
}

/// The interfaces that actions are about: each takes one at a time.
fn busy(actions: &[Action]) -> BTreeSet<EniId> {
    actions.iter().filter_map(Action::eni).cloned().collect()
}

fn urgency(action: &Action) -> Urgency {
    match action {
        Action::SetUp { .. }
        | Action::Create(_)
        | Action::Attach { .. }
        | Action::Keep { .. }
        | Action::Describe { .. }
        | Action::Assign { .. }
        | Action::DescribeSubnets => Urgency::Brings,
        Action::TearDown { .. } | Action::Detach { .. } | Action::Delete { .. } => Urgency::Ends,
        Action::Unassign { .. } | Action::Tag { .. } | Action::Regroup { .. } => Urgency::CanWait,
    }
}

impl View<'_> {
    /// What is to be done, whatever the bucket says.
    pub(crate) fn wanted(&self) -> Vec<Action> {
        let mut actions = self.steps();
        match self.pool.settings.provisioning {
            Provisioning::MetadataOnly => actions.retain(Action::is_local),
            Provisioning::AttachedOnly => actions.retain(|action| match action {
                Action::SetUp { .. } | Action::TearDown { .. } | Action::Describe { .. } => true,
                Action::Create(_)
                | Action::Attach { .. }
                | Action::Keep { .. }
                | Action::Assign { .. }
                | Action::Unassign { .. }
                | Action::Tag { .. }
                | Action::Regroup { .. }
                | Action::DescribeSubnets
                | Action::Detach { .. }
                | Action::Delete { .. } => false,
            }),
            Provisioning::Full => {
                actions.extend(self.change_of_size(&busy(&actions)));
                actions.extend(self.regroups(&busy(&actions)));
                actions.extend(self.tags(&busy(&actions)));
            }
        }
        actions
    }

    /// Tags that interfaces lack: those that somebody else attached, and the primary one of a new node.
    fn tags(&self, busy: &BTreeSet<EniId>) -> impl Iterator<Item = Action> {
        let enis = self.pool.enis.values();
        enis.filter(|eni| eni.stage.is_ready() && eni.is_idle(self.now))
            .filter(|eni| !eni.untagged.is_empty() && !busy.contains(&eni.id))
            .map(|eni| Action::Tag {
                eni: eni.id.clone(),
                tags: eni.untagged.clone(),
            })
    }

    /// Security groups that interfaces should have by now.
    fn regroups(&self, busy: &BTreeSet<EniId>) -> impl Iterator<Item = Action> {
        let enis = self.pool.enis.values();
        enis.filter(|eni| eni.stage.is_ready() && eni.is_idle(self.now))
            .filter(|eni| !busy.contains(&eni.id))
            .filter_map(|eni| {
                Some(Action::Regroup {
                    eni: eni.id.clone(),
                    groups: self.pool.missing_groups(eni)?,
                })
            })
    }

    /// The next step of each interface on its way, whatever the pool's size.
    fn steps(&self) -> Vec<Action> {
        let enis = &self.pool.enis;
        let mut taken: BTreeSet<u16> = self.pool.foreign.values().copied().collect();
        taken.extend(enis.values().filter_map(Eni::device_index));
        taken.extend(enis.values().filter_map(|eni| match eni.in_flight {
            Some(InFlight::Attach(device_index)) => Some(device_index),
            Some(InFlight::Assign(_) | InFlight::Other) | None => None,
        }));
        let mut attached = self.attached();
        enis.values()
            .filter_map(|eni| self.step(eni, &mut taken, &mut attached))
            .collect()
    }

    fn step(&self, eni: &Eni, taken: &mut BTreeSet<u16>, attached: &mut u32) -> Option<Action> {
        if eni.in_flight.is_some() || eni.retry.pausing(self.now) {
            return None;
        }
        let id = eni.id.clone();
        if eni.unsure {
            return Some(Action::Describe { eni: id });
        }
        match &eni.stage {
            Stage::Detached => self.step_detached(eni, taken, attached),
            Stage::Attached(Place { attachment, .. }) => Some(Action::Keep {
                eni: id,
                attachment: attachment.clone(),
            }),
            Stage::Kept(_) => Some(Action::SetUp { eni: id }),
            Stage::Ready(_) => {
                let leaving = eni.blocks().filter(|block| block.is_leaving());
                self.unassign(eni, leaving.map(Block::net))
            }
            Stage::Leaving(_) => Some(Action::TearDown { eni: id }),
            Stage::Down(Place { attachment, .. }) => self.may_move_enis().then(|| Action::Detach {
                eni: id,
                attachment: attachment.clone(),
            }),
            Stage::Discarded => Some(Action::Delete { eni: id }),
        }
    }

    fn step_detached(
        &self,
        eni: &Eni,
        taken: &mut BTreeSet<u16>,
        attached: &mut u32,
    ) -> Option<Action> {
        let index = (1..=u16::MAX).find(|index| !taken.contains(index))?;
        let has_place = *attached < self.targets.enis(self.limits) && !self.eni_limit();
        // Pods that have an address of it cannot be reached before it is back.
        if has_place && (self.pool.serves(eni) || eni.assigned() > 0) {
            if !self.may_move_enis() {
                return None;
            }
            taken.insert(index);
            *attached += 1;
            Some(Action::Attach {
                eni: eni.id.clone(),
                device_index: index,
            })
        } else if eni.ours && eni.assigned() == 0 {
            Some(Action::Delete {
                eni: eni.id.clone(),
            })
        } else {
            None
        }
    }

    /// A call gives back blocks of one kind: prefixes first, they are the larger.
    fn unassign(&self, eni: &Eni, blocks: impl Iterator<Item = IpNet>) -> Option<Action> {
        let mut blocks: BTreeSet<IpNet> = blocks.collect();
        let shortest = blocks.iter().map(IpNet::prefix_len).min()?;
        blocks.retain(|net| net.prefix_len() == shortest);
        Some(Action::Unassign {
            eni: eni.id.clone(),
            blocks,
        })
    }

    fn change_of_size(&self, busy: &BTreeSet<EniId>) -> Vec<Action> {
        let sizes = Sizes::of(self);
        let short = sizes.short(self);
        if self.wants_subnets(false) {
            return vec![Action::DescribeSubnets];
        }
        let lacking = short > 0 || self.waiting > 0;
        let mut actions = if lacking && !self.gathers(&sizes) {
            self.grow(busy, &sizes, short)
        } else {
            self.creates_again()
        };
        if actions.is_empty() && self.may_move_enis() {
            // What serves nobody goes also where more is lacking: it takes places.
            let over = if lacking { 0 } else { sizes.over(self) };
            actions.extend(self.shrink(busy, over));
        }
        actions
    }

    /// Whether more is asked for in a moment: pods are coming, three quarters of what is to be free still is, and once
    /// they are there it is known how many. What whole interfaces are asked for is the same at any time.
    fn gathers(&self, sizes: &Sizes) -> bool {
        let wanted = match (self.mode(), self.targets.by_addresses()) {
            (Mode::Addresses | Mode::Prefixes, Some((warm, _))) => warm,
            (Mode::Prefixes, None) => self.targets.warm_prefixes.saturating_mul(PREFIX_ADDRESSES),
            (Mode::Addresses, None) | (Mode::Ipv6, _) => 0,
        };
        wanted > 0
            && sizes.available >= wanted - wanted / 4
            && self.waiting == 0
            && !self.pool.is_refused()
            && self.pool.demand.gathers(self.now)
    }

    /// Whether subnets are to be looked at; `choosing`: before an interface is made in one.
    pub(crate) fn wants_subnets(&self, choosing: bool) -> bool {
        // Under custom networking subnets only tell whether an ENIConfig's is in reach.
        let matter = !self.pool.settings.custom_networking || self.pool.network.eni_config.is_ok();
        matter && self.pool.wants_subnets(choosing, self.now)
    }

    /// Whether interfaces may come and go.
    pub(crate) fn may_move_enis(&self) -> bool {
        !self.pool.unschedulable || self.pool.settings.manage_unschedulable
    }

    pub(crate) fn mode(&self) -> Mode {
        self.pool.settings.mode
    }

    pub(crate) fn eni_limit(&self) -> bool {
        self.pool
            .eni_limit_until
            .is_some_and(|until| self.now < until)
    }

    /// Interfaces that take one of the instance's places now.
    fn attached(&self) -> u32 {
        let enis = self.pool.enis.values();
        let ours = enis.filter(|eni| {
            let attaching = eni.stage == Stage::Detached && eni.in_flight.is_some();
            eni.stage.place().is_some() || attaching
        });
        u32::try_from(ours.count() + self.pool.foreign.len()).unwrap_or(u32::MAX)
    }

    /// Interfaces that take a place, or want one, also those that are being made.
    pub(crate) fn managed(&self) -> u32 {
        let enis = self.pool.enis.values();
        let ours = enis.filter(|eni| eni.stage != Stage::Discarded).count();
        let all = ours + self.pool.foreign.len() + self.pool.creating.len();
        u32::try_from(all).unwrap_or(u32::MAX)
    }
}
