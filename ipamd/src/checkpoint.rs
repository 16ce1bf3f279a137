//! Who has which address, on disk: AWS's file, so that either agent can take over from the other.
//!
//! `ipam.json`: `{"version":"vpc-cni-ipam/1","allocations":[{"networkName":…,"containerID":…,"ifName":…,"ipv4":…,
//! "allocationTimestamp":<ns>,"metadata":{"k8sPodNamespace":…,"k8sPodName":…,"interfacesCount":1}}]}`
//!
//! `ipam-cooling.json`, beside it: `{"version":"selvage-cooling/1","cooling":[{"address":…,"until":<ns>}]}`, what rests
//! after a pod. AWS's agent has no word for it and does not look there.
//!
//! A file is replaced as a whole (temporary file, fsync, rename): after a crash it is the old one or the new one. What
//! rests is written first, so that an address that is taken back is in one file or the other at any time. A checkpoint
//! that cannot be understood is left as it is: it may be all that says which addresses running pods have.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use selvage_ipamd_core::ids::Timestamp;
use selvage_ipamd_core::pool::Entry;
use thiserror::Error;
use tracing::warn;

mod file;
mod wire;

use file::Replaced;
use wire::{VERSION, Wrong};

/// Addresses that rest, and until when.
pub type Resting = Vec<(IpAddr, Timestamp)>;

/// A checkpoint that cannot be read or written.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The system refused.
    #[error("checkpoint {path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what we write.
    #[error(
        "checkpoint {path} cannot be understood ({why}); it is left as it is, since it says which addresses running \
         pods have: put a good one in its place, or drain the node, remove the file and start again", path = path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody else's, or of a later time.
    #[error(
        "checkpoint {path} has version {found:?} and this daemon knows only {VERSION:?}; it is left as it is: run the \
         agent that wrote it, or drain the node, remove the file and start again", path = path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it says it is.
        found: String,
    },
}

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checkpoint {
    /// The leases.
    pub entries: Vec<Arc<Entry>>,
    /// What rests.
    pub cooling: Resting,
}

impl Checkpoint {
    /// Reads a checkpoint and what lies beside it; a missing file is a fresh node. What rests is worth a warning, not
    /// a node: if that file alone cannot be understood, nothing rests.
    ///
    /// # Errors
    /// When the file cannot be read or understood. It is not touched.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let mut checkpoint = match read_if_there(path)? {
            Some(text) => Self::parse(&text, path)?,
            None => return Ok(Self::default()),
        };
        let beside = cooling_path(path);
        if let Some(text) = read_if_there(&beside)? {
            match wire::parse_cooling(&text) {
                Ok(cooling) => checkpoint.cooling.extend(cooling),
                Err(Wrong::Corrupt(why)) => {
                    warn!(path = %beside.display(), why, "what rests is not known any more");
                }
                Err(Wrong::Foreign(version)) => {
                    warn!(path = %beside.display(), version, "what rests is not known: another version");
                }
            }
        }
        Ok(checkpoint)
    }

    /// The leases as AWS's file has them.
    ///
    /// # Errors
    /// None that a lease can cause: serde's.
    pub fn leases_json(&self) -> serde_json::Result<Vec<u8>> {
        wire::leases_json(&self.entries)
    }

    /// Reads the text of a checkpoint; `path` is for the words of an error.
    ///
    /// # Errors
    /// When it is not whole, or not ours.
    pub fn parse(text: &[u8], path: &Path) -> Result<Self, CheckpointError> {
        let path = || path.to_owned();
        match wire::parse_leases(text) {
            Ok((entries, cooling)) => Ok(Self { entries, cooling }),
            Err(Wrong::Corrupt(why)) => Err(CheckpointError::Corrupt { path: path(), why }),
            Err(Wrong::Foreign(found)) => Err(CheckpointError::Foreign {
                path: path(),
                found,
            }),
        }
    }
}

/// Writes checkpoints to one place.
#[derive(Debug)]
pub struct Store(Mutex<Files>);

/// The two files, and what was written last.
#[derive(Debug)]
struct Files {
    leases: Replaced,
    lines: wire::Leases,
    resting: Replaced,
    /// What the file of what rests says, in order; `None` if that is not known.
    rests: Option<Resting>,
}

impl Store {
    /// For a file at `path`, whatever is there now.
    pub fn new(path: PathBuf) -> Self {
        Self(Mutex::new(Files {
            resting: Replaced::new(cooling_path(&path)),
            leases: Replaced::new(path),
            lines: wire::Leases::default(),
            rests: None,
        }))
    }

    /// Replaces the files. When this returns, they are on the disk. What rests, and the leases by their keys, are in
    /// order, as [`Pool`](selvage_ipamd_core::pool::Pool) tells them: in another the files are as right, only slower.
    ///
    /// # Errors
    /// When the system refuses; the old file is whole then.
    ///
    /// *Cost*: linear in the leases, of which only new ones are spelled out, and one fsync of the file and one of its
    /// directory; as much again for what rests, if anything has come to rest since.
    pub fn write(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let files = &mut *files;
        let rests = files.rests.take().filter(|known| {
            let mut resting = checkpoint.cooling.iter();
            resting.all(|one| known.binary_search(one).is_ok())
        });
        let rests = match rests {
            // What rests no longer does no harm there.
            Some(known) => known,
            None => {
                let text = wire::cooling_json(&checkpoint.cooling);
                replace(&mut files.resting, text)?;
                checkpoint.cooling.clone()
            }
        };
        files.rests = Some(rests);
        replace(&mut files.leases, files.lines.text(&checkpoint.entries))
    }
}

fn cooling_path(path: &Path) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push("-cooling.json");
    path.with_file_name(name)
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, CheckpointError> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CheckpointError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

fn replace(
    file: &mut Replaced,
    text: serde_json::Result<impl AsRef<[u8]>>,
) -> Result<(), CheckpointError> {
    let replaced = text
        .map_err(io::Error::from)
        .and_then(|text| file.replace(text.as_ref()));
    replaced.map_err(|source| CheckpointError::Io {
        path: file.path().to_owned(),
        source,
    })
}

/// Whether a file at `path` is kept in memory (tmpfs, ramfs), as in `/run`: writing it waits for nothing.
/// What cannot be looked at counts as a disk.
#[must_use]
pub fn is_in_memory(path: &Path) -> bool {
    /// `include/uapi/linux/magic.h`.
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    const RAMFS_MAGIC: u64 = 0x8584_58f6;
    let directory = path.parent().unwrap_or(Path::new("/"));
    rustix::fs::statfs(directory).is_ok_and(|fs| {
        u64::try_from(fs.f_type).is_ok_and(|kind| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&kind))
    })
}

#[cfg(test)]
mod tests;
