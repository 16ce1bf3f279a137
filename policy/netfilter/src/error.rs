//! What can go wrong at the kernel's edge.

use std::fmt;
use std::io;
use std::time::Duration;

use selvage_policy_core::ruleset::{Member, SetName};
use thiserror::Error;

/// Why something was not done. Each variant is something else that a caller can do about it.
#[derive(Debug, Error)]
pub enum Error {
    /// The netlink socket itself failed: no permission, no memory, replies lost.
    #[error("netlink socket: {what}")]
    Socket {
        /// The call.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel did not answer in time.
    #[error("{object}: the kernel did not answer within {patience:?}")]
    Silence {
        /// What was asked.
        object: String,
        /// How long was waited.
        patience: Duration,
    },
    /// The kernel answered something that cannot be understood.
    #[error("{object}: the kernel's answer makes no sense: {problem}")]
    Garbled {
        /// What was asked.
        object: String,
        /// What is wrong with the answer.
        problem: &'static str,
    },
    /// The rules kept changing while they were read.
    #[error("{object}: the rules changed during each of {attempts} readings")]
    Restless {
        /// What was read.
        object: String,
        /// How often.
        attempts: u32,
    },
    /// The kernel said no.
    #[error("{object}")]
    Refused {
        /// What was asked.
        object: String,
        /// The kernel's words.
        #[source]
        source: Refusal,
    },
    /// A set that should be destroyed and is matched on by a rule that we may not change.
    #[error(
        "set {set}: in use by a rule or set that is not ours: find it with \
         `iptables-save | grep {set}` (also ip6tables-save, `nft list ruleset` and `ipset list`) and delete it"
    )]
    InUse {
        /// The set.
        set: SetName,
    },
    /// A member that cannot be in its set: the other family, a port in a set without ports (or
    /// none in one with), or a `/0`.
    #[error("set {set}: {member} cannot be a member: {problem}")]
    BadMember {
        /// The set.
        set: SetName,
        /// The member, as given.
        member: Member,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A set would need more members than we let the kernel hold.
    #[error("set {set}: more than {limit} members")]
    TooManyMembers {
        /// The set.
        set: SetName,
        /// The most that is allowed.
        limit: u32,
    },
    /// A file of the kernel's could not be read.
    #[error("read {path}")]
    File {
        /// Which file.
        path: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A tool could not be started, or its input or output not handled.
    #[error("run {tool}: {what}")]
    Spawn {
        /// The tool.
        tool: String,
        /// What was being done.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A tool ran longer than it may and was killed. Its batches are atomic: all or nothing.
    #[error("{tool} was killed after {patience:?}")]
    Slow {
        /// The tool.
        tool: String,
        /// How long it was given.
        patience: Duration,
    },
    /// A tool ended with an error.
    #[error("{tool}: {status}: {stderr}{}", Line(line.as_deref()))]
    Tool {
        /// The tool.
        tool: String,
        /// How it ended.
        status: String,
        /// What it printed.
        stderr: String,
        /// The line of its input that it complained about.
        line: Option<String>,
    },
}

impl Error {
    /// Whether the kernel refused with this error number.
    #[must_use]
    pub(crate) fn is_refusal(&self, number: i32) -> bool {
        matches!(self, Self::Refused { source, .. } if source.number == number)
    }
}

struct Line<'a>(Option<&'a str>);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(line) => write!(f, " (the line: {line})"),
            None => Ok(()),
        }
    }
}

/// An error that the kernel reported, in its own words where it gave some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The error number, positive. Above 4096 ipset's own ([`crate::ipset`]).
    pub number: i32,
    /// The extended acknowledgement's message.
    pub words: Option<String>,
    /// For a batch of set members: which of them, from 1.
    pub line: Option<u32>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "member {line}: ")?;
        }
        match (&self.words, crate::ipset::explain(self.number)) {
            (Some(words), _) => f.write_str(words),
            (None, Some(known)) => f.write_str(known),
            (None, None) => io::Error::from_raw_os_error(self.number).fmt(f),
        }
    }
}

impl std::error::Error for Refusal {}
