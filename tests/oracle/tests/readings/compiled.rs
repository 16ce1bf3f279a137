//! A cluster as policy-core compiles it: one ruleset a node and family.

use std::collections::BTreeSet;

use selvage_oracle::generator::NODES;
use selvage_oracle::probe::{End, Probe, Traffic};
use selvage_oracle::reading::list;
use selvage_policy_core::compile::compile;
use selvage_policy_core::convert;
use selvage_policy_core::eval::{Packet, Verdict, eval};
use selvage_policy_core::index::{Event, Index, Settings};
use selvage_policy_core::model::NodeName;
use selvage_policy_core::ruleset::{Family, Protocol, Ruleset, VethPrefix};
use selvage_policy_core::verdict::{self, Flow, Judge};
use serde_json::Value;

pub(crate) struct Compiled {
    nodes: Vec<Node>,
    /// Which node a pod is bound to.
    places: Vec<((String, String), usize)>,
}

struct Node {
    v4: Ruleset,
    v6: Ruleset,
    judge: Judge,
}

impl Compiled {
    pub(crate) fn new(cluster: &Value) -> Self {
        let nodes = NODES.iter().map(|name| {
            let mut index = Index::new(Settings {
                node: NodeName::new(*name),
                prefix: VethPrefix::default(),
                families: BTreeSet::from([Family::V4, Family::V6]),
                source_check: true,
                drop_invalid: true,
                deny_log: None,
            });
            for event in events(cluster) {
                index.apply(event);
            }
            Node {
                v4: compile(&mut index, Family::V4),
                v6: compile(&mut index, Family::V6),
                judge: index.judge(),
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

    /// The rules of one node, in one family.
    ///
    /// *Panics*: when there is no such node.
    #[allow(
        dead_code,
        reason = "the kernel suite includes this file, and puts them in force"
    )]
    pub(crate) fn into_ruleset(mut self, node: &str, family: Family) -> Ruleset {
        let number = NODES.iter().position(|name| *name == node).unwrap();
        let node = self.nodes.swap_remove(number);
        match family {
            Family::V4 => node.v4,
            Family::V6 => node.v6,
        }
    }

    /// Whether the flow's first packet gets past every node whose rules it meets.
    ///
    /// A packet between a node and a pod on it isn't forwarded: no rule of ours is asked.
    pub(crate) fn passes(&self, probe: &Probe) -> bool {
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
            let packet = packet(&from, &to, probe);
            let ruleset = match Family::of_address(packet.source) {
                Family::V4 => &self.nodes[node].v4,
                Family::V6 => &self.nodes[node].v6,
            };
            eval(ruleset, &packet) == Verdict::Passed
        })
    }

    /// Whether the flow would be left alone if it were established already: what decides on cutting.
    ///
    /// A verdict goes by addresses, where packets have interfaces too.
    #[allow(
        dead_code,
        reason = "the kernel suite includes this file, and cuts no flow"
    )]
    pub(crate) fn stays(&self, probe: &Probe) -> bool {
        let traffic = match packet("", "", probe).port {
            Some((protocol, port)) => (protocol.number(), Some(port)),
            // 1: ICMP.
            None => (1, None),
        };
        let (source, destination) = (probe.from.address(), probe.to.address());
        let flow = Flow::new(source, destination, traffic.0, traffic.1);
        (0..self.nodes.len()).all(|node| {
            let on_it = |end| self.interface(end, node).is_none();
            on_it(&probe.from)
                || on_it(&probe.to)
                || match self.nodes[node].judge.verdict(&flow) {
                    verdict::Verdict::Allowed | verdict::Verdict::NotOurs => true,
                    verdict::Verdict::Forbidden { .. } => false,
                }
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

fn packet(from: &str, to: &str, probe: &Probe) -> Packet {
    let port = match probe.traffic {
        Traffic::Tcp(port) => Some((Protocol::Tcp, port)),
        Traffic::Udp(port) => Some((Protocol::Udp, port)),
        Traffic::Sctp(port) => Some((Protocol::Sctp, port)),
        Traffic::Other => None,
    };
    Packet::first(from, to, probe.from.address(), probe.to.address(), port)
}

/// What the watches would say.
fn events(cluster: &Value) -> Vec<Event> {
    let namespaces = list(&cluster["namespaces"]).iter().map(|object| {
        let object = serde_json::from_value(object.clone()).unwrap();
        Event::NamespaceApplied(convert::namespace(object))
    });
    let pods = list(&cluster["pods"]).iter().map(|object| {
        let object = serde_json::from_value(object.clone()).unwrap();
        Event::PodApplied(convert::pod(object))
    });
    let policies = list(&cluster["policies"]).iter().map(|object| {
        let object = serde_json::from_value(object.clone()).unwrap();
        Event::PolicyApplied(convert::policy(&object).0)
    });
    namespaces.chain(pods).chain(policies).collect()
}
