//! Every metric, with its name and what it means.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};

/// A label and its value.
type Label = (&'static str, &'static str);

/// A metric for each value of `N` labels.
pub(super) type By<const N: usize, M> = Family<[Label; N], M>;

/// Histograms are made, not defaulted.
pub(super) type Histograms = Family<[Label; 1], Histogram, fn() -> Histogram>;

/// A gauge of seconds.
pub(super) type Seconds = Gauge<f64, AtomicU64>;

/// 0.25 ms (a member by netlink) to 8 s (a large legacy table under a contended lock).
fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
}

fn histograms() -> Histograms {
    Family::new_with_constructor(histogram)
}

/// Registers metrics.
struct Defining<'a>(&'a mut Registry);

impl Defining<'_> {
    fn plain<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn seconds<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        let unit = Unit::Seconds;
        self.0.register_with_unit(name, help, unit, metric.clone());
        metric
    }
}

macro_rules! definitions {
    ($($field:ident: $type:ty = $how:ident($name:literal, $($help:literal)+, $metric:expr);)+) => {
        /// All of them, as handles.
        pub(super) struct Definitions {
            $(pub(super) $field: $type),+
        }

        impl Definitions {
            /// Registers them all.
            pub(super) fn new(registry: &mut Registry) -> Self {
                let mut of = Defining(registry);
                Self {
                    $($field: of.$how($name, concat!($($help),+), $metric)),+
                }
            }
        }
    };
}

definitions! {
    in_sync: By<1, Gauge> = plain("in_sync",
        "Whether the watch has delivered everything once (1) or not (0)",
        By::default());
    watch_age: By<1, Seconds> = seconds("watch_age",
        "Time since the watch last gave a sign of life, bookmarks included; a healthy one stays below 130",
        By::default());
    watch_events: By<1, Counter> = plain("watch_events",
        "Objects that the API server sent",
        By::default());
    watch_errors: By<1, Counter> = plain("watch_errors",
        "Failed lists and watches, and objects that could not be read",
        By::default());
    watch_lists: By<1, Counter> = plain("watch_lists",
        "Full lists read to the end: one at the start, and one whenever a watch could not go on where it was",
        By::default());
    object_to_kernel: Histograms = seconds("object_to_kernel",
        "From the receipt of an object to the end of the kernel work that holds its effect, retries included; "
        "objects without effect on this node are left out",
        histograms());
    policies: By<1, Gauge> = plain("policies",
        "NetworkPolicies of the cluster; a rejected one denies what it would have allowed",
        By::default());
    rejected: By<1, Gauge> = plain("rejected_policies",
        "Policies that are not understood, in whole or in part, by what is not; one counts once for each reason",
        By::default());
    namespaces: Gauge = plain("namespaces",
        "Namespaces known",
        Gauge::default());
    pods: Gauge = plain("pods",
        "Pods of the cluster known",
        Gauge::default());
    local_pods: Gauge = plain("local_pods",
        "Pods of this node that have an entry",
        Gauge::default());
    chains: Gauge = plain("chains",
        "Chains of ours in the kernel",
        Gauge::default());
    rules: Gauge = plain("rules",
        "Rules of ours in the kernel",
        Gauge::default());
    sets: Gauge = plain("sets",
        "Sets of ours in the kernel",
        Gauge::default());
    members: Gauge = plain("set_members",
        "Members of those sets",
        Gauge::default());
    member_budget: Gauge = plain("member_budget",
        "Members that those sets may have",
        Gauge::default());
    profiles: By<1, Gauge> = plain("profiles",
        "Sets of policies that isolate pods of this node in a direction; those laid out apart have more rules and "
        "fewer members, because the budget is not enough for all of them folded",
        By::default());
    applies: By<2, Counter> = plain("applies",
        "Pieces of kernel work, by what was written and how it ended",
        By::default());
    apply_seconds: Histograms = seconds("apply_duration",
        "How long a piece of kernel work took",
        histograms());
    last_apply: Seconds = seconds("last_apply_timestamp",
        "Unix time when the kernel was last seen or made right",
        Seconds::default());
    repairs: By<1, Counter> = plain("repairs",
        "Changes of ours by somebody else that were made right again, by where they were found",
        By::default());
    last_repair: Seconds = seconds("last_repair_timestamp",
        "Unix time of the last repair; 0: there was none",
        Seconds::default());
    cuts: By<1, Counter> = plain("cut_flows",
        "Established flows that were ended: a change forbade them, or their address left its pod",
        By::default());
    cuts_unfinished: Counter = plain("cut_flows_unfinished",
        "Forbidden flows that were there still at the last look of a cut; it looks again",
        Counter::default());
    cut_seconds: Histogram = seconds("cut_duration",
        "How long a cut took, looks included, whether or not there was a flow to end",
        histogram());
    denials: By<1, Counter> = plain("denials_logged",
        "Denied packets that are in the deny log",
        By::default());
    drops: By<1, Counter> = plain("drops_logged",
        "Packets in the deny log that were dropped for another reason than policy, by why",
        By::default());
    denials_left_out: By<1, Counter> = plain("denials_left_out",
        "Denied packets that the deny log leaves out, by why",
        By::default());
    events: By<1, Counter> = plain("events",
        "Kubernetes Events on policies and pods, by what became of them",
        By::default());
    phase: By<1, Gauge> = plain("phase",
        "1 for the phase the daemon is in, 0 for the others",
        By::default());
    ready: Gauge = plain("ready",
        "Whether the readiness probe passes",
        Gauge::default());
    ipvs: Gauge = plain("ipvs",
        "Whether kube-proxy runs in IPVS mode here, which policy cannot follow",
        Gauge::default());
}

impl fmt::Debug for Definitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Definitions").finish_non_exhaustive()
    }
}
