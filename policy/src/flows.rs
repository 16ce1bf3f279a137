//! Ends what was established and is not allowed any more.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use selvage_netfilter::conntrack::{self, Cutter, Entry};
use selvage_netfilter::local_addresses;
use selvage_policy_core::ruleset::{Family, GUARD_SECONDS};
use selvage_policy_core::verdict::{Flow, Judge, Verdict};

use crate::failpoint::{self, Failpoint};
use crate::thread::thread_cpu;

/// Bounds each exchange with the kernel.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the answering side of a cut flow must not speak first. The rules renew it.
const GUARD: Duration = Duration::from_secs(GUARD_SECONDS as u64);

/// The flows that a change may have forbidden.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// All there are.
    pub everything: bool,
    /// Those from or to these addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// No pod of this node has these any more: every flow from or to them ends, whatever is allowed.
    pub left: BTreeSet<IpAddr>,
}

impl Scope {
    /// Whether there is nothing to look at.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.everything && self.addresses.is_empty() && self.left.is_empty()
    }

    /// Both.
    pub fn extend(&mut self, other: Self) {
        self.everything |= other.everything;
        self.addresses.extend(other.addresses);
        self.left.extend(other.left);
    }
}

/// What was cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    /// Flows that were forbidden.
    pub forbidden: usize,
    /// Flows of addresses that left their pod.
    pub left: usize,
    /// Forbidden flows that were there still at the last look: look again.
    pub unfinished: usize,
    /// How long it took.
    pub took: Duration,
    /// How much of that on a processor.
    pub used: Duration,
}

/// Something that knows flows and can end them. Everything blocks.
pub trait Flows: Send + 'static {
    /// Why some could not be ended.
    type Error: Error + Send + 'static;

    /// Ends the flows in `scope` that are forbidden. Rules that forbid them are in force.
    ///
    /// *Errors*: some may be cut and some not; the same scope again is right.
    fn cut(&mut self, judge: &Judge, scope: &Scope) -> Result<Cut, Self::Error>;
}

/// The flows of the node's own kernel: its conntrack table.
pub struct NodeFlows {
    families: Vec<Family>,
    cutter: Option<Cutter>,
}

impl NodeFlows {
    /// The table of the calling thread's network namespace; opens nothing yet.
    #[must_use]
    pub fn new(families: impl IntoIterator<Item = Family>) -> Self {
        Self {
            families: families.into_iter().collect(),
            cutter: None,
        }
    }
}

/// What passes OUTPUT or INPUT instead of FORWARD is nobody's to forbid.
fn forbidden(entry: &Entry, judge: &Judge, own: &BTreeSet<IpAddr>) -> bool {
    let seen = entry.seen();
    if own.contains(&seen.source) || own.contains(&seen.destination) {
        return false;
    }
    let flow = Flow::new(
        seen.source,
        seen.destination,
        seen.protocol,
        seen.destination_port,
    );
    match judge.verdict(&flow) {
        Verdict::Forbidden { .. } => true,
        Verdict::Allowed | Verdict::NotOurs => false,
    }
}

impl Flows for NodeFlows {
    type Error = selvage_netfilter::Error;

    fn cut(&mut self, judge: &Judge, scope: &Scope) -> Result<Cut, Self::Error> {
        let (started, before) = (Instant::now(), thread_cpu());
        // Put back when all went well: after an error its sockets are not to be trusted.
        let mut cutter = match self.cutter.take() {
            Some(cutter) => cutter,
            None => Cutter::open(GUARD, PATIENCE)?,
        };
        let mut cut = Cut::default();
        if !scope.left.is_empty() {
            cut.left = cutter.forget(&scope.left)?.deleted;
        }
        failpoint::hit(Failpoint::FlowsForgotten);
        let within = if scope.everything {
            Some(conntrack::Scope::Families(&self.families))
        } else if scope.addresses.is_empty() {
            None
        } else {
            Some(conntrack::Scope::Addresses(&scope.addresses))
        };
        if let Some(within) = within {
            let own = local_addresses(PATIENCE)?;
            let report = cutter.cut(within, &|entry| forbidden(entry, judge, &own))?;
            cut.forbidden = report.cut.len();
            cut.unfinished = report.unfinished;
            failpoint::hit(Failpoint::FlowsCut);
        }
        self.cutter = Some(cutter);
        cut.took = started.elapsed();
        cut.used = thread_cpu().saturating_sub(before);
        Ok(cut)
    }
}
