//! What we compile says the same as the API: random clusters, judged twice. The second judge is
//! in this file, reads the raw JSON, and shares nothing with the crate.

#[path = "support/cluster.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod cluster;

use std::net::IpAddr;

use cluster::{NODE, V4, V6};
use proptest::prelude::*;
use selvage_policy_core::compile::compile;
use selvage_policy_core::eval::{Packet, Verdict, eval};
use selvage_policy_core::ruleset::{Family, FlowState, Protocol, VethPrefix};
use selvage_policy_core::verdict::{self, Flow};
use serde_json::{Value, json};

struct Cluster {
    namespaces: Vec<Value>,
    pods: Vec<Value>,
    policies: Vec<Value>,
}

/// One object of each name: the last one given.
fn by_name(objects: Vec<Value>) -> Vec<Value> {
    let mut kept: Vec<Value> = Vec::new();
    for object in objects {
        let name = |object: &Value| {
            let metadata = &object["metadata"];
            (metadata["namespace"].clone(), metadata["name"].clone())
        };
        kept.retain(|other| name(other) != name(&object));
        kept.push(object);
    }
    kept
}

fn clusters() -> impl Strategy<Value = (Vec<Value>, Vec<Value>, Vec<Value>)> {
    (
        prop::collection::vec(cluster::namespace(), 1..6),
        prop::collection::vec(cluster::pod(), 1..12),
        prop::collection::vec(cluster::policy(), 0..6),
    )
}

// ---- the naive reading ----

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

/// `None`: not understood.
fn selected(selector: &Value, labels: &Value) -> Option<bool> {
    let mut all = true;
    if let Some(wanted) = selector["matchLabels"].as_object() {
        for (key, value) in wanted {
            all &= labels.get(key) == Some(value);
        }
    }
    for expression in list(&selector["matchExpressions"]) {
        let label = labels.get(text(&expression["key"]));
        let values = list(&expression["values"]);
        all &= match (text(&expression["operator"]), values.is_empty()) {
            ("In", false) => label.is_some_and(|label| values.contains(label)),
            ("NotIn", false) => !label.is_some_and(|label| values.contains(label)),
            ("Exists", true) => label.is_some(),
            ("DoesNotExist", true) => label.is_none(),
            _ => return None,
        };
    }
    Some(all)
}

fn bits(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("4{:032b}", u32::from(address)),
        IpAddr::V6(address) => format!("6{:0128b}", u128::from(address)),
    }
}

/// A block as the string of its leading bits.
fn leading(cidr: &str) -> Option<String> {
    let (address, prefix) = cidr.split_once('/')?;
    let bits = bits(address.parse().ok()?);
    Some(bits[..=prefix.parse::<usize>().ok()?].to_owned())
}

/// Whether a selector can select it at all.
fn is_live(pod: &Value) -> bool {
    pod["spec"]["hostNetwork"] != true
        && !["Succeeded", "Failed"].contains(&text(&pod["status"]["phase"]))
}

fn has_address(pod: &Value, address: IpAddr) -> bool {
    list(&pod["status"]["podIPs"])
        .iter()
        .any(|entry| text(&entry["ip"]).parse() == Ok(address))
}

fn has_port(pod: &Value, (protocol, name, number): (&str, &str, i64)) -> bool {
    let sidecars = list(&pod["spec"]["initContainers"])
        .iter()
        .filter(|container| container["restartPolicy"] == "Always");
    let containers = list(&pod["spec"]["containers"]).iter().chain(sidecars);
    containers
        .flat_map(|container| list(&container["ports"]))
        .any(|port| {
            port["name"] == name
                && port["protocol"].as_str().unwrap_or("TCP") == protocol
                && port["containerPort"] == number
        })
}

fn is_local(pod: &Value) -> bool {
    is_live(pod) && pod["spec"]["nodeName"] == NODE
}

impl Cluster {
    /// `None`: not understood.
    fn is_peer(&self, policy: &Value, peer: &Value, address: IpAddr) -> Option<bool> {
        if let Some(block) = peer.get("ipBlock") {
            let cidr = leading(text(&block["cidr"]))?;
            let mut inside = bits(address).starts_with(&cidr);
            for except in list(&block["except"]) {
                let except = leading(text(except))?;
                if !except.starts_with(&cidr) || except == cidr {
                    return None;
                }
                inside &= !bits(address).starts_with(&except);
            }
            return Some(inside);
        }
        // Selectors are understood or not, whoever is there to be selected.
        let nobody = Value::Null;
        for selector in ["podSelector", "namespaceSelector"] {
            selected(&peer[selector], &nobody)?;
        }
        Some(self.pods.iter().any(|pod| {
            let namespace = &pod["metadata"]["namespace"];
            let namespace_selected = match peer.get("namespaceSelector") {
                None => *namespace == policy["metadata"]["namespace"],
                Some(selector) => self.namespaces.iter().any(|object| {
                    object["metadata"]["name"] == *namespace
                        && selected(selector, &object["metadata"]["labels"]) == Some(true)
                }),
            };
            let pod_selected = match peer.get("podSelector") {
                None => true,
                Some(selector) => selected(selector, &pod["metadata"]["labels"]) == Some(true),
            };
            namespace_selected && pod_selected && is_live(pod) && has_address(pod, address)
        }))
    }

