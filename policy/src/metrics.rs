//! Metrics in OpenMetrics text, over HTTP, once the lock is held.
//!
//! Bound after the lock because in an upgrade the old instance has the port until it ends. What
//! each one means is in `docs/metrics.md`, which [`document`] writes from here.

mod definitions;
pub mod document;
mod http;
mod kinds;
mod lag;
mod process;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use selvage_policy_core::compile::drops::DropReason;
use selvage_policy_core::convert::ProblemKind;
use selvage_policy_core::model::Direction;
use tokio::time::Instant;

pub use http::serve;
pub use kinds::{LeftOut, Outcome, Repair, Reported, Work};
pub use lag::Lag;

use crate::flows::Cut;
use crate::status::{Counts, Phase, Resource};
use crate::watches::Watches;
use definitions::{Definitions, Seconds};
use process::Process;

/// Why a flow was ended.
const FORBIDDEN: &str = "forbidden";
const LEFT: &str = "address_left";

/// Every metric of the daemon, and the registry that prints them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    of: Definitions,
    process: Process,
    watches: Arc<Watches>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All of them at zero, with every label value that is known beforehand.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let ours = registry.sub_registry_with_prefix("selvage_policy");
        ours.register(
            "build",
            "What is running",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        let metrics = Self {
            of: Definitions::new(ours),
            process: Process::new(&mut registry),
            registry,
            watches: Arc::default(),
        };
        metrics.begin();
        metrics
    }

    /// Makes every sample that there can be.
    fn begin(&self) {
        for resource in Resource::ALL {
            let by = [("resource", resource.as_str())];
            self.set_in_sync(resource, false);
            drop(self.of.watch_events.get_or_create(&by));
            drop(self.of.watch_errors.get_or_create(&by));
            drop(self.of.watch_lists.get_or_create(&by));
            drop(self.of.object_to_kernel.get_or_create(&by));
        }
        for work in Work::ALL {
            drop(
                self.of
                    .apply_seconds
                    .get_or_create(&[("work", work.as_str())]),
            );
            for outcome in Outcome::ALL {
                let by = [("work", work.as_str()), ("outcome", outcome.as_str())];
                drop(self.of.applies.get_or_create(&by));
            }
        }
        for found in Repair::ALL {
            let by = [("found", found.as_str())];
            drop(self.of.repairs.get_or_create(&by));
        }
        for why in [FORBIDDEN, LEFT] {
            drop(self.of.cuts.get_or_create(&[("why", why)]));
        }
        for direction in [Direction::Ingress, Direction::Egress] {
            let by = [("direction", direction_name(direction))];
            drop(self.of.denials.get_or_create(&by));
        }
        for reason in DropReason::ALL {
            drop(self.of.drops.get_or_create(&[("why", reason.as_str())]));
        }
        for why in LeftOut::ALL {
            let by = [("why", why.as_str())];
            drop(self.of.denials_left_out.get_or_create(&by));
        }
        for outcome in Reported::ALL {
            let by = [("outcome", outcome.as_str())];
            drop(self.of.events.get_or_create(&by));
        }
        self.set_rejected(&BTreeMap::new());
        self.set_phase(Phase::Syncing);
        self.set_counts(&Counts::default());
    }

    /// When each watch gave its last sign of life; its ages are among the metrics.
    #[must_use]
    pub fn watches(&self) -> &Arc<Watches> {
        &self.watches
    }

    /// Notes whether a watch has delivered everything once.
    pub fn set_in_sync(&self, resource: Resource, in_sync: bool) {
        let by = [("resource", resource.as_str())];
        self.of.in_sync.get_or_create(&by).set(in_sync.into());
    }

    /// Counts objects received.
    pub fn watch_event(&self, resource: Resource) {
        let by = [("resource", resource.as_str())];
        self.of.watch_events.get_or_create(&by).inc();
    }

    /// Counts a failed list or watch, or an object that could not be read.
    pub fn watch_error(&self, resource: Resource) {
        let by = [("resource", resource.as_str())];
        self.of.watch_errors.get_or_create(&by).inc();
    }

    /// Counts a list that was read to its end.
    pub fn listed(&self, resource: Resource) {
        let by = [("resource", resource.as_str())];
        self.of.watch_lists.get_or_create(&by).inc();
    }

    /// An object's effect is in the kernel, so long after it was received.
    pub fn in_kernel(&self, resource: Resource, after: Duration) {
        let by = [("resource", resource.as_str())];
        self.of
            .object_to_kernel
            .get_or_create(&by)
            .observe(after.as_secs_f64());
    }

    /// Notes how much there is.
    pub fn set_counts(&self, counts: &Counts) {
        for (state, count) in [("accepted", counts.policies), ("rejected", counts.rejected)] {
            set(&self.of.policies.get_or_create(&[("state", state)]), count);
        }
        set(&self.of.namespaces, counts.namespaces);
        set(&self.of.pods, counts.pods);
        set(&self.of.local_pods, counts.local_pods);
        set(&self.of.chains, counts.chains);
        set(&self.of.rules, counts.rules);
        set(&self.of.sets, counts.sets);
        set(&self.of.members, counts.members);
        set(&self.of.member_budget, counts.member_budget);
        let apart = counts.profiles_apart;
        let folded = counts.profiles.saturating_sub(apart);
        for (layout, count) in [("folded", folded), ("apart", apart)] {
            set(
                &self.of.profiles.get_or_create(&[("layout", layout)]),
                count,
            );
        }
    }

    /// Counts a piece of kernel work and how long it took.
    pub fn applied(&self, work: Work, outcome: Outcome, took: Duration) {
        let by = [("work", work.as_str()), ("outcome", outcome.as_str())];
        self.of.applies.get_or_create(&by).inc();
        self.of
            .apply_seconds
            .get_or_create(&[("work", work.as_str())])
            .observe(took.as_secs_f64());
        match outcome {
            Outcome::Changed | Outcome::Unchanged => stamp(&self.of.last_apply),
            Outcome::Failed => {}
        }
    }

    /// Counts a change by somebody else that was made right again.
    pub fn repaired(&self, found: Repair) {
        let by = [("found", found.as_str())];
        self.of.repairs.get_or_create(&by).inc();
        stamp(&self.of.last_repair);
    }

    /// Counts flows that were ended.
    pub fn cut(&self, cut: &Cut) {
        for (why, flows) in [(FORBIDDEN, cut.forbidden), (LEFT, cut.left)] {
            let by = [("why", why)];
            self.of.cuts.get_or_create(&by).inc_by(flows as u64);
        }
        self.of.cuts_unfinished.inc_by(cut.unfinished as u64);
        self.of.cut_seconds.observe(cut.took.as_secs_f64());
    }

    /// Notes the phase.
    pub fn set_phase(&self, now_in: Phase) {
        for phase in [Phase::Syncing, Phase::Standby, Phase::Enforcing] {
            let by = [("phase", phase.as_str())];
            self.of
                .phase
                .get_or_create(&by)
                .set((phase == now_in).into());
        }
    }

    /// Notes what the readiness probe says.
    pub fn set_ready(&self, ready: bool) {
        self.of.ready.set(ready.into());
    }

    /// Notes whether kube-proxy runs in IPVS mode.
    pub fn set_ipvs(&self, present: bool) {
        self.of.ipvs.set(present.into());
    }

    /// Notes how many policies have something of each kind that was not understood.
    pub fn set_rejected(&self, counts: &BTreeMap<ProblemKind, u64>) {
        for kind in ProblemKind::ALL {
            let count = counts.get(&kind).copied().unwrap_or_default();
            let by = [("reason", kind.as_str())];
            set(&self.of.rejected.get_or_create(&by), count);
        }
    }

    /// Counts a denied packet that is in the log.
    pub fn denial_logged(&self, direction: Direction) {
        let by = [("direction", direction_name(direction))];
        self.of.denials.get_or_create(&by).inc();
    }

    /// Counts a packet in the log that was dropped for another reason than policy.
    pub fn drop_logged(&self, reason: DropReason) {
        let by = [("why", reason.as_str())];
        self.of.drops.get_or_create(&by).inc();
    }

    /// Counts denied packets that are not.
    pub fn denials_left_out(&self, why: LeftOut, count: u64) {
        let by = [("why", why.as_str())];
        self.of.denials_left_out.get_or_create(&by).inc_by(count);
    }

    /// Counts a Kubernetes Event.
    pub fn event(&self, outcome: Reported) {
        let by = [("outcome", outcome.as_str())];
        self.of.events.get_or_create(&by).inc();
    }

    /// All of them as OpenMetrics text.
    #[must_use]
    pub fn render(&self) -> String {
        let now = Instant::now();
        for resource in Resource::ALL {
            let age = self.watches.age(resource, now);
            self.of
                .watch_age
                .get_or_create(&[("resource", resource.as_str())])
                .set(age.as_secs_f64());
        }
        self.process.look();
        let mut body = String::new();
        text::encode(&mut body, &self.registry).expect("writing to a String does not fail");
        body
    }
}

fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

fn set(gauge: &Gauge, count: u64) {
    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
}

/// Sets a gauge to the Unix time.
fn stamp(gauge: &Seconds) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    gauge.set(now.as_secs_f64());
}
