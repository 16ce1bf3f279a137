//! AWS's algorithm restated, from notes on `amazon-vpc-cni-k8s` at v1.23 whose sections the rules cite:
//!
//! | section | rule | here |
//! |---|---|---|
//! | §4.1 | constants: loop, gaps, lifetimes, tries | below |
//! | §4.2 | data store: spread, cooldown counted as available | [`store`] |
//! | §4.4 | start: describe, tag, one increase, serve | `Phase::Starting` |
//! | §4.5 | warm-pool arithmetic | [`warm`] |
//! | §4.6 | calls of an increase and of a removal, retryer | `aws/steps.rs` |
//! | §4.10 | reconcile against instance metadata | `aws/reconcile.rs` |
//! | §4.12 | errors with special handling | `aws/steps.rs` |
//!
//! One thing at a time: the loop waits for each call, and for an interface to appear. Where the source leaves room,
//! the reading is the one that calls EC2 less and waits less (README.md has the list).

use std::collections::BTreeSet;
use std::time::Duration;

use fastrand::Rng;
use ipnet::Ipv4Net;
use selvage_ipamd_core::ids::{EniId, Timestamp};
use selvage_ipamd_core::limits::Mode;

use super::{Agent, Io};
use crate::ec2::{Ask, Refusal, View};
use crate::machine::{Machine, NodeId, PodId};

mod reconcile;
mod steps;
pub mod store;
#[cfg(test)]
mod tests;
pub mod warm;

use steps::{Answer, Step};
use store::Store;
use warm::Targets;

/// Half of the pool manager's round: sleep, update, sleep, reconcile if due (§4.1).
const HALF_ROUND: Duration = Duration::from_millis(2500);
/// Reconcile when the last pool action is so long ago (§4.1).
const RECONCILE: Duration = Duration::from_secs(60);
/// Between two decreases (§4.1).
const DECREASE_GAP: Duration = Duration::from_secs(30);
/// No increase after the subnet had not enough, wherever (§4.1).
const EXHAUSTED: Duration = Duration::from_secs(120);
/// The job that looks for leaked interfaces (§4.1); each node runs it.
const LEAKED: Duration = Duration::from_secs(3600);
/// Reading instance metadata, and what the host needs for an interface. The same as for our agent.
const METADATA: Duration = Duration::from_millis(30);
const HOST: Duration = Duration::from_millis(20);
/// A container that failed is started again after this, doubled each time up to [`CRASH_LONGEST`] (the kubelet's
/// CrashLoopBackOff).
const CRASH_FIRST: Duration = Duration::from_secs(10);
const CRASH_LONGEST: Duration = Duration::from_secs(300);

/// What the agent waits for.
pub enum Event {
    /// The process begins.
    Begin,
    /// A call to be made: which, and the how-many-eth attempt of the SDK's it is.
    Call(Step, u32),
    /// A reply.
    Reply(Step, u32, Result<Answer, Refusal>),
    /// The first sleep of a round is over.
    Update,
    /// The second one is.
    Reconcile,
    /// An interface is looked for in instance metadata; the how-many-eth time.
    Look(View, Vec<Ipv4Net>, u32),
    /// The hourly job is due.
    Leaked,
}

/// What the loop is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before it serves: the start, with one increase.
    Starting,
    /// Increase or decrease.
    Updating,
    /// Giving an interface back.
    Freeing,
    /// Comparing with instance metadata.
    Reconciling,
}

/// One node's `ipamd`.
pub struct Aws {
    targets: Targets,
    machine: Machine,
    rng: Rng,
    store: Store,
    phase: Phase,
    crashes: u32,
    tagged: bool,
    unschedulable: bool,
    last_action: Timestamp,
    last_decrease: Timestamp,
    exhausted: Option<Timestamp>,
    /// Interfaces that differ and are still to be verified.
    doubtful: Vec<EniId>,
    /// CIDRs still to be given back.
    giving_back: Vec<(EniId, Vec<Ipv4Net>)>,
}

impl Agent for Aws {
    type Setup = Targets;
    type Event = Event;
    const NAME: &'static str = "aws";
    const PROMISES: bool = false;

    fn new(setup: &Targets, _: NodeId, machine: Machine, seed: u64) -> Self {
        Self {
            targets: setup.clone(),
            machine,
            rng: Rng::with_seed(seed),
            store: Store::default(),
            phase: Phase::Starting,
            crashes: 0,
            tagged: false,
            unschedulable: false,
            last_action: Timestamp::default(),
            last_decrease: Timestamp::default(),
            exhausted: None,
            doubtful: Vec::new(),
            giving_back: Vec::new(),
        }
    }

    fn start(&mut self, io: &mut Io<'_, Event>) {
        io.wake(io.now + METADATA, Event::Begin);
    }

    fn wake(&mut self, event: Event, io: &mut Io<'_, Event>) {
        match event {
            Event::Begin => self.call(Step::DescribeAll, io),
            Event::Call(step, attempt) => self.attempt(step, attempt, io),
            Event::Reply(step, attempt, result) => self.reply(step, attempt, result, io),
            Event::Update => self.update(io),
            Event::Reconcile => self.reconcile(io),
            Event::Look(view, wanted, tries) => self.look(&view, wanted, tries, io),
            Event::Leaked => {
                // In a goroutine of its own; what it finds is not this node's.
                let (_, found) = io.ec2.describe_loose(io.node, io.now);
                drop(found);
                io.wake(io.now + LEAKED, Event::Leaked);
            }
        }
    }

