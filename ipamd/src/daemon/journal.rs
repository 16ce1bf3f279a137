//! Answers that wait until what they say is on disk. Requests that come while a write is under way share the next.
//!
//! Where a write takes no time that alone would be one for each of a hundred pods that start at once. So in a burst
//! each write waits for company, a little longer than the one before it, unless company stays away: a burst of any
//! length costs some tens of writes, and its last ADD a few milliseconds. One pod after another waits for nothing.

use std::collections::VecDeque;
use std::time::Duration;

use selvage_ipamd_core::ids::PodKey;
use tokio::time::Instant;

use super::request::{Grant, Refusal, Reply};

/// So many changes within so short a time are a burst. One ADD after another takes longer: a namespace is made for
/// each.
const BURST: usize = 5;
const BURST_WITHIN: Duration = Duration::from_millis(16);
/// A burst is over when there was none for so long; longer than any wait in it.
const QUIET: Duration = Duration::from_millis(25);
/// Nobody else comes if nobody came for so many times as long as between the last ones, and so long at least.
const STAYS_AWAY: u32 = 4;
const AWAY_AT_LEAST: Duration = Duration::from_millis(3);
/// How much longer each write of a burst waits, and how long at most.
const STEP: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_millis(20);

/// An answer that waits.
#[derive(Debug)]
pub(super) struct Pending {
    /// The state of the pool that it needs on disk.
    version: u64,
    pub(super) reply: Reply,
    pub(super) grant: Grant,
    /// What to undo if the write fails: a lease that nobody knows of yet.
    pub(super) cancel: Option<PodKey>,
}

/// Counts the states of the pool: which is the latest, which is being written, which is on disk.
#[derive(Debug, Default)]
pub(super) struct Journal {
    latest: u64,
    written: u64,
    writing: Option<u64>,
    /// The last write failed: nothing is tried until something changes or time has passed.
    stuck: bool,
    pending: VecDeque<Pending>,
    /// When the last changes came, the newest last.
    recent: VecDeque<Instant>,
    burst_until: Option<Instant>,
    last_write: Option<Instant>,
    /// How long the next write of this burst waits for company.
    wait: Duration,
}

