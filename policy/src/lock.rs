//! One instance at a time writes to the node: a lock on a file that old and new share.
//!
//! The kernel lets go of it when the holder ends, however it ends.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use thiserror::Error;

/// Name of the lock in the run folder.
const FILE: &str = "lock";

/// The lock, held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The lock could not be taken for another reason than that somebody has it.
#[derive(Debug, Error)]
#[error("lock {}", path.display())]
pub struct LockError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

impl Lock {
    /// Takes the lock in `run_dir` if nobody has it; `None` when somebody does. Makes the folder.
    ///
    /// *Errors*: [`LockError`] when folder or file cannot be made or opened.
    pub fn try_take(run_dir: &Path) -> Result<Option<Self>, LockError> {
        let path = run_dir.join(FILE);
        let failed = |source: std::io::Error| LockError {
            path: path.clone(),
            source,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(run_dir)
            .map_err(failed)?;
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(failed(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_instance_does_not_get_the_lock_until_the_first_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path().join("selvage-policy");
        let first = Lock::try_take(&run_dir).unwrap();
        assert!(first.is_some());
        assert!(Lock::try_take(&run_dir).unwrap().is_none());
        drop(first);
        assert!(Lock::try_take(&run_dir).unwrap().is_some());
    }

    #[test]
    fn a_run_folder_that_cannot_be_made_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Lock::try_take(&file.join("below")).unwrap_err();
        assert!(error.to_string().contains("file/below/lock"), "{error}");
    }
}
