//! What was set ([`Args`]) and what follows from it ([`Config`]): read once, refused as a whole if any of it is bad.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::Ipv4Net;
use selvage_ipamd_core::plan::Targets;
use thiserror::Error;

mod args;

pub use args::Args;

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

/// Where the plugin learns that a pod's policy is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyReady {
    /// The directory, as the host sees it.
    pub directory: PathBuf,
    /// How long an ADD waits.
    pub timeout: Duration,
}

/// Valid settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What the pool should hold. `max_pods` is filled in from the instance's limits if not set.
    pub targets: Targets,
    /// How long an address rests between two pods.
    pub cooldown: Duration,
    /// Whether somebody else translates sources.
    pub external_snat: bool,
    /// Blocks to which sources are left alone, beside the VPC's.
    pub exclude_snat_cidrs: Vec<Ipv4Net>,
    /// How source ports are chosen.
    pub randomize_snat: RandomizeSnat,
    /// Prefix of the host's end of a pod's veth.
    pub veth_prefix: String,
    /// MTU of the interfaces.
    pub eni_mtu: u32,
    /// MTU of pods.
    pub pod_mtu: u32,
    /// Name of the cluster; empty if unknown.
    pub cluster: String,
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
    /// Whether CNI's `bandwidth` is chained.
    pub bandwidth: bool,
    /// Whether pods have no IPv6, which CNI's `tuning` sees to.
    pub disable_pod_v6: bool,
    /// What an ADD waits for beside an address, if anything.
    pub policy_ready: Option<PolicyReady>,
    /// The socket.
    pub socket: PathBuf,
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// Address of the metrics.
    pub metrics_addr: Option<SocketAddr>,
    /// How long an ADD waits for a pool that is being refilled.
    pub add_wait: Duration,
    /// Between two comparisons of the pool with the cloud.
    pub reconcile: Duration,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{name}={value:?}: {want}")]
pub struct BadSetting {
    /// Its environment name.
    pub name: &'static str,
    /// What was set.
    pub value: String,
    /// What it may be.
    pub want: String,
}

/// One setting on its way from text to value.
struct Setting<'a> {
    name: &'static str,
    text: Option<&'a str>,
}

impl<'a> Setting<'a> {
    /// An empty text is one that is not set.
    fn new(name: &'static str, text: &'a Option<String>) -> Self {
        let text = text.as_deref().map(str::trim).filter(|t| !t.is_empty());
        Self { name, text }
    }

    fn bad(&self, want: impl Into<String>) -> BadSetting {
        BadSetting {
            name: self.name,
            value: self.text.unwrap_or_default().to_owned(),
            want: want.into(),
        }
    }

    fn text_or(&self, default: &str) -> String {
        self.text.unwrap_or(default).to_owned()
    }

    fn number(&self, low: i64, high: i64) -> Result<Option<i64>, BadSetting> {
        let Some(text) = self.text else {
            return Ok(None);
        };
        match i64::from_str(text) {
            Ok(number) if (low..=high).contains(&number) => Ok(Some(number)),
            Ok(_) | Err(_) => Err(self.bad(format!("want a number from {low} to {high}"))),
        }
    }

    fn count(&self, high: u32) -> Result<Option<u32>, BadSetting> {
        let number = self.number(0, i64::from(high))?;
        Ok(number.and_then(|n| u32::try_from(n).ok()))
    }

    /// As Go reads it.
    fn truth(&self) -> Result<bool, BadSetting> {
        match self.text {
            None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some(_) => Err(self.bad("want true or false")),
        }
    }
}

impl TryFrom<&Args> for Config {
    type Error = BadSetting;

