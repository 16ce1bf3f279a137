//! What the daemon knows of its node in every phase, and what it says about it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use selvage_netfilter::{Suspect, ipvs_in_use};
use selvage_policy_core::index::{self, Event, Index};
use tokio::sync::Notify;
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::pending::Pending;
use super::rejected::Rejected;
use super::{DaemonError, NOTICES_MAX};
use crate::dataplane::{Done, Finished};
use crate::metrics::{Lag, Metrics, Outcome, Repair, Work};
use crate::questions::Question;
use crate::source::{Doubts, Notice};
use crate::status::{Counts, Phase, Resource, Status};

/// Work that fails for so long is given up with the process: another start may see more.
const GIVE_UP: Duration = Duration::from_secs(600);

/// So many repairs in a row are a mishap; more are somebody's purpose, and not for us to hide.
const CONTESTED: u32 = 10;

/// Addresses that events took away.
#[derive(Debug, Default)]
pub(super) struct Departed {
    /// From the pods of this node that had them.
    pub(super) left: BTreeSet<IpAddr>,
    /// With pods that are gone, wherever they were.
    pub(super) gone: BTreeSet<IpAddr>,
}

/// What every phase has.
pub(super) struct Node {
    pub(super) index: Index,
    pub(super) notices: Receiver<Notice>,
    pub(super) questions: Receiver<Question>,
    pub(super) lag: Lag,
    pub(super) status: watch::Sender<Status>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) rejected: Rejected,
    pub(super) pending: Pending,
    pub(super) doubts: Doubts,
    /// Since when nothing has succeeded.
    pub(super) failing_since: Option<Instant>,
    /// What of ours somebody else changed, until that is repaired.
    pub(super) repairing: Option<(Repair, String)>,
    /// Told when rules are in force for the first time.
    pub(super) in_force: Arc<Notify>,
    pub(super) stop: CancellationToken,
}

impl Node {
    /// Takes in the notices that are there, at least one: `false` when there will be no more.
    pub(super) async fn gather(notices: &mut Receiver<Notice>, buffer: &mut Vec<Notice>) -> bool {
        buffer.clear();
        notices.recv_many(buffer, NOTICES_MAX).await > 0
    }

    /// Takes in what happened; the addresses that it took away are the answer.
    pub(super) fn take_in(&mut self, buffer: &mut Vec<Notice>) -> Departed {
        let mut departed = Departed::default();
        for notice in buffer.drain(..) {
            let resource = notice.resource();
            let Notice {
                event,
                problems,
                received,
            } = notice;
            self.rejected.note(&event, problems);
            if let Event::RelistDone(resource) = event {
                self.listed(resource);
            }
            let routed = match &event {
                Event::Routes {
                    interface,
                    addresses,
                } => {
                    if self.index.knows(interface) {
                        self.pending.moved();
                    }
                    (!addresses.is_empty()).then(|| interface.clone())
                }
                Event::PodApplied(pod) => {
                    if pod.node.as_ref() == Some(&self.index.settings().node) {
                        self.pending.moved();
                    }
                    None
                }
                Event::PodDeleted(..)
                | Event::NamespaceApplied(_)
                | Event::NamespaceDeleted(_)
                | Event::PolicyApplied(_)
                | Event::PolicyDeleted(_)
                | Event::RelistStarted(_)
                | Event::RelistDone(_) => None,
            };
            let mut delta = self.index.apply(event);
            departed.left.append(&mut delta.left);
            departed.gone.append(&mut delta.gone);
            if let Some(resource) = resource.filter(|_| !delta.is_empty()) {
                self.lag.noticed(resource, received);
            }
            self.pending.add(&delta);
            // An uplink such as `vlan.eth.1` begins like a pod's interface and is none.
            if let Some(interface) = routed
                && interface.bytes().all(|byte| byte.is_ascii_alphanumeric())
                && !self.index.knows(&interface)
            {
                debug!(interface, "an interface of ours that no pod explains");
                self.doubts.raise();
            }
        }
        departed
    }

    fn listed(&mut self, resource: index::Resource) {
        // The kernel's routes are not waited for: till then a pod's address comes from elsewhere.
        let Some(resource) = Resource::of(resource) else {
            return;
        };
        self.metrics.set_in_sync(resource, true);
        self.metrics.listed(resource);
        self.metrics.watches().synced(resource);
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
        self.metrics.set_ready(self.status.borrow().ready().ok);
    }

    pub(super) fn enter(&mut self, phase: Phase) {
        // What came before this phase waited for the phase, not for us.
        self.lag = Lag::default();
        self.metrics.set_phase(phase);
        self.status.send_modify(|status| status.phase = phase);
        info!(%phase, "phase");
    }

