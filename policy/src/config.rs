//! What was typed, and what the daemon needs: [`Args`] become a [`Config`] once, in `main`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, ValueEnum};
use selvage_policy_core::index::MEMBER_BUDGET;
use selvage_policy_core::ruleset::{Family, VethPrefix};
use thiserror::Error;

use crate::{denials, endpoint_status};

/// Where the health socket is unless told otherwise. Inside the container's own files, never on a
/// path shared with the host: in an upgrade two pods of ours live on the node side by side.
pub const SOCKET: &str = "/run/selvage/policy.sock";

/// The folder on the host that an old and a new instance share: it holds the lock.
pub const RUN_DIR: &str = "/run/selvage-policy";

/// Which iptables the rules go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// The one that the node's other rules are in; nft when there are none.
    Auto,
    /// iptables-nft.
    Nft,
    /// iptables-legacy.
    Legacy,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// An address family as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FamilyChoice {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Where logs go and how much; every subcommand takes it.
#[derive(Debug, Clone, ClapArgs)]
pub struct LogArgs {
    /// How log lines look
    #[arg(
        long,
        env = "LOG_FORMAT",
        value_enum,
        default_value = "text",
        global = true
    )]
    pub log_format: LogFormat,
    /// What is logged: a level, or directives such as `info,selvage_policy=debug`
    #[arg(long, env = "LOG_LEVEL", default_value = "info", global = true)]
    pub log_level: String,
}

/// Which rules are ours to touch; shared by `run` and `cleanup`.
#[derive(Debug, Clone, ClapArgs)]
pub struct RunDirArgs {
    /// Folder on the host for the lock that one instance holds at a time
    #[arg(long, env = "RUN_DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,
}

/// The health socket; shared by `run`, `health` and `status`.
#[derive(Debug, Clone, ClapArgs)]
pub struct SocketArgs {
    /// Unix socket on which the daemon answers `health` and `status`
    #[arg(long, env = "SOCKET", default_value = SOCKET)]
    pub socket: PathBuf,
}

/// The command line of `selvage-policy run`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Args {
    /// Name of the node, as Kubernetes knows it
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// What the names of pods' interfaces begin with: 1 to 4 of [a-z0-9], not eth, vlan or lo
    #[arg(long, env = "INTERFACE_PREFIX", default_value = "eni")]
    pub interface_prefix: String,
    /// Which iptables the rules go to
    #[arg(long, env = "BACKEND", value_enum, default_value = "auto")]
    pub backend: BackendChoice,
    /// Address families that are enforced, separated by commas
    #[arg(
        long,
        env = "FAMILIES",
        value_enum,
        value_delimiter = ',',
        default_value = "ipv4,ipv6"
    )]
    pub families: Vec<FamilyChoice>,
    /// Drop packets from a pod's interface whose source does not route back to it
    #[arg(
        long,
        env = "SOURCE_CHECK",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    pub source_check: bool,
    /// Drop packets from and to pods that conntrack can make nothing of, before policy is asked;
    /// false where routes are asymmetric
    #[arg(
        long,
        env = "DROP_INVALID",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    pub drop_invalid: bool,
    /// Log packets that policy denies, with their pods and the policies; the kernel must have NFLOG
    #[arg(
        long,
        env = "DENY_LOG",
        default_value_t = false,
        action = clap::ArgAction::Set
    )]
    pub deny_log: bool,
    /// The NFLOG group between the rules and us; nobody else on the node may listen to it
    #[arg(long, env = "DENY_LOG_GROUP", default_value_t = 95)]
    pub deny_log_group: u16,
    /// Lines of the deny log a second in the long run, 1 to 1000; what is left out is counted
    #[arg(long, env = "DENY_LOG_PER_SECOND", default_value_t = 10)]
    pub deny_log_per_second: u32,
    /// Time between two writes of chains in a burst of changes, in milliseconds, 0 to 10000: the
    /// first few go in at once
    #[arg(long, env = "APPLY_GAP_MS", default_value_t = 50)]
    pub apply_gap_ms: u64,
    /// Time between two looks at the whole of what the kernel holds, in seconds, 5 to 3600
    #[arg(long, env = "RESYNC_SECONDS", default_value_t = 60)]
    pub resync_seconds: u64,
    /// Members that all sets of the node may have, 1000 to 10000000: above it the policies with most
    /// are laid out with more rules on sets that all share
    #[arg(long, env = "MEMBER_BUDGET", default_value_t = MEMBER_BUDGET)]
    pub member_budget: usize,
    /// Where metrics are served, `address:port`, or `none`
    #[arg(long, env = "METRICS_ADDRESS", default_value = "0.0.0.0:9095")]
    pub metrics_address: String,
    /// A kubeconfig to reach the API server with; without it, the pod's service account
    #[arg(long, env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Folder on the host with a file for each enforced pod, for which a CNI plugin may wait, or
    /// `none`
    #[arg(
        long,
        env = "ENDPOINT_STATUS_DIR",
        default_value = endpoint_status::DIRECTORY
    )]
    pub endpoint_status_dir: String,
    /// The lock's folder.
    #[command(flatten)]
    pub run_dir: RunDirArgs,
    /// The health socket.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// What the daemon needs to know, all of it valid.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node whose pods are enforced.
    pub node: String,
    /// What the names of pods' interfaces begin with.
    pub interface_prefix: VethPrefix,
    /// Which iptables.
    pub backend: BackendChoice,
    /// Enforced families.
    pub families: BTreeSet<Family>,
    /// Whether a pod's source address is checked.
    pub source_check: bool,
    /// Whether packets that conntrack can make nothing of are dropped.
    pub drop_invalid: bool,
    /// How denied packets are logged, if they are.
    pub deny_log: Option<denials::Settings>,
    /// Least time between two writes of chains.
    pub apply_gap: Duration,
    /// Time between two looks at the whole of what the kernel holds.
    pub resync: Duration,
    /// Members that all sets of the node may have.
    pub member_budget: usize,
    /// Where metrics are served, if at all.
    pub metrics_address: Option<SocketAddr>,
    /// How to reach the API server, when not as a pod.
    pub kubeconfig: Option<PathBuf>,
    /// Folder of the files that say which pods are enforced, if any.
    pub endpoint_status_dir: Option<PathBuf>,
    /// Folder of the lock.
    pub run_dir: PathBuf,
    /// Path of the health socket.
    pub socket: PathBuf,
}

