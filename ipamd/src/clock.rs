//! The time, for a core that has none.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use selvage_ipamd_core::ids::Timestamp;
use tokio::time::Instant;

/// Wall-clock time at the start, steady time from there on: a clock that is set back makes no address cool for longer.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    epoch: Timestamp,
}

impl Clock {
    /// Reads the wall clock, once.
    ///
    /// *Panics*: outside a tokio runtime with time.
    pub fn start() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Self {
            started: Instant::now(),
            epoch: Timestamp::from_unix(since),
        }
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        self.epoch + self.started.elapsed()
    }
}