    /// Whether some pod that has the address, is one of the peers (none: all pods) and calls the
    /// number by the name.
    fn is_named(
        &self,
        policy: &Value,
        peers: &[Value],
        address: IpAddr,
        port: (&str, &str, i64),
    ) -> Option<bool> {
        let anybody = [json!({"namespaceSelector": {}})];
        let peers = if peers.is_empty() {
            &anybody[..]
        } else {
            peers
        };
        let mut named = false;
        for peer in peers.iter().filter(|peer| peer.get("ipBlock").is_none()) {
            for pod in &self.pods {
                let alone = Cluster {
                    namespaces: self.namespaces.clone(),
                    pods: vec![pod.clone()],
                    policies: Vec::new(),
                };
                named |= alone.is_peer(policy, peer, address)? && has_port(pod, port);
            }
        }
        Some(named)
    }

    /// `None`: not understood. `subject`: the pod that packets go to, in ingress.
    fn rule_allows(
        &self,
        policy: &Value,
        (peers, ports): (&Value, &Value),
        subject: Option<&Value>,
        address: IpAddr,
        port: Option<(&str, i64)>,
    ) -> Option<bool> {
        let mut peer_ok = list(peers).is_empty();
        for peer in list(peers) {
            peer_ok |= self.is_peer(policy, peer, address)?;
        }
        let mut port_ok = list(ports).is_empty();
        let mut peer_port_ok = false;
        for entry in list(ports) {
            let protocol = entry["protocol"].as_str().unwrap_or("TCP");
            if !["TCP", "UDP", "SCTP"].contains(&protocol) {
                return None;
            }
            if let Some(name) = entry["port"].as_str() {
                if name == "80" || entry.get("endPort").is_some() {
                    return None;
                }
                if let Some((is, number)) = port.filter(|(is, _)| *is == protocol) {
                    match subject {
                        Some(pod) => port_ok |= has_port(pod, (is, name, number)),
                        None => {
                            peer_port_ok |=
                                self.is_named(policy, list(peers), address, (is, name, number))?;
                        }
                    }
                }
                continue;
            }
            let number = |value: &Value| match value {
                Value::Null => Some(None),
                _ => value.as_i64().filter(|n| (1..=65535).contains(n)).map(Some),
            };
            let (first, last) = match (number(&entry["port"])?, number(&entry["endPort"])?) {
                (None, None) => (0, 65535),
                (Some(port), None) => (port, port),
                (Some(port), Some(end)) if port <= end => (port, end),
                _ => return None,
            };
            port_ok |=
                port.is_some_and(|(is, number)| is == protocol && (first..=last).contains(&number));
        }
        Some((peer_ok && port_ok) || peer_port_ok)
    }

    /// Whether a flow that is known by its addresses alone may go on: every local pod that may be
    /// at an end of it must allow it.
    fn may_go_on(&self, source: IpAddr, destination: IpAddr, port: Option<(&str, i64)>) -> bool {
        let at = |address| {
            let local = self.pods.iter().filter(|pod| is_local(pod));
            local.filter(move |pod| has_address(pod, address))
        };
        let own = at(source).any(|pod| at(destination).any(|other| pod == other));
        own || at(source).all(|pod| self.allows("Egress", pod, destination, port))
            && at(destination).all(|pod| self.allows("Ingress", pod, source, port))
    }

    /// Whether the policies let a pod send to an address, or receive from it.
    fn allows(
        &self,
        direction: &str,
        pod: &Value,
        address: IpAddr,
        port: Option<(&str, i64)>,
    ) -> bool {
        let mut isolated = false;
        let mut allowed = false;
        for policy in &self.policies {
            let spec = &policy["spec"];
            let types = match list(&spec["policyTypes"]) {
                [] if list(&spec["egress"]).is_empty() => vec!["Ingress"],
                [] => vec!["Ingress", "Egress"],
                types => types.iter().map(text).collect(),
            };
            if policy["metadata"]["namespace"] != pod["metadata"]["namespace"]
                || !types.contains(&direction)
            {
                continue;
            }
            match selected(&spec["podSelector"], &pod["metadata"]["labels"]) {
                Some(false) => continue,
                Some(true) => isolated = true,
                None => {
                    isolated = true;
                    continue;
                }
            }
            let (rules, peers, subject) = match direction {
                "Ingress" => (&spec["ingress"], "from", Some(pod)),
                _ => (&spec["egress"], "to", None),
            };
            for rule in list(rules) {
                let rule = (&rule[peers], &rule["ports"]);
                allowed |= self
                    .rule_allows(policy, rule, subject, address, port)
                    .unwrap_or(false);
            }
        }
        allowed || !isolated
    }
}

