//! A run: one trace, one algorithm, one seed.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use fastrand::Rng;
use selvage_ipamd_core::ids::Timestamp;
use selvage_ipamd_core::sweep::find_leaked;

use crate::agent::{Agent, Effect, Io};
use crate::ec2::Ec2;
use crate::machine::{NodeId, PodId};
use crate::queue::Queue;
use crate::report::Report;
use crate::trace::{Input, Trace};

/// How long an address rests between two pods (IP_COOLDOWN_PERIOD's default).
pub const COOLDOWN: Duration = Duration::from_secs(30);
/// The kubelet tries again after a sandbox could not be made: backOffPeriod, made longer by up to a half
/// (pkg/kubelet/kubelet.go, pkg/kubelet/pod_workers.go).
const KUBELET_PAUSE: Duration = Duration::from_secs(10);
/// From the node's registration until its agent runs: the image is pulled, the init container runs. Unverified.
const AGENT_START: std::ops::Range<f64> = 8.0..20.0;
/// Between two looks at how many addresses are idle.
const LOOK: Duration = Duration::from_secs(60);
/// Between two looks at the DaemonSet's status by those that wait for it; its controller is no faster.
const STATUS_LAG: Duration = Duration::from_secs(5);

enum Event<E> {
    Input(Input),
    Boot(NodeId),
    Agent(NodeId, E),
    Again(PodId),
    Count,
    Look,
    Status,
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pod {
    /// Not there yet.
    Unborn,
    /// Bound to a node that is not Ready, or asking in vain.
    Waits {
        node: NodeId,
        since: Timestamp,
        asked: bool,
        waited: bool,
    },
    /// Has an address.
    Has { node: NodeId, address: Ipv4Addr },
    /// Was there.
    Gone,
}

struct Node<A> {
    agent: A,
    booted: Timestamp,
    ready: bool,
    usable: bool,
    /// Bound before the node was Ready.
    early: Vec<PodId>,
}

struct World<'t, A: Agent> {
    trace: &'t Trace,
    now: Timestamp,
    queue: Queue<Event<A::Event>>,
    ec2: Ec2,
    nodes: Vec<Option<Node<A>>>,
    pods: Vec<Pod>,
    /// Who has each address of the VPC, and when the last one let it go.
    owners: HashMap<Ipv4Addr, PodId>,
    freed: HashMap<Ipv4Addr, Timestamp>,
    starting: u32,
    told_starting: u32,
    counting: bool,
    rng: Rng,
    report: Report,
}

/// Runs a trace to its end.
///
/// *Cost*: linear in nodes and simulated time; some ten million events a minute.
pub fn run<A: Agent>(trace: &Trace, setup: &A::Setup, seed: u64) -> Report {
    let subnets: Vec<_> = trace.subnets.iter().map(|(net, _)| *net).collect();
    let start = Timestamp::from_unix(START);
    let mut ec2 = Ec2::new(&subnets, &trace.machines, seed, start);
    for (subnet, (_, others)) in trace.subnets.iter().enumerate() {
        ec2.occupy(subnet, *others);
    }
    let mut world = World::<A> {
        trace,
        now: start,
        queue: Queue::default(),
        ec2,
        nodes: trace.machines.iter().map(|_| None).collect(),
        pods: vec![Pod::Unborn; usize::try_from(trace.pods).unwrap_or(usize::MAX)],
        owners: HashMap::new(),
        freed: HashMap::new(),
        starting: 0,
        told_starting: 0,
        counting: false,
        rng: Rng::with_seed(seed ^ 0x5e1f),
        report: Report::default(),
    };
    for (at, input) in &trace.inputs {
        world.queue.put(*at, Event::Input(*input));
    }
    world.queue.put(trace.from, Event::Count);
    world.queue.put(trace.from + LOOK, Event::Look);
    world.queue.put(start, Event::Status);
    world.queue.put(trace.end, Event::End);
    world.go(setup, seed);
    world.finish()
}

/// The moment at which traces begin: long after 1970, so that "long ago" exists.
pub const START: Duration = Duration::from_secs(1_000_000_000);

