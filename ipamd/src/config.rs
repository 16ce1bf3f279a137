//! What was set ([`Args`]) and what follows from it ([`Config`]): read once, refused as a whole if any of it is bad.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use selvage_ipamd_core::plan::Targets;
pub use selvage_ipamd_core::pool::Provisioning;

use crate::hostnet::{self, Prepare};

mod args;
mod cloud;
mod files;
mod network;
mod setting;

pub use args::Args;
pub use setting::BadSetting;

use setting::{Setting, path, truth};

/// The family of pods' addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4: addresses or /28 prefixes on every interface.
    V4,
    /// IPv6: one /80 prefix on the primary interface.
    V6,
}

/// Custom networking: pods' interfaces are made by the node's ENIConfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomNetworking {
    /// Annotation of the node that names it.
    pub annotation: String,
    /// Label of the node that names it.
    pub label: String,
}

/// How the source port of translated connections is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RandomizeSnat {
    /// By a pseudo-random generator (`--random-fully`).
    Prng,
    /// By a hash (`--random`).
    Hash,
    /// As the pod chose it, where possible.
    None,
}

impl fmt::Display for RandomizeSnat {
    /// As it is set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RandomizeSnat::Prng => "prng",
            RandomizeSnat::Hash => "hashrandom",
            RandomizeSnat::None => "none",
        })
    }
}

/// Where the plugin learns that a pod's policy is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyReady {
    /// The directory, as the host sees it.
    pub directory: PathBuf,
    /// How long an ADD waits.
    pub timeout: Duration,
}

/// Where a page is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// Valid settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What the pool should hold. `max_pods` is filled in from the instance's limits if not set.
    pub targets: Targets,
    /// Whether interfaces hold prefixes in the place of single addresses.
    pub prefix_delegation: bool,
    /// The family of pods' addresses.
    pub family: Family,
    /// Whether, and by what, pods' interfaces are made by an ENIConfig.
    pub custom_networking: Option<CustomNetworking>,
    /// Whether interfaces may be made in other subnets that are tagged for it.
    pub subnet_discovery: bool,
    /// Whether interfaces are used that do not carry the instance's tag.
    pub manage_untagged: bool,
    /// Whether interfaces come and go while the node is tainted unschedulable.
    pub manage_unschedulable: bool,
    /// Whether interfaces that dead nodes left behind are looked for.
    pub leak_cleanup: bool,
    /// What may be done to the cloud.
    pub provisioning: Provisioning,
    /// Whether a pod's address is written to its annotation.
    pub annotate_pod_ip: bool,
    /// How long an address rests between two pods.
    pub cooldown: Duration,
    /// Whether somebody else translates sources.
    pub external_snat: bool,
    /// Blocks to which sources are left alone, beside the VPC's.
    pub exclude_snat_cidrs: Vec<Ipv4Net>,
    /// How source ports are chosen.
    pub randomize_snat: RandomizeSnat,
    /// Whether what arrives for a NodePort at the primary interface is answered by it.
    pub node_port: bool,
    /// The mark of connections that must use the primary interface, and its mask.
    pub connmark: NonZeroU32,
    /// Blocks that pods reach by the main table.
    pub external_service_cidrs: Vec<Ipv4Net>,
    /// Prefix of the host's end of a pod's veth.
    pub veth_prefix: String,
    /// MTU of the interfaces.
    pub eni_mtu: u32,
    /// MTU of pods.
    pub pod_mtu: u32,
    /// Whether pods have IPv6 turned off.
    pub disable_pod_v6: bool,
    /// Whether CNI's `bandwidth` is chained.
    pub bandwidth: bool,
    /// Name of the cluster; empty if unknown.
    pub cluster: String,
    /// The API server, if not the one that the cluster tells a pod.
    pub cluster_endpoint: Option<String>,
    /// Tags for interfaces.
    pub tags: BTreeMap<String, String>,
    /// Name of the Kubernetes node; empty if unknown.
    pub node_name: String,
    /// Mode told to AWS's network policy agent; empty: it is not called.
    pub network_policy_mode: String,
    /// Where the plugin is installed.
    pub cni_bin_dir: PathBuf,
    /// Where the conflist is written.
    pub cni_conf_dir: PathBuf,
    /// The plugin that is installed.
    pub cni_plugin: PathBuf,
    /// The plugin's log file on the host.
    pub plugin_log_file: String,
    /// The plugin's log level.
    pub plugin_log_level: String,
    /// What an ADD waits for beside an address, if anything.
    pub policy_ready: Option<PolicyReady>,
    /// The socket.
    pub socket: PathBuf,
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// Address of the metrics.
    pub metrics_addr: Option<SocketAddr>,
    /// Where the pool can be looked at.
    pub introspection: Option<Listen>,
    /// How long an ADD waits for a pool that is being refilled.
    pub add_wait: Duration,
    /// Between two comparisons of the pool with the cloud.
    pub reconcile: Duration,
}

impl Config {
    /// Whether the node's object has to be watched.
    pub fn needs_node(&self) -> bool {
        self.custom_networking.is_some()
            || (self.provisioning == Provisioning::Full && !self.manage_unschedulable)
    }
}