// ---- the two against each other ----

/// Where packets come from and go to: a pod's address, or an address outside.
struct End<'a> {
    address: IpAddr,
    local: Option<&'a Value>,
    interface: String,
}

fn ends(cluster: &Cluster) -> Vec<End<'_>> {
    let outside = V4.iter().chain(&V6).map(|address| End {
        address: address.parse().unwrap(),
        local: None,
        interface: "ens5".to_owned(),
    });
    let local = cluster.pods.iter().filter(|pod| is_local(pod));
    let local = local.flat_map(|pod| {
        let metadata = &pod["metadata"];
        let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
        list(&pod["status"]["podIPs"]).iter().map(move |entry| End {
            address: text(&entry["ip"]).parse().unwrap(),
            local: Some(pod),
            interface: VethPrefix::default().veth(namespace, name).to_string(),
        })
    });
    outside.chain(local).collect()
}

const PORTS: [Option<(&str, i64)>; 8] = [
    Some(("TCP", 80)),
    Some(("TCP", 81)),
    Some(("TCP", 82)),
    Some(("TCP", 90)),
    Some(("TCP", 91)),
    Some(("UDP", 81)),
    Some(("SCTP", 80)),
    None,
];

fn packet(from: &End, to: &End, port: Option<(&str, i64)>) -> Packet {
    let port = port.map(|(protocol, number)| {
        let protocol = match protocol {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            _ => Protocol::Sctp,
        };
        (protocol, u16::try_from(number).unwrap())
    });
    let (from_interface, to_interface) = (from.interface.as_str(), to.interface.as_str());
    Packet::first(from_interface, to_interface, from.address, to.address, port)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_compiled_ruleset_agrees_with_a_naive_reading_of_the_api(
        (namespaces, pods, policies) in clusters()
    ) {
        let cluster = Cluster {
            namespaces: by_name(namespaces),
            pods: by_name(pods),
            policies: by_name(policies),
        };
        let mut index = cluster::index(&cluster.namespaces, &cluster.pods, &cluster.policies);
        let v4 = compile(&mut index, Family::V4);
        let v6 = compile(&mut index, Family::V6);
        let judge = index.judge();
        let ends = ends(&cluster);
        for from in &ends {
            for to in &ends {
                let crosses_us = from.local.is_some() || to.local.is_some();
                if !crosses_us || from.address.is_ipv4() != to.address.is_ipv4() {
                    continue;
                }
                for port in PORTS {
                    let own = from.interface == to.interface;
                    let out = from.local.is_none_or(|pod| {
                        cluster.allows("Egress", pod, to.address, port)
                    });
                    let into = to.local.is_none_or(|pod| {
                        cluster.allows("Ingress", pod, from.address, port)
                    });
                    let want = if own || (out && into) { Verdict::Passed } else { Verdict::Dropped };
                    let ruleset = if from.address.is_ipv4() { &v4 } else { &v6 };
                    let got = eval(ruleset, &packet(from, to, port));
                    prop_assert_eq!(
                        got, want,
                        "{} ({}) to {} ({}), {:?}",
                        from.address, from.interface, to.address, to.interface, port
                    );
                    let flow = Flow {
                        source: from.address,
                        destination: to.address,
                        port: packet(from, to, port).port,
                    };
                    let verdict = judge.verdict(&flow);
                    let judged = match verdict {
                        verdict::Verdict::Allowed => Some(true),
                        verdict::Verdict::Forbidden { .. } => Some(false),
                        verdict::Verdict::NotOurs => None,
                    };
                    let want = cluster.may_go_on(from.address, to.address, port);
                    prop_assert_eq!(judged, Some(want), "{:?}", flow);
                    let mut known = packet(from, to, port);
                    known.state = FlowState::Established;
                    prop_assert_eq!(eval(ruleset, &known), Verdict::Passed, "established");
                    let mut spoofed = packet(from, to, port);
                    spoofed.source_elsewhere = true;
                    if from.local.is_some() {
                        prop_assert_eq!(eval(ruleset, &spoofed), Verdict::Dropped, "spoofed");
                    }
                    let mut stranger = packet(from, to, port);
                    stranger.in_interface = "eni00000000000".to_owned();
                    prop_assert_eq!(eval(ruleset, &stranger), Verdict::Dropped, "from a stranger");
                    let mut stranger = packet(from, to, port);
                    stranger.out_interface = "eni00000000000".to_owned();
                    prop_assert_eq!(eval(ruleset, &stranger), Verdict::Dropped, "to a stranger");
                }
            }
        }
    }
}
