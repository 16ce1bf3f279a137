//! How much was wanted lately: what lets a pool that breathes with its pods hold its breath.

use std::time::Duration;

use crate::ids::Timestamp;

/// For so long what was in use at once is kept at hand, before it is given back: a node whose pods come and go every few
/// minutes should not call EC2 each time.
pub(crate) const HOLD: Duration = Duration::from_secs(300);
/// Over so long the pods that came are counted, to see how fast more of them come.
const TREND: Duration = Duration::from_secs(60);

/// A number over a window that moves in two halves.
#[derive(Debug, Clone, Copy, Default)]
struct Halves {
    start: Timestamp,
    before: u32,
    current: u32,
}

impl Halves {
    /// Moves on to `now`; `idle` is what a half has in which nothing was noted.
    fn turn(&mut self, half: Duration, idle: u32, now: Timestamp) {
        let age = now.since(self.start);
        if age < half {
            return;
        }
        self.before = if age < half * 2 { self.current } else { idle };
        self.current = idle;
        self.start = now;
    }
}

/// What pods used lately, and how many came.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Demand {
    used: u32,
    peak: Halves,
    came: Halves,
}

impl Demand {
    /// A pod was given an address; `used` are in use or rest now.
    pub(crate) fn taken(&mut self, used: u32, now: Timestamp) {
        self.came.turn(TREND / 2, 0, now);
        self.came.current = self.came.current.saturating_add(1);
        self.level(used, now);
    }

    /// `used` addresses are in use or rest now.
    pub(crate) fn level(&mut self, used: u32, now: Timestamp) {
        self.peak.turn(HOLD / 2, self.used, now);
        self.peak.current = self.peak.current.max(used);
        self.used = used;
    }

    /// The most that was in use at once lately, at least `used`, which are now.
    pub(crate) fn peak(&self, used: u32, now: Timestamp) -> u32 {
        let mut peak = self.peak;
        peak.turn(HOLD / 2, self.used.min(used), now);
        peak.before.max(peak.current).max(used)
    }

    /// Pods that came within the last minute or so.
    pub(crate) fn trend(&self, now: Timestamp) -> u32 {
        let mut came = self.came;
        came.turn(TREND / 2, 0, now);
        came.before.saturating_add(came.current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix(Duration::from_secs(1_000_000 + seconds))
    }

    #[test]
    fn a_peak_is_remembered_for_half_a_window_at_least_and_a_whole_one_at_most() {
        let mut demand = Demand::default();
        demand.level(20, at(0));
        demand.level(3, at(10));
        assert_eq!(demand.peak(3, at(149)), 20);
        assert_eq!(demand.peak(3, at(301)), 3);
        demand.level(4, at(160));
        assert_eq!(demand.peak(4, at(300)), 20);
        assert_eq!(demand.peak(4, at(311)), 4);
    }

    #[test]
    fn a_level_that_lasts_is_the_peak() {
        let mut demand = Demand::default();
        demand.level(7, at(0));
        assert_eq!(demand.peak(7, at(10_000)), 7);
        demand.level(2, at(10_000));
        assert_eq!(demand.peak(2, at(10_001)), 7, "it fell a moment ago");
    }

    #[test]
    fn the_trend_counts_who_came_within_a_minute() {
        let mut demand = Demand::default();
        for second in 0..20 {
            demand.taken(1, at(second));
        }
        assert_eq!(demand.trend(at(25)), 20);
        assert_eq!(demand.trend(at(45)), 20);
        assert_eq!(demand.trend(at(90)), 0);
    }
}
