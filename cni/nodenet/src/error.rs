//! What can go wrong between us and the kernel. Every message is whole: none has more behind it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// An error, with the object it is about and the kernel's own words.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A netlink socket could not be opened, written or read: not about one object, and rarely worth a retry.
    #[error("netlink socket: {doing}: {reason}")]
    Socket {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        reason: io::Error,
    },
    /// The kernel refused one request. Others of the same batch are not affected.
    #[error("{what}: {reason}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Kernel {
        /// The request: `add route 10.0.0.7/32`.
        what: String,
        /// The errno.
        reason: io::Error,
        /// The kernel's extended acknowledgement, if it gave one.
        detail: Option<String>,
    },
    /// No answer in time.
    #[error("{what}: no answer from the kernel within {after:?}")]
    Timeout {
        /// The request.
        what: String,
        /// The deadline that passed.
        after: Duration,
    },
    /// A dump was interrupted by changes again and again.
    #[error("{what}: changed under us {tries} times while being read")]
    Interrupted {
        /// The dump.
        what: String,
        /// How often it was tried.
        tries: u32,
    },
    /// The kernel's answer is not what the protocol says.
    #[error("{what}: answer not understood: {reason}")]
    Decode {
        /// The request.
        what: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// Somebody else works in a network namespace.
    #[error("network namespace {path}: held by another for {after:?}", path = path.display())]
    Held {
        /// The path.
        path: PathBuf,
        /// How long it was waited for.
        after: Duration,
    },
    /// There is nothing at the path of a network namespace, or it may not be read.
    #[error("network namespace {path}: {reason}", path = path.display())]
    Namespace {
        /// The path.
        path: PathBuf,
        /// The system's answer.
        reason: io::Error,
    },
    /// There is a file at the path, but no network namespace is mounted on it: the sandbox has ended.
    #[error("{path}: not a network namespace", path = path.display())]
    NotNamespace {
        /// The path.
        path: PathBuf,
    },
    /// A sysctl could not be read or written.
    #[error("sysctl {key}: {reason}")]
    Sysctl {
        /// The key, as a path below /proc/sys.
        key: String,
        /// The system's answer.
        reason: io::Error,
    },
    /// An object that must be there is not.
    #[error("{what}: not found")]
    Missing {
        /// The object.
        what: String,
    },
}

impl Error {
    /// The errno, if the kernel gave one.
    pub fn errno(&self) -> Option<rustix::io::Errno> {
        match self {
            Error::Socket { reason, .. }
            | Error::Kernel { reason, .. }
            | Error::Namespace { reason, .. }
            | Error::Sysctl { reason, .. } => rustix::io::Errno::from_io_error(reason),
            Error::Timeout { .. }
            | Error::Held { .. }
            | Error::Interrupted { .. }
            | Error::Decode { .. }
            | Error::NotNamespace { .. }
            | Error::Missing { .. } => None,
        }
    }
}