/// A value that cannot be used, with the flag and the bound.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("--{flag} (env {env}) is {value:?}: {bound}")]
pub struct BadValue {
    /// The flag without its dashes.
    pub flag: &'static str,
    /// The environment name of the same.
    pub env: &'static str,
    /// What was given.
    pub value: String,
    /// What would do.
    pub bound: &'static str,
}

impl Args {
    /// Checks every value.
    ///
    /// *Errors*: [`BadValue`] for the first one out of bounds.
    pub fn into_config(self) -> Result<Config, BadValue> {
        let bad = |flag, env, value: &str, bound| BadValue {
            flag,
            env,
            value: value.to_owned(),
            bound,
        };
        if !is_node_name(&self.node_name) {
            return Err(bad(
                "node-name",
                "NODE_NAME",
                &self.node_name,
                "a node name is 1 to 253 of [a-z0-9.-]",
            ));
        }
        let interface_prefix = VethPrefix::new(&self.interface_prefix).map_err(|_| {
            bad(
                "interface-prefix",
                "INTERFACE_PREFIX",
                &self.interface_prefix,
                "1 to 4 of [a-z0-9], and none of eth, vlan, lo",
            )
        })?;
        if self.apply_gap_ms > 10_000 {
            return Err(bad(
                "apply-gap-ms",
                "APPLY_GAP_MS",
                &self.apply_gap_ms.to_string(),
                "0 to 10000 milliseconds",
            ));
        }
        if !(5..=3600).contains(&self.resync_seconds) {
            return Err(bad(
                "resync-seconds",
                "RESYNC_SECONDS",
                &self.resync_seconds.to_string(),
                "5 to 3600 seconds",
            ));
        }
        if !(1..=1000).contains(&self.deny_log_per_second) {
            return Err(bad(
                "deny-log-per-second",
                "DENY_LOG_PER_SECOND",
                &self.deny_log_per_second.to_string(),
                "1 to 1000 lines a second",
            ));
        }
        if !(1_000..=10_000_000).contains(&self.member_budget) {
            return Err(bad(
                "member-budget",
                "MEMBER_BUDGET",
                &self.member_budget.to_string(),
                "1000 to 10000000 members",
            ));
        }
        let metrics_address = match self.metrics_address.as_str() {
            "none" => None,
            typed => Some(typed.parse().map_err(|_| {
                bad(
                    "metrics-address",
                    "METRICS_ADDRESS",
                    typed,
                    "address:port, [address]:port or none",
                )
            })?),
        };
        let endpoint_status_dir = match self.endpoint_status_dir.as_str() {
            "none" => None,
            typed => Some(PathBuf::from(typed)),
        };
        let paths = [
            ("run-dir", "RUN_DIR", &self.run_dir.run_dir),
            ("socket", "SOCKET", &self.socket.socket),
        ];
        let files = endpoint_status_dir
            .iter()
            .map(|path| ("endpoint-status-dir", "ENDPOINT_STATUS_DIR", path));
        for (flag, env, path) in paths.into_iter().chain(files) {
            if !path.is_absolute() {
                return Err(bad(
                    flag,
                    env,
                    &path.display().to_string(),
                    "an absolute path",
                ));
            }
        }
        let families = self.families.iter().map(|choice| match choice {
            FamilyChoice::Ipv4 => Family::V4,
            FamilyChoice::Ipv6 => Family::V6,
        });
        Ok(Config {
            node: self.node_name,
            interface_prefix,
            backend: self.backend,
            families: families.collect(),
            source_check: self.source_check,
            drop_invalid: self.drop_invalid,
            deny_log: self.deny_log.then_some(denials::Settings {
                group: self.deny_log_group,
                per_second: self.deny_log_per_second,
            }),
            apply_gap: Duration::from_millis(self.apply_gap_ms),
            resync: Duration::from_secs(self.resync_seconds),
            member_budget: self.member_budget,
            metrics_address,
            kubeconfig: self.kubeconfig.filter(|path| !path.as_os_str().is_empty()),
            endpoint_status_dir,
            run_dir: self.run_dir.run_dir,
            socket: self.socket.socket,
        })
    }
}

