//! Says on the node which pods' rules are in force: a file for each, as Calico's Felix keeps them.
//!
//! A CNI plugin that waits for a pod's file lets the pod run only once its policy holds. Ours does when its
//! configuration says so (`policyReady`); Calico's does with `policy_setup_timeout_seconds` and
//! `endpoint_status_dir`.
//!
//! ```text
//! /var/run/selvage/endpoint-status/
//!   k8s shop%2Fweb-0 eth0      {"ifaceName":"eni4d2…","ipv4Nets":["10.40.16.7/32"],"podUID":"0b6e…"}
//! ```
//!
//! The directory is a claim about the kernel, so the order matters to whoever calls: rules first, then the
//! files. It does not outlive the rules, for both end with the node's uptime. A restart keeps what is right.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

/// The directory on the host, unless told otherwise; our plugin is told the same one.
pub const DIRECTORY: &str = "/var/run/selvage/endpoint-status";

/// What is being written. One name is enough, since one instance at a time writes; a crash's leftover is
/// written over.
const TEMPORARY: &str = ".selvage-policy.tmp";

/// The kernel's limit on a file's name, in bytes.
const NAME_MAX: usize = 255;

/// The longest file that is compared; one of ours has some 200 bytes. A longer one is written anew.
const CONTENT_MAX: u64 = 64 * 1024;

/// A pod of this node whose rules are in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// What tells it from a later pod of the same name, as the API server says it.
    pub uid: String,
    /// The host end of its veth, whether or not it exists yet.
    pub interface: String,
    /// The addresses that are known for it, both families; may be empty.
    pub addresses: BTreeSet<IpAddr>,
}

/// What was done to the directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Files that were written, anew or for the first time.
    pub written: usize,
    /// Files that were removed.
    pub removed: usize,
}

/// The directory is not as it should be. No pod is open for it: whoever waits goes on waiting.
#[derive(Debug, Error)]
pub enum EndpointStatusError {
    /// The directory cannot be made or read.
    #[error("endpoint status in {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// One file, the first of perhaps several.
    #[error("endpoint status {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Keeps the directory equal to a set of endpoints.
///
/// *Shape*: one owner, the instance that holds the node's lock. It remembers what is there, so that a call
/// without a change makes no system call.
#[derive(Debug)]
pub struct EndpointStatus {
    directory: PathBuf,
    /// Content by name, of files of our form; `None`: to be read.
    there: Option<BTreeMap<String, Content>>,
}

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
enum Content {
    Text(String),
    /// Nothing that we would write.
    Other,
}

impl EndpointStatus {
    /// A writer for this directory. Touches nothing yet.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            there: None,
        }
    }

    /// Reads the directory again at the next call of [`Self::converge`]: somebody else may have been at it.
    pub fn look_afresh(&mut self) {
        self.there = None;
    }

    /// Makes the directory tell of exactly these endpoints, and makes the directory. Files that are not of
    /// the form are left alone. Blocks. Call it after the endpoints' rules went into the kernel.
    ///
    /// *Errors*: the first of what was refused; the rest was done all the same, and the next call reads the
    /// directory again.
    ///
    /// *Cost*: linear in the endpoints; a file's write for each one that changed.
    pub fn converge(&mut self, wanted: &[Endpoint]) -> Result<Changes, EndpointStatusError> {
        let wanted: BTreeMap<String, String> = wanted
            .iter()
            .map(|endpoint| (file_name(endpoint), content(endpoint)))
            .collect();
        let there = match self.there.take() {
            Some(there) => there,
            None => self.read()?,
        };
        let mut changes = Changes::default();
        let mut first = None;
        // Claims that hold no more go before new ones come.
        for name in there.keys().filter(|name| !wanted.contains_key(*name)) {
            let path = self.directory.join(name);
            match fs::remove_file(&path) {
                Ok(()) => changes.removed += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    first.get_or_insert(EndpointStatusError::File { path, source });
                }
            }
        }
        for (name, text) in &wanted {
            if matches!(there.get(name), Some(Content::Text(found)) if found == text) {
                continue;
            }
            let path = self.directory.join(name);
            match self.write(&path, text) {
                Ok(()) => changes.written += 1,
                Err(source) => {
                    first.get_or_insert(EndpointStatusError::File { path, source });
                }
            }
        }
        if let Some(error) = first {
            return Err(error);
        }
        let remember = |(name, text)| (name, Content::Text(text));
        self.there = Some(wanted.into_iter().map(remember).collect());
        Ok(changes)
    }

    /// Files of our form in the directory, which is made.
    fn read(&self) -> Result<BTreeMap<String, Content>, EndpointStatusError> {
        let failed = |source| EndpointStatusError::Directory {
            path: self.directory.clone(),
            source,
        };
        self.make().map_err(failed)?;
        let mut there = BTreeMap::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(name) = name.to_str()
                && is_ours(name)
            {
                there.insert(name.to_owned(), found(&self.directory.join(name)));
            }
        }
        Ok(there)
    }

    fn make(&self) -> io::Result<()> {
        if self.directory.is_dir() {
            return Ok(());
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.directory)?;
        // The mode above is subject to the umask, and plugins need not be root.
        fs::set_permissions(&self.directory, Permissions::from_mode(0o755))
    }

    /// Beside it, then renamed: whoever reads it reads all of it. Not synced: what it tells of is in the
    /// kernel's memory, and ends with it.
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let temporary = self.directory.join(TEMPORARY);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&temporary)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, path)
    }
}

