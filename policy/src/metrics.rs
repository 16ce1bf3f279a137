//! Metrics in OpenMetrics text, over HTTP, once the lock is held.
//!
//! Bound after the lock because in an upgrade the old instance has the port until it ends.

mod http;

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use http::serve;

use crate::status::{Counts, Phase, Resource};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResource {
    resource: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPhase {
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByWork {
    work: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    work: &'static str,
    outcome: &'static str,
}

/// What kind of kernel work was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Members added to and removed from sets.
    Members,
    /// Sets and chains made what they should be.
    Rules,
}

impl Work {
    /// The value of the label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Members => "members",
            Self::Rules => "rules",
        }
    }
}

/// How a piece of kernel work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Something was written.
    Changed,
    /// The kernel was right already.
    Unchanged,
    /// An error; it is tried again.
    Failed,
}

impl Outcome {
    /// The value of the label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Failed => "failed",
        }
    }
}

/// Every metric of the daemon, and the registry that prints them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    in_sync: Labelled<ByResource, Gauge>,
    watch_events: Labelled<ByResource, Counter>,
    watch_errors: Labelled<ByResource, Counter>,
    policies: Labelled<ByState, Gauge>,
    namespaces: Gauge,
    pods: Gauge,
    local_pods: Gauge,
    chains: Gauge,
    rules: Gauge,
    sets: Gauge,
    members: Gauge,
    applies: Labelled<ByOutcome, Counter>,
    apply_seconds: Labelled<ByWork, Histogram>,
    last_apply: Gauge<f64, AtomicU64>,
    phase: Labelled<ByPhase, Gauge>,
    ipvs: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn histogram() -> Histogram {
    // 0.25 ms (a member by netlink) to 8 s (a large legacy table under a contended lock).
    Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
}

impl Metrics {
    /// All of them at zero, with every label value that is known beforehand.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("selvage_policy");
        let in_sync = Labelled::<ByResource, Gauge>::default();
        registry.register(
            "in_sync",
            "Whether the watch has delivered everything once (1) or not (0)",
            in_sync.clone(),
        );
        let watch_events = Labelled::<ByResource, Counter>::default();
        registry.register(
            "watch_events",
            "Objects that the API server sent",
            watch_events.clone(),
        );
        let watch_errors = Labelled::<ByResource, Counter>::default();
        registry.register(
            "watch_errors",
            "Failed lists and watches, and objects that could not be read",
            watch_errors.clone(),
        );
        let policies = Labelled::<ByState, Gauge>::default();
        registry.register(
            "policies",
            "NetworkPolicies of the cluster; a rejected one denies what it would have allowed",
            policies.clone(),
        );
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let namespaces = gauge("namespaces", "Namespaces known");
        let pods = gauge("pods", "Pods of the cluster known");
        let local_pods = gauge("local_pods", "Pods of this node that have an entry");
        let chains = gauge("chains", "Chains of ours in the kernel");
        let rules = gauge("rules", "Rules of ours in the kernel");
        let sets = gauge("sets", "Sets of ours in the kernel");
        let members = gauge("set_members", "Members of those sets");
        let ipvs = gauge(
            "ipvs",
            "Whether kube-proxy runs in IPVS mode here, which policy cannot follow",
        );
        let applies = Labelled::<ByOutcome, Counter>::default();
        registry.register(
            "applies",
            "Pieces of kernel work, by what was written and how it ended",
            applies.clone(),
        );
        let apply_seconds =
            Labelled::<ByWork, Histogram>::new_with_constructor(histogram as fn() -> Histogram);
        registry.register_with_unit(
            "apply_duration",
            "How long a piece of kernel work took",
            Unit::Seconds,
            apply_seconds.clone(),
        );
        let last_apply = Gauge::<f64, AtomicU64>::default();
        registry.register_with_unit(
            "last_apply_timestamp",
            "Unix time when the kernel was last seen or made right",
            Unit::Seconds,
            last_apply.clone(),
        );
        let phase = Labelled::<ByPhase, Gauge>::default();
        registry.register(
            "phase",
            "1 for the phase the daemon is in, 0 for the others",
            phase.clone(),
        );
        registry.register(
            "build",
            "What is running",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        let metrics = Self {
            registry,
            in_sync,
            watch_events,
            watch_errors,
            policies,
            namespaces,
            pods,
            local_pods,
            chains,
            rules,
            sets,
            members,
            applies,
            apply_seconds,
            last_apply,
            phase,
            ipvs,
        };
        for resource in Resource::ALL {
            metrics.set_in_sync(resource, false);
            let by = ByResource {
                resource: resource.as_str(),
            };
            metrics.watch_events.get_or_create(&by).inc_by(0);
            metrics.watch_errors.get_or_create(&by).inc_by(0);
        }
        for work in [Work::Members, Work::Rules] {
            for outcome in [Outcome::Changed, Outcome::Unchanged, Outcome::Failed] {
                drop(metrics.applies.get_or_create(&by_outcome(work, outcome)));
            }
            drop(metrics.apply_seconds.get_or_create(&ByWork {
                work: work.as_str(),
            }));
        }
        metrics.set_phase(Phase::Syncing);
        metrics.set_counts(&Counts::default());
        metrics
    }