fn is_node_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn config_of(node: &str, words: &[&str]) -> Result<Config, BadValue> {
        let line = ["selvage-policy", "--node-name", node];
        Cli::try_parse_from(line.iter().chain(words))
            .unwrap()
            .args
            .into_config()
    }

    fn config(words: &[&str]) -> Result<Config, BadValue> {
        config_of("node-1", words)
    }

    #[test]
    fn a_node_name_is_all_that_must_be_given() {
        let config = config(&[]).unwrap();
        assert_eq!(config.node, "node-1");
        assert_eq!(config.interface_prefix, VethPrefix::default());
        assert_eq!(config.backend, BackendChoice::Auto);
        assert_eq!(config.families, BTreeSet::from([Family::V4, Family::V6]));
        assert!(config.source_check && config.drop_invalid);
        assert_eq!(config.apply_gap, Duration::from_millis(50));
        assert_eq!(config.member_budget, 1_000_000);
        assert_eq!(
            config.metrics_address,
            Some("0.0.0.0:9095".parse().unwrap())
        );
    }

    #[test]
    fn a_bad_value_is_refused_with_its_flag_and_its_bound() {
        let rows: &[(&[&str], &str)] = &[
            (&["--interface-prefix", ""], "interface-prefix"),
            (&["--interface-prefix", "enis5"], "interface-prefix"),
            (&["--interface-prefix", "e+"], "interface-prefix"),
            (&["--interface-prefix", "eth"], "interface-prefix"),
            (&["--apply-gap-ms", "10001"], "apply-gap-ms"),
            (&["--resync-seconds", "4"], "resync-seconds"),
            (&["--resync-seconds", "3601"], "resync-seconds"),
            (&["--deny-log-per-second", "0"], "deny-log-per-second"),
            (&["--member-budget", "999"], "member-budget"),
            (&["--member-budget", "10000001"], "member-budget"),
            (&["--metrics-address", "9095"], "metrics-address"),
            (&["--run-dir", "run"], "run-dir"),
            (&["--socket", "policy.sock"], "socket"),
        ];
        for (words, flag) in rows {
            let error = config(words).unwrap_err();
            assert_eq!(error.flag, *flag, "{words:?}");
            assert!(!error.bound.is_empty(), "{words:?}");
        }
    }

    #[test]
    fn a_node_name_with_a_space_or_capitals_is_refused() {
        for name in ["", "node 1", "Node-1", &"n".repeat(254)] {
            assert_eq!(
                config_of(name, &[]).unwrap_err().flag,
                "node-name",
                "{name:?}"
            );
        }
    }

    #[test]
    fn families_can_be_named_together_and_not_be_none() {
        let families = |typed| config(&["--families", typed]).unwrap().families;
        assert_eq!(families("ipv6,ipv4,ipv6"), [Family::V4, Family::V6].into());
        assert_eq!(families("ipv6"), [Family::V6].into());
        assert!(
            Cli::try_parse_from(["selvage-policy", "--node-name", "n", "--families", ""]).is_err()
        );
    }

    #[test]
    fn denied_packets_are_logged_only_when_asked_for() {
        assert_eq!(config(&[]).unwrap().deny_log, None);
        let settings = denials::Settings {
            group: 95,
            per_second: 3,
        };
        let words = ["--deny-log", "true", "--deny-log-per-second", "3"];
        assert_eq!(config(&words).unwrap().deny_log, Some(settings));
    }

    #[test]
    fn metrics_can_be_switched_off() {
        let config = config(&["--metrics-address", "none"]).unwrap();
        assert_eq!(config.metrics_address, None);
    }
}