/// What `init` sets on the node, by the two settings that are about it: its container need not know the others.
///
/// # Errors
/// When either is bad.
pub fn prepare(args: &Args) -> Result<Prepare, BadSetting> {
    let disable = truth(
        "DISABLE_TCP_EARLY_DEMUX",
        &args.disable_tcp_early_demux,
        "false",
    )?;
    Ok(Prepare {
        family: match cloud::family(args)? {
            Family::V4 => hostnet::Family::V4,
            Family::V6 => hostnet::Family::V6,
        },
        tcp_early_demux: !disable,
    })
}

impl TryFrom<&Args> for Config {
    type Error = BadSetting;

    fn try_from(args: &Args) -> Result<Self, BadSetting> {
        cloud::refuse_unknown_modes(args)?;
        let family = cloud::family(args)?;
        let eni_mtu = network::eni_mtu(args, family)?;
        let wait = Setting::new("ADD_WAIT_SECONDS", &args.add_wait_seconds, "5").count(0, 60)?;
        let reconcile =
            Setting::new("RECONCILE_SECONDS", &args.reconcile_seconds, "60").count(1, 3600)?;
        let cooldown =
            Setting::new("IP_COOLDOWN_PERIOD", &args.ip_cooldown_period, "30").count(0, 86_400)?;
        let config = Self {
            targets: cloud::targets(args)?,
            prefix_delegation: truth(
                "ENABLE_PREFIX_DELEGATION",
                &args.enable_prefix_delegation,
                "false",
            )?,
            family,
            custom_networking: cloud::custom_networking(args)?,
            subnet_discovery: truth(
                "ENABLE_SUBNET_DISCOVERY",
                &args.enable_subnet_discovery,
                "true",
            )?,
            manage_untagged: truth("MANAGE_UNTAGGED_ENI", &args.manage_untagged_eni, "true")?,
            manage_unschedulable: truth(
                "AWS_MANAGE_ENIS_NON_SCHEDULABLE",
                &args.manage_enis_non_schedulable,
                "false",
            )?,
            leak_cleanup: cloud::leak_cleanup(args, family)?,
            provisioning: cloud::provisioning(args)?,
            annotate_pod_ip: truth("ANNOTATE_POD_IP", &args.annotate_pod_ip, "false")?,
            cooldown: Duration::from_secs(cooldown.unwrap_or(30).into()),
            external_snat: truth("AWS_VPC_K8S_CNI_EXTERNALSNAT", &args.externalsnat, "false")?,
            exclude_snat_cidrs: Setting::new(
                "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
                &args.exclude_snat_cidrs,
                "",
            )
            .blocks()?,
            randomize_snat: network::randomize(args)?,
            node_port: truth(
                "AWS_VPC_CNI_NODE_PORT_SUPPORT",
                &args.node_port_support,
                "true",
            )?,
            connmark: network::connmark(args)?,
            external_service_cidrs: Setting::new(
                "AWS_EXTERNAL_SERVICE_CIDRS",
                &args.external_service_cidrs,
                "",
            )
            .blocks()?,
            veth_prefix: network::veth_prefix(args)?,
            eni_mtu,
            pod_mtu: network::pod_mtu(args, family)?.unwrap_or(eni_mtu),
            disable_pod_v6: truth("DISABLE_POD_V6", &args.disable_pod_v6, "false")?,
            bandwidth: truth(
                "ENABLE_BANDWIDTH_PLUGIN",
                &args.enable_bandwidth_plugin,
                "false",
            )?,
            cluster: cloud::cluster(args)?,
            cluster_endpoint: cloud::cluster_endpoint(args)?,
            tags: cloud::tags(args)?,
            node_name: Setting::new("MY_NODE_NAME", &args.node_name, "")
                .text()
                .to_owned(),
            network_policy_mode: network::policy_mode(args)?,
            cni_bin_dir: path("HOST_CNI_BIN_PATH", &args.cni_bin_dir, "/host/opt/cni/bin")?,
            cni_conf_dir: path(
                "HOST_CNI_CONFDIR_PATH",
                &args.cni_conf_dir,
                "/host/etc/cni/net.d",
            )?,
            cni_plugin: path("CNI_PLUGIN", &args.cni_plugin, "/app/aws-cni")?,
            plugin_log_file: files::plugin_log_file(args)?,
            plugin_log_level: files::plugin_log_level(args)?,
            policy_ready: files::policy_ready(args)?,
            socket: path("IPAMD_SOCKET", &args.socket, selvage_ipamd_rpc::SOCKET_PATH)?,
            checkpoint: path(
                "AWS_VPC_K8S_CNI_BACKING_STORE",
                &args.checkpoint,
                "/var/run/aws-node/ipam.json",
            )?,
            metrics_addr: files::metrics_addr(args)?,
            introspection: files::introspection(args)?,
            add_wait: Duration::from_secs(wait.unwrap_or(5).into()),
            reconcile: Duration::from_secs(reconcile.unwrap_or(60).into()),
        };
        cloud::refuse_combinations(&config, args)?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests;
