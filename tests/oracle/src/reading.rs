//! What NetworkPolicy says about one flow, read from the raw objects.
//!
//! Written from the API's documentation of NetworkPolicySpec and its parts. Where that leaves a
//! choice, the choice is ours and is restated here:
//!
//! - A pod that has ended, or shares its node's network, is nobody's subject and no selector's peer.
//! - A rule with a peer or port that cannot be understood allows nothing; the policy's other rules
//!   hold. A `podSelector` that cannot be understood isolates the whole namespace and voids the
//!   rules. An unknown entry of `policyTypes` isolates in both directions.
//! - A named port is a number that the destination pod gives to the name: of the subject for
//!   ingress, of each peer pod for egress. Sidecars count, other init containers don't. Addresses
//!   that are no pod's have no names.
//! - A pod always reaches itself, and a node the pods that run on it.

mod address;
mod port;
mod selector;

use std::net::IpAddr;

use serde_json::Value;

pub use address::{Block, addresses};

use crate::probe::{End, Traffic};

/// Whether the policies of a cluster let a flow's first packet pass.
///
/// `cluster` holds lists `nodes`, `namespaces`, `pods` and `policies`, of objects as the API server
/// gives them; lists may be missing.
#[must_use]
pub fn allowed(cluster: &Value, from: &End, to: &End, traffic: Traffic) -> bool {
    if let (Some(one), Some(other)) = (pod_at(cluster, from), pod_at(cluster, to))
        && name(one) == name(other)
    {
        return true;
    }
    if is_own_node(cluster, from, to) || is_own_node(cluster, to, from) {
        return true;
    }
    permits(cluster, Way::Out, from, to, traffic) && permits(cluster, Way::In, to, from, traffic)
}

/// Seen from the subject.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    In,
    Out,
}

impl Way {
    fn policy_type(self) -> &'static str {
        match self {
            Way::In => "Ingress",
            Way::Out => "Egress",
        }
    }

    /// The field that lists the rules, and the field of a rule that lists the peers.
    fn fields(self) -> (&'static str, &'static str) {
        match self {
            Way::In => ("ingress", "from"),
            Way::Out => ("egress", "to"),
        }
    }
}

/// Whether what the policies say about `subject` permits its traffic with `peer`.
fn permits(cluster: &Value, way: Way, subject: &End, peer: &End, traffic: Traffic) -> bool {
    let Some(pod) = pod_at(cluster, subject) else {
        return true;
    };
    let mut isolated = false;
    for policy in list(&cluster["policies"]) {
        if policy["metadata"]["namespace"] != pod["metadata"]["namespace"]
            || !speaks_about(policy, way)
        {
            continue;
        }
        let spec = &policy["spec"];
        match selector::selects(&spec["podSelector"], &pod["metadata"]["labels"]) {
            Some(false) => {}
            None => isolated = true,
            Some(true) => {
                isolated = true;
                for rule in list(&spec[way.fields().0]) {
                    if rule_allows(cluster, policy, way, rule, pod, peer.address(), traffic) {
                        return true;
                    }
                }
            }
        }
    }
    !isolated
}

/// "If this field is not specified, it will default based on the existence of ingress or egress
/// rules; policies that contain an egress section are assumed to affect egress, and all policies
/// are assumed to affect ingress." A section without rules is no section: the API drops it.
fn speaks_about(policy: &Value, way: Way) -> bool {
    let types = list(&policy["spec"]["policyTypes"]);
    if types.is_empty() {
        return way == Way::In || !list(&policy["spec"]["egress"]).is_empty();
    }
    let known = |entry: &Value| entry == "Ingress" || entry == "Egress";
    types.iter().any(|entry| entry == way.policy_type()) || !types.iter().all(known)
}

