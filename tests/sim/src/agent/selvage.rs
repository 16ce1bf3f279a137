//! Our agent: `ipamd/core` as it is shipped, driven as the daemon drives it (`ipamd/src/daemon`).
//!
//! What the daemon adds to the core is repeated here, and only that: the start from EC2's description, a plan after
//! each message, the survey of instance metadata each minute, ADDs that wait for a pool in refill.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use ipnet::Ipv4Net;
use selvage_ipamd_core::action::{Action, Outcome};
use selvage_ipamd_core::bucket::Bucket;
use selvage_ipamd_core::cause::why_empty;
use selvage_ipamd_core::cloud::{Budget, CreateEni, EniFacts, Operation, is_as_made, is_untouched};
use selvage_ipamd_core::ids::{EniId, PodKey, PodName, Timestamp};
use selvage_ipamd_core::limits::Mode;
use selvage_ipamd_core::plan::{Targets, plan};
use selvage_ipamd_core::pool::Pool;
use selvage_ipamd_core::retry::{Jitter, Retry};

use super::{Agent, Io};
use crate::ec2::{Reply, View};
use crate::machine::{Machine, NodeId, PodId};
use crate::world::COOLDOWN;

mod convert;

/// The daemon's constants of the same names.
const SURVEY: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const ADD_WAIT: Duration = Duration::from_secs(5);
const LINK_WAIT: Duration = Duration::from_secs(15);
const LINK_LOOK: Duration = Duration::from_millis(250);
/// Reading instance metadata, and what the host needs for an interface. Unverified; both are small.
const METADATA: Duration = Duration::from_millis(30);
const HOST: Duration = Duration::from_millis(20);

/// The daemon looks at its pauses each second. Here it does so while pods wait, ...
const TICK: Duration = Duration::from_secs(1);
/// ... more seldom while something has happened lately, ...
const LAZY_TICK: Duration = Duration::from_secs(3);
/// ... and more seldom yet when every pause that the core knows (two minutes, and a quarter) is over.
const QUIET_TICK: Duration = Duration::from_secs(15);
const LATELY: Duration = Duration::from_secs(160);

/// Our agent's settings.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// The pool's targets; `max_pods` is set by each node.
    pub targets: Targets,
    /// What pods get their addresses from.
    pub mode: Mode,
}

/// What our agent waits for.
pub enum Event {
    /// Instance metadata has been read, or a pause of the start is over.
    Begin,
    /// The first description; `None`: refused.
    First(Option<Vec<View>>),
    /// An action's outcome.
    Done(Box<Outcome>),
    /// Instance metadata's list.
    Seen(Vec<View>),
    /// A later description; `None`: refused.
    Described(Option<Vec<View>>),
    /// The clock.
    Tick,
}

/// One node's daemon.
pub struct Selvage {
    node: NodeId,
    targets: Targets,
    mode: Mode,
    machine: Machine,
    seed: u64,
    /// The pool's, before there is a pool.
    bucket: Bucket,
    /// `None` until EC2 has described the node's interfaces.
    pool: Option<Pool>,
    starting: (Retry, Jitter),
    /// EC2 has described the interfaces since the start.
    described: bool,
    waiting: VecDeque<(PodId, Timestamp)>,
    ready: bool,
    survey: Timestamp,
    surveying: bool,
    tick: Option<Timestamp>,
    /// When to ask again how many nodes start.
    crowd: Option<Timestamp>,
    busy: Timestamp,
}

impl Agent for Selvage {
    type Setup = Setup;
    type Event = Event;
    const NAME: &'static str = "selvage";
    const PROMISES: bool = true;

    fn new(setup: &Setup, node: NodeId, machine: Machine, seed: u64) -> Self {
        let mut targets = setup.targets.clone();
        targets
            .max_pods
            .get_or_insert(machine.limits.max_pods(setup.mode, false));
        Self {
            node,
            targets,
            mode: setup.mode,
            machine,
            seed,
            bucket: Bucket::new(seed),
            pool: None,
            starting: (Retry::default(), Jitter::new(seed)),
            described: false,
            waiting: VecDeque::new(),
            ready: false,
            survey: Timestamp::default(),
            surveying: false,
            tick: None,
            crowd: None,
            busy: Timestamp::default(),
        }
    }

    fn start(&mut self, io: &mut Io<'_, Event>) {
        io.wake(io.now + METADATA, Event::Begin);
    }

