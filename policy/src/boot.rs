//! Closes a node before the kubelet starts: what a pod's interface sends or receives is dropped until the
//! daemon takes over.
//!
//! The rules are those that the daemon makes of a cluster in which it knows no pod yet. So it finds most of
//! them right, and puts its own in their place in the one batch in which any of its writes goes in.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use selvage_netfilter::{Backend, Kernel, choose_backend};
use selvage_policy_core::compile::compile;
use selvage_policy_core::index::{Index, Settings};
use selvage_policy_core::model::NodeName;
use selvage_policy_core::ruleset::{Family, VethPrefix};
use thiserror::Error;

use crate::config::{BackendChoice, FamilyChoice, RunDirArgs};
use crate::dataplane::{Dataplane, Look, Node};
use crate::lock::{Lock, LockError};

/// Bounds each exchange with the kernel and each run of a tool.
const PATIENCE: Duration = Duration::from_secs(30);

/// The command line of `selvage-policy boot`: what it shares with that of `run` must be the same there.
#[derive(Debug, Clone, Args)]
pub struct BootArgs {
    /// What the names of pods' interfaces begin with: 1 to 4 of [a-z0-9], not eth, vlan or lo
    #[arg(long, env = "INTERFACE_PREFIX", default_value = "eni")]
    pub interface_prefix: String,
    /// Which iptables the rules go to; before the kubelet has ever run there is nothing to choose by, and
    /// the daemon moves them if it chooses another
    #[arg(long, env = "BACKEND", value_enum, default_value = "auto")]
    pub backend: BackendChoice,
    /// Address families that are closed, separated by commas
    #[arg(
        long,
        env = "FAMILIES",
        value_enum,
        value_delimiter = ',',
        default_value = "ipv4"
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
    /// Drop packets from and to pods that conntrack can make nothing of, before policy is asked
    #[arg(
        long,
        env = "DROP_INVALID",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    pub drop_invalid: bool,
    /// The lock's folder.
    #[command(flatten)]
    pub run_dir: RunDirArgs,
}

/// What [`boot`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Booted {
    /// The node is closed, by this backend.
    Closed(Backend),
    /// Rules of ours are in force already: they stay as they are.
    InForce(Backend),
    /// An instance of the daemon holds the lock: the rules are its business.
    InUse,
}

/// The node is not closed.
#[derive(Debug, Error)]
pub enum BootError {
    /// The prefix cannot be one.
    #[error(
        "--interface-prefix (env INTERFACE_PREFIX) is {0:?}: 1 to 4 of [a-z0-9], and none of eth, vlan, lo"
    )]
    Prefix(String),
    /// The lock cannot be tried.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The kernel or a tool refused.
    #[error(transparent)]
    Kernel(#[from] selvage_netfilter::Error),
}

/// Drops everything that interfaces with the prefix send or receive, in this network namespace, unless rules
/// of ours are there already. Blocks; nothing of it keeps running.
///
/// *Errors*: [`BootError`]. What was not closed is as it was.
///
/// *Needs*: `CAP_NET_ADMIN`, and `CAP_NET_RAW` for legacy tables; the iptables tools.
pub fn boot(args: &BootArgs) -> Result<Booted, BootError> {
    let prefix = VethPrefix::new(&args.interface_prefix)
        .map_err(|_| BootError::Prefix(args.interface_prefix.clone()))?;
    let families: BTreeSet<Family> = args
        .families
        .iter()
        .map(|choice| match choice {
            FamilyChoice::Ipv4 => Family::V4,
            FamilyChoice::Ipv6 => Family::V6,
        })
        .collect();
    let fixed = match args.backend {
        BackendChoice::Auto => None,
        BackendChoice::Nft => Some(Backend::Nft),
        BackendChoice::Legacy => Some(Backend::Legacy),
    };
    // Held to the end: a daemon that starts meanwhile waits for it.
    let Some(_lock) = Lock::try_take(&args.run_dir.run_dir)? else {
        return Ok(Booted::InUse);
    };
    for backend in Backend::ALL {
        let mut kernel = Kernel::open(backend, PATIENCE)?;
        for family in [Family::V4, Family::V6] {
            if !kernel.observe(family)?.hooks.is_empty() {
                return Ok(Booted::InForce(backend));
            }
        }
    }
    let mut index = Index::new(Settings {
        // Nobody's: no pod is local, and every interface with the prefix a stranger's.
        node: NodeName::new(""),
        prefix,
        families: families.clone(),
        source_check: args.source_check,
        drop_invalid: args.drop_invalid,
        deny_log: None,
    });
    let closed = families.iter().map(|it| compile(&mut index, *it)).collect();
    let backend = choose_backend(fixed, PATIENCE)?;
    Node::new(Some(backend)).converge(closed, Look::Afresh)?;
    Ok(Booted::Closed(backend))
}
