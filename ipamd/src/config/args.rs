//! What can be typed or set in the environment, as text.
//!
//! Everything is text here, so that a bad value is refused in one place and in one form, and an empty variable means
//! one that is not set (Helm charts set many of those).

use clap::Args as ClapArgs;

/// The daemon's settings, under the names of AWS's environment. Every flag has a variable; the flag wins.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct Args {
    /// Spare interfaces' worth of free addresses; ignored when one of the next two is set [default: 1]
    #[arg(long, env = "WARM_ENI_TARGET")]
    pub warm_eni_target: Option<String>,
    /// Free addresses to hold; 0: not set
    #[arg(long, env = "WARM_IP_TARGET")]
    pub warm_ip_target: Option<String>,
    /// Addresses to hold in all; 0: not set
    #[arg(long, env = "MINIMUM_IP_TARGET")]
    pub minimum_ip_target: Option<String>,
    /// Interfaces at most; less than 1: as many as the instance can have [default: -1]
    #[arg(long, env = "MAX_ENI", allow_hyphen_values = true)]
    pub max_eni: Option<String>,
    /// Pods at most; the pool does not grow beyond [default: by the instance's limits]
    #[arg(long, env = "MAX_PODS")]
    pub max_pods: Option<String>,
    /// Seconds an address rests between two pods [default: 30]
    #[arg(long, env = "IP_COOLDOWN_PERIOD")]
    pub ip_cooldown_period: Option<String>,
    /// true: leave sources alone on the way out of the VPC [default: false]
    #[arg(long, env = "AWS_VPC_K8S_CNI_EXTERNALSNAT")]
    pub externalsnat: Option<String>,
    /// Blocks, separated by commas, to which sources are left alone
    #[arg(long, env = "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS")]
    pub exclude_snat_cidrs: Option<String>,
    /// How a source port is chosen: prng, hashrandom or none [default: prng]
    #[arg(long, env = "AWS_VPC_K8S_CNI_RANDOMIZESNAT")]
    pub randomizesnat: Option<String>,
    /// Prefix of the host's end of a pod's veth, at most 4 characters [default: eni]
    #[arg(long, env = "AWS_VPC_K8S_CNI_VETHPREFIX")]
    pub vethprefix: Option<String>,
    /// MTU of the interfaces, 576 to 9001 bytes [default: 9001]
    #[arg(long, env = "AWS_VPC_ENI_MTU")]
    pub eni_mtu: Option<String>,
    /// MTU of pods, 576 to 9001 bytes [default: as the interfaces]
    #[arg(long, env = "POD_MTU")]
    pub pod_mtu: Option<String>,
    /// Name of the cluster, for the interfaces' tags
    #[arg(long, env = "CLUSTER_NAME")]
    pub cluster_name: Option<String>,
    /// Tags for the interfaces, a JSON object
    #[arg(long, env = "ADDITIONAL_ENI_TAGS")]
    pub additional_eni_tags: Option<String>,
    /// Name of the Kubernetes node, for events
    #[arg(long, env = "MY_NODE_NAME")]
    pub node_name: Option<String>,
    /// Told to AWS's network policy agent, and to its plugin: none, standard or strict [default: not set]
    #[arg(long, env = "NETWORK_POLICY_ENFORCING_MODE")]
    pub network_policy_enforcing_mode: Option<String>,
    /// Where the plugin is installed on the host [default: /host/opt/cni/bin]
    #[arg(long, env = "CNI_BIN_DIR")]
    pub cni_bin_dir: Option<String>,
    /// Where the conflist is written on the host [default: /host/etc/cni/net.d]
    #[arg(long, env = "CNI_CONF_DIR")]
    pub cni_conf_dir: Option<String>,
    /// The plugin that is installed [default: /app/aws-cni]
    #[arg(long, env = "CNI_PLUGIN")]
    pub cni_plugin: Option<String>,
    /// The plugin's log file on the host, or `stderr` [default: /var/log/aws-routed-eni/plugin.log]
    #[arg(long, env = "AWS_VPC_K8S_PLUGIN_LOG_FILE")]
    pub plugin_log_file: Option<String>,
    /// The plugin's log level [default: Info]
    #[arg(long, env = "AWS_VPC_K8S_PLUGIN_LOG_LEVEL")]
    pub plugin_log_level: Option<String>,
    /// true: the conflist chains CNI's `bandwidth` [default: false]
    #[arg(long, env = "ENABLE_BANDWIDTH_PLUGIN")]
    pub enable_bandwidth_plugin: Option<String>,
    /// true: pods have no IPv6; the conflist chains CNI's `tuning` for it [default: false]
    #[arg(long, env = "DISABLE_POD_V6")]
    pub disable_pod_v6: Option<String>,
    /// A directory on the host: ADD waits there for a policy agent's word that a pod's rules are in force
    /// [default: not set, nothing is waited for]
    #[arg(long, env = "POLICY_READY_DIR")]
    pub policy_ready_dir: Option<String>,
    /// How long it waits, 1 to 60 seconds [default: 20]
    #[arg(long, env = "POLICY_READY_TIMEOUT_SECONDS")]
    pub policy_ready_timeout_seconds: Option<String>,
    /// The socket [default: /var/run/aws-node/ipamd.sock]
    #[arg(long, env = "IPAMD_SOCKET")]
    pub socket: Option<String>,
    /// The checkpoint [default: /var/run/aws-node/ipam.json]
    #[arg(long, env = "AWS_VPC_K8S_CNI_BACKING_STORE")]
    pub checkpoint: Option<String>,
    /// Address of the metrics [default: 0.0.0.0:61678]
    #[arg(long, env = "METRICS_ADDR")]
    pub metrics_addr: Option<String>,
    /// true: no metrics [default: false]
    #[arg(long, env = "DISABLE_METRICS")]
    pub disable_metrics: Option<String>,
    /// How long an ADD waits for a pool that is being refilled, 0 to 60 seconds [default: 5]
    #[arg(long, env = "ADD_WAIT_SECONDS")]
    pub add_wait_seconds: Option<String>,
    /// How long between two comparisons of the pool with the cloud, 1 to 3600 seconds [default: 60]
    #[arg(long, env = "RECONCILE_SECONDS")]
    pub reconcile_seconds: Option<String>,
}
