//! Network namespaces: open one, open a socket in it, run something in it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Error, Socket};

/// File system type of namespace files (`NSFS_MAGIC` in linux/magic.h).
const NSFS: i64 = 0x6e73_6673;
/// The calling thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// Between two tries to hold a namespace.
const LOOK: Duration = Duration::from_millis(10);

/// An open network namespace: it exists as long as this value does.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
}

impl NetNs {
    /// Opens the namespace that is mounted at `path`.
    ///
    /// *Errors*: [`Error::Namespace`] if there is nothing there, [`Error::NotNamespace`] if it is something
    /// else: runtimes leave an empty file behind when they unmount a namespace.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let wrap = |reason: std::io::Error| Error::Namespace {
            path: path.to_owned(),
            reason,
        };
        let file = File::open(path).map_err(wrap)?;
        let system = rustix::fs::fstatfs(&file).map_err(|e| wrap(e.into()))?;
        if system.f_type != NSFS {
            return Err(Error::NotNamespace {
                path: path.to_owned(),
            });
        }
        Ok(NetNs {
            file,
            path: path.to_owned(),
        })
    }

    /// The calling thread's namespace.
    pub fn current() -> Result<Self, Error> {
        NetNs::open(Path::new(OWN))
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both are the same namespace.
    pub fn is(&self, other: &NetNs) -> Result<bool, Error> {
        let id = |netns: &NetNs| {
            let data = netns.file.metadata().map_err(|reason| Error::Namespace {
                path: netns.path.clone(),
                reason,
            })?;
            Ok::<_, Error>((data.dev(), data.ino()))
        };
        Ok(id(self)? == id(other)?)
    }

    /// Waits until nobody else holds this namespace so, and holds it as long as this value exists: flock(2), whose file is
    /// one for all who open the namespace. Where the system refuses the lock itself nobody is kept out.
    ///
    /// *Errors*: [`Error::Held`] if it is still held after `within`. *Cost*: one call where nobody holds it, else one
    /// every ten milliseconds.
    #[expect(
        clippy::disallowed_methods,
        reason = "a lock that is waited for without a deadline would need a signal to end"
    )]
    pub fn hold(&self, within: Duration) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(Errno::WOULDBLOCK) if start.elapsed() < within => std::thread::sleep(LOOK),
                Err(Errno::WOULDBLOCK) => {
                    return Err(Error::Held {
                        path: self.path.clone(),
                        after: within,
                    });
                }
                Err(Errno::INTR) => {}
                // A system without such locks, or short of memory for one.
                Err(_) => return Ok(()),
            }
        }
    }

    /// Opens a socket in this namespace. The calling thread visits it and is back in `home`, which must be
    /// its namespace, when this returns.
    ///
    /// *Needs*: `CAP_SYS_ADMIN` in this namespace and in `home`. *Cost*: two `setns` and a socket, 10 µs.
    ///
    /// *Panics* if the thread cannot go back: it must not run on in a pod.
    pub fn open_socket(&self, home: &NetNs) -> Result<Socket, Error> {
        self.enter()?;
        let socket = Socket::open();
        home.enter()
            .expect("a thread may return to the namespace that it came from");
        socket
    }

    /// Runs something in this namespace, on a thread made for it: the caller's never leaves its own.
    ///
    /// *Needs*: `CAP_SYS_ADMIN` in this namespace. *Cost*: a thread, 30 to 50 µs.
    /// *Panics* if the closure does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                Ok(work())
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread, and no other, into this namespace.
    fn enter(&self) -> Result<(), Error> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
            |errno| match errno {
                // A namespace of another kind.
                rustix::io::Errno::INVAL => Error::NotNamespace {
                    path: self.path.clone(),
                },
                errno => Error::Namespace {
                    path: self.path.clone(),
                    reason: errno.into(),
                },
            },
        )
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