    fn try_from(args: &Args) -> Result<Self, BadSetting> {
        let eni_mtu = mtu("AWS_VPC_ENI_MTU", &args.eni_mtu)?.unwrap_or(9001);
        let wait = Setting::new("ADD_WAIT_SECONDS", &args.add_wait_seconds).count(60)?;
        let reconcile = Setting::new("RECONCILE_SECONDS", &args.reconcile_seconds)
            .number(1, 3600)?
            .and_then(|n| u64::try_from(n).ok());
        let cooldown =
            Setting::new("IP_COOLDOWN_PERIOD", &args.ip_cooldown_period).count(86_400)?;
        Ok(Self {
            targets: targets(args)?,
            cooldown: Duration::from_secs(cooldown.unwrap_or(30).into()),
            external_snat: Setting::new("AWS_VPC_K8S_CNI_EXTERNALSNAT", &args.externalsnat)
                .truth()?,
            exclude_snat_cidrs: blocks(args)?,
            randomize_snat: randomize(args)?,
            veth_prefix: veth_prefix(args)?,
            eni_mtu,
            pod_mtu: mtu("POD_MTU", &args.pod_mtu)?.unwrap_or(eni_mtu),
            cluster: cluster(args)?,
            tags: tags(args)?,
            node_name: Setting::new("MY_NODE_NAME", &args.node_name).text_or(""),
            network_policy_mode: network_policy_mode(args)?,
            cni_bin_dir: path("CNI_BIN_DIR", &args.cni_bin_dir, "/host/opt/cni/bin")?,
            cni_conf_dir: path("CNI_CONF_DIR", &args.cni_conf_dir, "/host/etc/cni/net.d")?,
            cni_plugin: path("CNI_PLUGIN", &args.cni_plugin, "/app/aws-cni")?,
            plugin_log_file: plugin_log_file(args)?,
            plugin_log_level: plugin_log_level(args)?,
            bandwidth: Setting::new("ENABLE_BANDWIDTH_PLUGIN", &args.enable_bandwidth_plugin)
                .truth()?,
            disable_pod_v6: Setting::new("DISABLE_POD_V6", &args.disable_pod_v6).truth()?,
            policy_ready: policy_ready(args)?,
            socket: path("IPAMD_SOCKET", &args.socket, selvage_ipamd_rpc::SOCKET_PATH)?,
            checkpoint: path(
                "AWS_VPC_K8S_CNI_BACKING_STORE",
                &args.checkpoint,
                "/var/run/aws-node/ipam.json",
            )?,
            metrics_addr: metrics_addr(args)?,
            add_wait: Duration::from_secs(wait.unwrap_or(5).into()),
            reconcile: Duration::from_secs(reconcile.unwrap_or(60)),
        })
    }
}

fn targets(args: &Args) -> Result<Targets, BadSetting> {
    let unless_zero = |count: Option<u32>| count.filter(|n| *n > 0);
    let max_eni = Setting::new("MAX_ENI", &args.max_eni).number(-1, 64)?;
    Ok(Targets {
        warm_enis: Setting::new("WARM_ENI_TARGET", &args.warm_eni_target)
            .count(64)?
            .unwrap_or(1),
        warm_ips: unless_zero(Setting::new("WARM_IP_TARGET", &args.warm_ip_target).count(4096)?),
        minimum_ips: unless_zero(
            Setting::new("MINIMUM_IP_TARGET", &args.minimum_ip_target).count(4096)?,
        ),
        max_enis: unless_zero(max_eni.and_then(|n| u32::try_from(n).ok())),
        max_pods: unless_zero(Setting::new("MAX_PODS", &args.max_pods).count(4096)?),
        ..Targets::default()
    })
}

fn mtu(name: &'static str, text: &Option<String>) -> Result<Option<u32>, BadSetting> {
    let mtu = Setting::new(name, text).number(576, 9001)?;
    Ok(mtu.and_then(|n| u32::try_from(n).ok()))
}

fn blocks(args: &Args) -> Result<Vec<Ipv4Net>, BadSetting> {
    let setting = Setting::new(
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
        &args.exclude_snat_cidrs,
    );
    let mut blocks: Vec<Ipv4Net> = setting
        .text
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(|text| {
            text.parse::<Ipv4Net>()
                .map(|net| net.trunc())
                .map_err(|_| setting.bad(format!("{text:?}: want an IPv4 block (10.0.0.0/8)")))
        })
        .collect::<Result<_, _>>()?;
    blocks.sort_unstable();
    blocks.dedup();
    Ok(blocks)
}

fn randomize(args: &Args) -> Result<RandomizeSnat, BadSetting> {
    let setting = Setting::new("AWS_VPC_K8S_CNI_RANDOMIZESNAT", &args.randomizesnat);
    match setting.text {
        None | Some("prng") => Ok(RandomizeSnat::Prng),
        Some("hashrandom") => Ok(RandomizeSnat::Hash),
        Some("none") => Ok(RandomizeSnat::None),
        Some(_) => Err(setting.bad("want prng, hashrandom or none")),
    }
}

