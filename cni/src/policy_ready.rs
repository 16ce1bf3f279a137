//! Waits until the enforcement half has a pod's rules in the kernel: ADD answers when the pod may talk.
//!
//! The two halves share a directory and no code. Whoever enforces policy on the node keeps a file there for
//! each pod whose rules are in force, named and written as Calico's Felix does; the configuration says where:
//!
//! ```text
//! "policyReady": {"directory": "/var/run/selvage/endpoint-status", "timeoutSeconds": 20}
//!
//! /var/run/selvage/endpoint-status/k8s shop%2Fweb-0 eth0      {"ifaceName":"eni4d2…","podUID":"0b6e…"}
//! ```
//!
//! Without that key nothing is waited for. With it a pod that nobody enforces for does not start: ADD fails,
//! says which file is missing, and everything it did is undone. DEL and CHECK never look.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use serde::Deserialize;
use serde_json::Value;

use crate::log::{Level, Log};
use crate::request::{AddRequest, Pod};
use crate::spec::{CniError, Code};

/// Rules exist before the veth as a rule: this is for an agent that is being started, and well inside the
/// kubelet's two minutes, of which the call to ipamd may take half a minute.
const DEFAULT_SECONDS: u64 = 20;
const SECONDS: std::ops::RangeInclusive<u64> = 1..=60;
/// Between two looks while the kernel tells us of changes: for a directory that was replaced under the watch.
const LOOK_WATCHED: Duration = Duration::from_secs(1);
/// Between two looks when it cannot: no such directory yet, or no inotify instance left for root.
const LOOK_UNWATCHED: Duration = Duration::from_millis(50);
/// The longest file that is read; one of ours has some 200 bytes.
const LONGEST: u64 = 64 * 1024;
/// The kernel's limit on a file's name, in bytes.
const NAME_MAX: usize = 255;

/// Where readiness is told, and how long it is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyReady {
    /// The directory, as the host sees it.
    pub directory: PathBuf,
    /// How long ADD waits.
    pub timeout: Duration,
}

impl PolicyReady {
    /// Reads the configuration's `policyReady`.
    ///
    /// *Errors*: what is wrong with it, in words: not an object, no absolute `directory`, a
    /// `timeoutSeconds` outside 1 to 60.
    pub fn parse(value: Value) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire {
            directory: PathBuf,
            #[serde(default)]
            timeout_seconds: Option<u64>,
        }
        let wire: Wire =
            serde_json::from_value(value).map_err(|error| format!("policyReady: {error}"))?;
        if !wire.directory.is_absolute() {
            return Err(format!(
                "policyReady.directory {:?} is not an absolute path",
                wire.directory.display()
            ));
        }
        let seconds = wire.timeout_seconds.unwrap_or(DEFAULT_SECONDS);
        if !SECONDS.contains(&seconds) {
            return Err(format!(
                "policyReady.timeoutSeconds {seconds} is not in {} to {}",
                SECONDS.start(),
                SECONDS.end()
            ));
        }
        Ok(PolicyReady {
            directory: wire.directory,
            timeout: Duration::from_secs(seconds),
        })
    }

    /// The file that says that a pod's rules are in force.
    pub fn file(&self, pod: &Pod, host_veth: &str) -> PathBuf {
        self.directory.join(file_name(pod, host_veth))
    }

    /// Waits until it is there. Returns at once when it is, after [`PolicyReady::timeout`] at the latest.
    ///
    /// *Errors*: what is still missing then. *Cost*: one file opened and read when it is there already.
    fn wait(&self, pod: &Pod, host_veth: &str) -> Result<(), Missing> {
        let path = self.file(pod, host_veth);
        let deadline = Instant::now() + self.timeout;
        let mut watch = None;
        loop {
            let Err(missing) = look(&path, &pod.uid) else {
                return Ok(());
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(missing);
            }
            if watch.is_none() {
                watch = Watch::open(&self.directory);
                if watch.is_some() {
                    // What came between the look and the watch is told by nobody.
                    continue;
                }
            }
            match &watch {
                Some(watch) => watch.wait(left.min(LOOK_WATCHED)),
                None => pause(&mut [], left.min(LOOK_UNWATCHED)),
            }
        }
    }
}

