//! How much was wanted lately: what lets a pool that breathes with its pods hold its breath.

use std::time::Duration;

use crate::ids::Timestamp;

/// For so long what was in use at once is kept at hand, before it is given back: a node whose pods come and go every few
/// minutes should not call EC2 each time. One whose pods come every quarter of an hour learns so by what it asks for
/// again ([`WINDOWS`]).
pub(crate) const HOLD: Duration = Duration::from_secs(300);
/// Windows that peaks are remembered in, two of them for [`HOLD`].
const WINDOW: Duration = Duration::from_secs(HOLD.as_secs() / 2);
/// All of them: so long a node holds that had to ask again for what it had given back.
const WINDOWS: usize = 8;
/// A node is at rest when no pod has come or gone for so long: one whose jobs come every quarter of an hour and take a
/// minute is not.
const REST: Duration = Duration::from_secs(840);
/// Over so long the pods that came are counted, to see how fast more of them come.
const TREND: Duration = Duration::from_secs(60);
/// So many within half of that show at what pace they come, ...
const PACE: u32 = 8;
/// ... if they took this long at least: those that come at once are no pace.
const PACE_OVER: Duration = Duration::from_secs(5);

fn span(windows: usize) -> Duration {
    WINDOW.mul_f64(windows as f64)
}

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
    /// When a pod last came or went.
    moved: Timestamp,
    /// What was given back was asked for again.
    regrets: bool,
}

impl Demand {
    /// A pod was given an address; `used` are in use or rest now.
    pub(crate) fn taken(&mut self, used: u32, now: Timestamp) {
        self.came.turn(TREND / 2, 0, now);
        self.came.each[0] = self.came.each[0].saturating_add(1);
        self.level(used, now);
    }

    /// `used` addresses are in use or rest now.
    pub(crate) fn level(&mut self, used: u32, now: Timestamp) {
        self.regrets = self.is_patient(now);
        self.moved = now;
        self.peaks.turn(WINDOW, self.used, now);
        self.peaks.each[0] = self.peaks.each[0].max(used);
        self.used = used;
    }

    /// More is asked for. `given`: when something was last given back.
    pub(crate) fn asked(&mut self, given: Option<Timestamp>, now: Timestamp) {
        self.regrets |= given.is_some_and(|given| now.since(given) < span(WINDOWS));
    }

    fn is_patient(&self, now: Timestamp) -> bool {
        self.regrets && now.since(self.moved) < REST
    }

    fn peaks(&self, used: u32, now: Timestamp) -> [u32; WINDOWS] {
        let mut peaks = self.peaks;
        peaks.turn(WINDOW, self.used.min(used), now);
        peaks.each
    }

    /// Windows that are held for.
    fn held(&self, now: Timestamp) -> usize {
        if self.is_patient(now) { WINDOWS } else { 2 }
    }

    /// For so long what was in use at once, or what was asked for and nobody has used, is held.
    pub(crate) fn hold(&self, now: Timestamp) -> Duration {
        span(self.held(now))
    }

    /// The most that was in use at once lately, at least `used`, which are now.
    pub(crate) fn peak(&self, used: u32, now: Timestamp) -> u32 {
        let peaks = self.peaks(used, now);
        peaks[..self.held(now)]
            .iter()
            .copied()
            .max()
            .unwrap_or(0)
            .max(used)
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
