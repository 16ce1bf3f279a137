//! Takes everything of ours off the node: both backends, both families, the sets, then the files
//! that plugins wait for.

use std::path::Path;
use std::time::Duration;

use selvage_netfilter::{Backend, Cleaned, Kernel};
use thiserror::Error;

use crate::endpoint_status::{EndpointStatus, EndpointStatusError};
use crate::lock::{Lock, LockError};
use crate::record::RecordFile;

/// Bounds each exchange with the kernel and each run of a tool.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nothing was taken away.
#[derive(Debug, Error)]
pub enum CleanupError {
    /// An instance is enforcing here, and would put its rules back.
    #[error(
        "an instance of selvage-policy holds the lock in {0}: stop it first (delete its DaemonSet), or use --force"
    )]
    InUse(String),
    /// The lock cannot be tried.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The files for plugins cannot be taken away; the kernel is clean.
    #[error(transparent)]
    EndpointStatus(#[from] EndpointStatusError),
    /// The kernel cannot be reached.
    #[error(transparent)]
    Kernel(#[from] selvage_netfilter::Error),
}

/// Removes all rules, chains and sets of ours from this network namespace, guards against revival
/// included, then the files that say whose rules are in force. Blocks.
///
/// *Errors*: [`CleanupError`]. What could not be removed one by one is in [`Cleaned::left`].
///
/// *Needs*: `CAP_NET_ADMIN`, and `CAP_NET_RAW` for legacy tables.
pub fn cleanup(
    run_dir: &Path,
    endpoint_status: &Path,
    force: bool,
) -> Result<Cleaned, CleanupError> {
    let lock = Lock::try_take(run_dir)?;
    if lock.is_none() && !force {
        return Err(CleanupError::InUse(run_dir.display().to_string()));
    }
    // Cleaning goes through both backends, whichever it is opened with.
    let cleaned = Kernel::open(Backend::Nft, PATIENCE)?.cleanup();
    RecordFile::new(run_dir).remove();
    if endpoint_status.exists() {
        EndpointStatus::new(endpoint_status.to_owned()).converge(&[])?;
    }
    Ok(cleaned)
}
