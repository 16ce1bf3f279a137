//! Why there is no address: the sentence that ends up in the pod's events.

use std::fmt;
use std::time::Duration;

use crate::action::Action;
use crate::ids::{SubnetId, Timestamp};
use crate::limits::Limits;
use crate::plan::{Targets, managed, plan, shortage};
use crate::pool::{Pool, Stage};

/// Why no address is free, and when that may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// More are on the way.
    Refilling {
        /// What is being done.
        doing: String,
        /// Why the last try brought nothing, in the cloud's words.
        after: Option<String>,
    },
    /// Nothing can be added; some rest after their pods.
    Cooling {
        /// How many rest.
        addresses: u32,
        /// When the first is free.
        retry_in: Duration,
    },
    /// Every address that the instance can have is a pod's.
    LimitReached {
        /// Interfaces at most.
        enis: u32,
        /// Pod addresses on each.
        addresses_per_eni: u32,
    },
    /// The subnet has none.
    SubnetExhausted {
        /// The subnet.
        subnet: SubnetId,
        /// When it is asked again.
        retry_in: Duration,
    },
    /// EC2 wants fewer calls.
    Throttled {
        /// When it is asked again.
        retry_in: Duration,
    },
    /// EC2 says that the instance takes no more interfaces.
    NoRoomForEni {
        /// When it is asked again.
        retry_in: Duration,
    },
    /// The last try failed.
    Failing {
        /// In the cloud's words.
        words: String,
        /// When it is tried again.
        retry_in: Duration,
    },
    /// As many addresses as pods are allowed.
    MaxPods {
        /// Pods at most.
        pods: u32,
    },
}