    fn wake(&mut self, event: Event, io: &mut Io<'_, Event>) {
        match event {
            Event::Begin => {
                self.bucket.share(io.starting, io.now);
                let pause = self.bucket.ready_in(Budget::Read, io.now);
                if pause > Duration::ZERO {
                    let look = self.bucket.look_in(io.now).unwrap_or(pause);
                    io.wake(io.now + pause.min(look), Event::Begin);
                    return;
                }
                // No daemon has run here before.
                let views = io.ec2.seen(io.node, io.now);
                let seen: Vec<_> = views.iter().map(|v| convert::seen(v, io.ec2)).collect();
                if seen.first().is_some_and(|eni| is_as_made(&seen, &eni.id)) {
                    io.wake(io.now + METADATA, Event::First(Some(views)));
                    return;
                }
                self.bucket.take(Budget::Read, io.now);
                self.described = true;
                let (at, views) = describe(true, io);
                io.wake(at, Event::First(views.ok()));
                return;
            }
            Event::First(None) => {
                let (retry, jitter) = &mut self.starting;
                retry.fail(FIRST_PAUSE, jitter, io.now);
                io.wake(io.now + retry.left(io.now), Event::Begin);
                return;
            }
            Event::First(Some(views)) => self.begin(&views, io),
            Event::Done(outcome) => {
                self.busy = io.now;
                if let Some(pool) = &mut self.pool {
                    pool.apply(*outcome, io.now);
                }
            }
            Event::Seen(views) => self.take_seen(&views, io),
            Event::Described(views) => {
                self.survey_over(io.now);
                if let (Some(pool), Some(views)) = (&mut self.pool, views) {
                    let facts: Vec<_> = views.iter().map(|v| convert::facts(v, io.ec2)).collect();
                    pool.reconcile(&facts, io.now);
                }
            }
            Event::Tick if self.tick == Some(io.now) => {
                self.tick = None;
                self.look_around(io);
            }
            // One that a sooner one has replaced.
            Event::Tick => return,
        }
        self.advance(io);
    }

    fn add(&mut self, pod: PodId, io: &mut Io<'_, Event>) {
        self.busy = io.now;
        let Some(pool) = &mut self.pool else {
            io.refuse(pod);
            return;
        };
        // Whoever came first is served first.
        if self.waiting.is_empty()
            && let Ok(given) = pool.assign(&key(pod), &PodName::default(), io.now)
        {
            io.grant(pod, convert::v4(given.lease.address));
        } else {
            let cause = why_empty(pool, &self.targets, &self.machine.limits, io.now);
            if cause.may_pass_in().is_some_and(|pause| pause < ADD_WAIT) {
                self.waiting.push_back((pod, io.now + ADD_WAIT));
            } else {
                io.refuse(pod);
            }
        }
        self.advance(io);
    }

    fn del(&mut self, pod: PodId, io: &mut Io<'_, Event>) {
        self.busy = io.now;
        self.waiting.retain(|(waiter, _)| *waiter != pod);
        if let Some(pool) = &mut self.pool {
            pool.release(&key(pod), io.now);
        }
        self.advance(io);
    }

    fn cordon(&mut self, io: &mut Io<'_, Event>) {
        if let Some(pool) = &mut self.pool {
            pool.set_unschedulable(true);
        }
        self.advance(io);
    }

    fn free(&self, now: Timestamp) -> u32 {
        self.pool.as_ref().map_or(0, |p| p.stats(now).available)
    }

    fn holds(&self) -> BTreeSet<Ipv4Net> {
        let enis = self.pool.iter().flat_map(Pool::enis);
        enis.flat_map(convert::held).collect()
    }
}

impl Selvage {
    fn begin(&mut self, views: &[View], io: &mut Io<'_, Event>) {
        let Some(instance) = convert::instance(views, io.node, io.ec2) else {
            io.wake(io.now + FIRST_PAUSE, Event::Begin);
            return;
        };
        let settings = convert::settings(self.mode, COOLDOWN, self.seed);
        let mut pool = Pool::new(&instance, settings);
        let facts: Vec<_> = views.iter().map(|v| convert::facts(v, io.ec2)).collect();
        pool.reconcile(&facts, io.now);
        *pool.bucket_mut() = self.bucket.clone();
        self.crowd = pool.bucket().look_in(io.now).map(|pause| io.now + pause);
        self.pool = Some(pool);
        self.busy = io.now;
        self.survey = io.now + SURVEY;
    }

    /// Everything that follows from the present state.
    fn advance(&mut self, io: &mut Io<'_, Event>) {
        let Some(pool) = &mut self.pool else {
            return;
        };
        if pool.take_survey_wanted() && !self.surveying {
            self.surveying = true;
            self.described = true;
            let (at, views) = describe(false, io);
            io.wake(at, Event::Described(views.ok()));
        }
        let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        for action in plan(pool, &self.targets, &self.machine.limits, waiting, io.now) {
            pool.begin(&action, io.now);
            self.busy = io.now;
            let (at, outcome) = match action {
                Action::Create(request) => create(request, &mut self.described, io),
                action => carry_out(action, self.node, io),
            };
            io.wake(at, Event::Done(Box::new(outcome)));
        }
        self.serve_waiting(io);
        if !self.ready && self.pool.as_ref().is_some_and(Pool::can_serve) {
            self.ready = true;
            io.ready();
        }
        let pause = if !self.waiting.is_empty() {
            TICK
        } else if io.now.since(self.busy) < LATELY {
            LAZY_TICK
        } else {
            QUIET_TICK
        };
        if self.tick.is_none_or(|at| io.now + pause < at) {
            self.tick = Some(io.now + pause);
            io.wake(io.now + pause, Event::Tick);
        }
    }

