//! How often something may be done that costs: at once after a calm, and then a share of the time.

use std::time::Duration;

use tokio::time::Instant;

/// What was done has to be paid for by time gone by, and a reserve of that is kept.
///
/// *Shape*: whoever does something that is worth a minute may do it again a minute later, or at once as
/// long as less than the reserve is owed.
#[derive(Debug)]
pub(super) struct Pace {
    reserve: Duration,
    /// When all of it will have been paid for.
    paid: Option<Instant>,
}

impl Pace {
    pub(super) fn new(reserve: Duration) -> Self {
        Self {
            reserve,
            paid: None,
        }
    }

    /// Not before this time.
    pub(super) fn not_before(&self) -> Option<Instant> {
        self.paid.and_then(|paid| paid.checked_sub(self.reserve))
    }

    /// Something was done that is worth so much time.
    pub(super) fn owe(&mut self, now: Instant, worth: Duration) {
        self.paid = Some(self.paid.map_or(now, |paid| paid.max(now)) + worth);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_rare_is_done_at_once_and_what_is_not_takes_its_share() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(second * 3);
        let mut now = Instant::now();
        assert_eq!(pace.not_before(), None);
        for _ in 0..3 {
            assert!(
                pace.not_before().is_none_or(|it| it <= now),
                "within the reserve"
            );
            pace.owe(now, second);
        }
        assert_eq!(pace.not_before(), Some(now));
        pace.owe(now, second);
        assert_eq!(pace.not_before(), Some(now + second));
        now += second * 100;
        pace.owe(now, second * 4);
        assert_eq!(
            pace.not_before(),
            Some(now + second),
            "calm is not saved up for ever"
        );
    }
}