/// Waits for a pod's rules if the configuration asks for it.
///
/// *Errors*: code 11 with the pod, the file and what to look at, when the time is up.
pub fn wait(add: &AddRequest, log: &mut Log) -> Result<(), CniError> {
    let Some(ready) = &add.policy_ready else {
        return Ok(());
    };
    let start = Instant::now();
    let waited = ready.wait(&add.pod, &add.host_veth);
    let took = format!("{:?}", start.elapsed());
    log.line(Level::Debug, "policy looked for", &[("took", &took)]);
    waited.map_err(|missing| {
        CniError::new(
            Code::TryAgainLater,
            format!(
                "no policy in force for pod {}/{}",
                add.pod.namespace, add.pod.name
            ),
            format!(
                "waited {:?} for the file {}: {missing}; the policy agent of this node writes it once the pod's \
                 rules are in the kernel: look at that agent's pod (kubectl -n selvage-system get pods -o wide \
                 -l app.kubernetes.io/name=selvage-policy), its status and its log",
                ready.timeout,
                ready.file(&add.pod, &add.host_veth).display()
            ),
        )
    })
}

/// What was still missing when the time was up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Missing {
    #[error("its directory does not exist")]
    Directory,
    #[error("it does not exist")]
    File,
    #[error("it is of an earlier pod of this name, with UID {0}")]
    Predecessor(String),
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// Felix's: orchestrator, workload and endpoint, each escaped, with spaces between; every pod's endpoint is
/// `eth0`. Where that is longer than a file's name may be, the veth stands for the workload.
fn file_name(pod: &Pod, host_veth: &str) -> String {
    let workload = format!("{}/{}", pod.namespace, pod.name);
    let name = format!("k8s {} eth0", escaped(&workload));
    if name.len() <= NAME_MAX {
        name
    } else {
        format!("k8s {host_veth} eth0")
    }
}

/// As Go's url.PathEscape.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(byte.into()),
            b'-' | b'_' | b'.' | b'~' | b'$' | b'&' | b'+' | b'=' | b':' | b'@' => {
                out.push(byte.into());
            }
            _ => write!(out, "%{byte:02X}").expect("a String takes any text"),
        }
    }
    out
}

/// Whether the file is there and speaks of this very pod, as far as either of them tells a UID.
fn look(path: &Path, uid: &str) -> Result<(), Missing> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "podUID", default)]
        uid: String,
    }
    let text = match read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let there = path.parent().is_some_and(Path::is_dir);
            return Err(if there {
                Missing::File
            } else {
                Missing::Directory
            });
        }
        Err(error) => return Err(Missing::Unreadable(error.to_string())),
    };
    // Another agent's says no UID, and may say nothing at all: that it is there is what it says.
    let told = serde_json::from_slice(&text).map_or(String::new(), |found: Content| found.uid);
    if told.is_empty() || told == uid || !is_from_api(uid) {
        Ok(())
    } else {
        Err(Missing::Predecessor(told))
    }
}

/// The API server's UIDs are of the form 8-4-4-4-12. A static pod has the hash of its file for one, which its
/// mirror in the API does not share; and some runtimes tell none.
fn is_from_api(uid: &str) -> bool {
    uid.len() == 36 && uid.contains('-')
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(LONGEST).read_to_end(&mut text)?;
    Ok(text)
}

/// The kernel's word for changes in a directory.
struct Watch {
    inotify: OwnedFd,
}

impl Watch {
    /// `None` if the directory is not there, or the kernel has no instance left for us.
    fn open(directory: &Path) -> Option<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags).ok()?;
        let events = inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::ONLYDIR;
        inotify::add_watch(&inotify, directory, events).ok()?;
        Some(Watch { inotify })
    }

    /// Until something changed, or for so long. What it was is for a look to tell.
    fn wait(&self, longest: Duration) {
        pause(&mut [PollFd::new(&self.inotify, PollFlags::IN)], longest);
        let mut events = [MaybeUninit::<u8>::uninit(); 4096];
        while rustix::io::read(&self.inotify, &mut events).is_ok() {}
    }
}

