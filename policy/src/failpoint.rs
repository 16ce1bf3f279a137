//! Places where the daemon can be told to die, so that a test knows what a crash there leaves.
//!
//! `SELVAGE_FAILPOINT=chains-written` ends the process by SIGKILL right behind the step of that
//! name; `chains-written:3` at the third time. Each place that is passed is logged at debug, armed
//! or not, and so a run without it prints what there is to arm.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Signal, getpid, kill_process};
use selvage_netfilter::Step;
use thiserror::Error;
use tracing::{debug, warn};

/// Where the name is read from.
pub const VARIABLE: &str = "SELVAGE_FAILPOINT";

/// A place between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failpoint {
    /// Every watch is in sync; the lock is not ours yet.
    Synced,
    /// The lock is ours; the kernel is as somebody left it.
    Locked,
    /// The rules are compiled; nothing of them is written.
    Compiled,
    /// A set in the way of a new one is gone.
    SetCleared,
    /// New sets are made, empty; no rule uses them.
    SetsMade,
    /// They have their members; no rule uses them. The tool knows most of the rules that will.
    SetsFilled,
    /// Members were added to a set in use.
    MembersAdded,
    /// Chains and jumps of a family are in force.
    ChainsWritten,
    /// Members were removed from a set in use.
    MembersRemoved,
    /// Jumps that are not wanted are gone.
    Unhooked,
    /// Chains that are not wanted are gone.
    ChainsDeleted,
    /// A set that is not wanted is gone.
    SetDestroyed,
    /// One family is right but for sets that are not wanted; the next one is not begun yet.
    FamilyDone,
    /// The rules in the backend that is not in use are gone.
    OtherBackendCleaned,
    /// All is right, and nobody was told.
    Converged,
    /// The files that say which pods are enforced are as they should be.
    EndpointStatus,
    /// Flows of addresses that left their pod have ended; forbidden ones have not.
    FlowsForgotten,
    /// Forbidden flows are cut.
    FlowsCut,
}

impl Failpoint {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Synced,
        Self::Locked,
        Self::Compiled,
        Self::SetCleared,
        Self::SetsMade,
        Self::SetsFilled,
        Self::MembersAdded,
        Self::ChainsWritten,
        Self::MembersRemoved,
        Self::Unhooked,
        Self::ChainsDeleted,
        Self::SetDestroyed,
        Self::FamilyDone,
        Self::OtherBackendCleaned,
        Self::Converged,
        Self::EndpointStatus,
        Self::FlowsForgotten,
        Self::FlowsCut,
    ];

    /// The name to arm it by.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Synced => "synced",
            Self::Locked => "locked",
            Self::Compiled => "compiled",
            Self::SetCleared => "set-cleared",
            Self::SetsMade => "sets-made",
            Self::SetsFilled => "sets-filled",
            Self::MembersAdded => "members-added",
            Self::ChainsWritten => "chains-written",
            Self::MembersRemoved => "members-removed",
            Self::Unhooked => "unhooked",
            Self::ChainsDeleted => "chains-deleted",
            Self::SetDestroyed => "set-destroyed",
            Self::FamilyDone => "family-done",
            Self::OtherBackendCleaned => "other-backend-cleaned",
            Self::Converged => "converged",
            Self::EndpointStatus => "endpoint-status",
            Self::FlowsForgotten => "flows-forgotten",
            Self::FlowsCut => "flows-cut",
        }
    }
}

impl From<Step> for Failpoint {
    fn from(step: Step) -> Self {
        match step {
            Step::SetCleared => Self::SetCleared,
            Step::SetsMade => Self::SetsMade,
            Step::SetsFilled => Self::SetsFilled,
            Step::MembersAdded => Self::MembersAdded,
            Step::ChainsWritten => Self::ChainsWritten,
            Step::MembersRemoved => Self::MembersRemoved,
            Step::Unhooked => Self::Unhooked,
            Step::ChainsDeleted => Self::ChainsDeleted,
            Step::FamilyDone => Self::FamilyDone,
            Step::SetDestroyed => Self::SetDestroyed,
        }
    }
}

/// What stands in [`VARIABLE`] names no failpoint.
#[derive(Debug, Error)]
#[error("{VARIABLE} is {text:?}: a name with or without `:` and a count from 1; names are {names}")]
pub struct BadFailpoint {
    text: String,
    names: String,
}

#[derive(Debug)]
struct Armed {
    failpoint: Failpoint,
    /// How often it may still be passed, this time included.
    left: AtomicU64,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

/// Reads [`VARIABLE`], once for the process. Without it nothing is armed.
///
/// *Errors*: [`BadFailpoint`]: a test that misspells a place would prove nothing.
pub fn arm() -> Result<(), BadFailpoint> {
    let Some(text) = std::env::var_os(VARIABLE) else {
        return Ok(());
    };
    let text = text.to_string_lossy();
    let armed = parse(&text).ok_or_else(|| BadFailpoint {
        text: text.clone().into_owned(),
        names: crate::status::join(Failpoint::ALL.into_iter().map(Failpoint::as_str)),
    })?;
    warn!(failpoint = %text, "armed: this process will kill itself there");
    // A second daemon in one process finds it armed.
    let _ = ARMED.set(armed);
    Ok(())
}

fn parse(text: &str) -> Option<Armed> {
    let (name, count) = match text.split_once(':') {
        Some((name, count)) => (name, count.parse().ok().filter(|count| *count > 0)?),
        None => (text, 1),
    };
    let failpoint = Failpoint::ALL
        .into_iter()
        .find(|failpoint| failpoint.as_str() == name)?;
    Some(Armed {
        failpoint,
        left: AtomicU64::new(count),
    })
}

/// Passes a place; does not come back from the one that is armed.
pub(crate) fn hit(failpoint: Failpoint) {
    debug!(failpoint = failpoint.as_str(), "failpoint");
    let Some(armed) = ARMED.get() else { return };
    if armed.failpoint != failpoint || armed.left.fetch_sub(1, Ordering::SeqCst) != 1 {
        return;
    }
    // Nothing is flushed, unwound or closed in order: that is the point.
    let error = kill_process(getpid(), Signal::KILL).err();
    // The first process of a PID namespace does not hear its own signals.
    warn!(
        ?error,
        "failpoint: this process cannot kill itself: aborting"
    );
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failpoint_is_armed_by_its_name_and_count_and_by_nothing_else() {
        for failpoint in Failpoint::ALL {
            let armed = parse(failpoint.as_str()).unwrap();
            assert_eq!(armed.failpoint, failpoint);
            assert_eq!(armed.left.into_inner(), 1);
        }
        let armed = parse("sets-made:7").unwrap();
        assert_eq!(
            (armed.failpoint, armed.left.into_inner()),
            (Failpoint::SetsMade, 7)
        );
        for text in ["", "set", "sets-made:", "sets-made:0", "sets-made:x"] {
            assert!(parse(text).is_none(), "{text:?}");
        }
    }
}