impl<A: Agent> World<'_, A> {
    fn go(&mut self, setup: &A::Setup, seed: u64) {
        while let Some((at, event)) = self.queue.take() {
            self.now = at;
            match event {
                Event::Input(input) => self.happen(input, setup, seed),
                Event::Boot(node) => self.tell(node, |agent, io| agent.start(io)),
                Event::Agent(node, event) => self.tell(node, |agent, io| agent.wake(event, io)),
                Event::Again(pod) => self.ask(pod),
                Event::Count => {
                    self.ec2.quotas.count_anew();
                    self.ec2.refused.clear();
                    self.counting = true;
                }
                Event::Look => {
                    let idle = self.idle();
                    self.report.idle.push(idle);
                    self.queue.put(self.now + LOOK, Event::Look);
                }
                Event::Status => {
                    self.told_starting = self.starting;
                    self.queue.put(self.now + STATUS_LAG, Event::Status);
                }
                Event::End => return,
            }
        }
    }

    fn happen(&mut self, input: Input, setup: &A::Setup, seed: u64) {
        match input {
            Input::NodeUp(node) => {
                let machine = self.trace.machines[node.index()];
                self.ec2.start(node, self.now);
                let own = seed.wrapping_mul(1_000_003) ^ u64::from(node.0);
                self.nodes[node.index()] = Some(Node {
                    agent: A::new(setup, node, machine, own),
                    booted: self.now,
                    ready: false,
                    usable: false,
                    early: Vec::new(),
                });
                self.starting += 1;
                let span = AGENT_START.end - AGENT_START.start;
                let wait = AGENT_START.start + span * self.rng.f64();
                let at = self.now + Duration::from_secs_f64(wait);
                self.queue.put(at, Event::Boot(node));
            }
            Input::Cordon(node) => self.tell(node, |agent, io| agent.cordon(io)),
            Input::NodeDown(node) => {
                if let Some(gone) = self.nodes[node.index()].take() {
                    self.starting -= u32::from(!gone.usable);
                    self.ec2.stop(node, self.now);
                }
            }
            Input::PodUp(pod, node) => {
                self.pods[pod.index()] = Pod::Waits {
                    node,
                    since: self.now,
                    asked: false,
                    waited: false,
                };
                self.report.launched += u64::from(self.counting);
                let ready = self.nodes[node.index()].as_mut();
                match ready {
                    Some(there) if !there.ready => there.early.push(pod),
                    Some(_) | None => self.ask(pod),
                }
            }
            Input::PodDown(pod) => self.end(pod),
        }
    }

    fn ask(&mut self, pod: PodId) {
        let Pod::Waits {
            node, asked, since, ..
        } = &mut self.pods[pod.index()]
        else {
            return;
        };
        if !*asked {
            *asked = true;
            *since = self.now;
        }
        let node = *node;
        self.tell(node, |agent, io| agent.add(pod, io));
        // Neither an address nor a refusal at once: it waits.
        if let Pod::Waits { waited, .. } = &mut self.pods[pod.index()] {
            *waited = true;
        }
    }

    fn end(&mut self, pod: PodId) {
        let last = std::mem::replace(&mut self.pods[pod.index()], Pod::Gone);
        match last {
            Pod::Unborn | Pod::Gone => {}
            Pod::Has { node, address } => {
                self.owners.remove(&address);
                self.freed.insert(address, self.now);
                self.tell(node, |agent, io| agent.del(pod, io));
            }
            Pod::Waits {
                node,
                since,
                asked,
                waited,
            } => {
                if asked && self.counting {
                    self.report.count_pod(waited, self.now.since(since));
                    self.report.never += 1;
                }
                self.tell(node, |agent, io| agent.del(pod, io));
            }
        }
    }

    /// Lets a node's agent act, and does what it wants.
    fn tell(&mut self, node: NodeId, act: impl FnOnce(&mut A, &mut Io<'_, A::Event>)) {
        let Some(there) = &mut self.nodes[node.index()] else {
            return;
        };
        let mut io = Io {
            now: self.now,
            node,
            machine: self.trace.machines[node.index()],
            ec2: &mut self.ec2,
            starting: self.told_starting,
            effects: Vec::new(),
        };
        act(&mut there.agent, &mut io);
        let effects = io.effects;
        let mut early = Vec::new();
        for effect in effects {
            match effect {
                Effect::Wake(at, event) => self.queue.put(at, Event::Agent(node, event)),
                Effect::Granted(pod, address) => self.granted(pod, node, address),
                Effect::Refused(pod) => self.refused(pod),
                Effect::Ready => {
                    if let Some(there) = &mut self.nodes[node.index()] {
                        there.ready = true;
                        early = std::mem::take(&mut there.early);
                    }
                }
            }
        }
        self.see_whether_usable(node);
        for pod in early {
            self.ask(pod);
        }
    }

    fn see_whether_usable(&mut self, node: NodeId) {
        if let Some(there) = &mut self.nodes[node.index()]
            && there.ready
            && !there.usable
            && there.agent.free(self.now) > 0
        {
            there.usable = true;
            self.starting -= 1;
            let took = self.now.since(there.booted);
            self.report.ready.push((self.now, took));
        }
    }

    fn granted(&mut self, pod: PodId, node: NodeId, address: Ipv4Addr) {
        let Pod::Waits { since, waited, .. } = self.pods[pod.index()] else {
            self.breach(format!("{pod:?} has gone and is given {address}"));
            return;
        };
        self.pods[pod.index()] = Pod::Has { node, address };
        if self.counting {
            self.report.count_pod(waited, self.now.since(since));
        }
        if let Some(other) = self.owners.insert(address, pod) {
            self.breach(format!("{address} is {other:?}'s and given to {pod:?}"));
        }
        let freed = self.freed.get(&address);
        if freed.is_some_and(|freed| self.now.since(*freed) < COOLDOWN) {
            self.report.warm_reuse += 1;
            self.breach(format!("{address} is given again while it cools"));
        }
        if !self.ec2.holds(node, address, self.now) {
            self.report.foreign += 1;
            self.breach(format!("{address} is given and not on {node}"));
        }
    }

    fn refused(&mut self, pod: PodId) {
        if let Pod::Waits { waited, .. } = &mut self.pods[pod.index()] {
            *waited = true;
            let pause = KUBELET_PAUSE.mul_f64(1.0 + self.rng.f64() / 2.0);
            self.queue.put(self.now + pause, Event::Again(pod));
        }
    }

    fn breach(&mut self, words: String) {
        if A::PROMISES && self.report.breaches.len() < 20 {
            self.report.breaches.push(format!(
                "{:?}: {words}",
                self.now.since(Timestamp::from_unix(START))
            ));
        }
    }

    /// Addresses that EC2 has given to nodes and no pod has.
    fn idle(&self) -> u64 {
        let running = (0..).zip(&self.nodes).filter(|(_, node)| node.is_some());
        let held: u64 = running
            .map(|(n, _)| u64::from(self.ec2.held(NodeId(n))))
            .sum();
        held.saturating_sub(u64::try_from(self.owners.len()).unwrap_or(u64::MAX))
    }

    fn finish(mut self) -> Report {
        self.report.idle_at_rest = self.idle();
        self.report.calls = self.ec2.quotas.all_calls();
        self.report.throttled = self.ec2.quotas.all_throttled();
        self.report.by_api = self.ec2.quotas.counts();
        self.report.refused = std::mem::take(&mut self.ec2.refused);
        self.report.began = Timestamp::from_unix(START);
        self.report.unready = self.nodes.iter().flatten().filter(|n| !n.usable).count();
        let loose = self.ec2.leaked();
        self.report.leaked_enis = loose.len();
        // One sweeper for the cluster deletes those that it recognises as an agent's.
        let later = self.now + Duration::from_secs(600);
        let swept = find_leaked(&loose, &BTreeSet::new(), later).delete.len();
        for (number, node) in (0..).zip(&self.nodes) {
            let Some(node) = node else { continue };
            let id = NodeId(number);
            let truth = self.ec2.truth(id, self.now);
            let truth = truth.into_iter().flat_map(|view| view.blocks).collect();
            let known = node.agent.holds();
            if known != truth && self.report.breaches.len() < 20 {
                let lost: Vec<_> = truth.difference(&known).collect();
                let dreamt: Vec<_> = known.difference(&truth).collect();
                if A::PROMISES {
                    self.report.breaches.push(format!(
                        "{id}: EC2 also has {lost:?}, the agent also has {dreamt:?}"
                    ));
                }
            }
        }
        if A::PROMISES {
            // Its calls: one an interface, and one look an hour.
            let hours = self.now.since(self.trace.from).as_secs().div_ceil(3600);
            self.report.calls += u64::try_from(swept).unwrap_or(u64::MAX) + hours;
            let left = loose.len() - swept;
            if left > 0 {
                let words = format!("{left} interfaces outlived their instance");
                self.report.breaches.push(words);
            }
        }
        self.report
    }
}
