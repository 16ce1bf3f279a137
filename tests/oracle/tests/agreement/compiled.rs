//! A cluster as policy-core compiles it: one ruleset a node and family.

use std::collections::BTreeSet;
use std::net::IpAddr;

use selvage_oracle::generator::NODES;
use selvage_oracle::probe::{End, Probe, Traffic};
use selvage_oracle::reading::list;
use selvage_policy_core::compile::compile;
use selvage_policy_core::convert;
use selvage_policy_core::eval::{Packet, Verdict, eval};
use selvage_policy_core::index::{Event, Index, Settings};
use selvage_policy_core::model::NodeName;
use selvage_policy_core::ruleset::{Family, Protocol, Ruleset, VethPrefix};
use serde_json::Value;

pub struct Compiled {
    nodes: Vec<Node>,
    /// Which node a pod is bound to.
    places: Vec<((String, String), usize)>,
}

struct Node {
    v4: Ruleset,
    v6: Ruleset,
}

impl Compiled {
    pub fn new(cluster: &Value) -> Self {
        let nodes = NODES.iter().map(|name| {
            let mut index = Index::new(Settings {
                node: NodeName::new(*name),
                prefix: VethPrefix::default(),
                families: BTreeSet::from([Family::V4, Family::V6]),
                source_check: true,
            });
            for event in events(cluster) {
                index.apply(event);
            }
            Node {
                v4: compile(&mut index, Family::V4),
                v6: compile(&mut index, Family::V6),
            }
        });
        let nodes = nodes.collect();
        let places = list(&cluster["pods"]).iter().filter_map(|pod| {
            let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
            let metadata = &pod["metadata"];
            let name = (text(&metadata["namespace"]), text(&metadata["name"]));
            let node = NODES
                .iter()
                .position(|node| pod["spec"]["nodeName"] == **node)?;
            Some((name, node))
        });
        let places = places.collect();
        Self { nodes, places }
    }

    /// Whether the flow's first packet gets past every node whose rules it meets.
    ///
    /// A packet between a node and a pod on it isn't forwarded: no rule of ours is asked.
    pub fn passes(&self, probe: &Probe) -> bool {
        (0..self.nodes.len()).all(|node| {
            let (from, to) = (
                self.interface(&probe.from, node),
                self.interface(&probe.to, node),
            );
            let (Some(from), Some(to)) = (from, to) else {
                return true;
            };
            if from == UPLINK && to == UPLINK {
                return true;
            }
            let packet = packet(from, to, probe);
            let ruleset = match Family::of_address(packet.source) {
                Family::V4 => &self.nodes[node].v4,
                Family::V6 => &self.nodes[node].v6,
            };
            eval(ruleset, &packet) == Verdict::Passed
        })
    }

    /// By which interface of a node an end is reached; `None`: it is the node itself.
    fn interface(&self, end: &End, node: usize) -> Option<String> {
        match end {
            End::Pod {
                namespace, name, ..
            } => {
                let here = self
                    .places
                    .iter()
                    .any(|((of, pod), place)| of == namespace && pod == name && *place == node);
                let veth = || VethPrefix::default().veth(namespace, name).to_string();
                Some(if here { veth() } else { UPLINK.to_owned() })
            }
            End::Node { name, .. } if *name == NODES[node] => None,
            End::Node { .. } | End::Address(_) => Some(UPLINK.to_owned()),
        }
    }
}

const UPLINK: &str = "ens5";

fn packet(from: String, to: String, probe: &Probe) -> Packet {
    let port = match probe.traffic {
        Traffic::Tcp(port) => Some((Protocol::Tcp, port)),
        Traffic::Udp(port) => Some((Protocol::Udp, port)),
        Traffic::Sctp(port) => Some((Protocol::Sctp, port)),
        Traffic::Other => None,
    };
    let (source, destination): (IpAddr, IpAddr) = (probe.from.address(), probe.to.address());
    Packet {
        in_interface: from,
        out_interface: to,
        source,
        destination,
        port,
        established: false,
        source_elsewhere: false,
    }
}

/// What the watches would say.
fn events(cluster: &Value) -> Vec<Event> {
    let read = |value: &Value| value.clone();
    let namespaces = list(&cluster["namespaces"]).iter().map(|object| {
        let object = serde_json::from_value(read(object)).unwrap();
        Event::NamespaceApplied(convert::namespace(object))
    });
    let pods = list(&cluster["pods"]).iter().map(|object| {
        let object = serde_json::from_value(read(object)).unwrap();
        Event::PodApplied(convert::pod(object))
    });
    let policies = list(&cluster["policies"]).iter().map(|object| {
        let object = serde_json::from_value(read(object)).unwrap();
        Event::PolicyApplied(convert::policy(&object).0)
    });
    namespaces.chain(pods).chain(policies).collect()
}
