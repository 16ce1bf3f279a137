//! Requests of pods: an address now, after a wait, or the reason why not.

use std::collections::BTreeSet;

use selvage_ipamd_core::cause::{Cause, why_empty};
use selvage_ipamd_core::cloud::Cloud;
use selvage_ipamd_core::ids::{PodKey, PodName, Timestamp};
use selvage_ipamd_core::pool::Lease;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Keeper, WAITING, Waiter};
use crate::cluster::Cluster;
use crate::daemon::request::{Grant, Refusal, Reply};
use crate::hostnet::Host;

impl<C: Cloud, H: Host, K: Cluster> Keeper<C, H, K> {
    pub(super) fn add(&mut self, key: PodKey, pod: PodName, reply: Reply, now: Timestamp) {
        // Whoever came first is served first.
        let overtaking = !self.waiting.is_empty() && self.pool.lease(&key).is_none();
        let reply = match overtaking {
            true => reply,
            false => match self.assign(&key, &pod, reply, now) {
                Ok(()) => return,
                Err(reply) => reply,
            },
        };
        let cause = why_empty(&self.pool, &self.targets, &self.limits, now);
        let patience = self.shared.config.add_wait;
        let hopeful = cause.may_pass_in().is_some_and(|pause| pause < patience);
        if hopeful && self.waiting.len() < WAITING {
            debug!(%pod, %cause, "waits for an address");
            self.waiting.push_back(Waiter {
                key,
                pod,
                until: Instant::now() + patience,
                reply,
            });
        } else {
            self.refuse(&pod, reply, &cause);
        }
    }

    /// Gives an address, or the reply back.
    fn assign(
        &mut self,
        key: &PodKey,
        pod: &PodName,
        reply: Reply,
        now: Timestamp,
    ) -> Result<(), Reply> {
        let Ok(assignment) = self.pool.assign(key, pod, now) else {
            return Err(reply);
        };
        let address = assignment.lease.address;
        if assignment.new {
            info!(%pod, %address, device = ?assignment.lease.device_index, "leased");
            self.journal.changed(Instant::now());
        }
        let cancel = assignment.new.then(|| key.clone());
        let grant = Grant {
            lease: assignment.lease,
        };
        self.journal.push(reply, grant, cancel);
        Ok(())
    }

    fn refuse(&self, pod: &PodName, reply: Reply, cause: &Cause) {
        warn!(%pod, %cause, "no address");
        self.shared.metrics.count_no_address();
        let refusal = Refusal::Empty {
            cause: cause.to_string(),
        };
        // Whoever asked may have gone.
        let _ = reply.send(Err(refusal));
    }

    /// In order of arrival; who has gone is forgotten, who has waited long enough is told why.
    pub(super) fn serve_waiting(&mut self, now: Timestamp) {
        let clock = Instant::now();
        for waiter in std::mem::take(&mut self.waiting) {
            if waiter.reply.is_closed() {
                continue;
            }
            let assigned = self.assign(&waiter.key, &waiter.pod, waiter.reply, now);
            match assigned {
                Ok(()) => {}
                Err(reply) if waiter.until <= clock => {
                    let cause = why_empty(&self.pool, &self.targets, &self.limits, now);
                    self.refuse(&waiter.pod, reply, &cause);
                }
                Err(reply) => self.waiting.push_back(Waiter { reply, ..waiter }),
            }
        }
    }

    /// Takes back what is not listed. A lease that AWS's agent took over from before it kept names goes by its
    /// sandbox alone.
    pub(super) fn collect(
        &mut self,
        network: &str,
        valid: &BTreeSet<(String, String)>,
        reply: oneshot::Sender<Vec<Lease>>,
        now: Timestamp,
    ) {
        let mut collected = Vec::new();
        for lease in self.pool.leases() {
            let key = lease.key;
            let stays = if self.pool.find_migrated(&key.container_id).as_ref() == Some(&key) {
                valid
                    .iter()
                    .any(|(container, _)| *container == key.container_id)
            } else {
                key.network_name != network
                    || valid.contains(&(key.container_id.clone(), key.if_name.clone()))
            };
            if stays {
                continue;
            }
            if let Some(released) = self.pool.release(&key, now) {
                let lease = released.lease;
                warn!(pod = %lease.pod, address = %lease.address, "collected: the runtime knows no such sandbox");
                self.after_release(&lease);
                collected.push(lease);
            }
        }
        // Whoever asked may have gone.
        let _ = reply.send(collected);
    }

    pub(super) fn del(&mut self, key: PodKey, reply: Reply, now: Timestamp) {
        // A sandbox that gives up has stopped waiting, and must not use what it is about to be told.
        for waiter in std::mem::take(&mut self.waiting) {
            if waiter.key == key {
                // Whoever asked may have gone.
                let _ = waiter.reply.send(Err(Refusal::Withdrawn));
            } else {
                self.waiting.push_back(waiter);
            }
        }
        self.journal.withdraw(&key);
        let released = self.pool.release(&key, now).or_else(|| {
            let migrated = self.pool.find_migrated(&key.container_id)?;
            self.pool.release(&migrated, now)
        });
        let Some(released) = released else {
            // Whoever asked may have gone.
            let _ = reply.send(Err(Refusal::UnknownPod));
            return;
        };
        let lease = released.lease;
        info!(pod = %lease.pod, address = %lease.address, "taken back");
        self.after_release(&lease);
        // At once: if the daemon dies before it is written, its next start finds a lease without a veth. Whoever asked may
        // have gone.
        let _ = reply.send(Ok(Grant { lease }));
    }

    fn after_release(&mut self, lease: &Lease) {
        if self.shared.config.annotate_pod_ip {
            self.shared.cluster.clear(&lease.pod, lease.address);
        }
        if lease.device_index.is_none() {
            // The plugin cannot know which table its rules name.
            self.forget(lease.address);
        }
        self.journal.changed(Instant::now());
    }
}
