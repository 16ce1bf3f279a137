//! A node on the EC2 in memory.

use std::sync::Arc;
use std::time::Duration;

use selvage_ipamd_core::action::Action;
use selvage_ipamd_core::bucket::Bucket;
use selvage_ipamd_core::cause::{Cause, why_empty};
use selvage_ipamd_core::fake::{self, Ec2};
use selvage_ipamd_core::ids::{PodKey, PodName, Timestamp};
use selvage_ipamd_core::limits::{Limits, Mode};
use selvage_ipamd_core::plan::{Targets, plan};
use selvage_ipamd_core::pool::{Entry, Lease, Pool, Settings};

pub struct Node {
    pub ec2: Ec2,
    pub pool: Pool,
    pub targets: Targets,
    pub limits: Limits,
    pub now: Timestamp,
    pub pods: u32,
    pub waiting: u32,
}

impl Node {
    pub fn new(ec2: Ec2, targets: Targets) -> Self {
        Self::with(ec2, targets, fake::settings())
    }

    pub fn with_prefixes(ec2: Ec2, targets: Targets) -> Self {
        let settings = Settings {
            mode: Mode::Prefixes,
            ..fake::settings()
        };
        Self::with(ec2, targets, settings)
    }

    pub fn with(ec2: Ec2, targets: Targets, settings: Settings) -> Self {
        let now = Timestamp::from_unix(Duration::from_secs(1_000_000));
        let mut pool = Pool::new(&ec2.instance(), settings);
        pool.reconcile(&ec2.enis(), now);
        Self {
            limits: ec2.instance_limits(),
            ec2,
            pool,
            targets,
            now,
            pods: 0,
            waiting: 0,
        }
    }

    pub fn tick(&mut self) -> Vec<Action> {
        let waiting = std::mem::take(&mut self.waiting);
        let actions = plan(&self.pool, &self.targets, &self.limits, waiting, self.now);
        for action in &actions {
            self.pool.begin(action, self.now);
            let outcome = self.ec2.carry_out(action);
            self.pool.apply(outcome, self.now);
        }
        actions
    }

    /// Until nothing is left to do, with as many calls as it takes.
    pub fn settle(&mut self) {
        for _ in 0..100 {
            if self.tick().is_empty() {
                return;
            }
            *self.pool.bucket_mut() = Bucket::new(1);
        }
        panic!("never settles");
    }

    pub fn wait(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
    }

    pub fn add(&mut self) -> bool {
        self.pods += 1;
        let key = key(self.pods);
        let given = self.pool.assign(&key, &PodName::default(), self.now);
        self.waiting += u32::from(given.is_err());
        given.is_ok()
    }

    pub fn add_many(&mut self, count: u32) {
        for _ in 0..count {
            assert!(self.add());
            self.settle();
            // One by one, not in a rush.
            self.wait(61);
            self.settle();
        }
    }

    pub fn del(&mut self, pod: u32) {
        self.pool.release(&key(pod), self.now).unwrap();
    }

    /// What an earlier process had leased.
    pub fn restore(&mut self, leases: &[Lease]) {
        let entries: Vec<Arc<Entry>> = leases
            .iter()
            .map(|lease| Entry {
                key: lease.key.clone(),
                pod: lease.pod.clone(),
                address: lease.address,
                since: lease.since,
            })
            .map(Arc::new)
            .collect();
        assert_eq!(self.pool.restore(&entries, &[]), Ok(Vec::new()));
    }

    pub fn sizes(&self) -> (u32, u32, u32) {
        let stats = self.pool.stats(self.now);
        (stats.enis, stats.total, stats.available)
    }

    pub fn cause(&self) -> Cause {
        why_empty(&self.pool, &self.targets, &self.limits, self.now)
    }
}

pub fn key(pod: u32) -> PodKey {
    PodKey {
        network_name: "aws-cni".into(),
        container_id: format!("sandbox-{pod}"),
        if_name: "eth0".into(),
    }
}

pub fn targets(
    warm_enis: u32,
    warm_ips: impl Into<Option<u32>>,
    minimum_ips: impl Into<Option<u32>>,
) -> Targets {
    Targets {
        warm_enis,
        warm_ips: warm_ips.into(),
        minimum_ips: minimum_ips.into(),
        ..Targets::default()
    }
}
