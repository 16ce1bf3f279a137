//! What the daemon says about itself: one value, written by the loop, read by probes and `status`.

pub mod enforced;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use selvage_policy_core::index;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::watches::WatchReport;
use enforced::Enforced;

/// What an IPVS node's operator is told.
const IPVS: &str = "kube-proxy runs in IPVS mode (interface kube-ipvs0 exists): traffic through Services \
     passes by policy. Set kube-proxy's mode to nftables or iptables, and run `kube-proxy --cleanup` on the node";

/// The loop turns at least this often, whatever happens.
pub const TURN: Duration = Duration::from_secs(5);

/// A loop that has not turned for so long is stuck.
const STUCK: Duration = Duration::from_secs(30);

/// A piece of kernel work that has not ended for so long is stuck. Longer than the tools wait for
/// the xtables lock, since a busy neighbour is no reason to be restarted.
const STUCK_WORK: Duration = Duration::from_secs(180);

/// What is watched on the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Namespaces, for their labels.
    Namespaces,
    /// Pods of the whole cluster.
    Pods,
    /// NetworkPolicies of the whole cluster.
    NetworkPolicies,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Namespaces, Self::Pods, Self::NetworkPolicies];

    /// What the index calls so; `None`: it comes from elsewhere.
    #[must_use]
    pub fn of(resource: index::Resource) -> Option<Self> {
        match resource {
            index::Resource::Pods => Some(Self::Pods),
            index::Resource::Namespaces => Some(Self::Namespaces),
            index::Resource::Policies => Some(Self::NetworkPolicies),
            index::Resource::Routes => None,
        }
    }

    /// The name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Pods => "pods",
            Self::NetworkPolicies => "networkpolicies",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far the daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Reads the cluster; the kernel is not touched.
    Syncing,
    /// Knows the cluster, waits for another instance's lock; the kernel is not touched.
    Standby,
    /// Holds the lock and keeps the kernel right.
    Enforcing,
}

impl Phase {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syncing => "syncing",
            Self::Standby => "standby",
            Self::Enforcing => "enforcing",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How much there is of everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Namespaces known.
    pub namespaces: u64,
    /// Pods of the cluster known.
    pub pods: u64,
    /// Pods of this node that have an entry.
    pub local_pods: u64,
    /// Policies understood.
    pub policies: u64,
    /// Policies not understood, in whole or in part: what they would have allowed is denied.
    pub rejected: u64,
    /// Chains of ours, all families.
    pub chains: u64,
    /// Rules of ours, all families.
    pub rules: u64,
    /// Sets of ours, all families.
    pub sets: u64,
    /// Members of those sets.
    pub members: u64,
    /// Members that they may have.
    pub member_budget: u64,
    /// Sets of policies that isolate pods of this node in a direction.
    pub profiles: u64,
    /// Those of them that are laid out apart, for the budget's sake: more rules, fewer members.
    pub profiles_apart: u64,
}

/// The daemon's state at one moment.
#[derive(Debug, Clone)]
pub struct Status {
    /// How far it is.
    pub phase: Phase,
    /// Watches that have not delivered everything once.
    pub waiting_for: BTreeSet<Resource>,
    /// Whether rules have been put in force since the lock was taken.
    pub in_force: bool,
    /// What keeps the kernel from being right, if anything.
    pub failing: Option<String>,
    /// Whether kube-proxy runs in IPVS mode here.
    pub ipvs: bool,
    /// The iptables in use, once chosen.
    pub backend: Option<String>,
    /// How much there is.
    pub counts: Counts,
    /// When the kernel was last seen or made right.
    pub last_apply: Option<Instant>,
    /// Changes by somebody else that were made right again, since the start.
    pub repairs: u64,
    /// The last of them: what was found, and when it was right again.
    pub last_repair: Option<(String, Instant)>,
    /// When the loop last turned.
    pub turned: Instant,
    /// Since when a piece of kernel work is under way.
    pub working_since: Option<Instant>,
}

/// A probe's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether the probe passes.
    pub ok: bool,
    /// Why, for people.
    pub reason: String,
}

