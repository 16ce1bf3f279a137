//! The phase that reaches the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use selvage_netfilter::Suspect;
use selvage_policy_core::compile::compile;
use selvage_policy_core::index::Isolation;
use selvage_policy_core::model::PodKey;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tracing::info;

use super::cutting::Cutting;
use super::node::{Departed, Node};
use super::pending::Due;
use super::{DaemonError, STOP_DEADLINE, turns};
use crate::dataplane::{Dataplane, Done, Finished, Hand, Job};
use crate::endpoint_status::{Endpoint, EndpointStatus};
use crate::failpoint::{self, Failpoint};
use crate::flows::Scope;
use crate::lock::Lock;
use crate::metrics::Work;
use crate::status::Phase;

/// Suspicions that wait for the loop; there are few kinds, and one of each is as good as many.
const SUSPECTS_MAX: usize = 16;

/// Keeps the kernel right. Only this phase can reach it.
pub(super) struct Enforcing<D: Dataplane> {
    node: Node,
    /// Before the hands, which at their end wait for whoever sends here.
    suspects: Receiver<Suspect>,
    hands: Hands<D>,
    cutting: Cutting<D::Flows>,
    /// By what each pod of this node was isolated when its flows were last looked at.
    judged: BTreeMap<PodKey, Isolation>,
    /// What the work under way will have forbidden, beside what it finds out itself.
    forbids: Scope,
    /// Addresses whose pods are gone, and those of them that the work under way takes out of sets.
    gone: BTreeSet<IpAddr>,
    going: BTreeSet<IpAddr>,
    _lock: Lock,
}

/// Whoever works on the kernel: one piece of work at a time, on a thread that may block.
enum Hands<D> {
    Idle(Hand<D>),
    Busy(JoinHandle<(Hand<D>, Finished)>),
    /// Lost in a panic.
    Lost,
}

impl<D: Dataplane> Hands<D> {
    fn start(&mut self, job: Job) {
        *self = match std::mem::replace(self, Self::Lost) {
            Self::Idle(mut hand) => Self::Busy(spawn_blocking(move || {
                let finished = hand.work(job);
                (hand, finished)
            })),
            busy @ (Self::Busy(_) | Self::Lost) => busy,
        };
    }

    /// Waits for the work under way; for ever if there is none.
    async fn finished(&mut self) -> Result<Finished, DaemonError> {
        let Self::Busy(working) = self else {
            return std::future::pending().await;
        };
        let done = working.await;
        *self = Self::Lost;
        let (hand, finished) = done.map_err(|_| DaemonError::Task("kernel work"))?;
        *self = Self::Idle(hand);
        Ok(finished)
    }
}

impl<D: Dataplane> Enforcing<D> {
    pub(super) fn new(
        node: Node,
        lock: Lock,
        mut dataplane: D,
        files: Option<EndpointStatus>,
    ) -> Self {
        let (told, suspects) = channel(SUSPECTS_MAX);
        dataplane.watch(told);
        Self {
            cutting: Cutting::new(
                dataplane.flows(&node.index.settings().families),
                Arc::clone(&node.metrics),
            ),
            hands: Hands::Idle(Hand::new(dataplane, files)),
            node,
            suspects,
            judged: BTreeMap::new(),
            forbids: Scope::default(),
            gone: BTreeSet::new(),
            going: BTreeSet::new(),
            _lock: lock,
        }
    }