impl Cause {
    /// When it may pass: at once for what is under way, never for a limit.
    pub fn may_pass_in(&self) -> Option<Duration> {
        match self {
            Cause::Refilling { .. } => Some(Duration::ZERO),
            Cause::Cooling { retry_in, .. }
            | Cause::SubnetExhausted { retry_in, .. }
            | Cause::Throttled { retry_in }
            | Cause::NoRoomForEni { retry_in }
            | Cause::Failing { retry_in, .. } => Some(*retry_in),
            Cause::LimitReached { .. } | Cause::MaxPods { .. } => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |d: &Duration| d.as_millis().div_ceil(1000);
        match self {
            Cause::Refilling { doing, after: None } => {
                write!(f, "the pool is being refilled: {doing}")
            }
            Cause::Refilling {
                doing,
                after: Some(words),
            } => write!(
                f,
                "the pool is being refilled: {doing} (the last try: {words})"
            ),
            Cause::Cooling {
                addresses,
                retry_in,
            } => write!(
                f,
                "every other address is in use and {addresses} rest after their pods, the first for {} s more",
                seconds(retry_in)
            ),
            Cause::LimitReached {
                enis,
                addresses_per_eni,
            } => write!(
                f,
                "every address is in use: {enis} interfaces with {addresses_per_eni} pod addresses each are the limit"
            ),
            Cause::SubnetExhausted { subnet, retry_in } => write!(
                f,
                "subnet {subnet} has no free addresses, next try in {} s",
                seconds(retry_in)
            ),
            Cause::Throttled { retry_in } => write!(
                f,
                "EC2 throttles our calls, next try in {} s",
                seconds(retry_in)
            ),
            Cause::NoRoomForEni { retry_in } => write!(
                f,
                "EC2 says that the instance takes no more interfaces, next try in {} s",
                seconds(retry_in)
            ),
            Cause::Failing { words, retry_in } => {
                write!(f, "{words}, next try in {} s", seconds(retry_in))
            }
            Cause::MaxPods { pods } => write!(
                f,
                "every address is in use and the node is at its {pods} pods"
            ),
        }
    }
}

/// Why [`Pool::assign`] found nothing.
pub fn why_empty(pool: &Pool, targets: &Targets, limits: &Limits, now: Timestamp) -> Cause {
    if let Some(doing) = under_way(pool, targets, limits, now) {
        return Cause::Refilling {
            doing,
            after: pool.last_failure.clone(),
        };
    }
    if pool.throttle.pausing(now) {
        return Cause::Throttled {
            retry_in: pool.throttle.left(now),
        };
    }
    if let Some(retry_in) = failing_pause(pool, now) {
        return Cause::Failing {
            words: pool
                .last_failure
                .clone()
                .unwrap_or_else(|| "the cloud refused".into()),
            retry_in,
        };
    }
    let exhausted = pool.rooms.iter().find_map(|(subnet, room)| {
        let until = room.paused_until.filter(|until| now < *until)?;
        Some((subnet.clone(), until.since(now)))
    });
    let at_limit = managed(pool) >= targets.enis(limits)
        && pool.enis().all(|e| {
            let held = u32::try_from(e.slots().count()).unwrap_or(u32::MAX);
            held >= limits.pod_addresses_per_eni()
        });
    if let Some((subnet, retry_in)) = exhausted.filter(|_| !at_limit) {
        return Cause::SubnetExhausted { subnet, retry_in };
    }
    if let Some(until) = pool.eni_limit_until.filter(|until| now < *until) {
        return Cause::NoRoomForEni {
            retry_in: until.since(now),
        };
    }
    if let Some(next) = pool.next_cooled(now) {
        return Cause::Cooling {
            addresses: pool.stats(now).cooling,
            retry_in: next.since(now),
        };
    }
    match targets.max_pods {
        Some(pods) if !at_limit && shortage(pool, targets, limits, now) == 0 => {
            Cause::MaxPods { pods }
        }
        Some(_) | None => Cause::LimitReached {
            enis: targets.enis(limits),
            addresses_per_eni: limits.pod_addresses_per_eni(),
        },
    }
}

/// What is on its way to bring addresses, or would be with the next plan.
fn under_way(pool: &Pool, targets: &Targets, limits: &Limits, now: Timestamp) -> Option<String> {
    if pool.creating.as_ref().is_some_and(|c| c.in_flight) {
        return Some("an interface is being created".into());
    }
    for eni in pool.enis() {
        let resting = eni.retry.pausing(now);
        match &eni.stage {
            Stage::Detached if !resting => return Some(format!("{} is being attached", eni.id())),
            Stage::Attached(_) | Stage::Kept(_) if !resting => {
                return Some(format!("{} is being set up", eni.id()));
            }
            Stage::Ready(_) if eni.in_flight.is_some_and(|count| count > 0) => {
                return Some(format!("addresses are being assigned to {}", eni.id()));
            }
            Stage::Ready(_) if eni.unsure && !resting => {
                return Some(format!("{} is being looked up", eni.id()));
            }
            Stage::Detached
            | Stage::Attached(_)
            | Stage::Kept(_)
            | Stage::Ready(_)
            | Stage::Leaving(_)
            | Stage::Down(_)
            | Stage::Discarded => {}
        }
    }
    plan(pool, targets, limits, now)
        .into_iter()
        .find(|action| match action {
            Action::Create(_) | Action::Assign { .. } => true,
            Action::Attach { .. }
            | Action::Keep { .. }
            | Action::SetUp { .. }
            | Action::Describe { .. }
            | Action::Unassign { .. }
            | Action::TearDown { .. }
            | Action::Detach { .. }
            | Action::Delete { .. } => false,
        })
        .map(|action| action.to_string())
}

/// The shortest pause of anything that would bring addresses.
fn failing_pause(pool: &Pool, now: Timestamp) -> Option<Duration> {
    let growth = pool.growth.pausing(now).then(|| pool.growth.left(now));
    pool.enis()
        .filter(|e| e.stage.is_coming_or_ready() && e.retry.pausing(now))
        .map(|e| e.retry.left(now))
        .chain(growth)
        .min()
}