    fn add(&mut self, pod: PodId, io: &mut Io<'_, Event>) {
        match self.store.assign(pod, &mut self.rng, io.now) {
            Some(address) => io.grant(pod, address),
            None => io.refuse(pod),
        }
    }

    fn del(&mut self, pod: PodId, io: &mut Io<'_, Event>) {
        self.store.release(pod, io.now);
    }

    fn cordon(&mut self, _: &mut Io<'_, Event>) {
        self.unschedulable = true;
    }

    fn free(&self, now: Timestamp) -> u32 {
        self.store.ready(now)
    }

    fn holds(&self) -> BTreeSet<Ipv4Net> {
        self.store
            .enis()
            .iter()
            .flat_map(|eni| eni.cidrs())
            .collect()
    }
}

impl Aws {
    /// Places for pods on an interface; addresses that these places can hold are sixteen times as many with prefixes.
    fn places(&self) -> u32 {
        self.machine.limits.places_per_eni()
    }

    fn mode(&self) -> Mode {
        match self.targets.prefixes {
            true => Mode::Prefixes,
            false => Mode::Addresses,
        }
    }

    fn per_eni(&self) -> u32 {
        match self.targets.prefixes {
            true => self.places() * warm::PREFIX,
            false => self.places(),
        }
    }

    /// One round's first half: at most one increase or decrease, then perhaps an interface given back.
    fn update(&mut self, io: &mut Io<'_, Event>) {
        if self.unschedulable {
            // No change while the node is tainted so (§4.5).
            self.phase = Phase::Freeing;
            return self.go_on(io);
        }
        self.phase = Phase::Updating;
        let stats = self.store.stats();
        let max_pods = self.machine.limits.max_pods(self.mode(), false);
        if self.targets.is_low(&stats, self.per_eni(), max_pods) {
            self.increase(io);
        } else if self.targets.is_high(&stats) {
            self.decrease(io);
        } else {
            self.go_on(io);
        }
    }

    /// Fills one interface that has room, else makes one. Ends with [`Aws::go_on`].
    fn increase(&mut self, io: &mut Io<'_, Event>) {
        let resting = |since: Timestamp| io.now.since(since) < EXHAUSTED;
        if self.exhausted.is_some_and(resting) {
            return self.go_on(io);
        }
        let places = self.places();
        let room = |eni: &&store::StoreEni| eni.places() < places;
        match self.store.enis().iter().find(room) {
            Some(eni) => {
                let room = places - eni.places();
                let step = Step::Fill {
                    eni: eni.id.clone(),
                    ask: self.ask(room),
                    last: false,
                };
                self.call(step, io);
            }
            None if self.has_room_for_eni() => self.call(Step::Subnets, io),
            None => self.go_on(io),
        }
    }

    fn has_room_for_eni(&self) -> bool {
        let enis = u32::try_from(self.store.enis().len()).unwrap_or(u32::MAX);
        enis < self.machine.limits.enis()
    }

    /// All places in interface mode, only what is short with address targets; prefixes: at least one.
    fn ask(&self, places: u32) -> Ask {
        let stats = self.store.stats();
        if self.targets.prefixes {
            return Ask::Prefixes(self.targets.short_prefixes(&stats).min(places));
        }
        match self.targets.by_addresses() {
            true => Ask::Addresses(self.targets.short(&stats).clamp(1, places)),
            false => Ask::Addresses(places),
        }
    }

    fn decrease(&mut self, io: &mut Io<'_, Event>) {
        if io.now.since(self.last_decrease) <= DECREASE_GAP {
            return self.go_on(io);
        }
        self.last_decrease = io.now;
        let stats = self.store.stats();
        let over = match self.targets.prefixes {
            true => self.targets.over_prefixes(&stats),
            false => self.targets.over(&stats),
        };
        self.giving_back = self.store.surplus(over);
        self.give_back(io);
    }

    /// One call an interface.
    fn give_back(&mut self, io: &mut Io<'_, Event>) {
        match self.giving_back.pop() {
            Some((eni, cidrs)) => {
                self.store.remove_cidrs(&eni, &cidrs);
                self.call(Step::Unassign { eni, cidrs }, io);
            }
            None => self.go_on(io),
        }
    }

    /// What comes after what has just ended.
    fn go_on(&mut self, io: &mut Io<'_, Event>) {
        match self.phase {
            Phase::Starting => {
                io.ready();
                io.wake(io.now + LEAKED, Event::Leaked);
                io.wake(io.now + HALF_ROUND, Event::Update);
            }
            Phase::Updating => {
                self.phase = Phase::Freeing;
                self.free_eni(io);
            }
            Phase::Freeing => io.wake(io.now + HALF_ROUND, Event::Reconcile),
            Phase::Reconciling => io.wake(io.now + HALF_ROUND, Event::Update),
        }
    }

    fn free_eni(&mut self, io: &mut Io<'_, Event>) {
        let stats = self.store.stats();
        let free_eni = self.store.has_free_eni();
        let tries = self.targets.tries_to_free(&stats, self.per_eni(), free_eni);
        let removable = || self.store.removable(&self.targets, io.now);
        match tries.then(removable).flatten() {
            Some(eni) => {
                // The store forgets it before EC2 is called.
                self.store.remove(&eni);
                self.last_action = io.now;
                self.call(Step::FindAttachment(eni), io);
            }
            None => self.go_on(io),
        }
    }

    fn crash(&mut self, io: &mut Io<'_, Event>) {
        let pause = CRASH_FIRST.saturating_mul(1 << self.crashes.min(10));
        self.crashes += 1;
        self.store = Store::default();
        io.wake(io.now + pause.min(CRASH_LONGEST), Event::Begin);
    }
}
