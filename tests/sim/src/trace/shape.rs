//! The traces: what clusters go through, drawn from a seed.
//!
//! Each begins with half an hour in which the cluster is brought up and comes to rest, which is not counted; each ends
//! with a quarter of an hour in which nothing happens.

use std::time::Duration;

use fastrand::Rng;
use ipnet::Ipv4Net;
use selvage_ipamd_core::ids::Timestamp;
use selvage_ipamd_core::limits::{Limits, Mode};

use super::Trace;
use super::place::{Op, place};
use crate::machine::{Machine, NodeId, PodId};
use crate::world::START;

/// A trace, drawn for so many nodes from a seed.
pub type Shape = fn(nodes: u32, seed: u64, mode: Mode) -> Trace;

/// Those whose calls, idle addresses and waits are measured.
pub const SHAPES: [(&str, Shape); 5] = [
    ("rolling", rolling),
    ("burst", burst),
    ("cron", cron),
    ("drain", drain),
    ("full", full),
];

const BRING_UP: Duration = minutes(30);
const REST: Duration = minutes(15);

const fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// m5.xlarge, m5.large and m5.4xlarge: interfaces, and addresses on each.
const TYPES: [(u16, u16); 3] = [(4, 15), (3, 10), (8, 30)];
const ZONES: [&str; 3] = ["10.0.0.0/16", "10.1.0.0/16", "10.2.0.0/16"];

struct Draft {
    rng: Rng,
    seed: u64,
    mode: Mode,
    machines: Vec<Machine>,
    subnets: Vec<(Ipv4Net, u32)>,
    ops: Vec<(Timestamp, Op)>,
    pods: u32,
}

impl Draft {
    fn new(nodes: u32, seed: u64, mode: Mode) -> Self {
        let mut rng = Rng::with_seed(seed);
        let subnets: Vec<(Ipv4Net, u32)> = ZONES
            .iter()
            .filter_map(|text| Some((text.parse().ok()?, 0)))
            .collect();
        let machine = |n: u32| {
            let of_ten = rng.usize(..10);
            let (enis, addresses) = TYPES[[0, 0, 0, 0, 0, 0, 1, 1, 1, 2][of_ten]];
            Machine {
                subnet: usize::try_from(n).unwrap_or(0) % subnets.len(),
                limits: Limits::new(enis, addresses)
                    .expect("a type has interfaces and addresses")
                    .with_prefixes(true),
            }
        };
        let machines = (0..nodes).map(machine).collect();
        Self {
            rng,
            seed,
            mode,
            machines,
            subnets,
            ops: Vec::new(),
            pods: 0,
        }
    }

    fn op(&mut self, after: Duration, op: Op) {
        self.ops.push((Timestamp::from_unix(START) + after, op));
    }

    /// Some moment between two.
    fn between(&mut self, from: Duration, to: Duration) -> Duration {
        from + (to - from).mul_f64(self.rng.f64())
    }

    /// Pods that the machines of a range could run.
    fn room(&self, nodes: std::ops::Range<u32>) -> u32 {
        nodes
            .map(|n| self.machines[NodeId(n).index()].pods(self.mode))
            .sum()
    }

    fn up(&mut self, nodes: std::ops::Range<u32>, from: Duration, to: Duration) {
        for n in nodes {
            let at = self.between(from, to);
            self.op(at, Op::NodeUp(NodeId(n)));
        }
    }

    fn launch(&mut self, at: Duration) -> PodId {
        let pod = PodId(self.pods);
        self.pods += 1;
        self.op(at, Op::Launch(pod));
        pod
    }

    fn launch_some(&mut self, count: u32, from: Duration, to: Duration) -> Vec<PodId> {
        (0..count)
            .map(|_| {
                let at = self.between(from, to);
                self.launch(at)
            })
            .collect()
    }

    /// Nodes up, and pods that fill so much of them, before it counts.
    fn bring_up(&mut self, nodes: u32, load: f64) -> Vec<PodId> {
        self.up(0..nodes, Duration::ZERO, minutes(8));
        let pods = (f64::from(self.room(0..nodes)) * load) as u32;
        self.launch_some(pods, minutes(10), minutes(18))
    }

    fn finish(self, name: &'static str, last: Duration) -> Trace {
        let (inputs, pods) = place(&self.machines, self.mode, self.ops, self.pods, self.seed);
        Trace {
            name,
            subnets: self.subnets,
            machines: self.machines,
            pods,
            inputs,
            from: Timestamp::from_unix(START) + BRING_UP,
            end: Timestamp::from_unix(START) + last + REST,
        }
    }
}

/// An hour of deployments that are rolled: a quarter of the new pods, then a quarter of the old ones away, and again.
pub fn rolling(nodes: u32, seed: u64, mode: Mode) -> Trace {
    let mut draft = Draft::new(nodes, seed, mode);
    let mut left = draft.bring_up(nodes, 0.55);
    let mut deployments = Vec::new();
    while !left.is_empty() {
        let size = draft.rng.usize(5..120).min(left.len());
        deployments.push(left.split_off(left.len() - size));
    }
    let each_minute = deployments.iter().map(Vec::len).sum::<usize>() / 100;
    for minute in 30..90 {
        let mut rolled = 0;
        while rolled < each_minute {
            let which = draft.rng.usize(..deployments.len());
            let mut old = std::mem::take(&mut deployments[which]);
            let mut at = minutes(minute) + seconds(draft.rng.u64(..60));
            let batch = old.len().div_ceil(4).max(1);
            rolled += old.len();
            let mut new = Vec::new();
            while !old.is_empty() {
                let going = old.split_off(old.len().saturating_sub(batch));
                for pod in going {
                    new.push(draft.launch(at));
                    let gone = at + seconds(12) + seconds(draft.rng.u64(..6));
                    draft.op(gone, Op::End(pod));
                }
                at += seconds(25);
            }
            deployments[which] = new;
        }
    }
    draft.finish("rolling", minutes(92))
}

