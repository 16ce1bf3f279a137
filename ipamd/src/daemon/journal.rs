//! Answers that wait until what they say is on disk. Requests that come while a write is under way share the next.

use std::collections::VecDeque;

use selvage_ipamd_core::ids::PodKey;

use super::request::{Grant, Refusal, Reply};

/// An answer that waits.
#[derive(Debug)]
pub(super) struct Pending {
    /// The state of the pool that it needs on disk.
    version: u64,
    pub(super) reply: Reply,
    pub(super) grant: Grant,
    /// What to undo if the write fails: a lease that nobody knows of yet.
    pub(super) cancel: Option<PodKey>,
    /// An address taken back is taken back, written or not.
    pub(super) needs_disk: bool,
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
}

impl Journal {
    /// The pool has changed.
    pub(super) fn changed(&mut self) {
        self.latest += 1;
        self.stuck = false;
    }

    /// An answer that may go when the present state is on disk.
    pub(super) fn push(
        &mut self,
        reply: Reply,
        grant: Grant,
        cancel: Option<PodKey>,
        needs_disk: bool,
    ) {
        self.pending.push_back(Pending {
            version: self.latest,
            reply,
            grant,
            cancel,
            needs_disk,
        });
    }

    /// The state to write now, if there is one and nothing is being written.
    pub(super) fn start(&mut self) -> Option<u64> {
        let due = self.writing.is_none() && !self.stuck && self.written < self.latest;
        self.writing = due.then_some(self.latest).or(self.writing);
        due.then_some(self.latest)
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
    /// Tells the outcome of the write.
    pub(super) fn answer(self, written: Result<(), String>) {
        let answer = match written {
            Err(words) if self.needs_disk => Err(Refusal::Checkpoint(words)),
            Ok(()) | Err(_) => Ok(self.grant),
        };
        // Whoever asked may have gone; a lease of theirs is found by their DEL.
        let _ = self.reply.send(answer);
    }
}
