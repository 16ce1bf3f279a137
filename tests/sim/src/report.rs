//! What a run has shown.

use std::collections::BTreeMap;
use std::time::Duration;

use selvage_ipamd_core::ids::Timestamp;

use crate::quota::Api;

/// What a run has shown, counted from the trace's `from` on.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Pods launched.
    pub launched: u64,
    /// Calls to EC2, those throttled included.
    pub calls: u64,
    /// Calls that were throttled.
    pub throttled: u64,
    /// Calls by action.
    pub by_api: Vec<(Api, u64, u64)>,
    /// Calls that were refused for other reasons than quotas, by action and code.
    pub refused: BTreeMap<(Api, &'static str), u64>,
    /// How long each pod was without the address it had asked for.
    pub waits: Vec<Duration>,
    /// Pods whose first question was not answered with an address at once.
    pub waited: u64,
    /// Pods that ended without ever having had an address.
    pub never: u64,
    /// Addresses given to nodes that no pod had, once a minute.
    pub idle: Vec<u64>,
    /// The same at the end, when nothing had happened for a while.
    pub idle_at_rest: u64,
    /// When each node could give an address for the first time, and how long after its boot.
    pub ready: Vec<(Timestamp, Duration)>,
    /// Nodes that never could.
    pub unready: usize,
    /// When the run began.
    pub began: Timestamp,
    /// Times an address was given again before it had rested.
    pub warm_reuse: u64,
    /// Times an address was given that EC2 had not (or no longer) given to the node.
    pub foreign: u64,
    /// Interfaces that outlived their instance.
    pub leaked_enis: usize,
    /// Promises broken, in words; at most twenty.
    pub breaches: Vec<String>,
}

impl Report {
    pub(crate) fn count_pod(&mut self, waited: bool, wait: Duration) {
        self.waited += u64::from(waited);
        self.waits.push(if waited { wait } else { Duration::ZERO });
    }

    /// Calls for each thousand pods launched.
    pub fn calls_per_thousand(&self) -> f64 {
        self.calls as f64 * 1000.0 / (self.launched.max(1)) as f64
    }

    /// Pods that waited, of each thousand launched.
    pub fn waited_per_thousand(&self) -> f64 {
        self.waited as f64 * 1000.0 / (self.launched.max(1)) as f64
    }

    /// Calls that were throttled, in percent.
    pub fn throttled_percent(&self) -> f64 {
        self.throttled as f64 * 100.0 / (self.calls.max(1)) as f64
    }

    /// The share of pods, in percent, that waited no longer than this.
    pub fn wait(&self, percent: f64) -> Duration {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        let rank = (waits.len() as f64 * percent / 100.0).ceil() as usize;
        waits.get(rank.max(1) - 1).copied().unwrap_or_default()
    }

    /// Mean of the addresses that were idle over time.
    pub fn mean_idle(&self) -> f64 {
        self.idle.iter().sum::<u64>() as f64 / self.idle.len().max(1) as f64
    }

    /// From the run's beginning until the last node could give an address; `None` if one never could.
    pub fn all_ready(&self) -> Option<Duration> {
        let last = self.ready.iter().map(|(at, _)| *at).max()?;
        (self.unready == 0).then(|| last.since(self.began))
    }
}
