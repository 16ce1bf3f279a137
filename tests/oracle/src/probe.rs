//! The flows to ask about.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use crate::random::Random;
use crate::reading::{Block, addresses, can_be_selected, list};

/// One end of a flow.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// A pod, behind its veth, by one of its addresses.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Which of its addresses.
        address: IpAddr,
    },
    /// A node itself, and the pods that share its network.
    Node {
        /// Its name.
        name: String,
        /// Its address.
        address: IpAddr,
    },
    /// Any other machine; or a pod, as the nodes see it on which it isn't.
    Address(IpAddr),
}

impl End {
    /// A pod by one of its addresses.
    #[must_use]
    pub fn pod(namespace: &str, name: &str, address: IpAddr) -> Self {
        Self::Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            address,
        }
    }

    /// The address that packets bear.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        match self {
            Self::Pod { address, .. } | Self::Node { address, .. } | Self::Address(address) => {
                *address
            }
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod {
                namespace,
                name,
                address,
            } => write!(f, "pod {namespace}/{name} ({address})"),
            Self::Node { name, address } => write!(f, "node {name} ({address})"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// What a packet carries, and to which destination port.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Traffic {
    /// TCP.
    Tcp(u16),
    /// UDP.
    Udp(u16),
    /// SCTP.
    Sctp(u16),
    /// ICMP, or anything else without ports.
    Other,
}

impl Traffic {
    /// The protocol as policies write it, and the port.
    #[must_use]
    pub fn protocol_and_port(self) -> Option<(&'static str, u16)> {
        match self {
            Self::Tcp(port) => Some(("TCP", port)),
            Self::Udp(port) => Some(("UDP", port)),
            Self::Sctp(port) => Some(("SCTP", port)),
            Self::Other => None,
        }
    }
}

/// One question.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// Who opens the flow.
    pub from: End,
    /// To whom.
    pub to: End,
    /// With what.
    pub traffic: Traffic,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}, {:?}", self.from, self.to, self.traffic)
    }
}

/// The pods of a cluster that can send packets, by each of their addresses.
#[must_use]
pub fn pods(cluster: &Value) -> Vec<End> {
    let mut ends = Vec::new();
    for pod in list(&cluster["pods"]) {
        if can_be_selected(pod) && pod["spec"]["nodeName"].is_string() {
            let text = |key: &str| pod["metadata"][key].as_str().unwrap_or("");
            for address in addresses(pod) {
                ends.push(End::pod(text("namespace"), text("name"), address));
            }
        }
    }
    ends
}

/// The nodes of a cluster, by each of their addresses.
#[must_use]
pub fn nodes(cluster: &Value) -> Vec<End> {
    let mut ends = Vec::new();
    for node in list(&cluster["nodes"]) {
        for entry in list(&node["status"]["addresses"]) {
            if let (Some(name), Some(Ok(address))) = (
                node["metadata"]["name"].as_str(),
                entry["address"].as_str().map(str::parse),
            ) {
                let name = name.to_owned();
                ends.push(End::Node { name, address });
            }
        }
    }
    ends
}

/// Addresses worth asking about: of all pods, and at the edges of all blocks.
fn strangers(cluster: &Value) -> Vec<End> {
    let mut found = vec![
        IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10)),
    ];
    for pod in list(&cluster["pods"]) {
        found.extend(addresses(pod));
    }
    visit(cluster, &mut |value| {
        let Some(block) = Block::parse(value) else {
            return;
        };
        let edges = [
            block.first.checked_sub(1),
            Some(block.first),
            Some(block.last),
            block.last.checked_add(1),
        ];
        for edge in edges.into_iter().flatten() {
            if block.v6 {
                found.push(IpAddr::V6(edge.into()));
            } else if let Ok(edge) = u32::try_from(edge) {
                found.push(IpAddr::V4(edge.into()));
            }
        }
    });
    // Packets to or from such an address are never forwarded; and 0.0.0.0 is in no set of the kernel.
    found.retain(|address| !address.is_unspecified());
    found.into_iter().map(End::Address).collect()
}

/// Port numbers worth asking about: those that anybody mentions, and their neighbours.
fn ports(cluster: &Value) -> Vec<u16> {
    let mut found = vec![80, 9];
    visit(cluster, &mut |value| {
        if let Some(number) = value.as_u64().and_then(|number| u16::try_from(number).ok()) {
            found.extend(
                [number.checked_sub(1), Some(number), number.checked_add(1)]
                    .into_iter()
                    .flatten(),
            );
        }
    });
    found.retain(|port| *port > 0);
    found
}

fn visit(tree: &Value, each: &mut dyn FnMut(&Value)) {
    each(tree);
    match tree {
        Value::Array(entries) => entries.iter().for_each(|entry| visit(entry, each)),
        Value::Object(fields) => fields.values().for_each(|field| visit(field, each)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// So many questions about a cluster, each with a pod at one end at least; none when no pod has an
/// address.
#[must_use]
pub fn probes(cluster: &Value, random: &mut Random, count: usize) -> Vec<Probe> {
    let pods = pods(cluster);
    if pods.is_empty() {
        return Vec::new();
    }
    let (nodes, strangers, ports) = (nodes(cluster), strangers(cluster), ports(cluster));
    let mut asked = Vec::with_capacity(count);
    while asked.len() < count {
        let pod = random.pick(&pods);
        let others = match random.below(10) {
            0..6 => &pods,
            6..9 => &strangers,
            _ if nodes.is_empty() => &strangers,
            _ => &nodes,
        };
        let others: Vec<&End> = others
            .iter()
            .filter(|other| other.address().is_ipv4() == pod.address().is_ipv4())
            .collect();
        let Some(other) = (!others.is_empty()).then(|| random.pick(&others).clone()) else {
            continue;
        };
        let (from, to) = if random.percent(50) {
            (pod, other)
        } else {
            (other, pod)
        };
        let port = random.pick(&ports);
        let traffic = match random.below(10) {
            0..5 => Traffic::Tcp(port),
            5..7 => Traffic::Udp(port),
            7..9 => Traffic::Sctp(port),
            _ => Traffic::Other,
        };
        asked.push(Probe { from, to, traffic });
    }
    asked
}
