//! A bundle for a bug report: what the daemon says, what it wants the kernel to hold, what the
//! kernel holds, and what the node is.
//!
//! Nothing in it is a secret of ours: no token, no key, no kubeconfig. It does name pods, policies
//! and addresses of the node. Values of environment variables that are not flags of ours are left
//! out.

pub mod ruleset;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args as _, Command};
use flate2::Compression;
use flate2::write::GzEncoder;
use selvage_netfilter::{Backend, Kernel, saved_tables};
use selvage_policy_core::ruleset::Family;

use crate::config::{Args, LogArgs};
use crate::error_chain;
use crate::health;

/// Bounds each exchange with the kernel and each run of a tool.
const PATIENCE: Duration = Duration::from_secs(30);

/// A file that is longer is cut: nobody reads ten million lines of a report.
const FILE_MAX: usize = 16 << 20;

/// What of `/proc` tells nodes apart.
const NODE_FILES: [&str; 12] = [
    "/proc/version",
    "/proc/cmdline",
    "/proc/modules",
    "/proc/thread-self/net/dev",
    "/proc/thread-self/net/route",
    "/proc/thread-self/net/ip_tables_names",
    "/proc/thread-self/net/ip6_tables_names",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv4/conf/all/rp_filter",
    "/proc/sys/net/netfilter/nf_conntrack_count",
    "/proc/sys/net/netfilter/nf_conntrack_max",
    "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal",
];

/// Variables that are no flag and no secret.
const ALSO_SHOWN: [&str; 2] = ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"];

/// Files by name.
#[derive(Debug, Default)]
pub struct Bundle {
    files: BTreeMap<String, String>,
}

impl Bundle {
    /// Asks the daemon on this socket and reads the node. What cannot be had is there as an error
    /// in its place. Blocks.
    ///
    /// *Needs*: the daemon's network namespace; `CAP_NET_ADMIN` for the kernel's part.
    #[must_use]
    pub fn gather(socket: &Path, environment: impl Iterator<Item = (String, String)>) -> Self {
        let mut bundle = Self::default();
        bundle.put("version.txt", format!("{}\n", env!("CARGO_PKG_VERSION")));
        bundle.put("environment.txt", redacted(environment));
        match health::ask_status(socket) {
            Ok(report) => {
                bundle.put("status.txt", report.to_string());
                let json = serde_json::to_string_pretty(&report);
                bundle.put(
                    "status.json",
                    json.unwrap_or_else(|error| error.to_string()),
                );
            }
            Err(error) => bundle.put("status.txt", error_chain(&error)),
        }
        for what in ["wanted", "metrics", "log"] {
            let text = health::ask_text(socket, what).unwrap_or_else(|error| error_chain(&error));
            bundle.put(&format!("{what}.txt"), text);
        }
        for backend in Backend::ALL {
            for family in [Family::V4, Family::V6] {
                let name = |what| format!("found/{what}-{backend}-{family}.txt").to_lowercase();
                let found = Kernel::open(backend, PATIENCE)
                    .and_then(|mut kernel| kernel.observe(family))
                    .map(|found| ruleset::observed(&found));
                bundle.put(
                    &name("ours"),
                    found.unwrap_or_else(|error| error_chain(&error)),
                );
                let tables = saved_tables(family, backend, PATIENCE);
                bundle.put(
                    &name("tables"),
                    tables.unwrap_or_else(|error| error_chain(&error)),
                );
            }
        }
        for path in NODE_FILES {
            let text = fs::read(path).map_or_else(
                |error| error.to_string(),
                |bytes| String::from_utf8_lossy(&bytes).into_owned(),
            );
            bundle.put(&format!("node{}", path.replace("thread-self/", "")), text);
        }
        bundle
    }

    /// Writes it as a compressed archive of one folder.
    ///
    /// *Errors*: those of `to`.
    pub fn write(&self, folder: &str, to: impl Write) -> io::Result<()> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::default()));
        for (name, text) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(now.as_secs());
            archive.append_data(&mut header, format!("{folder}/{name}"), text.as_bytes())?;
        }
        archive.into_inner()?.finish()?.flush()
    }

    fn put(&mut self, name: &str, mut text: String) {
        if text.len() > FILE_MAX {
            text.truncate(text.floor_char_boundary(FILE_MAX));
            text.push_str("\n# cut here\n");
        }
        self.files.insert(name.to_owned(), text);
    }
}

/// Names of all variables, and the values of those that are flags.
fn redacted(environment: impl Iterator<Item = (String, String)>) -> String {
    let flags = LogArgs::augment_args(Args::augment_args(Command::new("run")));
    let shown: BTreeSet<&str> = flags
        .get_arguments()
        .filter_map(|flag| flag.get_env()?.to_str())
        .chain(ALSO_SHOWN)
        .collect();
    let variables: BTreeMap<String, String> = environment.collect();
    let mut text = String::new();
    for (name, value) in &variables {
        let value = if shown.contains(name.as_str()) {
            value.as_str()
        } else {
            "(left out)"
        };
        writeln!(text, "{name}={value}").expect("a String takes any text");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn only_flags_of_ours_show_their_values() {
        let variables = [
            ("NODE_NAME", "node-1"),
            ("AWS_SECRET_ACCESS_KEY", "hush"),
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
        ];
        let text = redacted(
            variables
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into_iter(),
        );
        assert_eq!(
            text,
            "AWS_SECRET_ACCESS_KEY=(left out)\nKUBERNETES_SERVICE_HOST=10.0.0.1\nNODE_NAME=node-1\n"
        );
    }

    #[test]
    fn an_archive_holds_every_file_in_one_folder() {
        let mut bundle = Bundle::default();
        bundle.put("version.txt", "1\n".to_owned());
        bundle.put("found/ours.txt", "x".repeat(FILE_MAX + 1));
        let mut bytes = Vec::new();
        bundle.write("report", &mut bytes).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let path = entry.path().unwrap().display().to_string();
            found.push((path, text.ends_with("# cut here\n"), text.len() > FILE_MAX));
        }
        assert_eq!(
            found,
            [
                ("report/found/ours.txt".to_owned(), true, true),
                ("report/version.txt".to_owned(), false, false)
            ]
        );
    }
}
