//! The few fields of Pod, Namespace and NetworkPolicy that we read; serde and nothing else.
//!
//! Each object deserialises from the API server's JSON. A client with metadata types of its own
//! fills [`Metadata`] and takes `spec` and `status` from here.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

/// A field that is absent, `null` or there.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// What every object carries.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// Its namespace; empty for a Namespace itself.
    pub namespace: String,
    /// What tells it from a later one of the same name.
    pub uid: String,
    /// Which of its states this is; no other object has the same.
    pub resource_version: Option<String>,
    /// Its labels.
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    /// Its annotations. Those that [`crate::convert`] names are read.
    #[serde(deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    /// Present once it is being deleted.
    pub deletion_timestamp: Option<String>,
}

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Pod {
    /// Name, labels and so on.
    pub metadata: Metadata,
    /// What was asked for.
    #[serde(deserialize_with = "nullable")]
    pub spec: PodSpec,
    /// What is.
    #[serde(deserialize_with = "nullable")]
    pub status: PodStatus,
}

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// The node it is bound to.
    pub node_name: Option<String>,
    /// Whether it is in the node's network namespace.
    #[serde(deserialize_with = "nullable")]
    pub host_network: bool,
    /// Its containers.
    #[serde(deserialize_with = "nullable")]
    pub containers: Vec<Container>,
    /// Those that run before it, or beside it (sidecars).
    #[serde(deserialize_with = "nullable")]
    pub init_containers: Vec<Container>,
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    /// `Always` for a sidecar; only init containers have it.
    pub restart_policy: Option<String>,
    /// What it says that it listens on.
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<ContainerPort>,
    /// What it may use.
    #[serde(deserialize_with = "nullable")]
    pub resources: Resources,
}

/// A port of a container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    /// What policies may call it.
    pub name: Option<String>,
    /// `TCP`, `UDP` or `SCTP`; absent: TCP.
    pub protocol: Option<String>,
    /// Its number.
    pub container_port: i64,
}

/// What a container may use. Only names are read.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// At most.
    #[serde(deserialize_with = "nullable")]
    pub limits: BTreeMap<String, IgnoredAny>,
}

/// What is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: Option<String>,
    /// Its first address.
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    /// All its addresses.
    #[serde(rename = "podIPs", deserialize_with = "nullable")]
    pub pod_ips: Vec<PodIp>,
}

/// One address.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct PodIp {
    /// As text.
    pub ip: String,
}

/// A namespace.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Name and labels.
    pub metadata: Metadata,
}

/// A network policy.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NetworkPolicy {
    /// Name and namespace.
    pub metadata: Metadata,
    /// What it says.
    #[serde(deserialize_with = "nullable")]
    pub spec: NetworkPolicySpec,
}

/// What a policy says.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NetworkPolicySpec {
    /// Whom it isolates.
    #[serde(deserialize_with = "nullable")]
    pub pod_selector: LabelSelector,
    /// In which directions; empty stands for the default.
    #[serde(deserialize_with = "nullable")]
    pub policy_types: Vec<String>,
    /// What may reach them.
    #[serde(deserialize_with = "nullable")]
    pub ingress: Vec<IngressRule>,
    /// What they may reach.
    #[serde(deserialize_with = "nullable")]
    pub egress: Vec<EgressRule>,
}

/// A rule about what may reach the pods.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct IngressRule {
    /// From whom; empty: from anybody.
    #[serde(deserialize_with = "nullable")]
    pub from: Vec<Peer>,
    /// On which ports; empty: on all.
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<Port>,
}

/// A rule about what the pods may reach.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EgressRule {
    /// Whom; empty: anybody.
    #[serde(deserialize_with = "nullable")]
    pub to: Vec<Peer>,
    /// On which ports; empty: on all.
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<Port>,
}

/// One peer of a rule.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Peer {
    /// Pods by label.
    pub pod_selector: Option<LabelSelector>,
    /// Namespaces by label.
    pub namespace_selector: Option<LabelSelector>,
    /// Addresses.
    pub ip_block: Option<IpBlock>,
}

/// A block of addresses with holes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct IpBlock {
    /// The block.
    pub cidr: String,
    /// The holes.
    #[serde(deserialize_with = "nullable")]
    pub except: Vec<String>,
}

/// One port of a rule, or some.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Port {
    /// `TCP`, `UDP` or `SCTP`; absent: TCP.
    pub protocol: Option<String>,
    /// Number or name; absent: all.
    pub port: Option<IntOrString>,
    /// The last of a range that begins at `port`.
    pub end_port: Option<i64>,
}

/// A number or a name.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    /// A number.
    Int(i64),
    /// A name.
    Text(String),
}

/// A selector as the API writes it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels and their values.
    #[serde(deserialize_with = "nullable")]
    pub match_labels: BTreeMap<String, String>,
    /// Conditions on labels.
    #[serde(deserialize_with = "nullable")]
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

/// One condition on a label.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct LabelSelectorRequirement {
    /// The label.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    /// The values.
    #[serde(deserialize_with = "nullable")]
    pub values: Vec<String>,
}