/// "Traffic must match both ports and from (to)." Each list is an OR; an empty or missing one
/// matches everything.
fn rule_allows(
    cluster: &Value,
    policy: &Value,
    way: Way,
    rule: &Value,
    subject: &Value,
    peer: IpAddr,
    traffic: Traffic,
) -> bool {
    let (peers, ports) = (list(&rule[way.fields().1]), list(&rule["ports"]));
    if !peers.iter().all(is_understood) || !ports.iter().all(port::is_understood) {
        return false;
    }
    let everybody = [Value::Null];
    let peers = if peers.is_empty() { &everybody } else { peers };
    peers.iter().any(|entry| {
        let pods = pods_meant(cluster, policy, entry, peer);
        let meant = match &entry["ipBlock"] {
            Value::Null => entry.is_null() || !pods.is_empty(),
            block => in_block(block, peer),
        };
        let destinations = match way {
            Way::In => vec![subject],
            Way::Out => pods,
        };
        meant
            && (ports.is_empty()
                || ports
                    .iter()
                    .any(|port| port::matches(port, traffic, &destinations)))
    })
}

/// A peer is an ipBlock, or one or two selectors, and all of its parts mean something.
fn is_understood(peer: &Value) -> bool {
    let (block, pods, namespaces) = (
        &peer["ipBlock"],
        &peer["podSelector"],
        &peer["namespaceSelector"],
    );
    if !block.is_null() {
        return pods.is_null() && namespaces.is_null() && address::is_understood(block);
    }
    (!pods.is_null() || !namespaces.is_null())
        && selector::is_understood(pods)
        && selector::is_understood(namespaces)
}

/// The pods with this address that a peer's selectors mean; `null` stands for "everybody".
///
/// "podSelector: if namespaceSelector is also set, then the pods matching podSelector in the
/// namespaces selected; otherwise the pods matching podSelector in the policy's own namespace."
fn pods_meant<'a>(
    cluster: &'a Value,
    policy: &Value,
    peer: &Value,
    address: IpAddr,
) -> Vec<&'a Value> {
    let mut meant = Vec::new();
    if !peer["ipBlock"].is_null() {
        return meant;
    }
    for pod in list(&cluster["pods"]) {
        if !can_be_selected(pod) || !addresses(pod).contains(&address) {
            continue;
        }
        let namespace = &pod["metadata"]["namespace"];
        let in_namespace = if peer["namespaceSelector"].is_null() && !peer.is_null() {
            *namespace == policy["metadata"]["namespace"]
        } else {
            list(&cluster["namespaces"]).iter().any(|object| {
                object["metadata"]["name"] == *namespace
                    && selector::selects(&peer["namespaceSelector"], &object["metadata"]["labels"])
                        == Some(true)
            })
        };
        let labels = &pod["metadata"]["labels"];
        if in_namespace && selector::selects(&peer["podSelector"], labels) == Some(true) {
            meant.push(pod);
        }
    }
    meant
}

fn in_block(block: &Value, address: IpAddr) -> bool {
    let contains = |text: &Value| Block::parse(text).is_some_and(|block| block.contains(address));
    contains(&block["cidr"]) && !list(&block["except"]).iter().any(contains)
}

/// Whether a pod has a network of its own that somebody uses.
#[must_use]
pub fn can_be_selected(pod: &Value) -> bool {
    pod["spec"]["hostNetwork"] != true
        && pod["status"]["phase"] != "Succeeded"
        && pod["status"]["phase"] != "Failed"
}

/// The pod that an end is, when policies can select it.
fn pod_at<'a>(cluster: &'a Value, end: &End) -> Option<&'a Value> {
    let End::Pod {
        namespace, name, ..
    } = end
    else {
        return None;
    };
    list(&cluster["pods"]).iter().find(|pod| {
        pod["metadata"]["namespace"] == **namespace
            && pod["metadata"]["name"] == **name
            && can_be_selected(pod)
    })
}

fn is_own_node(cluster: &Value, node: &End, pod: &End) -> bool {
    match (node, pod_at(cluster, pod)) {
        (End::Node { name, .. }, Some(pod)) => pod["spec"]["nodeName"] == **name,
        _ => false,
    }
}

fn name(object: &Value) -> (&Value, &Value) {
    let metadata = &object["metadata"];
    (&metadata["namespace"], &metadata["name"])
}

/// The entries of a list; none where it is missing or `null`.
#[must_use]
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
