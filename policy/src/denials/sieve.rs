//! Which denied packets make a line: a flow once in a while, and no more a second than the log bears.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;

use super::Denied;
use crate::metrics::{LeftOut, Metrics};

/// The same ends, protocol and port make one line in so long: a client tries again and again.
const REPEATED: Duration = Duration::from_secs(10);

/// Flows that are remembered for that.
const FLOWS_MAX: usize = 1024;

/// Seconds' worth of lines that may be written at once.
const BURST_SECONDS: u32 = 10;

/// A packet that makes a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) denied: Denied,
    /// Packets since the line before that make none.
    pub(super) left_out: u64,
}

/// Lets through what makes a line.
#[derive(Debug)]
pub(super) struct Sieve {
    /// Time that a line uses up.
    pace: Duration,
    /// Time that there is for lines at once.
    burst: Duration,
    /// When all of `burst` is there again.
    whole_at: Option<Instant>,
    flows: BTreeMap<Denied, Instant>,
    left_out: u64,
}

impl Sieve {
    /// So many lines a second in the long run.
    pub(super) fn new(per_second: u32) -> Self {
        let pace = Duration::from_secs(1) / per_second.max(1);
        Self {
            pace,
            burst: pace * (per_second.max(1) * BURST_SECONDS),
            whole_at: None,
            flows: BTreeMap::new(),
            left_out: 0,
        }
    }

    /// Takes in a packet, and passes it on or counts it.
    pub(super) fn take(
        &mut self,
        denied: Denied,
        now: Instant,
        metrics: &Metrics,
        passed: &Sender<Passed>,
    ) {
        let why = if self.repeats(denied, now) {
            LeftOut::Repeated
        } else if !self.in_time(now) {
            LeftOut::Rate
        } else {
            let line = Passed {
                denied,
                left_out: self.left_out,
            };
            if passed.try_send(line).is_ok() {
                self.left_out = 0;
                return;
            }
            LeftOut::Rate
        };
        metrics.denials_left_out(why, 1);
        self.left_out += 1;
    }

    /// Takes in packets that were never seen.
    pub(super) fn left_out(&mut self, count: u64) {
        self.left_out += count;
    }

    fn repeats(&mut self, denied: Denied, now: Instant) -> bool {
        let fresh = |seen: &Instant| now.saturating_duration_since(*seen) < REPEATED;
        if self.flows.get(&denied).is_some_and(fresh) {
            return true;
        }
        if self.flows.len() >= FLOWS_MAX {
            self.flows.retain(|_, seen| fresh(seen));
        }
        if self.flows.len() >= FLOWS_MAX {
            // A scan: the pace bounds it from here.
            self.flows.clear();
        }
        self.flows.insert(denied, now);
        false
    }

    fn in_time(&mut self, now: Instant) -> bool {
        let whole = self.whole_at.map_or(now, |whole| whole.max(now)) + self.pace;
        let in_time = whole <= now + self.burst;
        if in_time {
            self.whole_at = Some(whole);
        }
        in_time
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use selvage_policy_core::model::Direction;
    use tokio::sync::mpsc::{Receiver, channel};

    use super::super::Why;
    use super::*;

    fn packet(number: u32) -> Denied {
        Denied {
            why: Why::Policy(Direction::Ingress),
            source: IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number)),
            destination: IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1)),
            protocol: 6,
            port: Some(80),
            interfaces: (None, None),
        }
    }

    fn lines(passed: &mut Receiver<Passed>) -> Vec<u64> {
        let mut lines = Vec::new();
        while let Ok(line) = passed.try_recv() {
            lines.push(line.left_out);
        }
        lines
    }

    #[test]
    fn a_flood_makes_as_many_lines_as_allowed_and_counts_the_rest() {
        let (sender, mut passed) = channel(1000);
        let metrics = Metrics::new();
        let mut sieve = Sieve::new(2);
        let start = Instant::now();
        for number in 0..5000 {
            sieve.take(packet(number), start, &metrics, &sender);
        }
        assert_eq!(lines(&mut passed), [0; 20], "ten seconds' worth");
        let later = start + Duration::from_millis(500);
        sieve.left_out(7);
        sieve.take(packet(9999), later, &metrics, &sender);
        assert_eq!(lines(&mut passed), [4980 + 7]);
        sieve.take(packet(9998), later, &metrics, &sender);
        assert!(lines(&mut passed).is_empty(), "two a second");
        let text = metrics.render();
        let counted = "selvage_policy_denials_left_out_total{why=\"rate\"} 4981\n";
        assert!(text.contains(counted), "{text}");
        assert!(sieve.flows.len() <= FLOWS_MAX);
    }

    #[test]
    fn a_client_that_tries_again_makes_one_line_in_ten_seconds() {
        let (sender, mut passed) = channel(1000);
        let metrics = Metrics::new();
        let mut sieve = Sieve::new(10);
        let start = Instant::now();
        for second in 0..20 {
            let now = start + Duration::from_secs(second);
            sieve.take(packet(1), now, &metrics, &sender);
        }
        assert_eq!(lines(&mut passed), [0, 9]);
    }

    #[test]
    fn what_has_no_room_in_the_queue_is_counted() {
        let (sender, mut passed) = channel(1);
        let metrics = Metrics::new();
        let mut sieve = Sieve::new(10);
        let start = Instant::now();
        sieve.take(packet(1), start, &metrics, &sender);
        sieve.take(packet(2), start, &metrics, &sender);
        assert_eq!(lines(&mut passed), [0]);
        sieve.take(packet(3), start, &metrics, &sender);
        assert_eq!(lines(&mut passed), [1]);
    }
}