    /// Notes whether a watch has delivered everything once.
    pub fn set_in_sync(&self, resource: Resource, in_sync: bool) {
        self.in_sync
            .get_or_create(&ByResource {
                resource: resource.as_str(),
            })
            .set(in_sync.into());
    }

    /// Counts objects received.
    pub fn watch_event(&self, resource: Resource) {
        self.watch_events
            .get_or_create(&ByResource {
                resource: resource.as_str(),
            })
            .inc();
    }

    /// Counts a failed list or watch, or an object that could not be read.
    pub fn watch_error(&self, resource: Resource) {
        self.watch_errors
            .get_or_create(&ByResource {
                resource: resource.as_str(),
            })
            .inc();
    }

    /// Notes how much there is.
    pub fn set_counts(&self, counts: &Counts) {
        let set = |gauge: &Gauge, count: u64| {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        for (state, count) in [("accepted", counts.policies), ("rejected", counts.rejected)] {
            set(&self.policies.get_or_create(&ByState { state }), count);
        }
        set(&self.namespaces, counts.namespaces);
        set(&self.pods, counts.pods);
        set(&self.local_pods, counts.local_pods);
        set(&self.chains, counts.chains);
        set(&self.rules, counts.rules);
        set(&self.sets, counts.sets);
        set(&self.members, counts.members);
    }

    /// Counts a piece of kernel work and how long it took.
    pub fn applied(&self, work: Work, outcome: Outcome, took: Duration) {
        self.applies.get_or_create(&by_outcome(work, outcome)).inc();
        self.apply_seconds
            .get_or_create(&ByWork {
                work: work.as_str(),
            })
            .observe(took.as_secs_f64());
        match outcome {
            Outcome::Changed | Outcome::Unchanged => {
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                self.last_apply.set(now.as_secs_f64());
            }
            Outcome::Failed => {}
        }
    }

    /// Notes the phase.
    pub fn set_phase(&self, now_in: Phase) {
        for phase in [Phase::Syncing, Phase::Standby, Phase::Enforcing] {
            let phase_name = match phase {
                Phase::Syncing => "syncing",
                Phase::Standby => "standby",
                Phase::Enforcing => "enforcing",
            };
            self.phase
                .get_or_create(&ByPhase { phase: phase_name })
                .set((phase == now_in).into());
        }
    }

    /// Notes whether kube-proxy runs in IPVS mode.
    pub fn set_ipvs(&self, present: bool) {
        self.ipvs.set(present.into());
    }

    /// All of them as OpenMetrics text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut body = String::new();
        text::encode(&mut body, &self.registry).expect("writing to a String does not fail");
        body
    }
}

fn by_outcome(work: Work, outcome: Outcome) -> ByOutcome {
    ByOutcome {
        work: work.as_str(),
        outcome: outcome.as_str(),
    }
}
