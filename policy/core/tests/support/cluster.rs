//! Random clusters, as the JSON that an API server would give: small worlds, so that names,
//! labels and addresses meet often.

use proptest::prelude::*;
use proptest::sample::select;
use selvage_policy_core::index::{Event, Index, Settings};
use selvage_policy_core::model::NodeName;
use selvage_policy_core::ruleset::{Family, VethPrefix};
use selvage_policy_core::{api, convert};
use serde_json::{Map, Value, json};

/// The node under test.
pub const NODE: &str = "here";

pub const NAMESPACES: [&str; 3] = ["n0", "n1", "n2"];
pub const PODS: [&str; 3] = ["p0", "p1", "p2"];
pub const POLICIES: [&str; 3] = ["q0", "q1", "q2"];

/// Addresses that pods and packets have.
pub const V4: [&str; 6] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.6",
    "10.0.1.1",
    "198.51.100.10",
];
pub const V6: [&str; 4] = ["fd00::1", "fd00::2", "fd00::3", "fd01::1"];

pub fn settings() -> Settings {
    Settings {
        node: NodeName::new(NODE),
        prefix: VethPrefix::default(),
        families: [Family::V4, Family::V6].into(),
        source_check: true,
        drop_invalid: true,
        deny_log: None,
    }
}

/// The kernel's routes to a pod's interface, as an object: `{metadata: {name}, addresses}`.
pub fn routes() -> impl Strategy<Value = Value> {
    let addresses = prop::collection::btree_set(select([&V4[..5], &V6[..3]].concat()), 0..=2);
    (select(&NAMESPACES[..]), select(&PODS[..]), addresses).prop_map(
        |(namespace, pod, addresses)| {
            let interface = VethPrefix::default().veth(namespace, pod).to_string();
            json!({"metadata": {"name": interface}, "addresses": addresses})
        },
    )
}

pub fn routes_applied(object: &Value) -> Event {
    let addresses = object["addresses"].as_array().unwrap();
    Event::Routes {
        interface: object["metadata"]["name"].as_str().unwrap().to_owned(),
        addresses: addresses
            .iter()
            .map(|address| address.as_str().unwrap().parse().unwrap())
            .collect(),
    }
}

/// An index that was told of these objects, each once, in order.
pub fn index(namespaces: &[Value], pods: &[Value], policies: &[Value]) -> Index {
    let mut index = Index::new(settings());
    for object in namespaces {
        index.apply(namespace_applied(object));
    }
    for object in pods {
        index.apply(pod_applied(object));
    }
    for object in policies {
        index.apply(policy_applied(object));
    }
    index
}

pub fn pod_applied(object: &Value) -> Event {
    let object: api::Pod = serde_json::from_value(object.clone()).unwrap();
    Event::PodApplied(convert::pod(object))
}

pub fn namespace_applied(object: &Value) -> Event {
    let object: api::Namespace = serde_json::from_value(object.clone()).unwrap();
    Event::NamespaceApplied(convert::namespace(object))
}

pub fn policy_applied(object: &Value) -> Event {
    let object: api::NetworkPolicy = serde_json::from_value(object.clone()).unwrap();
    Event::PolicyApplied(convert::policy(&object).0)
}

fn labels() -> impl Strategy<Value = Value> {
    prop::collection::btree_map(select(vec!["a", "b"]), select(vec!["x", "y", ""]), 0..=2)
        .prop_map(|labels| json!(labels))
}

pub fn namespace() -> impl Strategy<Value = Value> {
    (select(&NAMESPACES[..]), labels())
        .prop_map(|(name, labels)| json!({"metadata": {"name": name, "labels": labels}}))
}

pub fn pod() -> impl Strategy<Value = Value> {
    let node = prop_oneof![
        3 => Just(json!(NODE)),
        2 => Just(json!("there")),
        1 => Just(Value::Null),
    ];
    let phase = prop_oneof![
        6 => Just(json!("Running")),
        1 => Just(json!("Pending")),
        1 => Just(json!("Succeeded")),
        1 => Just(json!("Failed")),
    ];
    let addresses = (
        prop::option::weighted(0.9, select(&V4[..5])),
        prop::option::weighted(0.5, select(&V6[..3])),
    );
    let ports = prop::collection::vec(container_port(), 0..=3);
    (
        select(&NAMESPACES[..]),
        select(&PODS[..]),
        labels(),
        node,
        phase,
        addresses,
        prop::bool::weighted(0.1),
        select(vec!["u0", "u1"]),
        ports,
    )
        .prop_map(
            |(namespace, name, labels, node, phase, (v4, v6), host, uid, ports)| {
                let ips: Vec<Value> = v4.into_iter().chain(v6).map(|ip| json!({"ip": ip})).collect();
                let (first, rest) = ports.split_at(ports.len() / 2);
                let restart = (ports.len() % 2 == 0).then_some("Always");
                json!({
                    "metadata": {"name": name, "namespace": namespace, "labels": labels, "uid": uid},
                    "spec": {
                        "nodeName": node,
                        "hostNetwork": host,
                        "containers": [{"ports": first}],
                        "initContainers": [{"restartPolicy": restart, "ports": rest}],
                    },
                    "status": {"phase": phase, "podIPs": ips},
                })
            },
        )
}

fn container_port() -> impl Strategy<Value = Value> {
    let protocol = select(vec![
        json!({}),
        json!({"protocol": "TCP"}),
        json!({"protocol": "UDP"}),
    ]);
    let name = select(vec![
        Value::Null,
        json!("http"),
        json!("http"),
        json!("dns"),
    ]);
    (protocol, name, 80..=82).prop_map(|(mut port, name, number)| {
        port["containerPort"] = json!(number);
        if !name.is_null() {
            port["name"] = name;
        }
        port
    })
}