    pub(super) fn ended_early() -> DaemonError {
        DaemonError::Source("nobody sends any more".to_owned())
    }
}

impl Node {
    /// Takes in how a piece of work ended.
    ///
    /// *Errors*: [`DaemonError::Kernel`] when it has failed for too long.
    pub(super) fn finish(&mut self, finished: Finished) -> Result<(), DaemonError> {
        let now = Instant::now();
        let (work, result, took) = match finished {
            Finished::Work {
                work,
                result,
                took,
                used,
            } => {
                if work == Work::Members {
                    self.pending.members_changed(now, used);
                }
                (work, result, took)
            }
            Finished::Told => {
                self.pending.told();
                return Ok(());
            }
            Finished::Inspected(found) => {
                self.inspected(found, now);
                return Ok(());
            }
        };
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
                self.lag.succeeded(now, &self.metrics);
                self.succeeded(work, &done, took, now);
            }
            Err(reason) => {
                let since = *self.failing_since.get_or_insert(now);
                let failing_for = now.saturating_duration_since(since);
                if failing_for > GIVE_UP {
                    return Err(DaemonError::Kernel {
                        failing_for,
                        reason,
                    });
                }
                let again_in = self.pending.failed(now);
                self.lag.failed();
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
        self.metrics.set_ready(self.status.borrow().ready().ok);
        Ok(())
    }

    /// Somebody else changed what we hold, or did not after all.
    fn inspected(&mut self, found: Result<Option<Suspect>, String>, now: Instant) {
        self.status
            .send_modify(|status| status.working_since = None);
        let changed = match found {
            Ok(None) => {
                self.pending.inspected(false, now);
                return;
            }
            Ok(Some(suspect)) => {
                let found = match suspect {
                    Suspect::Rules(_) => Repair::Rules,
                    Suspect::Sets => Repair::Sets,
                    Suspect::Members => Repair::Members,
                };
                (found, format!("{suspect:?}"))
            }
            // What cannot be looked at in part is looked at as a whole, which says why not.
            Err(error) => (Repair::Unknown, error),
        };
        let times = match changed.0 {
            Repair::Rules => self.pending.inspected_rules(now),
            Repair::Sets | Repair::Members | Repair::Unknown => self.pending.inspected(true, now),
        };
        self.repairing = Some(changed);
        debug!(times, "what we hold is not as we left it");
    }

    fn succeeded(&mut self, work: Work, done: &Done, took: Duration, now: Instant) {
        self.failing_since = None;
        let fought = self.pending.fought(now);
        let contested = fought > CONTESTED;
        let counts = self.counts(done);
        self.metrics.set_counts(&counts);
        self.metrics.set_rejected(&self.rejected.by_kind());
        let first = !self.status.borrow().in_force;
        let written = done.chains_written;
        let work = work.as_str();
        if first {
            self.in_force.notify_one();
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
        } else if let Some((kind, found)) = self.repairing.take().filter(|_| done.changed) {
            self.metrics.repaired(kind);
            self.status.send_modify(|status| {
                status.repairs += 1;
                status.last_repair = Some((found.clone(), now));
            });
            warn!(
                found,
                did = done.did,
                ?took,
                "somebody else's change is repaired"
            );
        } else if written > 0 {
            info!(chains_written = written, ?took, "rules changed");
        } else {
            debug!(work, changed = done.changed, ?took, "kernel is right");
        }
        self.tell_budget(&counts);
        self.status.send_modify(|status| {
            if status.failing.take().is_some() && !contested {
                info!("kernel work succeeds again");
            }
            if contested {
                status.failing = Some(format!(
                    "somebody else changes our rules again and again: {fought} times, and each time \
                     they were repaired; look for another agent or a script on this node"
                ));
            }
            status.in_force = true;
            status.working_since = None;
            status.last_apply = Some(now);
            status.backend = Some(done.backend.clone());
            status.counts = counts;
        });
    }

    /// Tells when profiles have outgrown the budget, or fit again.
    fn tell_budget(&self, counts: &Counts) {
        let Counts {
            members,
            member_budget,
            profiles,
            profiles_apart,
            ..
        } = *counts;
        let before = self.status.borrow().counts.profiles_apart;
        if profiles_apart > before {
            warn!(
                members,
                member_budget,
                profiles,
                profiles_apart,
                "member budget: profiles are laid out apart, a first packet of theirs costs more"
            );
        } else if profiles_apart < before {
            info!(
                members,
                member_budget, profiles, profiles_apart, "member budget: profiles are folded again"
            );
        }
    }

    fn counts(&mut self, done: &Done) -> Counts {
        let known = self.index.counts();
        let budget = self.index.member_use();
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
            member_budget: budget.budget as u64,
            profiles: budget.profiles as u64,
            profiles_apart: budget.apart as u64,
        }
    }
}