/// The prefix becomes part of rules: letters and digits only.
fn veth_prefix(args: &Args) -> Result<String, BadSetting> {
    let setting = Setting::new("AWS_VPC_K8S_CNI_VETHPREFIX", &args.vethprefix);
    let prefix = setting.text_or("eni");
    let plain = prefix.len() <= 4 && prefix.bytes().all(|b| b.is_ascii_alphanumeric());
    if !plain || ["eth", "lo", "vlan"].contains(&prefix.as_str()) {
        return Err(setting.bad("want 1 to 4 letters and digits, not eth, lo or vlan"));
    }
    Ok(prefix)
}

fn cluster(args: &Args) -> Result<String, BadSetting> {
    let setting = Setting::new("CLUSTER_NAME", &args.cluster_name);
    let name = setting.text_or("");
    // 256: EC2's limit on a tag's value.
    if name.chars().count() > 256 {
        return Err(setting.bad("want at most 256 characters"));
    }
    Ok(name)
}

fn tags(args: &Args) -> Result<BTreeMap<String, String>, BadSetting> {
    let setting = Setting::new("ADDITIONAL_ENI_TAGS", &args.additional_eni_tags);
    let tags: BTreeMap<String, String> = serde_json::from_str(setting.text_or("{}").as_str())
        .map_err(|e| setting.bad(format!("want a JSON object of texts: {e}")))?;
    for (key, value) in &tags {
        if key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256 {
            return Err(setting.bad(format!(
                "tag {key:?}: want a key of 1 to 128 and a value of at most 256 characters"
            )));
        }
        if key.contains("k8s.amazonaws.com") {
            return Err(setting.bad(format!("tag {key:?}: k8s.amazonaws.com is reserved")));
        }
    }
    Ok(tags)
}

fn network_policy_mode(args: &Args) -> Result<String, BadSetting> {
    let setting = Setting::new(
        "NETWORK_POLICY_ENFORCING_MODE",
        &args.network_policy_enforcing_mode,
    );
    match setting.text {
        None => Ok(String::new()),
        Some(mode @ ("none" | "standard" | "strict")) => Ok(mode.to_owned()),
        Some(_) => Err(setting.bad("want none, standard or strict")),
    }
}

fn path(name: &'static str, text: &Option<String>, default: &str) -> Result<PathBuf, BadSetting> {
    let setting = Setting::new(name, text);
    let path = PathBuf::from(setting.text_or(default));
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(setting.bad("want an absolute path"))
    }
}

fn plugin_log_file(args: &Args) -> Result<String, BadSetting> {
    let setting = Setting::new("AWS_VPC_K8S_PLUGIN_LOG_FILE", &args.plugin_log_file);
    let file = setting.text_or("/var/log/aws-routed-eni/plugin.log");
    if file == "stderr" || file.starts_with('/') {
        Ok(file)
    } else {
        Err(setting.bad("want an absolute path or stderr (standard output is the plugin's answer)"))
    }
}

fn plugin_log_level(args: &Args) -> Result<String, BadSetting> {
    let setting = Setting::new("AWS_VPC_K8S_PLUGIN_LOG_LEVEL", &args.plugin_log_level);
    let level = setting.text_or("Info");
    let known = ["trace", "debug", "info", "warn", "warning", "error"];
    if known.contains(&level.to_ascii_lowercase().as_str()) {
        Ok(level)
    } else {
        Err(setting.bad("want debug, info, warn or error"))
    }
}

fn policy_ready(args: &Args) -> Result<Option<PolicyReady>, BadSetting> {
    // The bounds are the plugin's.
    let seconds = Setting::new(
        "POLICY_READY_TIMEOUT_SECONDS",
        &args.policy_ready_timeout_seconds,
    )
    .number(1, 60)?;
    let setting = Setting::new("POLICY_READY_DIR", &args.policy_ready_dir);
    if setting.text.is_none() {
        return Ok(None);
    }
    let seconds = seconds.and_then(|n| u64::try_from(n).ok()).unwrap_or(20);
    Ok(Some(PolicyReady {
        directory: path(setting.name, &args.policy_ready_dir, "")?,
        timeout: Duration::from_secs(seconds),
    }))
}

fn metrics_addr(args: &Args) -> Result<Option<SocketAddr>, BadSetting> {
    if Setting::new("DISABLE_METRICS", &args.disable_metrics).truth()? {
        return Ok(None);
    }
    let setting = Setting::new("METRICS_ADDR", &args.metrics_addr);
    setting
        .text_or("0.0.0.0:61678")
        .parse()
        .map(Some)
        .map_err(|_| setting.bad("want an address and a port (0.0.0.0:61678)"))
}

#[cfg(test)]
mod tests;