fn selector() -> impl Strategy<Value = Value> {
    let operator = prop_oneof![
        20 => select(vec!["In", "NotIn"]).prop_flat_map(|operator| {
            prop::collection::vec(select(vec!["x", "y", ""]), 1..=2)
                .prop_map(move |values| json!({"operator": operator, "values": values}))
        }),
        20 => select(vec!["Exists", "DoesNotExist"])
            .prop_map(|operator| json!({"operator": operator})),
        1 => Just(json!({"operator": "Like", "values": ["x"]})),
        1 => Just(json!({"operator": "In", "values": []})),
    ];
    let expression = (select(vec!["a", "b"]), operator).prop_map(|(key, mut expression)| {
        expression["key"] = json!(key);
        expression
    });
    let expressions = prop_oneof![
        2 => Just(Vec::new()),
        1 => prop::collection::vec(expression, 1..=2),
    ];
    let some = prop_oneof![1 => Just(json!({})), 2 => labels()];
    (some, expressions).prop_map(|(labels, expressions)| {
        let mut selector = Map::new();
        if labels != json!({}) {
            selector.insert("matchLabels".to_owned(), labels);
        }
        if !expressions.is_empty() {
            selector.insert("matchExpressions".to_owned(), json!(expressions));
        }
        Value::Object(selector)
    })
}

fn peer() -> impl Strategy<Value = Value> {
    let blocks = select(vec![
        json!({"cidr": "10.0.0.0/29"}),
        json!({"cidr": "10.0.0.2/32"}),
        json!({"cidr": "10.0.0.3/29", "except": ["10.0.0.2/32"]}),
        json!({"cidr": "10.0.0.0/8", "except": ["10.0.0.0/30", "10.0.0.2/31"]}),
        json!({"cidr": "0.0.0.0/0"}),
        json!({"cidr": "0.0.0.0/0", "except": ["10.0.0.0/16"]}),
        json!({"cidr": "::/0"}),
        json!({"cidr": "fd00::/64", "except": ["fd00::2/128"]}),
        json!({"cidr": "fd00::3/128"}),
        json!({"cidr": "10.0.0.0/29", "except": ["10.0.1.0/24"]}),
        json!({"cidr": "10.0.0/29"}),
    ]);
    prop_oneof![
        3 => selector().prop_map(|pods| json!({"podSelector": pods})),
        3 => selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        3 => (selector(), selector()).prop_map(|(namespaces, pods)| {
            json!({"namespaceSelector": namespaces, "podSelector": pods})
        }),
        4 => blocks.prop_map(|block| json!({"ipBlock": block})),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let protocol = select(vec![
        json!({}),
        json!({"protocol": "TCP"}),
        json!({"protocol": "UDP"}),
        json!({"protocol": "SCTP"}),
    ]);
    let number = select(vec![
        json!({}),
        json!({"port": 80}),
        json!({"port": 80}),
        json!({"port": 81}),
        json!({"port": 81, "endPort": 82}),
        json!({"port": 80, "endPort": 90}),
        json!({"port": 82, "endPort": 82}),
        json!({"port": "http"}),
        json!({"port": "http"}),
        json!({"port": "dns"}),
    ]);
    let bad = select(vec![
        json!({"port": "http", "endPort": 90}),
        json!({"port": "80"}),
        json!({"port": 0}),
        json!({"port": 81, "endPort": 80}),
        json!({"protocol": "ICMP"}),
    ]);
    prop_oneof![
        30 => (protocol, number).prop_map(|(mut port, number)| {
            for (key, value) in number.as_object().unwrap() {
                port[key] = value.clone();
            }
            port
        }),
        1 => bad,
    ]
}

fn rule(peers: &'static str) -> impl Strategy<Value = Value> {
    let some = prop_oneof![
        1 => Just(Value::Null),
        1 => Just(json!([])),
        6 => prop::collection::vec(peer(), 1..=2).prop_map(|peers| json!(peers)),
    ];
    let ports = prop_oneof![
        2 => Just(Value::Null),
        1 => Just(json!([])),
        5 => prop::collection::vec(port(), 1..=3).prop_map(|ports| json!(ports)),
    ];
    (some, ports).prop_map(move |(some, ports)| {
        let mut rule = Map::new();
        if !some.is_null() {
            rule.insert(peers.to_owned(), some);
        }
        if !ports.is_null() {
            rule.insert("ports".to_owned(), ports);
        }
        Value::Object(rule)
    })
}

pub fn policy() -> impl Strategy<Value = Value> {
    let types = select(vec![
        Value::Null,
        Value::Null,
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
        json!(["Ingress", "Egress"]),
    ]);
    (
        select(&NAMESPACES[..]),
        select(&POLICIES[..]),
        selector(),
        types,
        prop::option::of(prop::collection::vec(rule("from"), 0..=2)),
        prop::option::of(prop::collection::vec(rule("to"), 0..=2)),
    )
        .prop_map(|(namespace, name, subject, types, ingress, egress)| {
            let mut spec = Map::new();
            spec.insert("podSelector".to_owned(), subject);
            for (key, value) in [
                ("policyTypes", types),
                ("ingress", json!(ingress)),
                ("egress", json!(egress)),
            ] {
                if !value.is_null() {
                    spec.insert(key.to_owned(), value);
                }
            }
            json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec})
        })
}