    /// Until told to stop; rules stay.
    pub(super) async fn run(mut self, resync: Duration) -> Result<(), DaemonError> {
        self.node.enter(Phase::Enforcing);
        let mut turns = turns();
        // Nothing is known of the kernel yet.
        self.node.pending.look_afresh();
        let mut resyncs = interval_at(Instant::now() + resync, resync);
        resyncs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = Vec::new();
        let ended = loop {
            let now = Instant::now();
            let mut wake = match self.node.pending.due(now) {
                Due::Now(work) => {
                    self.start(work);
                    continue;
                }
                Due::Inspect => {
                    let suspects = self.node.pending.begin_inspection();
                    self.hands.start(Job::Inspect(suspects));
                    continue;
                }
                Due::Tell => {
                    self.node.pending.begin_telling();
                    self.hands.start(Job::Tell(endpoints(&self.node)));
                    continue;
                }
                Due::At(when) => Some(when),
                Due::Never => None,
            };
            match self.cutting.due(now) {
                Some(when) if when <= now => {
                    self.cutting.begin(&mut self.node.index);
                    continue;
                }
                Some(when) => wake = Some(wake.map_or(when, |wake| wake.min(when))),
                None => {}
            }
            let node = &mut self.node;
            tokio::select! {
                // In this order: events without end must not keep the timers from being heard.
                biased;
                () = node.stop.cancelled() => break Ok(()),
                finished = self.hands.finished() => match finished {
                    Ok(finished) => if let Err(error) = self.finish(finished) {
                        break Err(error);
                    },
                    Err(error) => break Err(error),
                },
                finished = self.cutting.finished() => if let Err(error) = finished {
                    break Err(error);
                },
                _ = turns.tick() => node.turn(),
                _ = resyncs.tick() => node.pending.look_afresh(),
                Some(suspect) = self.suspects.recv() => node.pending.suspect(suspect),
                Some(question) = node.questions.recv() => question(&mut node.index),
                more = Node::gather(&mut node.notices, &mut buffer) => {
                    if !more {
                        break Err(Node::ended_early());
                    }
                    let Departed { left, gone } = node.take_in(&mut buffer);
                    self.gone.extend(gone);
                    self.cutting.add(Scope { left, ..Scope::default() });
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        };
        self.stop().await.and(ended)
    }

    /// Begins a piece of work; the hands are idle.
    fn start(&mut self, work: Work) {
        let node = &mut self.node;
        let job = match work {
            Work::Rules => {
                let look = node.pending.begin_rules(Instant::now());
                let families = node.index.settings().families.clone();
                let want = families
                    .iter()
                    .map(|family| compile(&mut node.index, *family))
                    .collect();
                failpoint::hit(Failpoint::Compiled);
                Job::Rules(want, look, endpoints(node))
            }
            Work::Members => {
                node.pending.begin_members();
                let Some(changes) = node.index.take_member_changes() else {
                    node.pending.rules_instead();
                    return;
                };
                Job::Members(changes)
            }
        };
        self.going = std::mem::take(&mut self.gone);
        node.lag.begun();
        node.status
            .send_modify(|status| status.working_since = Some(Instant::now()));
        self.hands.start(job);
        if work == Work::Rules {
            // While they are written.
            self.forbids = isolated_otherwise(node, &mut self.judged);
        }
    }

    fn finish(&mut self, finished: Finished) -> Result<(), DaemonError> {
        if let Finished::Work {
            work,
            result: Ok(done),
            ..
        } = &finished
        {
            let first = *work == Work::Rules && !self.node.status.borrow().in_force;
            let mut forbidden = std::mem::take(&mut self.forbids);
            forbidden.everything |= first;
            forbidden.extend(self.affected(done));
            let going = std::mem::take(&mut self.going);
            let (gone, there) = forbidden
                .addresses
                .into_iter()
                .partition(|it| going.contains(it));
            forbidden.addresses = there;
            self.cutting.add(forbidden);
            self.cutting.add_of_gone(gone);
        }
        self.node.finish(finished)
    }

    fn affected(&self, done: &Done) -> Scope {
        let mut addresses = done.affected.addresses.clone();
        if !done.affected.interfaces.is_empty() {
            let pods = self.node.index.enforced_pods();
            let pods = pods.filter(|pod| {
                done.affected
                    .interfaces
                    .contains(&pod.interface.to_string())
            });
            addresses.extend(pods.flat_map(|pod| pod.addresses.into_owned()));
        }
        Scope {
            addresses,
            ..Scope::default()
        }
    }

    /// Waits for the work under way; then the lock may go.
    async fn stop(mut self) -> Result<(), DaemonError> {
        if matches!(self.hands, Hands::Busy(_)) {
            timeout(STOP_DEADLINE, self.hands.finished())
                .await
                .map_err(|_| DaemonError::Slow(STOP_DEADLINE))??;
        }
        self.cutting.stop().await?;
        let in_force = self.node.status.borrow().in_force;
        info!(in_force, "stopped; rules stay in place");
        Ok(())
    }
}

/// The flows of pods that other policies isolate now than when this was last asked.
fn isolated_otherwise(node: &mut Node, judged: &mut BTreeMap<PodKey, Isolation>) -> Scope {
    let now = node.index.local_pods().clone();
    let changed: BTreeSet<&PodKey> = now
        .iter()
        .filter(|(pod, isolation)| judged.get(pod) != Some(isolation))
        .map(|(pod, _)| pod)
        .collect();
    let pods = node.index.enforced_pods();
    let addresses = pods
        .filter(|pod| changed.contains(&pod.pod.key))
        .flat_map(|pod| pod.addresses.into_owned())
        .collect();
    *judged = now;
    Scope {
        addresses,
        ..Scope::default()
    }
}

/// The pods that the rules compiled last are for.
fn endpoints(node: &Node) -> Vec<Endpoint> {
    let pods = node.index.enforced_pods();
    pods.map(|local| Endpoint {
        namespace: local.pod.key.namespace.to_string(),
        pod: local.pod.key.name.clone(),
        uid: local.pod.uid.to_string(),
        interface: local.interface.to_string(),
        addresses: local.addresses.into_owned(),
    })
    .collect()
}