/// A third more nodes for twenty-five minutes, because more pods come within half a minute than there is room for.
pub fn burst(nodes: u32, seed: u64, mode: Mode) -> Trace {
    let mut draft = Draft::new(nodes, seed, mode);
    let base = nodes * 2 / 3;
    draft.bring_up(base, 0.55);
    let room = f64::from(draft.room(0..nodes)) * 0.85 - f64::from(draft.room(0..base)) * 0.55;
    let burst = draft.launch_some(room as u32, BRING_UP, BRING_UP + seconds(30));
    draft.up(base..nodes, BRING_UP + seconds(45), BRING_UP + seconds(150));
    for pod in burst {
        let at = draft.between(minutes(55), minutes(58));
        draft.op(at, Op::End(pod));
    }
    for n in base..nodes {
        let at = draft.between(minutes(65), minutes(66));
        draft.op(at, Op::Drain(NodeId(n), seconds(60)));
        draft.op(at + minutes(4), Op::NodeDown(NodeId(n)));
    }
    draft.finish("burst", minutes(71))
}

/// An hour of jobs: some each five minutes, more each quarter of an hour, each pod for a minute or so.
pub fn cron(nodes: u32, seed: u64, mode: Mode) -> Trace {
    let mut draft = Draft::new(nodes, seed, mode);
    draft.bring_up(nodes, 0.35);
    let room = draft.room(0..nodes);
    for five in 0..12 {
        let at = BRING_UP + minutes(5 * five);
        let share = if five % 3 == 0 { 0.35 } else { 0.12 };
        let jobs = f64::from(room) * share * (0.8 + 0.4 * draft.rng.f64());
        for pod in draft.launch_some(jobs as u32, at, at + seconds(20)) {
            let end = draft.between(at + seconds(40), at + seconds(130));
            draft.op(end, Op::End(pod));
        }
    }
    draft.finish("cron", minutes(90))
}

/// Every node is replaced, a tenth at a time: new ones come, the old ones are drained within a minute and end.
pub fn drain(nodes: u32, seed: u64, mode: Mode) -> Trace {
    let mut draft = Draft::new(nodes * 2, seed, mode);
    draft.bring_up(nodes, 0.55);
    for n in 0..nodes {
        let group = u64::from(n * 10 / nodes);
        let at = BRING_UP + minutes(6 * group);
        let up = draft.between(at, at + seconds(40));
        draft.op(up, Op::NodeUp(NodeId(nodes + n)));
        let away = draft.between(at + seconds(90), at + seconds(120));
        draft.op(away, Op::Drain(NodeId(n), seconds(60)));
        draft.op(away + minutes(4), Op::NodeDown(NodeId(n)));
    }
    draft.finish("drain", minutes(91))
}

/// Subnets with hardly more addresses than the pods need, while pods come and go.
pub fn full(nodes: u32, seed: u64, mode: Mode) -> Trace {
    let mut draft = Draft::new(nodes, seed, mode);
    let mut pods = draft.bring_up(nodes, 0.5);
    let base = pods.len();
    for minute in 30..90 {
        // A tide of an eighth, twice.
        let tide = (f64::from(u32::try_from(minute - 30).unwrap_or(0)) / 30.0
            * std::f64::consts::TAU)
            .sin();
        let wanted = (base as f64 * (1.0 + tide / 8.0)) as usize;
        let going = pods.len().saturating_sub(wanted) + base / 40;
        let (from, to) = (minutes(minute), minutes(minute + 1));
        for _ in 0..going.min(pods.len()) {
            let pod = pods.swap_remove(draft.rng.usize(..pods.len()));
            let at = draft.between(from, to);
            draft.op(at, Op::End(pod));
        }
        let coming = u32::try_from(wanted.saturating_sub(pods.len())).unwrap_or(0);
        pods.extend(draft.launch_some(coming, from, to));
    }
    for (zone, subnet) in draft.subnets.iter_mut().enumerate() {
        let here = |m: &&Machine| m.subnet == zone;
        let room: u32 = draft
            .machines
            .iter()
            .filter(here)
            .map(|m| m.pods(mode))
            .sum();
        let own: u32 = draft
            .machines
            .iter()
            .filter(here)
            .map(|m| m.limits.enis())
            .sum();
        // Half of the room is pods'; an eighth the tide; a tenth to spare; and the interfaces' own.
        // Prefixes are only ever used in part.
        let rounding = match mode {
            Mode::Addresses | Mode::Ipv6 => 1.0,
            Mode::Prefixes => 1.25,
        };
        let budget = f64::from(room) * 0.5 * 1.125 * 1.1 * rounding;
        subnet.1 = (65_531 - own).saturating_sub(budget as u32);
    }
    draft.finish("full", minutes(91))
}

/// All nodes boot within a minute, none with a pod.
pub fn start(nodes: u32, seed: u64, mode: Mode) -> Trace {
    let mut draft = Draft::new(nodes, seed, mode);
    draft.up(0..nodes, Duration::ZERO, minutes(1));
    let mut trace = draft.finish("start", minutes(30));
    trace.from = Timestamp::from_unix(START);
    trace
}
