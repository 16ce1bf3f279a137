//! What is looked at by time: the cloud's view of our interfaces, the VPC's blocks, the host's network, and how many
//! nodes start.

use ipnet::Ipv4Net;
use selvage_ipamd_core::cloud::{
    Budget, Cloud, CloudError, CloudErrorKind, EniFacts, InstanceFacts, Operation, SeenEni,
};
use selvage_ipamd_core::ids::Timestamp;
use selvage_ipamd_core::pool::{Changes, Provisioning};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::host::{Scope, Why};
use super::{Done, Keeper, REFRESH, reason};
use crate::cluster::Cluster;
use crate::daemon::request::{NodeFacts, Status};
use crate::daemon::{act, crowd, with_primary};
use crate::hostnet::Host;

impl<C: Cloud, H: Host, K: Cluster> Keeper<C, H, K> {
    /// What is due by time.
    pub(super) fn look_around(&mut self) {
        let now = Instant::now();
        if self.timers.survey <= now && !self.timers.surveying {
            self.timers.surveying = true;
            let shared = self.shared.clone();
            self.work.spawn(async move {
                let reply = shared.cloud.seen_enis();
                Done::Seen(act::call(&shared, Operation::SeenEnis, reply).await)
            });
            let shared = self.shared.clone();
            self.work.spawn(async move {
                let reply = shared.cloud.facts();
                Done::Facts(act::call(&shared, Operation::Facts, reply).await)
            });
        }
        if self.timers.crowd.is_some_and(|due| due <= now) {
            self.timers.crowd = None;
            let shared = self.shared.clone();
            self.work
                .spawn(async move { Done::Crowd(crowd::ask(&shared).await) });
        }
        if self.timers.refresh <= now && self.timers.refreshing == 0 {
            self.timers.refresh = now + REFRESH;
            self.timers.refreshing += 1;
            let shared = self.shared.clone();
            self.work.spawn(async move {
                let reply = shared.cloud.vpc_cidrs();
                Done::Blocks(act::call(&shared, Operation::VpcCidrs, reply).await)
            });
            self.look_at_host(Scope::All, Why::Time);
            if *self.status.borrow() == Status::Ready {
                self.install();
            }
        }
    }

    /// More nodes than it seemed put this one's turn off.
    pub(super) fn take_crowd(&mut self, nodes: Option<u32>, now: Timestamp) {
        let bucket = self.pool.bucket_mut();
        if let Some(nodes) = nodes {
            bucket.share(nodes, now);
        }
        let look = bucket.look_in(now);
        self.timers.crowd = look.map(|pause| Instant::now() + pause);
    }

    pub(super) fn take_blocks(&mut self, blocks: Result<Vec<Ipv4Net>, CloudError>) {
        self.timers.refreshing -= 1;
        match blocks {
            Ok(blocks) if blocks.is_empty() => warn!("the VPC has no blocks: the old ones stay"),
            Ok(blocks) if blocks == self.vpc => {}
            Ok(blocks) => {
                info!(?blocks, "the VPC's blocks have changed");
                self.vpc = blocks;
                self.facts
                    .send_replace(Some(NodeFacts::new(&self.instance, &self.vpc)));
                self.look_at_host(Scope::All, Why::Asked);
            }
            Err(error) => warn!(%error, "the VPC's blocks: the old ones stay"),
        }
    }

    /// Somebody may have given the primary interface other security groups: new interfaces get the same.
    pub(super) fn take_facts(&mut self, facts: Result<InstanceFacts, CloudError>) {
        match facts {
            Ok(facts) if facts.security_groups != self.instance.security_groups => {
                info!(groups = ?facts.security_groups, "security groups have changed");
                self.pool.set_security_groups(facts.security_groups.clone());
                self.instance.security_groups = facts.security_groups;
            }
            Ok(_) => {}
            // The survey beside it says that metadata is silent.
            Err(error) => debug!(%error, "security groups: the old ones stay"),
        }
    }

    pub(super) fn take_seen(&mut self, seen: Result<Vec<SeenEni>, CloudError>, now: Timestamp) {
        self.shared.metrics.count_reconcile("metadata");
        match seen {
            Ok(seen) if !self.pool.differs(&seen, now) => self.survey_over(),
            Ok(_) => self.describe(),
            Err(error) => {
                warn!(%error, "metadata is silent: asking EC2");
                self.describe();
            }
        }
    }

    pub(super) fn describe(&mut self) {
        self.timers.surveying = true;
        let now = self.now();
        if self.asks_ec2() {
            self.pool.bucket_mut().take(Budget::Read, now);
        }
        let shared = self.shared.clone();
        self.work
            .spawn(async move { Done::Described(act::interfaces(&shared, false).await) });
    }

    fn asks_ec2(&self) -> bool {
        match self.shared.config.provisioning {
            Provisioning::Full | Provisioning::AttachedOnly => true,
            Provisioning::MetadataOnly => false,
        }
    }

    fn survey_over(&mut self) {
        self.timers.surveying = false;
        self.timers.survey = Instant::now() + self.shared.config.reconcile;
    }

    pub(super) fn take_described(
        &mut self,
        enis: Result<Vec<EniFacts>, CloudError>,
        now: Timestamp,
    ) {
        self.survey_over();
        if self.asks_ec2() {
            self.shared.metrics.count_reconcile("ec2");
            let bucket = self.pool.bucket_mut();
            match &enis {
                Err(error) if error.kind == CloudErrorKind::Throttled => {
                    bucket.throttled(Budget::Read, now);
                }
                Ok(_) | Err(_) => bucket.went_well(Budget::Read, now),
            }
        }
        let enis = enis
            .map_err(|e| (reason(&e), e.to_string()))
            .and_then(|enis| {
                with_primary(enis, &self.instance).map_err(|words| ("CloudAnswerBad", words))
            });
        match enis {
            Ok(enis) => {
                let changes = self.pool.reconcile(&enis, now);
                self.tell(&changes);
            }
            Err((reason, words)) => {
                warn!(error = words, "describe the interfaces");
                self.trouble(reason, "ec2:DescribeNetworkInterfaces".into(), words);
            }
        }
    }

    fn tell(&mut self, changes: &Changes) {
        if changes.is_empty() {
            return;
        }
        warn!(?changes, "the cloud holds something else than we did");
        if !changes.orphaned.is_empty() {
            let pods: Vec<String> = changes
                .orphaned
                .iter()
                .map(|lease| format!("{} ({})", lease.pod, lease.address))
                .collect();
            let words = format!(
                "addresses of running pods have left this node: {}",
                pods.join(", ")
            );
            self.trouble("AddressesLost", "Reconcile".into(), words);
        }
        self.journal.changed(Instant::now());
        // A pod's address may be on another interface now, whose table its packets must take, however young it is.
        self.look_at_host(Scope::Routing, Why::Asked);
    }
}
