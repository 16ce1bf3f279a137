//! Who has which address, on disk: AWS's file, so that either agent can take over from the other.
//!
//! `{"version":"vpc-cni-ipam/1","allocations":[{"networkName":…,"containerID":…,"ifName":…,"ipv4":…,
//! "allocationTimestamp":<ns>,"metadata":{"k8sPodNamespace":…,"k8sPodName":…,"interfacesCount":1}}]}`
//!
//! One more field, `selvageCooling`, holds what rests after a pod; AWS's agent skips fields it does not know.
//!
//! The file is replaced as a whole (temporary file, fsync, rename): after a crash it is the old one or the new one.
//! A file that cannot be understood is left as it is: it may be all that says which addresses running pods have.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use selvage_ipamd_core::ids::{PodKey, PodName, Timestamp};
use selvage_ipamd_core::pool::{Entry, Lease};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The only version there is.
const VERSION: &str = "vpc-cni-ipam/1";

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
    pub entries: Vec<Entry>,
    /// Addresses that rest, and until when.
    pub cooling: Vec<(Ipv4Addr, Timestamp)>,
}

impl Checkpoint {
    /// What is to be written of a pool.
    pub fn of(leases: Vec<Lease>, cooling: Vec<(Ipv4Addr, Timestamp)>) -> Self {
        let entries = leases
            .into_iter()
            .map(|lease| Entry {
                key: lease.key,
                pod: lease.pod,
                address: lease.address,
                since: lease.since,
            })
            .collect();
        Self { entries, cooling }
    }

    /// Reads a checkpoint; a missing file is a fresh node.
    ///
    /// # Errors
    /// When the file cannot be read or understood. It is not touched.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(CheckpointError::Io {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        parse(&text, path)
    }

    /// Replaces the file. When this returns, it is on the disk.
    ///
    /// # Errors
    /// When the system refuses; the old file is whole then.
    ///
    /// *Cost*: linear in the leases, and one fsync of the file and one of its directory.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        self.try_write(path).map_err(|source| CheckpointError::Io {
            path: path.to_owned(),
            source,
        })
    }

    fn try_write(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(&Document::from(self))?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    }
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

fn parse(text: &[u8], path: &Path) -> Result<Checkpoint, CheckpointError> {
    let corrupt = |why: String| CheckpointError::Corrupt {
        path: path.to_owned(),
        why,
    };
    // The version first: what a later version holds need not look like ours.
    let head: Head = serde_json::from_slice(text).map_err(|e| corrupt(e.to_string()))?;
    if head.version != VERSION {
        return Err(CheckpointError::Foreign {
            path: path.to_owned(),
            found: head.version,
        });
    }
    let document: Document = serde_json::from_slice(text).map_err(|e| corrupt(e.to_string()))?;
    let mut checkpoint = Checkpoint::default();
    for allocation in document.allocations {
        checkpoint
            .entries
            .push(allocation.entry().map_err(corrupt)?);
    }
    for cooling in document.cooling {
        checkpoint
            .cooling
            .push((cooling.ipv4, Timestamp::from_unix_nanos(cooling.until)));
    }
    Ok(checkpoint)
}

#[derive(Deserialize)]
struct Head {
    version: String,
}

#[derive(Serialize, Deserialize)]
struct Document<'a> {
    version: Cow<'a, str>,
    // Go writes an empty list as null.
    #[serde(borrow, default, deserialize_with = "null_is_empty")]
    allocations: Vec<Allocation<'a>>,
    #[serde(
        rename = "selvageCooling",
        default,
        skip_serializing_if = "Vec::is_empty"
    )]
    cooling: Vec<Cooling>,
}

#[derive(Serialize, Deserialize)]
struct Allocation<'a> {
    #[serde(rename = "networkName")]
    network_name: Cow<'a, str>,
    #[serde(rename = "containerID")]
    container_id: Cow<'a, str>,
    #[serde(rename = "ifName")]
    if_name: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv4: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv6: Option<Cow<'a, str>>,
    #[serde(rename = "allocationTimestamp", default)]
    allocation_timestamp: i64,
    #[serde(borrow, default)]
    metadata: Metadata<'a>,
}

#[derive(Serialize, Deserialize, Default)]
struct Metadata<'a> {
    #[serde(
        rename = "k8sPodNamespace",
        default,
        skip_serializing_if = "str::is_empty"
    )]
    namespace: Cow<'a, str>,
    #[serde(rename = "k8sPodName", default, skip_serializing_if = "str::is_empty")]
    name: Cow<'a, str>,
    #[serde(rename = "interfacesCount", default)]
    interfaces: u32,
}

