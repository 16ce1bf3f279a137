//! Why there is no address: the sentence that ends up in the pod's events.

use std::fmt;
use std::time::Duration;

use crate::action::Action;
use crate::cloud::Budget;
use crate::ids::{SubnetId, Timestamp};
use crate::limits::{Limits, Mode};
use crate::plan::{Sizes, Targets, View};
use crate::pool::{
    Block, Eni, InFlight, Kind, NoSite, Pool, Provisioning, READS_MAY_LAG, Stage, sum,
};

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
    /// Nothing can be added; some were shown on our interfaces and no longer are.
    Missing {
        /// How many.
        addresses: u32,
        /// When the first are given up, if they are not shown again.
        retry_in: Duration,
    },
    /// Every address that the instance can have is a pod's.
    LimitReached {
        /// Interfaces that serve pods at most.
        enis: u32,
        /// Pod addresses on each.
        addresses_per_eni: u32,
    },
    /// The subnets have none.
    SubnetExhausted {
        /// The subnets.
        subnets: Vec<SubnetId>,
        /// When the first is asked again.
        retry_in: Duration,
    },
    /// The subnets have no free `/28`, and what they have of single addresses did not help.
    PrefixesExhausted {
        /// The subnets.
        subnets: Vec<SubnetId>,
        /// When the first is asked again.
        retry_in: Duration,
    },
    /// Custom networking, and nobody says where interfaces are to be made.
    NoEniConfig {
        /// What is missing and where to look.
        words: String,
    },
    /// The ENIConfig's subnet is not in the node's zone.
    EniConfigElsewhere {
        /// Name of the ENIConfig.
        name: String,
        /// The subnet that it names.
        subnet: SubnetId,
    },
    /// Tags keep pods out of every subnet.
    SubnetsExcluded,
    /// Our own limit on calls to EC2.
    Paced {
        /// When the next call may be made.
        retry_in: Duration,
    },
    /// The node takes no new pods, so its interfaces stay as they are.
    Unschedulable,
    /// Settings forbid to ask EC2 for more.
    NotProvisioned {
        /// The setting.
        setting: &'static str,
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
            | Cause::Missing { retry_in, .. }
            | Cause::SubnetExhausted { retry_in, .. }
            | Cause::PrefixesExhausted { retry_in, .. }
            | Cause::Throttled { retry_in }
            | Cause::Paced { retry_in }
            | Cause::NoRoomForEni { retry_in }
            | Cause::Failing { retry_in, .. } => Some(*retry_in),
            Cause::LimitReached { .. }
            | Cause::MaxPods { .. }
            | Cause::NoEniConfig { .. }
            | Cause::EniConfigElsewhere { .. }
            | Cause::SubnetsExcluded
            | Cause::Unschedulable
            | Cause::NotProvisioned { .. } => None,
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
            Cause::Missing {
                addresses,
                retry_in,
            } => write!(
                f,
                "every other address is in use, and EC2 no longer shows {addresses} of this node's: somebody has taken \
                 them away, or it is a moment late; they are replaced in {} s at most",
                seconds(retry_in)
            ),
            Cause::LimitReached {
                enis,
                addresses_per_eni,
            } => write!(
                f,
                "every address is in use: {enis} interfaces with {addresses_per_eni} pod addresses each are the limit"
            ),
            Cause::SubnetExhausted { subnets, retry_in } => write!(
                f,
                "subnet {} has no free addresses, next try in {} s",
                list(subnets),
                seconds(retry_in)
            ),
            Cause::PrefixesExhausted { subnets, retry_in } => write!(
                f,
                "subnet {} has no free /28 prefix (a fragmented subnet needs a CIDR reservation of type prefix), next \
                 try in {} s",
                list(subnets),
                seconds(retry_in)
            ),
            Cause::NoEniConfig { words } => write!(
                f,
                "custom networking is on and this node has no ENIConfig: {words}"
            ),
            Cause::EniConfigElsewhere { name, subnet } => write!(
                f,
                "ENIConfig {name} names subnet {subnet}, which is not a subnet of this node's VPC and availability zone"
            ),
            Cause::SubnetsExcluded => f.write_str(
                "every subnet of this node's availability zone is kept from pods by its tags \
                 (kubernetes.io/role/cni, cni.networking.k8s.aws/cluster/…)",
            ),
            Cause::Paced { retry_in } => write!(
                f,
                "this node has made as many calls to EC2 as it may for now, the next in {} s",
                seconds(retry_in)
            ),
            Cause::Unschedulable => f.write_str(
                "every address is in use and the node is unschedulable, so that its interfaces stay as they are \
                 (AWS_MANAGE_ENIS_NON_SCHEDULABLE)",
            ),
            Cause::NotProvisioned { setting } => write!(
                f,
                "every address of the attached interfaces is in use and {setting} is set, so that none are added"
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

fn list(subnets: &[SubnetId]) -> String {
    let names: Vec<&str> = subnets.iter().map(SubnetId::as_str).collect();
    names.join(", ")
}

/// Why [`Pool::assign`] found nothing.
pub fn why_empty(pool: &Pool, targets: &Targets, limits: &Limits, now: Timestamp) -> Cause {
    let view = View {
        pool,
        targets,
        limits,
        // Whoever asks why does so for a pod.
        waiting: 1,
        now,
    };
    let growing = view.wanted().into_iter().find(brings);
    let pace = growing.as_ref().and_then(|action| {
        let budget = action.operation()?.budget()?;
        (pool.bucket.available(budget, now) == 0).then_some(budget)
    });
    let planned = growing.filter(|_| pace.is_none());
    let doing = under_way(pool, now)
        .or(planned.map(|action| action.to_string()))
        .or_else(|| soon(&view));
    if let Some(doing) = doing {
        return Cause::Refilling {
            doing,
            after: pool.last_failure.clone(),
        };
    }
    if let Some(budget) = pace {
        return paced(pool, budget, now);
    }
    if let Some(setting) = forbidden(pool) {
        return cooling(pool, now).unwrap_or(Cause::NotProvisioned { setting });
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
    if !at_limit(&view) {
        if let Some(cause) = nowhere(&view) {
            return cause;
        }
        if !view.may_move_enis() {
            return cooling(pool, now).unwrap_or(Cause::Unschedulable);
        }
    }
    if let Some(until) = pool.eni_limit_until.filter(|until| now < *until) {
        return Cause::NoRoomForEni {
            retry_in: until.since(now),
        };
    }
    cooling(pool, now)
        .or_else(|| missing(pool, now))
        .unwrap_or_else(|| limit(&view))
}

/// An interface has room, and another call about it ends in a moment.
fn soon(view: &View<'_>) -> Option<String> {
    let provides = forbidden(view.pool).is_none() && Sizes::of(view).short(view) > 0;
    let eni = view.busy_with_room().filter(|_| provides)?;
    Some(format!("{} can take more in a moment", eni.id()))
}

fn missing(pool: &Pool, now: Timestamp) -> Option<Cause> {
    let blocks = || {
        let enis = pool.enis().filter(|eni| eni.stage.is_coming_or_ready());
        enis.flat_map(|eni| eni.blocks().map(move |block| (eni, block)))
            .filter(|(_, block)| block.is_missing())
    };
    let believed = |(eni, block): (&Eni, &Block)| block.acquired.max(eni.moved) + READS_MAY_LAG;
    let until = blocks().map(believed).min()?;
    let unused = |(_, block): (&Eni, &Block)| block.size().saturating_sub(block.assigned());
    Some(Cause::Missing {
        addresses: sum(blocks().map(unused)),
        retry_in: until.since(now),
    })
}

fn cooling(pool: &Pool, now: Timestamp) -> Option<Cause> {
    let next = pool.next_cooled(now)?;
    Some(Cause::Cooling {
        addresses: pool.stats(now).cooling,
        retry_in: next.since(now),
    })
}

fn limit(view: &View<'_>) -> Cause {
    let lacking = Sizes::of(view).short(view);
    match view.targets.max_pods {
        Some(pods) if !at_limit(view) && lacking == 0 => Cause::MaxPods { pods },
        Some(_) | None => Cause::LimitReached {
            enis: serving_enis(view),
            addresses_per_eni: view.limits.pod_addresses_per_eni(view.mode()),
        },
    }
}

fn serving_enis(view: &View<'_>) -> u32 {
    let custom = view.pool.settings.custom_networking;
    view.targets.enis(view.limits) - u32::from(custom)
}

/// What forbids to ask EC2 for more.
fn forbidden(pool: &Pool) -> Option<&'static str> {
    match pool.settings.provisioning {
        Provisioning::Full => None,
        Provisioning::AttachedOnly => Some("DISABLE_NETWORK_RESOURCE_PROVISIONING"),
        Provisioning::MetadataOnly => Some("ENABLE_IMDS_ONLY_MODE"),
    }
}

fn paced(pool: &Pool, budget: Budget, now: Timestamp) -> Cause {
    let retry_in = pool.bucket.ready_in(budget, now);
    if pool.bucket.is_slowed(budget) {
        Cause::Throttled { retry_in }
    } else {
        Cause::Paced { retry_in }
    }
}

/// Whether the instance has all the interfaces and each of them all the blocks that it can have.
fn at_limit(view: &View<'_>) -> bool {
    let serving = || view.pool.enis().filter(|eni| view.pool.serves(eni));
    view.managed() >= view.targets.enis(view.limits)
        && serving().next().is_some()
        && serving().all(|eni| eni.places_taken() >= view.limits.places_per_eni())
}

/// No subnet to ask, or none that has anything.
fn nowhere(view: &View<'_>) -> Option<Cause> {
    let View { pool, now, .. } = *view;
    match pool.sites(view.kind(), now) {
        Err(NoSite::NoEniConfig(words)) => return Some(Cause::NoEniConfig { words }),
        Err(NoSite::Elsewhere { name, subnet }) => {
            return Some(Cause::EniConfigElsewhere { name, subnet });
        }
        Err(NoSite::Excluded) => return Some(Cause::SubnetsExcluded),
        Err(NoSite::Unknown) | Ok(_) => {}
    }
    if let Some((words, until)) = pool.wrong_subnet(view.kind(), now) {
        return Some(Cause::Failing {
            words: words.to_owned(),
            retry_in: until.since(now),
        });
    }
    let resting = |kind: Kind| {
        let found = pool
            .resting_subnets(now)
            .filter(|(_, resting, _)| *resting == kind)
            .map(|(subnet, _, until)| (subnet.clone(), until.since(now)));
        let (subnets, pauses): (Vec<_>, Vec<_>) = found.unzip();
        Some((subnets, pauses.into_iter().min()?))
    };
    // Single addresses are the last resort: without them a pod has nothing.
    if let Some((subnets, retry_in)) = resting(Kind::Address) {
        return Some(Cause::SubnetExhausted { subnets, retry_in });
    }
    match view.mode() {
        Mode::Prefixes => {}
        Mode::Addresses | Mode::Ipv6 => return None,
    }
    let (subnets, retry_in) = resting(Kind::Prefix)?;
    Some(Cause::PrefixesExhausted { subnets, retry_in })
}

/// Whether an action leads to more addresses.
fn brings(action: &Action) -> bool {
    match action {
        Action::Create(_)
        | Action::Attach { .. }
        | Action::Keep { .. }
        | Action::SetUp { .. }
        | Action::Assign { .. }
        | Action::DescribeSubnets => true,
        Action::Describe { .. }
        | Action::Unassign { .. }
        | Action::Tag { .. }
        | Action::Regroup { .. }
        | Action::TearDown { .. }
        | Action::Detach { .. }
        | Action::Delete { .. } => false,
    }
}

/// What is on its way to bring addresses.
fn under_way(pool: &Pool, now: Timestamp) -> Option<String> {
    if pool.creating.values().any(|creating| creating.in_flight) {
        return Some("an interface is being created".into());
    }
    if pool.network.describing {
        return Some("the subnets are being looked up".into());
    }
    pool.enis().find_map(|eni| {
        let resting = eni.retry.pausing(now);
        let busy = eni.in_flight.is_some();
        match (&eni.stage, eni.in_flight) {
            (Stage::Detached, _) if busy => Some(format!("{} is being attached", eni.id())),
            (Stage::Attached(_) | Stage::Kept(_), _) if busy => {
                Some(format!("{} is being set up", eni.id()))
            }
            (Stage::Ready(_), Some(InFlight::Assign(want))) => {
                Some(format!("{want} are being assigned to {}", eni.id()))
            }
            (Stage::Ready(_), _) if eni.unsure && !resting => {
                Some(format!("{} is being looked up", eni.id()))
            }
            (
                Stage::Detached
                | Stage::Attached(_)
                | Stage::Kept(_)
                | Stage::Ready(_)
                | Stage::Leaving(_)
                | Stage::Down(_)
                | Stage::Discarded,
                _,
            ) => None,
        }
    })
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
