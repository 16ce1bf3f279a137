//! The phase that reaches the kernel.

use std::time::Duration;

use selvage_policy_core::compile::compile;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tracing::info;

use super::node::Node;
use super::pending::Due;
use super::{DaemonError, STOP_DEADLINE, turns};
use crate::dataplane::{Dataplane, Finished, Job, work};
use crate::failpoint::{self, Failpoint};
use crate::lock::Lock;
use crate::metrics::Work;
use crate::status::Phase;

/// Keeps the kernel right. Only this phase can reach it.
pub(super) struct Enforcing<D> {
    node: Node,
    hands: Hands<D>,
    _lock: Lock,
}

/// Whoever works on the kernel: one piece of work at a time, on a thread that may block.
enum Hands<D> {
    Idle(D),
    Busy(JoinHandle<(D, Finished)>),
    /// Lost in a panic.
    Lost,
}

impl<D: Dataplane> Hands<D> {
    fn start(&mut self, job: Job) {
        *self = match std::mem::replace(self, Self::Lost) {
            Self::Idle(mut dataplane) => Self::Busy(spawn_blocking(move || {
                let finished = work(&mut dataplane, job);
                (dataplane, finished)
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
        let (dataplane, finished) = done.map_err(|_| DaemonError::Task("kernel work"))?;
        *self = Self::Idle(dataplane);
        Ok(finished)
    }
}

impl<D: Dataplane> Enforcing<D> {
    pub(super) fn new(node: Node, lock: Lock, dataplane: D) -> Self {
        Self {
            node,
            hands: Hands::Idle(dataplane),
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
            let wake = match self.node.pending.due(Instant::now()) {
                Due::Now(work) => {
                    self.start(work);
                    continue;
                }
                Due::At(when) => Some(when),
                Due::Never => None,
            };
            let node = &mut self.node;
            tokio::select! {
                // In this order: events without end must not keep the timers from being heard.
                biased;
                () = node.stop.cancelled() => break Ok(()),
                finished = self.hands.finished() => match finished {
                    Ok(finished) => node.finish(finished),
                    Err(error) => break Err(error),
                },
                _ = turns.tick() => node.turn(),
                _ = resyncs.tick() => node.pending.look_afresh(),
                more = Node::gather(&mut node.notices, &mut buffer) => {
                    if !more {
                        break Err(Node::ended_early());
                    }
                    node.take_in(&mut buffer);
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
                Job::Rules(want, look)
            }
            Work::Members => Job::Members(node.pending.begin_members()),
        };
        node.status
            .send_modify(|status| status.working_since = Some(Instant::now()));
        self.hands.start(job);
    }

    /// Waits for the work under way; then the lock may go.
    async fn stop(mut self) -> Result<(), DaemonError> {
        if matches!(self.hands, Hands::Busy(_)) {
            timeout(STOP_DEADLINE, self.hands.finished())
                .await
                .map_err(|_| DaemonError::Slow(STOP_DEADLINE))??;
        }
        let in_force = self.node.status.borrow().in_force;
        info!(in_force, "stopped; rules stay in place");
        Ok(())
    }
}