#[derive(Serialize, Deserialize)]
struct Cooling {
    ipv4: Ipv4Addr,
    until: u64,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<Allocation<'de>>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

impl Allocation<'_> {
    fn entry(self) -> Result<Entry, String> {
        let key = PodKey {
            network_name: self.network_name.into_owned(),
            container_id: self.container_id.into_owned(),
            if_name: self.if_name.into_owned(),
        };
        if self.ipv6.as_deref().is_some_and(|a| !a.is_empty()) {
            return Err(format!(
                "{key} has an IPv6 address: written by an IPv6 node"
            ));
        }
        if self.metadata.interfaces > 1 {
            return Err(format!(
                "{key} has {} interfaces: written by a node with several network cards",
                self.metadata.interfaces
            ));
        }
        let text = self.ipv4.unwrap_or_default();
        let address = text
            .parse()
            .map_err(|_| format!("{key} has the address {text:?}"))?;
        Ok(Entry {
            key,
            pod: PodName {
                namespace: self.metadata.namespace.into_owned(),
                name: self.metadata.name.into_owned(),
            },
            address,
            since: Timestamp::from_unix_nanos(
                u64::try_from(self.allocation_timestamp).unwrap_or_default(),
            ),
        })
    }
}

impl<'a> From<&'a Checkpoint> for Document<'a> {
    fn from(checkpoint: &'a Checkpoint) -> Self {
        let allocations = checkpoint
            .entries
            .iter()
            .map(|entry| Allocation {
                network_name: Cow::Borrowed(&entry.key.network_name),
                container_id: Cow::Borrowed(&entry.key.container_id),
                if_name: Cow::Borrowed(&entry.key.if_name),
                ipv4: Some(entry.address.to_string().into()),
                ipv6: None,
                allocation_timestamp: i64::try_from(entry.since.unix_nanos()).unwrap_or(i64::MAX),
                metadata: Metadata {
                    namespace: Cow::Borrowed(&entry.pod.namespace),
                    name: Cow::Borrowed(&entry.pod.name),
                    interfaces: 1,
                },
            })
            .collect();
        let cooling = checkpoint
            .cooling
            .iter()
            .map(|(ipv4, until)| Cooling {
                ipv4: *ipv4,
                until: until.unix_nanos(),
            })
            .collect();
        Self {
            version: VERSION.into(),
            allocations,
            cooling,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWS: &str = r#"{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"aws-cni","containerID":"c1","ifName":"eth0","ipv4":"10.0.1.2","allocationTimestamp":1700000000000000001,"metadata":{"k8sPodNamespace":"default","k8sPodName":"web-0","interfacesCount":1}},{"networkName":"_migrated-from-cri","containerID":"c2","ifName":"unknown","ipv4":"10.0.1.3","allocationTimestamp":5,"metadata":{}}]}"#;

    fn read(text: &str) -> Result<Checkpoint, CheckpointError> {
        parse(text.as_bytes(), Path::new("/x/ipam.json"))
    }

    #[test]
    fn awss_file_is_read() {
        let checkpoint = read(AWS).unwrap();
        let first = &checkpoint.entries[0];
        assert_eq!(first.key.to_string(), "aws-cni/c1/eth0");
        assert_eq!(first.pod.to_string(), "default/web-0");
        assert_eq!(first.address, Ipv4Addr::new(10, 0, 1, 2));
        assert_eq!(first.since.unix_nanos(), 1_700_000_000_000_000_001);
        assert_eq!(checkpoint.entries.len(), 2);
        assert_eq!(checkpoint.entries[1].pod, PodName::default());
    }

    #[test]
    fn what_is_written_is_awss_file_byte_by_byte() {
        let mut checkpoint = read(AWS).unwrap();
        checkpoint.entries.truncate(1);
        let text = serde_json::to_string(&Document::from(&checkpoint)).unwrap();
        let end = AWS.find(r#",{"networkName":"_migrated"#).unwrap();
        assert_eq!(text, format!("{}]}}", &AWS[..end]));
    }

    #[test]
    fn a_file_without_pods_is_a_node_without_pods() {
        for text in [
            r#"{"version":"vpc-cni-ipam/1","allocations":[]}"#,
            r#"{"version":"vpc-cni-ipam/1","allocations":null}"#,
        ] {
            assert_eq!(read(text).unwrap(), Checkpoint::default(), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_again_with_what_rests() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ipam.json");
        assert_eq!(Checkpoint::read(&path).unwrap(), Checkpoint::default());
        let mut checkpoint = read(AWS).unwrap();
        let moment = Timestamp::from_unix_nanos(77);
        checkpoint
            .cooling
            .push((Ipv4Addr::new(10, 0, 1, 9), moment));
        checkpoint.write(&path).unwrap();
        assert_eq!(Checkpoint::read(&path).unwrap(), checkpoint);
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_refused_with_what_to_do() {
        for (text, want) in [
            ("", "cannot be understood"),
            ("{", "cannot be understood"),
            (r#"{"allocations":[]}"#, "version"),
            (r#"{"version":"vpc-cni-ipam/2","pods":7}"#, "vpc-cni-ipam/2"),
            (
                r#"{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"n","containerID":"c","ifName":"i","ipv4":"x"}]}"#,
                "address \"x\"",
            ),
            (
                r#"{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"n","containerID":"c","ifName":"i","ipv6":"fd00::1"}]}"#,
                "IPv6",
            ),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
            assert!(error.contains("drain the node"), "{error}");
            assert!(error.contains("/x/ipam.json"), "{error}");
        }
    }
}
