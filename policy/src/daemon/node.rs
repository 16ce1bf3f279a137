//! What the daemon knows of its node in every phase, and what it says about it.

use std::sync::Arc;
use std::time::Duration;

use selvage_netfilter::ipvs_in_use;
use selvage_policy_core::index::{self, Event, Index};
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::pending::Pending;
use super::rejected::Rejected;
use super::{DaemonError, NOTICES_MAX};
use crate::dataplane::{Done, Finished};
use crate::metrics::{Metrics, Outcome, Work};
use crate::source::Notice;
use crate::status::{Counts, Phase, Resource, Status};

/// What every phase has.
pub(super) struct Node {
    pub(super) index: Index,
    pub(super) notices: Receiver<Notice>,
    pub(super) status: watch::Sender<Status>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) rejected: Rejected,
    pub(super) pending: Pending,
    pub(super) stop: CancellationToken,
}

impl Node {
    /// Takes in the notices that are there, at least one: `false` when there will be no more.
    pub(super) async fn gather(notices: &mut Receiver<Notice>, buffer: &mut Vec<Notice>) -> bool {
        buffer.clear();
        notices.recv_many(buffer, NOTICES_MAX).await > 0
    }

    pub(super) fn take_in(&mut self, buffer: &mut Vec<Notice>) {
        for notice in buffer.drain(..) {
            let Notice {
                event, problems, ..
            } = notice;
            self.rejected.note(&event, problems);
            if let Event::RelistDone(resource) = event {
                self.listed(resource);
            }
            let delta = self.index.apply(event);
            self.pending.add(delta);
        }
    }

    fn listed(&mut self, resource: index::Resource) {
        let resource = match resource {
            index::Resource::Pods => Resource::Pods,
            index::Resource::Namespaces => Resource::Namespaces,
            index::Resource::Policies => Resource::NetworkPolicies,
            // The kernel's, and not waited for: a pod's address comes from elsewhere till then.
            index::Resource::Routes => return,
        };
        self.metrics.set_in_sync(resource, true);
        self.status.send_if_modified(|status| {
            let first = status.waiting_for.remove(&resource);
            if first {
                info!(%resource, "in sync");
            }
            first
        });
    }

    /// The loop's sign of life, and what is looked at now and then.
    pub(super) fn turn(&self) {
        let ipvs = match ipvs_in_use() {
            Ok(ipvs) => ipvs,
            Err(error) => {
                debug!(error = crate::error_chain(&error), "look for IPVS");
                self.status.borrow().ipvs
            }
        };
        self.metrics.set_ipvs(ipvs);
        self.status.send_modify(|status| {
            status.turned = Instant::now();
            if ipvs && !status.ipvs {
                status.ipvs = true;
                error!(reason = status.ready().reason, "not ready");
            } else if !ipvs && status.ipvs {
                status.ipvs = false;
                info!("kube-proxy's IPVS interface is gone");
            }
        });
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.metrics.set_phase(phase);
        self.status.send_modify(|status| status.phase = phase);
        info!(%phase, "phase");
    }

    pub(super) fn ended_early() -> DaemonError {
        DaemonError::Source("nobody sends any more".to_owned())
    }
}

impl Node {
    pub(super) fn finish(&mut self, finished: Finished) {
        let Finished { work, result, took } = finished;
        let now = Instant::now();
        let outcome = match &result {
            Ok(done) if done.changed => Outcome::Changed,
            Ok(_) => Outcome::Unchanged,
            Err(_) => Outcome::Failed,
        };
        self.metrics.applied(work, outcome, took);
        match result {
            Ok(done) => {
                self.pending.succeeded();
                match work {
                    Work::Rules => self.pending.left(now, done.left),
                    Work::Members => {}
                }
                self.succeeded(work, &done, took, now);
            }
            Err(reason) => {
                let again_in = self.pending.failed(now);
                self.status.send_modify(|status| {
                    status.working_since = None;
                    if status.failing.as_ref() == Some(&reason) {
                        debug!(reason, ?again_in, "kernel work failed again");
                    } else {
                        error!(
                            reason,
                            ?again_in,
                            "kernel work failed: what was in force stays"
                        );
                        status.failing = Some(reason);
                    }
                });
            }
        }
    }

    fn succeeded(&mut self, work: Work, done: &Done, took: Duration, now: Instant) {
        let counts = self.counts(done);
        self.metrics.set_counts(&counts);
        let first = !self.status.borrow().in_force;
        let written = done.chains_written;
        let work = work.as_str();
        if first {
            info!(
                backend = done.backend,
                outcome = if done.changed { "changed" } else { "unchanged" },
                chains_written = written,
                chains = counts.chains,
                rules = counts.rules,
                sets = counts.sets,
                members = counts.members,
                local_pods = counts.local_pods,
                ?took,
                "in force"
            );
        } else if written > 0 {
            info!(chains_written = written, ?took, "rules changed");
        } else {
            debug!(work, changed = done.changed, ?took, "kernel is right");
        }
        self.status.send_modify(|status| {
            if status.failing.take().is_some() {
                info!("kernel work succeeds again");
            }
            status.in_force = true;
            status.working_since = None;
            status.last_apply = Some(now);
            status.backend = Some(done.backend.clone());
            status.counts = counts;
        });
    }

    fn counts(&mut self, done: &Done) -> Counts {
        let known = self.index.counts();
        let rejected = self.rejected.len() as u64;
        Counts {
            namespaces: known.namespaces as u64,
            pods: known.pods as u64,
            // Settled by the compile before; if not any more, by the one that follows anyway.
            local_pods: self.index.local_pods().len() as u64,
            policies: (known.policies as u64).saturating_sub(rejected),
            rejected,
            chains: done.held.chains,
            rules: done.held.rules,
            sets: done.held.sets,
            members: done.held.members,
        }
    }
}