/// Felix's: orchestrator, workload and endpoint, each escaped, with spaces between; every pod's endpoint is
/// `eth0`. Where that is longer than a file's name may be, the interface stands for the workload.
fn file_name(endpoint: &Endpoint) -> String {
    let workload = format!("{}/{}", endpoint.namespace, endpoint.pod);
    let name = format!("k8s {} eth0", escaped(&workload));
    if name.len() <= NAME_MAX {
        name
    } else {
        format!("k8s {} eth0", endpoint.interface)
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

/// Whether a file has a name that [`file_name`] could have given it.
fn is_ours(name: &str) -> bool {
    name.strip_prefix("k8s ")
        .and_then(|rest| rest.strip_suffix(" eth0"))
        .is_some_and(|workload| !workload.is_empty() && !workload.contains(' '))
}

/// Felix's fields in Felix's order, and the UID, which its readers let pass.
fn content(endpoint: &Endpoint) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Wire<'a> {
        iface_name: &'a str,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        ipv4_nets: Vec<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        ipv6_nets: Vec<String>,
        #[serde(rename = "podUID", skip_serializing_if = "str::is_empty")]
        pod_uid: &'a str,
    }
    let nets = |v4: bool, length: u8| {
        let family = endpoint.addresses.iter().filter(|ip| ip.is_ipv4() == v4);
        family.map(|ip| format!("{ip}/{length}")).collect()
    };
    serde_json::to_string(&Wire {
        iface_name: &endpoint.interface,
        ipv4_nets: nets(true, 32),
        ipv6_nets: nets(false, 128),
        pod_uid: &endpoint.uid,
    })
    .expect("plain structs are always JSON")
}