    fn serve_waiting(&mut self, io: &mut Io<'_, Event>) {
        let Some(pool) = &mut self.pool else {
            return;
        };
        for (pod, until) in std::mem::take(&mut self.waiting) {
            match pool.assign(&key(pod), &PodName::default(), io.now) {
                Ok(given) => io.grant(pod, convert::v4(given.lease.address)),
                Err(_) if until <= io.now => io.refuse(pod),
                Err(_) => self.waiting.push_back((pod, until)),
            }
        }
    }

    fn look_around(&mut self, io: &mut Io<'_, Event>) {
        if let Some(pool) = &mut self.pool
            && self.crowd.is_some_and(|due| due <= io.now)
        {
            let bucket = pool.bucket_mut();
            bucket.share(io.starting, io.now);
            self.crowd = bucket.look_in(io.now).map(|pause| io.now + pause);
        }
        if self.survey <= io.now && !self.surveying {
            self.surveying = true;
            let views = io.ec2.seen(io.node, io.now);
            io.wake(io.now + METADATA, Event::Seen(views));
        }
    }

    fn take_seen(&mut self, views: &[View], io: &mut Io<'_, Event>) {
        let Some(pool) = &mut self.pool else {
            return;
        };
        let seen: Vec<_> = views.iter().map(|v| convert::seen(v, io.ec2)).collect();
        if pool.differs(&seen, io.now) {
            self.described = true;
            let (at, views) = describe(false, io);
            io.wake(at, Event::Described(views.ok()));
        } else {
            self.survey_over(io.now);
        }
    }

    fn survey_over(&mut self, now: Timestamp) {
        self.surveying = false;
        self.survey = now + SURVEY;
    }
}

/// What the daemon asks: what is attached; and what was made and is not, unless nobody can have made anything.
fn describe(first: bool, io: &mut Io<'_, Event>) -> Reply<Vec<View>> {
    let (at, attached) = io.ec2.describe_attached(io.node, io.now);
    let attached = match attached {
        Ok(views) => views,
        Err(refusal) => return (at, Err(refusal)),
    };
    let facts = attached.iter().map(|view| convert::facts(view, io.ec2));
    if first && is_untouched(&facts.collect::<Vec<EniFacts>>()) {
        return (at, Ok(attached));
    }
    let (at, loose) = io.ec2.describe_loose(io.node, at);
    let all = loose.map(|loose| {
        let known: Vec<EniId> = attached.iter().map(|view| view.id.clone()).collect();
        let more = loose.into_iter().filter(|view| !known.contains(&view.id));
        attached.into_iter().chain(more).collect()
    });
    (at, all)
}

/// What the daemon does: on a new instance the interfaces are described first.
fn create(
    request: CreateEni,
    described: &mut bool,
    io: &mut Io<'_, Event>,
) -> (Timestamp, Outcome) {
    let mut now = io.now;
    if !*described {
        let (at, views) = io.ec2.describe_attached(io.node, now);
        if let Err(refusal) = views {
            let error = convert::error(Operation::DescribeEnis, refusal);
            return (at, Outcome::Created(request.token, Err(error)));
        }
        *described = true;
        now = at;
    }
    convert::call(Action::Create(request), io.node, io.ec2, now)
}

fn carry_out(action: Action, node: NodeId, io: &mut Io<'_, Event>) -> (Timestamp, Outcome) {
    let now = io.now;
    match action {
        Action::SetUp { eni } => {
            let there = io.ec2.there(&eni).unwrap_or(now);
            let looks = there.since(now).as_millis().div_ceil(LINK_LOOK.as_millis());
            let wait = LINK_LOOK * u32::try_from(looks).unwrap_or(u32::MAX);
            if wait > LINK_WAIT {
                return (now + LINK_WAIT, Outcome::SetUp(eni, Err("no link".into())));
            }
            (now + wait + HOST, Outcome::SetUp(eni, Ok(())))
        }
        Action::TearDown { eni } => (now + HOST, Outcome::TornDown(eni, Ok(()))),
        Action::Create(_)
        | Action::Attach { .. }
        | Action::Keep { .. }
        | Action::Describe { .. }
        | Action::Assign { .. }
        | Action::Unassign { .. }
        | Action::Tag { .. }
        | Action::Regroup { .. }
        | Action::DescribeSubnets
        | Action::Detach { .. }
        | Action::Delete { .. } => convert::call(action, node, io.ec2, now),
    }
}

fn key(pod: PodId) -> PodKey {
    PodKey {
        network_name: "aws-cni".into(),
        container_id: format!("{:08x}", pod.0),
        if_name: "eth0".into(),
    }
}