impl Journal {
    /// The pool has changed.
    pub(super) fn changed(&mut self, now: Instant) {
        self.latest += 1;
        self.stuck = false;
        if self.recent.len() == BURST {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        let first = self.recent.front().copied().unwrap_or(now);
        if self.recent.len() == BURST && now - first <= BURST_WITHIN {
            self.burst_until = Some(now + QUIET);
        }
    }

    /// An answer that may go when the present state is on disk.
    pub(super) fn push(&mut self, reply: Reply, grant: Grant, cancel: Option<PodKey>) {
        self.pending.push_back(Pending {
            version: self.latest,
            reply,
            grant,
            cancel,
        });
    }

    /// When there is something to write, if there is and nothing is being written.
    pub(super) fn due_at(&self, now: Instant) -> Option<Instant> {
        let due = self.writing.is_none() && !self.stuck && self.written < self.latest;
        let waits = self.last_write.filter(|_| self.is_burst(now));
        due.then(|| waits.map_or(now, |last| self.company_until(last + self.wait)))
    }

    /// Until when a write waits for company, `latest` at most.
    fn company_until(&self, latest: Instant) -> Instant {
        let (Some(first), Some(newest)) = (self.recent.front(), self.recent.back()) else {
            return latest;
        };
        let pace = (*newest - *first) / u32::try_from(BURST).unwrap_or(u32::MAX);
        latest.min(*newest + (pace * STAYS_AWAY).max(AWAY_AT_LEAST))
    }

    /// The state to write now, if there is one.
    pub(super) fn start(&mut self, now: Instant) -> Option<u64> {
        self.due_at(now).filter(|due| *due <= now)?;
        self.wait = match self.is_burst(now) {
            true => LONGEST.min(self.wait + STEP),
            false => Duration::ZERO,
        };
        self.last_write = Some(now);
        self.writing = Some(self.latest);
        self.writing
    }

    /// No more company is waited for.
    pub(super) fn hurry(&mut self) {
        self.burst_until = None;
    }

    fn is_burst(&self, now: Instant) -> bool {
        self.burst_until.is_some_and(|until| now < until)
    }

    /// A write has ended; gives the answers that waited for it.
    pub(super) fn ended(&mut self, version: u64, well: bool) -> Vec<Pending> {
        self.writing = None;
        if well {
            self.written = self.written.max(version);
        } else {
            self.stuck = true;
        }
        let mut due = Vec::new();
        while self.pending.front().is_some_and(|p| p.version <= version) {
            due.extend(self.pending.pop_front());
        }
        due
    }

    /// A sandbox is deleted while answers to its ADD wait: they are told, since what they were given is not theirs
    /// any more.
    pub(super) fn withdraw(&mut self, key: &PodKey) {
        for pending in std::mem::take(&mut self.pending) {
            if pending.grant.lease.key == *key {
                // Whoever asked may have gone.
                let _ = pending.reply.send(Err(Refusal::Withdrawn));
            } else {
                self.pending.push_back(pending);
            }
        }
    }

    /// Answers that need no write: what they need is on disk.
    pub(super) fn due(&mut self) -> Vec<Pending> {
        let mut due = Vec::new();
        while self
            .pending
            .front()
            .is_some_and(|p| p.version <= self.written)
        {
            due.extend(self.pending.pop_front());
        }
        due
    }

    /// Time has passed: a write that failed may be tried again.
    pub(super) fn unstick(&mut self) {
        self.stuck = false;
    }

    /// Whether everything is on disk.
    pub(super) fn is_clean(&self) -> bool {
        self.written == self.latest && self.writing.is_none()
    }
}

impl Pending {
    /// The outcome of the write, and whom to tell.
    pub(super) fn outcome(self, written: Result<(), String>) -> (Reply, Result<Grant, Refusal>) {
        let answer = match written {
            Err(words) => Err(Refusal::Checkpoint(words)),
            Ok(()) => Ok(self.grant),
        };
        (self.reply, answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes at these moments (milliseconds), each write done at once: the moments of the writes.
    fn writes(changes: &[u64]) -> Vec<u64> {
        let begin = Instant::now();
        let mut journal = Journal::default();
        let mut writes = Vec::new();
        for millis in 0..=changes.last().unwrap() + 100 {
            let now = begin + Duration::from_millis(millis);
            for _ in changes.iter().filter(|change| **change == millis) {
                journal.changed(now);
            }
            if let Some(version) = journal.start(now) {
                writes.push(millis);
                journal.ended(version, true);
            }
        }
        assert!(journal.is_clean());
        writes
    }

    #[test]
    fn one_pod_after_another_waits_for_nothing() {
        let changes: Vec<u64> = (0..200).map(|n| n * 5).collect();
        assert_eq!(writes(&changes), changes);
    }

    #[test]
    fn a_hundred_pods_at_once_cost_few_writes_and_the_last_waits_little() {
        for gap in [1, 2, 3, 4] {
            let changes: Vec<u64> = (0..110).map(|n| n * gap).collect();
            let writes = writes(&changes);
            assert!(
                writes.len() <= 20 + 3 * usize::try_from(gap).unwrap(),
                "{gap}: {writes:?}"
            );
            let late = writes.last().unwrap() - changes.last().unwrap();
            assert!(late <= 3.max(4 * gap), "{gap}: {late} ms");
        }
    }

    #[test]
    fn a_pod_after_a_burst_waits_for_nothing() {
        let mut changes = vec![0; 110];
        changes.extend([200, 300]);
        let writes = writes(&changes);
        assert!(writes.ends_with(&[200, 300]), "{writes:?}");
        assert!(writes.len() <= 4, "{writes:?}");
    }

    #[test]
    fn nothing_is_written_twice_and_nothing_while_a_write_is_under_way() {
        let now = Instant::now();
        let mut journal = Journal::default();
        assert_eq!(journal.start(now), None);
        journal.changed(now);
        let version = journal.start(now).unwrap();
        journal.changed(now);
        assert_eq!(journal.start(now), None);
        journal.ended(version, true);
        let next = journal.start(now).unwrap();
        assert!(next > version);
        journal.ended(next, false);
        assert_eq!(
            journal.start(now),
            None,
            "a write that failed is not tried again at once"
        );
        journal.unstick();
        assert_eq!(journal.start(now), Some(next));
    }
}
