//! Which node each pod goes to: the least loaded of five, as the scheduler spreads.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fastrand::Rng;
use selvage_ipamd_core::ids::Timestamp;
use selvage_ipamd_core::limits::Mode;

use super::Input;
use crate::machine::{Machine, NodeId, PodId};
use crate::queue::Queue;

/// What happens, before it is known where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    NodeUp(NodeId),
    /// Its pods are evicted one after the other over a time, and launched again elsewhere.
    Drain(NodeId, Duration),
    NodeDown(NodeId),
    Launch(PodId),
    /// Also of the pods that took its place.
    End(PodId),
    Evict(PodId),
}

struct Placing<'m> {
    machines: &'m [Machine],
    mode: Mode,
    rng: Rng,
    queue: Queue<Op>,
    open: Vec<NodeId>,
    on: BTreeMap<NodeId, Vec<PodId>>,
    place: BTreeMap<PodId, NodeId>,
    pending: VecDeque<PodId>,
    /// Who took a pod's place.
    heirs: BTreeMap<PodId, PodId>,
    pods: u32,
    inputs: Vec<(Timestamp, Input)>,
}

/// Places the pods; answers what happens and how many pods there were.
pub(super) fn place(
    machines: &[Machine],
    mode: Mode,
    ops: Vec<(Timestamp, Op)>,
    pods: u32,
    seed: u64,
) -> (Vec<(Timestamp, Input)>, u32) {
    let mut placing = Placing {
        machines,
        mode,
        rng: Rng::with_seed(seed ^ 0x91ace),
        queue: Queue::default(),
        open: Vec::new(),
        on: BTreeMap::new(),
        place: BTreeMap::new(),
        pending: VecDeque::new(),
        heirs: BTreeMap::new(),
        pods,
        inputs: Vec::new(),
    };
    for (at, op) in ops {
        placing.queue.put(at, op);
    }
    while let Some((now, op)) = placing.queue.take() {
        placing.happen(op, now);
    }
    (placing.inputs, placing.pods)
}

impl Placing<'_> {
    fn happen(&mut self, op: Op, now: Timestamp) {
        match op {
            Op::NodeUp(node) => {
                self.inputs.push((now, Input::NodeUp(node)));
                self.open.push(node);
                self.on.insert(node, Vec::new());
                self.place_pending(now);
            }
            Op::Drain(node, over) => {
                self.inputs.push((now, Input::Cordon(node)));
                self.open.retain(|open| *open != node);
                let pods = self.on.get(&node).cloned().unwrap_or_default();
                let count = u32::try_from(pods.len()).unwrap_or(u32::MAX).max(1);
                for (n, pod) in (0..).zip(pods) {
                    self.queue.put(now + over * n / count, Op::Evict(pod));
                }
            }
            Op::NodeDown(node) => self.inputs.push((now, Input::NodeDown(node))),
            Op::Launch(pod) => {
                self.pending.push_back(pod);
                self.place_pending(now);
            }
            Op::End(pod) => {
                let mut last = pod;
                while let Some(heir) = self.heirs.get(&last) {
                    last = *heir;
                }
                self.end(last, now);
            }
            Op::Evict(pod) => {
                if self.place.contains_key(&pod) {
                    let heir = PodId(self.pods);
                    self.pods += 1;
                    self.heirs.insert(pod, heir);
                    self.end(pod, now);
                    self.happen(Op::Launch(heir), now);
                }
            }
        }
    }

    fn end(&mut self, pod: PodId, now: Timestamp) {
        self.pending.retain(|pending| *pending != pod);
        if let Some(node) = self.place.remove(&pod) {
            self.inputs.push((now, Input::PodDown(pod)));
            if let Some(pods) = self.on.get_mut(&node) {
                pods.retain(|other| *other != pod);
            }
            self.place_pending(now);
        }
    }

    fn place_pending(&mut self, now: Timestamp) {
        while let Some(pod) = self.pending.front().copied() {
            let Some(node) = self.find() else {
                return;
            };
            self.pending.pop_front();
            self.place.insert(pod, node);
            self.on.entry(node).or_default().push(pod);
            self.inputs.push((now, Input::PodUp(pod, node)));
        }
    }

    fn find(&mut self) -> Option<NodeId> {
        let some = (0..5).filter_map(|_| self.rng.choice(&self.open).copied());
        let some: Vec<NodeId> = some.collect();
        let best = |nodes: &[NodeId]| {
            let load = |node: &NodeId| {
                let pods = self.on.get(node).map_or(0, Vec::len);
                let room = self.machines[node.index()].pods(self.mode);
                (pods < usize::try_from(room).unwrap_or(0)).then(|| pods as f64 / f64::from(room))
            };
            let loads = nodes.iter().filter_map(|node| Some((load(node)?, *node)));
            loads
                .min_by(|a, b| a.0.total_cmp(&b.0))
                .map(|(_, node)| node)
        };
        best(&some).or_else(|| best(&self.open))
    }
}
