//! The lock file of x_tables: who lets it go may have changed a table.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, inotify, open, stat};
use rustix::io::Errno;

use crate::error::Error;

/// What a tool does last. It opens the file before it writes a table, so that is of no interest.
const LET_GO: inotify::WatchFlags = inotify::WatchFlags::CLOSE_NOWRITE
    .union(inotify::WatchFlags::CLOSE_WRITE)
    .union(inotify::WatchFlags::ATTRIB);

/// A watch on the file that is at the path, also when it is another one later.
pub(super) struct LockFile {
    path: PathBuf,
    /// `None` where the node has no more instances to give.
    inotify: Option<OwnedFd>,
    /// Device and inode of the file that is watched.
    watched: Option<(u64, u64)>,
}

impl LockFile {
    /// Without inotify, whose instances a busy node runs out of, only the caller's timer is left.
    pub(super) fn open(path: &Path) -> Self {
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let inotify = inotify::init(flags)
            .inspect_err(|errno| {
                let path = path.display();
                tracing::warn!(%path, %errno, "the lock file cannot be watched: a timer must do");
            })
            .ok();
        let mut lock = Self {
            path: path.to_owned(),
            inotify,
            watched: None,
        };
        lock.follow();
        lock
    }

    /// Watches the file that is at the path now, and makes it if there is none, as any of the tools
    /// would. Where that is impossible nothing is watched.
    pub(super) fn follow(&mut self) {
        let Some(inotify) = &self.inotify else {
            return;
        };
        let found = match stat(&self.path) {
            Err(Errno::NOENT) => {
                let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC;
                let made = open(&self.path, flags, Mode::RUSR | Mode::WUSR);
                made.and_then(rustix::fs::fstat)
            }
            found => found,
        };
        let watched = found.and_then(|found| {
            let now = (found.st_dev, found.st_ino);
            if self.watched != Some(now) {
                inotify::add_watch(inotify, &self.path, LET_GO)?;
            }
            Ok(now)
        });
        self.watched = watched
            .inspect_err(|errno| {
                let path = self.path.display();
                tracing::debug!(%path, %errno, "the lock file is not watched");
            })
            .ok();
    }

    /// What to wait for, if there is anything.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    /// Whether somebody let go of the file since the last call. Doesn't wait.
    pub(super) fn drain(&mut self) -> Result<bool, Error> {
        let Some(inotify) = &self.inotify else {
            return Ok(false);
        };
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(inotify, &mut space);
        let mut any = false;
        loop {
            match events.next() {
                // Also a queue that overflowed: that is an event.
                Ok(_) => any = true,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(any),
                Err(errno) => {
                    return Err(Error::File {
                        path: self.path.display().to_string(),
                        source: errno.into(),
                    });
                }
            }
        }
    }
}