/// What a file holds. Whatever is no small file of text is put right by writing it.
fn found(path: &Path) -> Content {
    let small = |data: fs::Metadata| data.is_file() && data.len() <= CONTENT_MAX;
    if !fs::symlink_metadata(path).is_ok_and(small) {
        return Content::Other;
    }
    fs::read_to_string(path).map_or(Content::Other, Content::Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(pod: &str, address: &str) -> Endpoint {
        Endpoint {
            namespace: "shop".to_owned(),
            pod: pod.to_owned(),
            uid: format!("uid-of-{pod}"),
            interface: "eni4d2c0ffee00".to_owned(),
            addresses: address
                .split_whitespace()
                .map(|ip| ip.parse().unwrap())
                .collect(),
        }
    }

    /// Names and contents, hidden ones too.
    fn files(directory: &Path) -> BTreeMap<String, String> {
        fs::read_dir(directory)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read_to_string(path).unwrap())
            })
            .collect()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn changes(written: usize, removed: usize) -> Changes {
        Changes { written, removed }
    }

    #[test]
    fn a_file_has_felixs_name_and_fields_and_anybody_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("run/endpoint-status");
        let mut status = EndpointStatus::new(directory.clone());
        let web = endpoint("web-0", "10.40.16.7 fd00::7");
        let bare = endpoint("bare", "");
        assert_eq!(status.converge(&[web, bare]).unwrap(), changes(2, 0));
        let expected = [
            (
                "k8s shop%2Fbare eth0",
                r#"{"ifaceName":"eni4d2c0ffee00","podUID":"uid-of-bare"}"#,
            ),
            (
                "k8s shop%2Fweb-0 eth0",
                r#"{"ifaceName":"eni4d2c0ffee00","ipv4Nets":["10.40.16.7/32"],"ipv6Nets":["fd00::7/128"],"podUID":"uid-of-web-0"}"#,
            ),
        ];
        let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(files(&directory), expected.into());
        assert_eq!(mode(&directory), 0o755);
        assert_eq!(mode(&directory.join("k8s shop%2Fbare eth0")), 0o644);
    }

    #[test]
    fn a_name_that_no_file_could_bear_is_that_of_the_interface() {
        let longest = "n".repeat(NAME_MAX - "k8s shop%2F eth0".len());
        for (pod, name) in [
            ("../x y%", "k8s shop%2F..%2Fx%20y%25 eth0".to_owned()),
            (&*longest, format!("k8s shop%2F{longest} eth0")),
            (
                &*format!("{longest}n"),
                "k8s eni4d2c0ffee00 eth0".to_owned(),
            ),
        ] {
            assert_eq!(file_name(&endpoint(pod, "")), name);
            assert!(is_ours(&name));
        }
    }

    #[test]
    fn the_directory_follows_the_endpoints_and_nobody_elses_file_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path();
        for foreign in ["README", "k8s  eth0", "k8s a b eth0", "cri shop%2Fa eth0"] {
            fs::write(directory.join(foreign), foreign).unwrap();
        }
        let foreign = files(directory);
        let mut status = EndpointStatus::new(directory.to_owned());
        let (a, b) = (endpoint("a", "10.0.0.1"), endpoint("b", "10.0.0.2"));
        let steps: [(&[Endpoint], Changes); 5] = [
            (&[a.clone(), b.clone()], changes(2, 0)),
            (&[a.clone(), b.clone()], changes(0, 0)),
            (&[endpoint("a", "10.0.0.9"), b.clone()], changes(1, 0)),
            (&[b], changes(0, 1)),
            (&[], changes(0, 1)),
        ];
        for (wanted, expected) in steps {
            assert_eq!(status.converge(wanted).unwrap(), expected, "{wanted:?}");
            let ours = files(directory).len() - foreign.len();
            assert_eq!(ours, wanted.len(), "{:?}", files(directory));
        }
        assert_eq!(files(directory), foreign);
    }

    #[test]
    fn a_pod_made_again_under_its_name_gets_a_file_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut status = EndpointStatus::new(folder.path().to_owned());
        let mut web = endpoint("web-0", "");
        status.converge(std::slice::from_ref(&web)).unwrap();
        web.uid = "another".to_owned();
        let again = status.converge(std::slice::from_ref(&web)).unwrap();
        assert_eq!(again, changes(1, 0));
        let text = files(folder.path())
            .remove("k8s shop%2Fweb-0 eth0")
            .unwrap();
        assert!(text.contains("another"), "{text}");
    }

    #[test]
    fn a_restart_keeps_what_is_right_and_removes_what_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (endpoint("a", "10.0.0.1"), endpoint("b", "10.0.0.2"));
        let mut before = EndpointStatus::new(folder.path().to_owned());
        before.converge(&[a.clone(), b]).unwrap();
        // What a crash leaves of a write.
        fs::write(folder.path().join(TEMPORARY), "{\"ifa").unwrap();
        let mut after = EndpointStatus::new(folder.path().to_owned());
        let c = endpoint("c", "");
        assert_eq!(after.converge(&[a, c]).unwrap(), changes(1, 1));
        let names: Vec<String> = files(folder.path()).into_keys().collect();
        assert_eq!(names, ["k8s shop%2Fa eth0", "k8s shop%2Fc eth0"]);
    }

    #[test]
    fn what_a_foreign_hand_did_is_put_right_by_a_fresh_look() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("endpoint-status");
        let mut status = EndpointStatus::new(directory.clone());
        let wanted = ["a", "b", "c"].map(|pod| endpoint(pod, ""));
        status.converge(&wanted).unwrap();
        let right = files(&directory);
        let path = |pod: &str| directory.join(format!("k8s shop%2F{pod} eth0"));
        fs::remove_file(path("a")).unwrap();
        fs::write(path("b"), "").unwrap();
        // What it says is right as long as somebody else wants it to be.
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(path("c"), &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, path("c")).unwrap();
        assert_eq!(status.converge(&wanted).unwrap(), changes(0, 0));
        status.look_afresh();
        assert_eq!(status.converge(&wanted).unwrap(), changes(3, 0));
        assert_eq!(files(&directory), right);
        fs::remove_dir_all(&directory).unwrap();
        status.look_afresh();
        assert_eq!(status.converge(&wanted).unwrap(), changes(3, 0));
        assert_eq!(files(&directory), right);
    }

    #[test]
    fn one_file_that_cannot_be_written_keeps_no_other_from_it() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path();
        let in_the_way = directory.join("k8s shop%2Fa eth0");
        fs::create_dir(&in_the_way).unwrap();
        let mut status = EndpointStatus::new(directory.to_owned());
        let wanted = [endpoint("a", ""), endpoint("b", "")];
        for _ in 0..2 {
            let error = status.converge(&wanted).unwrap_err().to_string();
            assert!(error.contains("k8s shop%2Fa eth0"), "{error}");
            assert!(directory.join("k8s shop%2Fb eth0").is_file());
        }
        fs::remove_dir(&in_the_way).unwrap();
        assert_eq!(status.converge(&wanted).unwrap(), changes(1, 0));
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let mut status = EndpointStatus::new(file.join("below"));
        let error = status.converge(&[]).unwrap_err();
        assert!(error.to_string().contains("file/below"), "{error}");
    }
}