/// What `selvage-policy status` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The node's name.
    pub node: String,
    /// How far the daemon is.
    pub phase: Phase,
    /// The readiness probe's answer.
    pub ready: Verdict,
    /// The liveness probe's answer.
    pub live: Verdict,
    /// The iptables in use, once chosen.
    pub backend: Option<String>,
    /// The families that are enforced.
    pub families: Vec<String>,
    /// Seconds since the kernel was last seen or made right.
    pub last_apply_seconds: Option<f64>,
    /// Changes by somebody else that were made right again, since the start.
    pub repairs: u64,
    /// The last of them.
    pub last_repair: Option<RepairReport>,
    /// How much there is.
    pub counts: Counts,
    /// How old what it knows is.
    pub watches: Vec<WatchReport>,
    /// What is enforced; `None` while the loop doesn't answer.
    pub enforced: Option<Enforced>,
}

/// A change by somebody else that was made right again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RepairReport {
    /// Where it was found.
    pub found: String,
    /// Seconds since it was right again.
    pub seconds: f64,
}

/// What [`Status::report`] takes from elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The node's name.
    pub node: String,
    /// The families that are enforced.
    pub families: Vec<String>,
    /// The watches.
    pub watches: Vec<WatchReport>,
    /// What is enforced, if the loop says so.
    pub enforced: Option<Enforced>,
}

impl Status {
    /// A daemon that has just begun.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Syncing,
            waiting_for: Resource::ALL.into(),
            in_force: false,
            failing: None,
            ipvs: false,
            backend: None,
            counts: Counts::default(),
            last_apply: None,
            repairs: 0,
            last_repair: None,
            turned: now,
            working_since: None,
        }
    }

    /// Ready: rules in force, or able to put them in force as soon as another instance lets go.
    #[must_use]
    pub fn ready(&self) -> Verdict {
        let no = |reason: String| Verdict { ok: false, reason };
        if self.ipvs {
            return no(IPVS.to_owned());
        }
        match self.phase {
            Phase::Syncing => no(format!(
                "waiting for the first full list of {}",
                join(self.waiting_for.iter())
            )),
            Phase::Standby => Verdict {
                ok: true,
                reason: "synced; standing by for the lock that another instance holds".to_owned(),
            },
            Phase::Enforcing => match &self.failing {
                Some(error) => no(format!("rules are not up to date: {error}")),
                None if self.in_force => Verdict {
                    ok: true,
                    reason: "in force".to_owned(),
                },
                None => no("lock taken, rules not in force yet".to_owned()),
            },
        }
    }

    /// Live: the loop turns and kernel work ends.
    #[must_use]
    pub fn live(&self, now: Instant) -> Verdict {
        let idle = now.saturating_duration_since(self.turned);
        if idle > STUCK {
            return Verdict {
                ok: false,
                reason: format!("the loop has not turned for {} s", idle.as_secs()),
            };
        }
        if let Some(since) = self.working_since {
            let busy = now.saturating_duration_since(since);
            if busy > STUCK_WORK {
                return Verdict {
                    ok: false,
                    reason: format!("kernel work has not ended for {} s", busy.as_secs()),
                };
            }
        }
        Verdict {
            ok: true,
            reason: "the loop turns".to_owned(),
        }
    }

    /// All of it, for people and scripts.
    #[must_use]
    pub fn report(&self, around: Surroundings, now: Instant) -> Report {
        let Surroundings {
            node,
            families,
            watches,
            enforced,
        } = around;
        Report {
            node,
            phase: self.phase,
            ready: self.ready(),
            live: self.live(now),
            backend: self.backend.clone(),
            families,
            last_apply_seconds: self
                .last_apply
                .map(|then| now.saturating_duration_since(then).as_secs_f64()),
            repairs: self.repairs,
            last_repair: self.last_repair.as_ref().map(|(found, then)| RepairReport {
                found: found.clone(),
                seconds: now.saturating_duration_since(*then).as_secs_f64(),
            }),
            counts: self.counts,
            watches,
            enforced,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = |verdict: &Verdict| if verdict.ok { "yes" } else { "no" };
        writeln!(f, "node        {}", self.node)?;
        writeln!(f, "phase       {}", self.phase)?;
        writeln!(
            f,
            "ready       {}: {}",
            mark(&self.ready),
            self.ready.reason
        )?;
        writeln!(f, "live        {}: {}", mark(&self.live), self.live.reason)?;
        writeln!(
            f,
            "backend     {}, {}",
            self.backend.as_deref().unwrap_or("not chosen yet"),
            self.families.join(" and ")
        )?;
        match self.last_apply_seconds {
            Some(seconds) => writeln!(f, "last apply  {seconds:.1} s ago")?,
            None => writeln!(f, "last apply  never")?,
        }
        if let Some(RepairReport { found, seconds }) = &self.last_repair {
            let all = self.repairs;
            writeln!(f, "repaired    {found}, {seconds:.1} s ago; {all} in all")?;
        }
        let counts = &self.counts;
        writeln!(
            f,
            "cluster     {} namespaces, {} pods ({} local), {} policies ({} rejected)",
            counts.namespaces, counts.pods, counts.local_pods, counts.policies, counts.rejected
        )?;
        writeln!(
            f,
            "kernel      {} chains, {} rules, {} sets, {} members",
            counts.chains, counts.rules, counts.sets, counts.members
        )?;
        writeln!(
            f,
            "budget      {} of {} members; {} of {} profiles laid out apart",
            counts.members, counts.member_budget, counts.profiles_apart, counts.profiles
        )?;
        let heard = self.watches.iter().map(|watch| {
            let WatchReport {
                resource,
                age_seconds,
                ..
            } = watch;
            format!("{resource} {age_seconds:.0} s ago")
        });
        writeln!(f, "heard of    {}", join(heard))?;
        for watch in &self.watches {
            if let Some(trouble) = &watch.trouble {
                writeln!(f, "trouble     {}: {trouble}", watch.resource)?;
            }
        }
        match &self.enforced {
            Some(enforced) => write!(f, "{enforced}"),
            None => writeln!(
                f,
                "\nthe loop did not answer: pods, profiles and sets are not known"
            ),
        }
    }
}

