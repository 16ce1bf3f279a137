//! Growing pauses: how long to leave something alone after it failed.

use std::time::Duration;

use crate::ids::Timestamp;

/// Longest pause of all: a cause that went away is noticed within two minutes.
const LONGEST: Duration = Duration::from_secs(120);

/// Source of the small differences that keep a thousand nodes from repeating in step (splitmix64).
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    /// The same seed gives the same pauses.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// `pause`, made longer by up to a quarter.
    pub fn spread_up(&mut self, pause: Duration) -> Duration {
        pause.mul_f64(1.0 + self.unit() / 4.0)
    }

    /// `pause`, made longer or shorter by up to a quarter.
    pub fn spread(&mut self, pause: Duration) -> Duration {
        let percent = 75 + self.next() % 51;
        pause.mul_f64(percent as f64 / 100.0)
    }
}

/// How often something failed in a row, and until when it rests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retry {
    failures: u32,
    until: Timestamp,
}

impl Retry {
    /// Notes a failure: the pause doubles from `first` with each one in a row, up to two minutes.
    pub fn fail(&mut self, first: Duration, jitter: &mut Jitter, now: Timestamp) {
        let doubled = first.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.until = now + jitter.spread(doubled.min(LONGEST));
    }

    /// Rests without a failure: what was begun needs a moment.
    pub fn rest(&mut self, pause: Duration, now: Timestamp) {
        self.until = self.until.max(now + pause);
    }

    /// Notes a success.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether it rests at `now`.
    pub fn pausing(&self, now: Timestamp) -> bool {
        now < self.until
    }

    /// What is left of the pause.
    pub fn left(&self, now: Timestamp) -> Duration {
        self.until.since(now)
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_two_minutes_and_start_again_after_a_success() {
        let mut retry = Retry::default();
        let mut jitter = Jitter::new(7);
        let now = Timestamp::from_unix(Duration::from_secs(1000));
        assert!(!retry.pausing(now));
        let mut last = Duration::ZERO;
        for _ in 0..5 {
            retry.fail(Duration::from_secs(1), &mut jitter, now);
            assert!(
                retry.left(now) > last,
                "{:?} after {last:?}",
                retry.left(now)
            );
            last = retry.left(now);
        }
        for _ in 0..60 {
            retry.fail(Duration::from_secs(1), &mut jitter, now);
        }
        assert!(retry.left(now) >= Duration::from_secs(90));
        assert!(retry.left(now) <= Duration::from_secs(150));
        retry.clear();
        assert!(!retry.pausing(now));
    }

    #[test]
    fn two_seeds_do_not_pause_in_step() {
        let pause = Duration::from_secs(8);
        let several = |seed| {
            let mut jitter = Jitter::new(seed);
            (0..4).map(|_| jitter.spread(pause)).collect::<Vec<_>>()
        };
        assert_ne!(several(1), several(2));
        assert_eq!(several(1), several(1));
    }
}
