//! How long a broken watch waits before it tries again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

/// The first pause, before it is spread.
const FIRST: Duration = Duration::from_millis(200);

/// The longest pause, before it is spread: how late, at worst, we hear of the end of an outage.
const LONGEST: Duration = Duration::from_secs(10);

/// After so long without an error, the next one is a first one.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Growing pauses.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    tries: u32,
    last: Option<Instant>,
}

impl Pauses {
    /// The pause after an error that comes now. `spread` is between 0 and 1: of a thousand nodes
    /// that lost the same server, no two should come back at once.
    pub(super) fn next(&mut self, now: Instant, spread: f64) -> Duration {
        if self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) > FORGOTTEN)
        {
            self.tries = 0;
        }
        self.last = Some(now);
        let pause = FIRST
            .saturating_mul(2_u32.saturating_pow(self.tries))
            .min(LONGEST);
        self.tries = self.tries.saturating_add(1);
        pause.mul_f64(0.5 + spread / 2.0)
    }

    /// What the server says is good news: the next error is a first one.
    pub(super) fn forget(&mut self) {
        self.tries = 0;
    }
}

/// A number between 0 and 1, another one each time.
pub(super) fn spread() -> f64 {
    // A hasher is seeded at random; no more is needed here.
    f64::from(RandomState::new().hash_one(0_u8) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_a_bound_and_are_forgotten() {
        let mut pauses = Pauses::default();
        let start = Instant::now();
        assert_eq!(pauses.next(start, 1.0), FIRST);
        assert_eq!(pauses.next(start, 1.0), FIRST * 2);
        for _ in 0..40 {
            pauses.next(start, 1.0);
        }
        assert_eq!(pauses.next(start, 1.0), LONGEST);
        assert_eq!(pauses.next(start + FORGOTTEN, 1.0), LONGEST);
        assert_eq!(pauses.next(start + FORGOTTEN * 3, 1.0), FIRST);
        pauses.next(start + FORGOTTEN * 3, 1.0);
        pauses.forget();
        assert_eq!(pauses.next(start + FORGOTTEN * 3, 0.0), FIRST / 2);
    }

    #[test]
    fn two_nodes_do_not_come_back_together() {
        let (one, other) = (spread(), spread());
        assert!((0.0..=1.0).contains(&one) && (0.0..=1.0).contains(&other));
        assert!((one - other).abs() > f64::EPSILON, "{one}");
    }
}
