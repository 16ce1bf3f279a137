//! How much was wanted lately: what lets a pool that breathes with its pods hold its breath.

use std::time::Duration;

use crate::ids::Timestamp;

/// For so long what was in use at once, or what was asked for and nobody has used, is kept at hand before it is given back:
/// a node whose jobs come every ten minutes should not call EC2 each time, and one that has become idle is taken away by
/// the autoscaler after ten minutes (`scale-down-unneeded-time`), with all that it holds.
pub(crate) const HOLD: Duration = Duration::from_secs(720);
/// Peaks are remembered in so many windows, which make up [`HOLD`].
const WINDOWS: usize = 4;
const WINDOW: Duration = Duration::from_secs(HOLD.as_secs() / WINDOWS as u64);
/// Over so long the pods that came are counted, to see how fast more of them come.
const TREND: Duration = Duration::from_secs(60);
/// So many within half of that show at what pace they come, ...
const PACE: u32 = 8;
/// ... if they took this long at least: those that come at once are no pace.
const PACE_OVER: Duration = Duration::from_secs(2);

/// When no pod has come for so long, those that come together are there.
const GATHER: Duration = Duration::from_secs(5);

/// A number over windows that move: the latest first.
#[derive(Debug, Clone, Copy)]
struct Windows<const N: usize> {
    start: Timestamp,
    each: [u32; N],
}

impl<const N: usize> Default for Windows<N> {
    fn default() -> Self {
        Self {
            start: Timestamp::default(),
            each: [0; N],
        }
    }
}

impl<const N: usize> Windows<N> {
    /// Moves on to `now`; `idle` is what a window has in which nothing was noted.
    fn turn(&mut self, window: Duration, idle: u32, now: Timestamp) {
        let over = now.since(self.start).as_nanos() / window.as_nanos();
        if over == 0 {
            return;
        }
        let over = usize::try_from(over).unwrap_or(N).min(N);
        self.each.rotate_right(over);
        self.each[..over].fill(idle);
        self.start = now;
    }
}

/// What pods used lately, and how many came.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Demand {
    used: u32,
    peaks: Windows<WINDOWS>,
    came: Windows<2>,
    /// When a pod last came.
    arrived: Timestamp,
}

impl Demand {
    /// A pod was given an address; `used` are in use or rest now.
    pub(crate) fn taken(&mut self, used: u32, now: Timestamp) {
        self.came.turn(TREND / 2, 0, now);
        self.came.each[0] = self.came.each[0].saturating_add(1);
        self.arrived = now;
        self.level(used, now);
    }

    /// `used` addresses are in use or rest now.
    pub(crate) fn level(&mut self, used: u32, now: Timestamp) {
        self.peaks.turn(WINDOW, self.used, now);
        self.peaks.each[0] = self.peaks.each[0].max(used);
        self.used = used;
    }

    /// The most that was in use at once lately, at least `used`, which are now.
    pub(crate) fn peak(&self, used: u32, now: Timestamp) -> u32 {
        let mut peaks = self.peaks;
        peaks.turn(WINDOW, self.used.min(used), now);
        peaks.each.into_iter().fold(used, u32::max)
    }

    /// Whether pods are coming, one after the other.
    pub(crate) fn gathers(&self, now: Timestamp) -> bool {
        now.since(self.arrived) < GATHER
    }

    /// Pods that came within the last minute or so; where many have just begun to come, those of half a minute at their
    /// pace.
    pub(crate) fn trend(&self, now: Timestamp) -> u32 {
        let mut came = self.came;
        came.turn(TREND / 2, 0, now);
        let minute = came.each.iter().fold(0u32, |sum, n| sum.saturating_add(*n));
        let [latest, _] = came.each;
        let over = now.since(came.start);
        if latest < PACE || over < PACE_OVER {
            return minute;
        }
        let pace = f64::from(latest) / over.as_secs_f64();
        minute.max((pace * (TREND / 2).as_secs_f64()) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix(Duration::from_secs(1_000_000 + seconds))
    }

    #[test]
    fn a_peak_is_remembered_for_nine_minutes_at_least_and_for_twelve_at_most() {
        let mut demand = Demand::default();
        demand.level(20, at(0));
        demand.level(3, at(10));
        assert_eq!(demand.peak(3, at(9 * 60 - 1)), 20);
        assert_eq!(demand.peak(3, at(12 * 60 + 1)), 3);
        demand.level(4, at(190));
        assert_eq!(demand.peak(4, at(12 * 60)), 20);
        assert_eq!(demand.peak(4, at(12 * 60 + 11)), 4);
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
        assert_eq!(demand.trend(at(25)), 24, "half a minute at 20 in 25 s");
        assert_eq!(demand.trend(at(45)), 20);
        assert_eq!(demand.trend(at(90)), 0);
        for _ in 0..20 {
            demand.taken(1, at(100));
        }
        assert_eq!(
            demand.trend(at(101)),
            20,
            "those that come at once are no pace"
        );
    }
}
