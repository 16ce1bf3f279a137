//! A bundle for a bug report: what the daemon says, what it has written, what the kernel holds, what the node is.
//!
//! Nothing in it is a secret of ours: no token, no key, no kubeconfig, and sandboxes' identifiers are in the checkpoint
//! only. It does name pods and addresses of the node. Values of variables that are no settings are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs};

use clap::{Args as _, Command};
use flate2::Compression;
use flate2::write::GzEncoder;
use selvage_nodenet::rule::{self, Family};
use selvage_nodenet::{Socket, TableId, link, route};

use crate::config::{Args, Config};
use crate::hostnet::dump_tables;
use crate::inspect;

/// A file that is longer is cut: nobody reads ten million lines of a report.
const FILE_MAX: usize = 16 << 20;
/// The last of a log.
const LOG_TAIL: u64 = 1 << 20;
/// Tables of interfaces that are looked into: main, and those of devices 1 to 16.
const TABLES: std::ops::RangeInclusive<u32> = 2..=17;

/// What of `/proc` tells nodes apart.
const NODE_FILES: [&str; 10] = [
    "/proc/version",
    "/proc/modules",
    "/proc/net/dev",
    "/proc/net/route",
    "/proc/net/ipv6_route",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv4/conf/all/rp_filter",
    "/proc/sys/net/ipv4/tcp_early_demux",
    "/proc/sys/net/ipv6/conf/all/forwarding",
    "/proc/sys/net/netfilter/nf_conntrack_count",
];

/// Variables that are no setting of ours and no secret.
const ALSO_SHOWN: [&str; 6] = [
    "KUBERNETES_SERVICE_HOST",
    "KUBERNETES_SERVICE_PORT",
    "AWS_REGION",
    "AWS_ENDPOINT_URL_EC2",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
];

/// Files by name.
#[derive(Debug, Default)]
pub struct Bundle {
    files: BTreeMap<String, String>,
}

impl Bundle {
    /// Asks the daemon and reads the node. What cannot be had is there as an error in its place.
    ///
    /// *Needs*: the daemon's network namespace; `CAP_NET_ADMIN` for the tables.
    pub async fn gather(config: &Config) -> Self {
        let mut bundle = Self::default();
        bundle.put("version.txt", format!("{}\n", env!("CARGO_PKG_VERSION")));
        bundle.put("environment.txt", redacted(env::vars()));
        bundle.put("settings.txt", format!("{config:#?}\n"));
        let status = inspect::status(&config.socket).await;
        bundle.put_result("status.txt", status.map(|view| view.to_string()));
        for (name, path) in [
            ("status.json", "/v1/selvage/status"),
            ("enis.json", "/v1/enis"),
            ("metrics.txt", "/metrics"),
        ] {
            bundle.put_result(name, inspect::read(&config.socket, path).await);
        }
        bundle.put_files(config);
        for (command, shown) in dump_tables().await {
            let name = format!("tables/{}.txt", command.replace([' ', '/'], "_"));
            bundle.put_result(&name, shown);
        }
        bundle.put_result("network/rules.txt", rules());
        bundle.put_result("network/routes.txt", routes());
        bundle
    }

    /// What the daemon and others have written.
    fn put_files(&mut self, config: &Config) {
        self.put_folder("checkpoint", config.checkpoint.parent(), "ipam");
        self.put_folder("conflist", Some(&config.cni_conf_dir), "");
        // The plugin's log has the same name under the host's folders as the container sees them.
        let log = Path::new("/host").join(config.plugin_log_file.trim_start_matches('/'));
        self.put_result("plugin.log", tail(&log));
        for path in NODE_FILES {
            let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            self.put_result(&format!("node{path}"), text);
        }
    }