fn pause(fds: &mut [PollFd<'_>], longest: Duration) {
    let longest = Timespec {
        tv_sec: longest.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: longest.subsec_nanos().into(),
    };
    // A signal ends it early: then there is one look more.
    let _ = poll(fds, Some(&longest));
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use serde_json::json;

    const UID: &str = "8d5b1a63-6b1d-4f0e-9a57-2b7b3f1f4b11";
    const OTHER: &str = "0c1d2e3f-6b1d-4f0e-9a57-2b7b3f1f4b11";
    const VETH: &str = "eni0d7763386da";

    fn pod(name: &str) -> Pod {
        Pod {
            namespace: "default".into(),
            name: name.into(),
            uid: UID.into(),
            infra_container_id: String::new(),
        }
    }

    fn ready(directory: &Path, timeout: Duration) -> PolicyReady {
        PolicyReady {
            directory: directory.into(),
            timeout,
        }
    }

    #[test]
    fn a_pods_file_has_felixs_name_unless_no_file_could_bear_it() {
        let longest = "n".repeat(NAME_MAX - "k8s default%2F eth0".len());
        let too_long = format!("{longest}n");
        for (pod, name) in [
            (pod("web-0"), "k8s default%2Fweb-0 eth0".to_owned()),
            (pod("a.b"), "k8s default%2Fa.b eth0".to_owned()),
            (
                pod("../x y%"),
                "k8s default%2F..%2Fx%20y%25 eth0".to_owned(),
            ),
            (pod(&longest), format!("k8s default%2F{longest} eth0")),
            (pod(&too_long), format!("k8s {VETH} eth0")),
        ] {
            assert_eq!(file_name(&pod, VETH), name);
            assert!(name.len() <= NAME_MAX);
        }
    }

    #[test]
    fn what_cannot_be_waited_for_is_refused_by_name() {
        for (value, says) in [
            (json!("/run"), "policyReady: invalid type"),
            (json!({}), "missing field `directory`"),
            (
                json!({"directory": "run"}),
                "policyReady.directory \"run\" is not",
            ),
            (
                json!({"directory": "/run", "timeoutSeconds": 0}),
                "timeoutSeconds 0 is not in 1 to 60",
            ),
            (
                json!({"directory": "/run", "timeoutSeconds": 61}),
                "timeoutSeconds 61",
            ),
            (
                json!({"directory": "/run", "timeoutSeconds": "5"}),
                "invalid type",
            ),
        ] {
            let error = PolicyReady::parse(value.clone()).unwrap_err();
            assert!(error.contains(says), "{value}: {error}");
        }
        let short = PolicyReady::parse(json!({"directory": "/run", "later": true})).unwrap();
        assert_eq!(short, ready(Path::new("/run"), Duration::from_secs(20)));
    }

    #[test]
    fn a_file_of_an_earlier_pod_of_the_name_is_not_this_pods() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let look = |content: &str, uid: &str| {
            fs::write(&path, content).unwrap();
            look(&path, uid)
        };
        let of = |uid: &str| json!({"ifaceName": VETH, "podUID": uid}).to_string();
        assert_eq!(look(&of(UID), UID), Ok(()));
        assert_eq!(
            look(&of(OTHER), UID),
            Err(Missing::Predecessor(OTHER.into()))
        );
        // A runtime that tells none; a static pod, whose UID is a hash that the API does not know.
        assert_eq!(look(&of(OTHER), ""), Ok(()));
        assert_eq!(look(&of(OTHER), "5d41402abc4b2a76b9719d911017c592"), Ok(()));
        // Another agent's.
        assert_eq!(look("", UID), Ok(()));
        assert_eq!(look(r#"{"ifaceName":"eni1","mac":"x"}"#, UID), Ok(()));
    }

    #[test]
    fn what_is_missing_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("directory/file");
        assert_eq!(look(&path, UID), Err(Missing::Directory));
        fs::create_dir(folder.path().join("directory")).unwrap();
        assert_eq!(look(&path, UID), Err(Missing::File));
        fs::create_dir(&path).unwrap();
        assert!(matches!(look(&path, UID), Err(Missing::Unreadable(_))));
    }

    /// How long after its file came a wait was over.
    fn delay(made_before: bool) -> Duration {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("endpoint-status");
        if made_before {
            fs::create_dir(&directory).unwrap();
        }
        let ready = ready(&directory, Duration::from_secs(60));
        let path = ready.file(&pod("web-0"), VETH);
        let (begun, is_begun) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                begun.send(()).unwrap();
                ready.wait(&pod("web-0"), VETH)
            });
            is_begun.recv().unwrap();
            // Into the midst of a pause, whichever it is: past the first look in any case.
            pause(&mut [], LOOK_UNWATCHED);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(".tmp"), "{}").unwrap();
            let start = Instant::now();
            fs::rename(directory.join(".tmp"), &path).unwrap();
            assert_eq!(waiting.join().unwrap(), Ok(()), "{made_before}");
            start.elapsed()
        })
    }

    #[test]
    fn a_file_that_comes_while_it_is_waited_for_is_seen_whether_or_not_its_directory_was_there() {
        for made_before in [true, false] {
            let delay = delay(made_before);
            assert!(delay < Duration::from_secs(30), "{made_before}: {delay:?}");
        }
    }

    #[test]
    fn a_file_is_seen_when_it_comes_and_not_at_the_next_look() {
        // The best of some, on a machine that does other things as well.
        let best = (0..4).map(|_| delay(true)).min().unwrap();
        assert!(best < LOOK_WATCHED / 2, "{best:?}");
    }
}
