//! When to look at what others may have done to our rules and sets.
//!
//! ```text
//!   nft     a commit that touches `mangle`: told by the kernel, within a millisecond
//!   legacy  the lock file let go by somebody, or a second gone by
//!   sets    nothing tells: a second gone by for headers, minutes for members
//!                        │
//!        Watcher::wait ──┴─> Suspect ─> Kernel::rules_unchanged, Kernel::sets_changed
//!                                          └─ not so ─> observe, plan, apply
//! ```
//!
//! A [`Watcher`] reads nothing of ours but the sets' headers and remembers nothing, so it may live on a
//! thread of its own. What it suspects, [`crate::Kernel`] checks: our own commits end there.

mod headers;
mod lock;
mod notify;

#[cfg(feature = "fuzzing")]
pub(crate) use notify::touched_by;

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use selvage_policy_core::ruleset::Family;

use crate::error::Error;
use crate::ipset::Glimpses;
use crate::iptables::Backend;
use headers::Headers;
use lock::LockFile;
use notify::Notifications;

/// Where iptables-legacy and everybody who plays by its rules keeps the lock.
const LOCK: &str = "/run/xtables.lock";

/// After a look at legacy tables there is none for so long, however busy the lock is.
const BREATH: Duration = Duration::from_millis(50);

/// 10,000 rules are 4.3 MB of notifications, on top of which each is counted with its overhead.
const BUFFER: usize = 64 << 20;

/// How often what tells nobody of its changes is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Legacy rules: 0.3 ms for each 1,000 rules of `mangle`.
    pub legacy: Duration,
    /// Headers of sets: 10 µs each.
    pub headers: Duration,
    /// Everything, members included: 0.4 µs each.
    pub members: Duration,
    /// How many bytes of nft notifications may pile up between two looks before some are lost.
    pub buffer: usize,
}

impl Default for Pace {
    /// One second, nine tenths, four minutes: 1.5 s and 5 min from a change to its repair. 64 MB.
    fn default() -> Self {
        Self {
            legacy: Duration::from_secs(1),
            headers: Duration::from_millis(900),
            members: Duration::from_secs(240),
            buffer: BUFFER,
        }
    }
}

/// What may not be as we left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suspect {
    /// Rules of a family: ask [`crate::Kernel::rules_unchanged`].
    Rules(Family),
    /// Sets, as far as headers show: ask [`crate::Kernel::sets_changed`], for each family, with the last of
    /// [`Watcher::glimpses`].
    Sets,
    /// Members of sets, and anything else: observe all.
    Members,
}

/// Tells when to look.
///
/// *Needs*: `CAP_NET_ADMIN` for a receive buffer that holds 10,000 rules' worth of notifications;
/// with less it overruns, which costs a look and loses nothing.
pub struct Watcher {
    families: Vec<Family>,
    source: Source,
    pace: Pace,
    headers: Headers,
    members: Instant,
}

enum Source {
    Nft(Notifications),
    Legacy {
        lock: LockFile,
        /// When to look next, whatever the lock does.
        due: Instant,
        /// When it was looked last.
        last: Option<Instant>,
        /// The lock was let go and nobody looked since.
        touched: bool,
    },
}

impl Watcher {
    /// Begins to watch one backend in the calling thread's network namespace. What happens from
    /// here on is told; so open it before the first observation.
    ///
    /// *Errors*: [`Error::Socket`]. A lock file that cannot be watched is none: then the timer has
    /// to do.
    pub fn open(backend: Backend, families: &[Family], pace: Pace) -> Result<Self, Error> {
        let now = Instant::now();
        let source = match backend {
            Backend::Nft => Source::Nft(Notifications::open(pace.buffer)?),
            Backend::Legacy => Source::Legacy {
                lock: LockFile::open(Path::new(LOCK)),
                due: now + pace.legacy,
                last: None,
                touched: false,
            },
        };
        Ok(Self {
            families: families.to_vec(),
            source,
            pace,
            headers: Headers::open(pace.headers, now)?,
            members: now + pace.members,
        })
    }

    /// Where the headers are that it has seen whenever it suspects [`Suspect::Sets`].
    #[must_use]
    pub fn glimpses(&self) -> Glimpses {
        self.headers.glimpses()
    }

    /// Blocks until something may have changed, or until `deadline`: then the answer is empty.
    ///
    /// Nothing is lost between calls, and what is told is told once. What changes after a suspicion
    /// was returned, even before it is looked at, is told again.
    ///
    /// *Errors*: [`Error::Socket`], [`Error::File`]: the watching is over, open another.
    ///
    /// *Cost*: a wake-up for each commit to any nft table, at each timer, and for each few sets whose headers are
    /// looked at; else nothing.
    pub fn wait(&mut self, deadline: Instant) -> Result<BTreeSet<Suspect>, Error> {
        loop {
            let now = Instant::now();
            let mut suspects = BTreeSet::new();
            if now >= self.members {
                self.members = now + self.pace.members;
                suspects.insert(Suspect::Members);
            }
            if self.headers.look(now)? {
                suspects.insert(Suspect::Sets);
            }
            let rules = self.source.look(now, self.pace.legacy, &self.families)?;
            suspects.extend(rules.into_iter().map(Suspect::Rules));
            if !suspects.is_empty() || now >= deadline {
                return Ok(suspects);
            }
            let timers = [Some(deadline), Some(self.headers.due()), Some(self.members)];
            let timers = timers.into_iter().chain([self.source.due()]);
            let next = timers.flatten().min().expect("there is a deadline");
            self.source.wait(next.saturating_duration_since(now))?;
        }
    }
}

impl Source {
    /// Families whose rules may have changed. Doesn't wait.
    fn look(
        &mut self,
        now: Instant,
        pace: Duration,
        families: &[Family],
    ) -> Result<BTreeSet<Family>, Error> {
        match self {
            Self::Nft(notifications) => {
                let mut touched = notifications.drain()?;
                touched.retain(|family| families.contains(family));
                Ok(touched)
            }
            Self::Legacy {
                lock,
                due,
                last,
                touched,
            } => {
                *touched |= lock.drain()?;
                let breathed = last.is_none_or(|last| now >= last + BREATH);
                if now < *due && !(*touched && breathed) {
                    return Ok(BTreeSet::new());
                }
                lock.follow();
                (*touched, *last, *due) = (false, Some(now), now + pace);
                Ok(families.iter().copied().collect())
            }
        }
    }

    fn due(&self) -> Option<Instant> {
        match self {
            Self::Nft(_) => None,
            Self::Legacy {
                due, last, touched, ..
            } => match last {
                Some(last) if *touched => Some(*last + BREATH),
                Some(_) | None => Some(*due),
            },
        }
    }

    fn wait(&self, patience: Duration) -> Result<(), Error> {
        let fd = match self {
            Self::Nft(notifications) => Some(notifications.as_fd()),
            Self::Legacy { lock, .. } => lock.fd(),
        };
        let mut fds: Vec<PollFd<'_>> = fd.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let failed = |source| Error::Socket {
            what: "wait for what others do",
            source,
        };
        let timeout = Timespec::try_from(patience)
            .map_err(|_| failed(std::io::ErrorKind::InvalidInput.into()))?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(failed(errno.into())),
        }
    }
}