    /// The files of a folder whose names begin with `prefix`.
    fn put_folder(&mut self, name: &str, folder: Option<&Path>, prefix: &str) {
        let entries = folder.map(fs::read_dir).into_iter().flatten().flatten();
        for entry in entries.flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let plain = entry.file_type().is_ok_and(|kind| kind.is_file());
            if plain && file.starts_with(prefix) {
                let text = fs::read_to_string(entry.path());
                self.put_result(&format!("{name}/{file}"), text);
            }
        }
    }

    /// Writes it as a compressed archive of one folder.
    ///
    /// # Errors
    /// Those of `to`.
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

    fn put_result<E: std::fmt::Display>(&mut self, name: &str, text: Result<String, E>) {
        self.put(name, text.unwrap_or_else(|error| format!("{error}\n")));
    }

    fn put(&mut self, name: &str, mut text: String) {
        if text.len() > FILE_MAX {
            text.truncate(text.floor_char_boundary(FILE_MAX));
            text.push_str("\n# cut here\n");
        }
        self.files.insert(name.to_owned(), text);
    }
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn rules() -> Result<String, selvage_nodenet::Error> {
    let mut socket = Socket::open()?;
    let mut text = String::new();
    for family in [Family::V4, Family::V6] {
        for rule in rule::list(&mut socket, family)? {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{rule:?}");
        }
    }
    Ok(text)
}

fn routes() -> Result<String, selvage_nodenet::Error> {
    let mut socket = Socket::open()?;
    let mut text = String::new();
    for link in link::list(&mut socket)? {
        let _ = writeln!(text, "{link:?}");
    }
    for table in std::iter::once(254).chain(TABLES) {
        for like in [
            std::net::Ipv4Addr::UNSPECIFIED.into(),
            std::net::Ipv6Addr::UNSPECIFIED.into(),
        ] {
            for route in route::list(&mut socket, TableId(table), like)? {
                let _ = writeln!(text, "{route:?}");
            }
        }
    }
    Ok(text)
}

/// Names of all variables, and the values of those that are settings.
fn redacted(environment: impl Iterator<Item = (String, String)>) -> String {
    let settings = Args::augment_args(Command::new("run"));
    let shown: BTreeSet<&str> = settings
        .get_arguments()
        .filter_map(|setting| setting.get_env()?.to_str())
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
        let _ = writeln!(text, "{name}={value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settings_show_their_values() {
        let variables = [
            ("WARM_IP_TARGET", "2"),
            ("AWS_SECRET_ACCESS_KEY", "hush"),
            ("AWS_REGION", "us-west-2"),
        ];
        let variables = variables.map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(
            redacted(variables.into_iter()),
            "AWS_REGION=us-west-2\nAWS_SECRET_ACCESS_KEY=(left out)\nWARM_IP_TARGET=2\n"
        );
    }

    #[tokio::test]
    async fn a_bundle_of_a_node_without_a_daemon_says_so_and_has_the_rest() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(root.path().join(name).to_string_lossy().into_owned());
        for (name, text) in [
            ("ipam.json", "{}"),
            ("ipamd.sock.new", "no checkpoint"),
            ("10-aws.conflist", "a list"),
        ] {
            fs::write(root.path().join(name), text).unwrap();
        }
        let args = Args {
            socket: path("ipamd.sock"),
            checkpoint: path("ipam.json"),
            cni_conf_dir: path(""),
            ..Args::default()
        };
        let bundle = Bundle::gather(&Config::try_from(&args).unwrap()).await;
        let mut bytes = Vec::new();
        bundle.write("report", &mut bytes).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), text);
        }
        assert!(files["report/status.txt"].contains("ipamd does not answer"));
        assert_eq!(files["report/checkpoint/ipam.json"], "{}");
        assert_eq!(files["report/conflist/10-aws.conflist"], "a list");
        assert!(files["report/settings.txt"].contains("warm_enis: 1"));
        assert!(files["report/node/proc/version"].contains("Linux"));
        assert!(files.contains_key("report/network/rules.txt"));
        let sandboxes = files
            .keys()
            .any(|name| name.ends_with("ipamd.sock.new") && name.contains("checkpoint"));
        assert!(!sandboxes || files["report/checkpoint/ipamd.sock.new"] == "no checkpoint");
    }
}