/// Names, separated by commas.
pub(crate) fn join<T: fmt::Display>(items: impl Iterator<Item = T>) -> String {
    items
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enforcing() -> Status {
        Status {
            phase: Phase::Enforcing,
            waiting_for: BTreeSet::new(),
            in_force: true,
            ..Status::new(Instant::now())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ready_means_in_force_or_synced_and_standing_by() {
        let rows = [
            ("fresh", Status::new(Instant::now()), false),
            (
                "standing by",
                Status {
                    phase: Phase::Standby,
                    in_force: false,
                    ..enforcing()
                },
                true,
            ),
            (
                "lock taken, nothing applied",
                Status {
                    in_force: false,
                    ..enforcing()
                },
                false,
            ),
            ("in force", enforcing(), true),
            (
                "an apply failed",
                Status {
                    failing: Some("no such set".to_owned()),
                    ..enforcing()
                },
                false,
            ),
            (
                "in force on an IPVS node",
                Status {
                    ipvs: true,
                    ..enforcing()
                },
                false,
            ),
        ];
        for (name, status, ready) in rows {
            let verdict = status.ready();
            assert_eq!(verdict.ok, ready, "{name}: {}", verdict.reason);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_unsynced_daemon_names_the_lists_it_waits_for() {
        let mut status = Status::new(Instant::now());
        status.waiting_for.remove(&Resource::Pods);
        assert_eq!(
            status.ready().reason,
            "waiting for the first full list of namespaces, networkpolicies"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_with_ipvs_is_told_what_to_do() {
        let status = Status {
            ipvs: true,
            ..enforcing()
        };
        assert!(status.ready().reason.contains("kube-ipvs0"));
        assert!(status.ready().reason.contains("Set kube-proxy's mode"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_stands_still_or_work_that_never_ends_is_not_live() {
        let status = enforcing();
        let start = status.turned;
        assert!(status.live(start + STUCK).ok);
        assert!(!status.live(start + STUCK + TURN).ok);
        let working = Status {
            turned: start + STUCK_WORK,
            working_since: Some(start),
            ..enforcing()
        };
        assert!(working.live(start + STUCK_WORK).ok);
        assert!(!working.live(start + STUCK_WORK + TURN).ok);
    }
}
