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
    /// With prefixes: free prefixes of 16 addresses to hold; ignored when one of the two above is set [default: 0]
    #[arg(long, env = "WARM_PREFIX_TARGET")]
    pub warm_prefix_target: Option<String>,
    /// true: interfaces hold prefixes (16 addresses each; a /80 with IPv6) in the place of single addresses
    /// [default: false]
    #[arg(long, env = "ENABLE_PREFIX_DELEGATION")]
    pub enable_prefix_delegation: Option<String>,
    /// Whether pods have IPv4 addresses; exactly one of the two families [default: true, false with ENABLE_IPv6]
    #[arg(long, env = "ENABLE_IPv4")]
    pub enable_ipv4: Option<String>,
    /// Whether pods have IPv6 addresses [default: false]
    #[arg(long, env = "ENABLE_IPv6")]
    pub enable_ipv6: Option<String>,
    /// true: subnet and security groups of pods' interfaces come from the node's ENIConfig, and the primary interface
    /// is the host's alone [default: false]
    #[arg(long, env = "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG")]
    pub custom_network_cfg: Option<String>,
    /// Annotation of the node that names its ENIConfig [default: k8s.amazonaws.com/eniConfig]
    #[arg(long, env = "ENI_CONFIG_ANNOTATION_DEF")]
    pub eni_config_annotation_def: Option<String>,
    /// Label of the node that names its ENIConfig [default: k8s.amazonaws.com/eniConfig]
    #[arg(long, env = "ENI_CONFIG_LABEL_DEF")]
    pub eni_config_label_def: Option<String>,
    /// Whether new interfaces may be made in other subnets of the zone that are tagged for it [default: true]
    #[arg(long, env = "ENABLE_SUBNET_DISCOVERY")]
    pub enable_subnet_discovery: Option<String>,
    /// Whether interfaces that others attached are used; those that carry the instance's tag always are
    /// [default: true]
    #[arg(long, env = "MANAGE_UNTAGGED_ENI")]
    pub manage_untagged_eni: Option<String>,
    /// true: interfaces are attached and detached also while the node is tainted unschedulable [default: false]
    #[arg(long, env = "AWS_MANAGE_ENIS_NON_SCHEDULABLE")]
    pub manage_enis_non_schedulable: Option<String>,
    /// true: interfaces that dead nodes left behind are not looked for [default: false]
    #[arg(long, env = "DISABLE_LEAKED_ENI_CLEANUP")]
    pub disable_leaked_eni_cleanup: Option<String>,
    /// true: nothing is created, attached, assigned or given back; what is attached is used [default: false]
    #[arg(long, env = "DISABLE_NETWORK_RESOURCE_PROVISIONING")]
    pub disable_network_resource_provisioning: Option<String>,
    /// true: as before, and EC2's API is never called: instance metadata is all [default: false]
    #[arg(long, env = "ENABLE_IMDS_ONLY_MODE")]
    pub enable_imds_only_mode: Option<String>,
    /// true: a pod's address is written to its annotation vpc.amazonaws.com/pod-ips [default: false]
    #[arg(long, env = "ANNOTATE_POD_IP")]
    pub annotate_pod_ip: Option<String>,
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
    /// Whether NodePort works through the primary interface also for pods on others [default: true]
    #[arg(long, env = "AWS_VPC_CNI_NODE_PORT_SUPPORT")]
    pub node_port_support: Option<String>,
    /// The bit that marks connections which must use the primary interface [default: 0x80]
    #[arg(long, env = "AWS_VPC_K8S_CNI_CONNMARK")]
    pub connmark: Option<String>,
    /// Blocks, separated by commas, that pods reach by the main table
    #[arg(long, env = "AWS_EXTERNAL_SERVICE_CIDRS")]
    pub external_service_cidrs: Option<String>,
    /// true: `init` turns early demultiplexing of TCP off [default: false]
    #[arg(long, env = "DISABLE_TCP_EARLY_DEMUX")]
    pub disable_tcp_early_demux: Option<String>,
    /// Prefix of the host's end of a pod's veth, at most 4 characters [default: eni]
    #[arg(long, env = "AWS_VPC_K8S_CNI_VETHPREFIX")]
    pub vethprefix: Option<String>,
    /// MTU of the interfaces, 576 (IPv6: 1280) to 9001 bytes [default: 9001]
    #[arg(long, env = "AWS_VPC_ENI_MTU")]
    pub eni_mtu: Option<String>,
    /// MTU of pods, 576 (IPv6: 1280) to 9001 bytes [default: as the interfaces]
    #[arg(long, env = "POD_MTU")]
    pub pod_mtu: Option<String>,
    /// true: pods have IPv6 turned off [default: false]
    #[arg(long, env = "DISABLE_POD_V6")]
    pub disable_pod_v6: Option<String>,
    /// true: the bandwidth plugin is chained, for pods' bandwidth annotations [default: false]
    #[arg(long, env = "ENABLE_BANDWIDTH_PLUGIN")]
    pub enable_bandwidth_plugin: Option<String>,
    /// Name of the cluster, for the interfaces' tags
    #[arg(long, env = "CLUSTER_NAME")]
    pub cluster_name: Option<String>,
    /// The API server, in the place of what the cluster tells a pod
    #[arg(long, env = "CLUSTER_ENDPOINT")]
    pub cluster_endpoint: Option<String>,
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
    #[arg(long, env = "HOST_CNI_BIN_PATH")]
    pub cni_bin_dir: Option<String>,
    /// Where the conflist is written on the host [default: /host/etc/cni/net.d]
    #[arg(long, env = "HOST_CNI_CONFDIR_PATH")]
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
    /// Where the pool can be looked at: an address and a port, or unix:/path [default: 127.0.0.1:61679]
    #[arg(long, env = "INTROSPECTION_BIND_ADDRESS")]
    pub introspection_bind_address: Option<String>,
    /// true: it cannot [default: false]
    #[arg(long, env = "DISABLE_INTROSPECTION")]
    pub disable_introspection: Option<String>,
    /// How long an ADD waits for a pool that is being refilled, 0 to 60 seconds [default: 5]
    #[arg(long, env = "ADD_WAIT_SECONDS")]
    pub add_wait_seconds: Option<String>,
    /// How long between two comparisons of the pool with the cloud, 1 to 3600 seconds [default: 60]
    #[arg(long, env = "RECONCILE_SECONDS")]
    pub reconcile_seconds: Option<String>,
    /// Not there yet: security groups of pods by branch interfaces; true is refused
    #[arg(long, env = "ENABLE_POD_ENI")]
    pub enable_pod_eni: Option<String>,
    /// Not there yet: interfaces on every network card; true is refused
    #[arg(long, env = "ENABLE_MULTI_NIC")]
    pub enable_multi_nic: Option<String>,
    /// Not there yet: IPv6 beside IPv4 for what leaves the node; true is refused
    #[arg(long, env = "ENABLE_V6_EGRESS")]
    pub enable_v6_egress: Option<String>,
}
