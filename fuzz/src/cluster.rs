//! A cluster that the bytes decide: objects of the right shape, texts of any.
//!
//! The world is small, so that names, labels and addresses meet often. Bytes that the API server
//! would refuse are in it all the same: what is promised of rules and names holds for them.

use std::collections::BTreeMap;

use selvage_policy_core::index::Event;
use selvage_policy_core::ruleset::VethPrefix;
use selvage_policy_core::{api, convert};

use crate::feed::Feed;
use crate::objects;
use crate::rules::{NODE, check};

const NAMESPACES: [&str; 4] = ["n0", "n1", "n0/q0", "n0\nCOMMIT"];
const NAMES: [&str; 8] = [
    "p0",
    "p1",
    "q0",
    "q1",
    "q0\nn0/q1",
    "q0\ntcp:web 80",
    "q1/q0",
    "q 0\" -j ACCEPT",
];
const KEYS: [&str; 4] = ["app", "tier", "", "kubernetes.io/metadata.name"];
const VALUES: [&str; 4] = ["a", "b", "", "n0"];
const ADDRESSES: [&str; 8] = [
    "10.0.0.1",
    "10.0.0.2",
    "fd00::1",
    "fd00::2",
    "::ffff:10.0.0.1",
    " 10.0.0.3",
    "10.0.0.1/8",
    "",
];
const BLOCKS: [&str; 10] = [
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/8",
    "10.0.0.0/31",
    "10.0.0.1/32",
    "fd00::/64",
    "fd00::1/128",
    "::ffff:10.0.0.0/104",
    "::ffff:0.0.0.0/96",
    "10.0.0.1/33",
];
const PROTOCOLS: [&str; 5] = ["TCP", "UDP", "SCTP", "tcp", ""];
const PORTS: [&str; 4] = ["web", "dns", "80", "a--b"];
const OPERATORS: [&str; 5] = ["In", "NotIn", "Exists", "DoesNotExist", "Like"];
const DIRECTIONS: [&str; 3] = ["Ingress", "Egress", "Sideways"];

/// Namespaces, pods, policies, routes; then some of them again.
pub(crate) fn any(bytes: &[u8]) {
    let mut feed = Feed::new(bytes);
    let events = feed.list(24, |feed| match feed.byte() % 8 {
        0 => Event::NamespaceApplied(convert::namespace(api::Namespace {
            metadata: api::Metadata {
                name: feed.text(&NAMESPACES),
                labels: labels(feed),
                ..api::Metadata::default()
            },
        })),
        1..=3 => objects::pod(pod(feed)),
        4..=6 => objects::policy(&policy(feed)),
        _ => Event::Routes {
            interface: VethPrefix::default()
                .veth(&feed.text(&NAMESPACES), &feed.text(&NAMES))
                .to_string(),
            addresses: feed
                .list(3, |feed| feed.text(&ADDRESSES).parse().ok())
                .into_iter()
                .flatten()
                .collect(),
        },
    });
    check(events);
}

fn metadata(feed: &mut Feed<'_>) -> api::Metadata {
    api::Metadata {
        namespace: feed.text(&NAMESPACES),
        name: feed.text(&NAMES),
        labels: labels(feed),
        ..api::Metadata::default()
    }
}

fn labels(feed: &mut Feed<'_>) -> BTreeMap<String, String> {
    let labels = feed.list(2, |feed| (feed.text(&KEYS), feed.text(&VALUES)));
    labels.into_iter().collect()
}

fn pod(feed: &mut Feed<'_>) -> api::Pod {
    let mut metadata = metadata(feed);
    let annotations = feed.list(3, |feed| {
        let name = feed.pick(&[
            convert::POD_IPS_ANNOTATION,
            convert::NIC_CONFIG_ANNOTATION,
            convert::NETWORKS_ANNOTATION,
            convert::BRANCH_ENI,
        ]);
        let text = match feed.one_in(2) {
            false => feed.list(3, |feed| feed.text(&ADDRESSES)).join(","),
            true => feed.text(&["multi-nic-attachment", "[]", "x"]),
        };
        (name.to_owned(), text)
    });
    metadata.annotations = annotations.into_iter().collect();
    api::Pod {
        metadata,
        spec: api::PodSpec {
            node_name: (!feed.one_in(4)).then(|| feed.text(&[NODE, NODE, NODE, "elsewhere"])),
            host_network: feed.one_in(16),
            containers: feed.list(2, container),
            init_containers: feed.list(1, container),
        },
        status: api::PodStatus {
            phase: feed.one_in(8).then(|| feed.text(&["Running", "Failed"])),
            pod_ip: feed.one_in(2).then(|| feed.text(&ADDRESSES)),
            pod_ips: feed.list(2, |feed| api::PodIp {
                ip: feed.text(&ADDRESSES),
            }),
        },
    }
}

fn container(feed: &mut Feed<'_>) -> api::Container {
    api::Container {
        restart_policy: feed.one_in(2).then(|| "Always".to_owned()),
        ports: feed.list(3, |feed| api::ContainerPort {
            name: (!feed.one_in(4)).then(|| feed.text(&PORTS)),
            protocol: feed.one_in(2).then(|| feed.text(&PROTOCOLS)),
            container_port: number(feed),
        }),
        resources: api::Resources::default(),
    }
}

fn number(feed: &mut Feed<'_>) -> i64 {
    match feed.byte() % 4 {
        0 => 80,
        1 => 53,
        2 => i64::from(feed.u16()),
        _ => i64::from(feed.u32().cast_signed()),
    }
}

fn policy(feed: &mut Feed<'_>) -> api::NetworkPolicy {
    api::NetworkPolicy {
        metadata: metadata(feed),
        spec: api::NetworkPolicySpec {
            pod_selector: selector(feed),
            policy_types: feed.list(2, |feed| feed.text(&DIRECTIONS)),
            ingress: feed.list(3, |feed| api::IngressRule {
                from: feed.list(3, peer),
                ports: feed.list(3, port),
            }),
            egress: feed.list(3, |feed| api::EgressRule {
                to: feed.list(3, peer),
                ports: feed.list(3, port),
            }),
        },
    }
}

fn peer(feed: &mut Feed<'_>) -> api::Peer {
    let what = feed.byte();
    let has = |bit: u8| what & (1 << bit) != 0;
    api::Peer {
        pod_selector: has(0).then(|| selector(feed)),
        namespace_selector: has(1).then(|| selector(feed)),
        ip_block: (has(2) && (has(3) || what & 3 == 0)).then(|| api::IpBlock {
            cidr: feed.text(&BLOCKS),
            except: feed.list(3, |feed| feed.text(&BLOCKS)),
        }),
    }
}

fn port(feed: &mut Feed<'_>) -> api::Port {
    api::Port {
        protocol: feed.one_in(2).then(|| feed.text(&PROTOCOLS)),
        port: match feed.byte() % 4 {
            0 => None,
            1 => Some(api::IntOrString::Text(feed.text(&PORTS))),
            _ => Some(api::IntOrString::Int(number(feed))),
        },
        end_port: feed.one_in(4).then(|| number(feed)),
    }
}

fn selector(feed: &mut Feed<'_>) -> api::LabelSelector {
    api::LabelSelector {
        match_labels: labels(feed),
        match_expressions: match feed.one_in(4) {
            false => Vec::new(),
            true => feed.list(2, |feed| api::LabelSelectorRequirement {
                key: feed.text(&KEYS),
                operator: feed.text(&OPERATORS),
                values: feed.list(2, |feed| feed.text(&VALUES)),
            }),
        },
    }
}
