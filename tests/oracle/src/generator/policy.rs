//! Random policies of every shape.

use serde_json::{Value, json};

use super::block::block;
use super::pod::{KEYS, PORT_NAMES, PORTS, VALUES, protocol};
use super::{NAMESPACES, object};
use crate::random::Random;

pub(super) fn policy(random: &mut Random, home: &Value, number: usize, odd: usize) -> Value {
    let types = match random.below(8) {
        0 | 1 => None,
        2 => Some(json!([])),
        3 => Some(json!(["Ingress"])),
        4 => Some(json!(["Egress"])),
        _ if random.percent(odd) => Some(json!(["Ingress", "Sideways"])),
        _ => Some(json!(["Ingress", "Egress"])),
    };
    let ingress = rules(random, "from", odd);
    let egress = rules(random, "to", odd);
    let spec = object([
        ("podSelector", Some(selector(random, odd))),
        ("policyTypes", types),
        ("ingress", ingress),
        ("egress", egress),
    ]);
    json!({
        "metadata": {"namespace": home, "name": format!("q{number}")},
        "spec": spec,
    })
}

fn rules(random: &mut Random, peers: &'static str, odd: usize) -> Option<Value> {
    match random.below(16) {
        0 | 1 => None,
        2 | 3 => Some(json!([])),
        4 => Some(json!([{}])),
        _ => {
            let count = random.between(1, 3);
            Some((0..count).map(|_| rule(random, peers, odd)).collect())
        }
    }
}

/// A list that is missing, empty, or holds some.
fn maybe_list(
    random: &mut Random,
    most: usize,
    entry: &mut dyn FnMut(&mut Random) -> Value,
) -> Option<Value> {
    match random.below(12) {
        0 => None,
        1 => Some(json!([])),
        _ => {
            let count = random.between(1, most);
            Some((0..count).map(|_| entry(random)).collect())
        }
    }
}

fn rule(random: &mut Random, peers: &'static str, odd: usize) -> Value {
    let some = maybe_list(random, 3, &mut |random| peer(random, odd));
    let ports = maybe_list(random, 3, &mut |random| port(random, odd));
    object([(peers, some), ("ports", ports)])
}

fn peer(random: &mut Random, odd: usize) -> Value {
    if random.percent(odd) {
        let (block, pods) = (block(random, 0), selector(random, 0));
        return random.pick(&[json!({}), json!({"ipBlock": block, "podSelector": pods})]);
    }
    match random.below(10) {
        0..3 => json!({"podSelector": selector(random, odd)}),
        3..5 => json!({"namespaceSelector": selector(random, odd)}),
        5..7 => json!({
            "namespaceSelector": selector(random, odd),
            "podSelector": selector(random, odd),
        }),
        _ => json!({"ipBlock": block(random, odd)}),
    }
}

fn selector(random: &mut Random, odd: usize) -> Value {
    let mut selector = json!({});
    if random.percent(45) {
        for _ in 0..random.between(1, 2) {
            selector["matchLabels"][key(random)] = json!(random.pick(&VALUES));
        }
    } else if random.percent(10) {
        selector["matchLabels"] = json!({});
    }
    if random.percent(35) {
        let count = random.between(1, 2);
        selector["matchExpressions"] = (0..count).map(|_| expression(random, odd)).collect();
    } else if random.percent(10) {
        selector["matchExpressions"] = json!([]);
    }
    selector
}

fn key(random: &mut Random) -> &'static str {
    if random.percent(8) {
        "kubernetes.io/metadata.name"
    } else {
        random.pick(&KEYS)
    }
}

fn expression(random: &mut Random, odd: usize) -> Value {
    let key = key(random);
    if random.percent(odd) {
        return random.pick(&[
            json!({"key": key, "operator": "Like", "values": ["web"]}),
            json!({"key": key, "operator": "In", "values": []}),
            json!({"key": key, "operator": "Exists", "values": ["web"]}),
            json!({"key": "-", "operator": "Exists"}),
            json!({"key": key, "operator": "NotIn", "values": ["no value!"]}),
            json!({"key": "Upper.example.org/role", "operator": "DoesNotExist"}),
        ]);
    }
    let pool: &[&str] = if key == "kubernetes.io/metadata.name" {
        &NAMESPACES
    } else {
        &VALUES
    };
    let count = random.between(1, 2);
    let values: Vec<&str> = (0..count).map(|_| random.pick(pool)).collect();
    match random.below(4) {
        0 => json!({"key": key, "operator": "In", "values": values}),
        1 => json!({"key": key, "operator": "NotIn", "values": values}),
        2 => json!({"key": key, "operator": "Exists"}),
        _ => json!({"key": key, "operator": "DoesNotExist"}),
    }
}

fn port(random: &mut Random, odd: usize) -> Value {
    if random.percent(odd) {
        return random.pick(&[
            json!({"port": 0}),
            json!({"port": 65536}),
            json!({"port": 81, "endPort": 80}),
            json!({"endPort": 80}),
            json!({"port": "http", "endPort": 90}),
            json!({"port": "80"}),
            json!({"port": "Http"}),
            json!({"protocol": "ICMP"}),
            json!({"protocol": "tcp", "port": 80}),
        ]);
    }
    let first = random.pick(&PORTS);
    let (port, end) = match random.below(10) {
        0..2 => (None, None),
        2..5 => (Some(json!(first)), None),
        5..7 => {
            let last = random.pick(&PORTS).max(first);
            (Some(json!(first)), Some(json!(last)))
        }
        _ => (Some(json!(random.pick(&PORT_NAMES))), None),
    };
    object([
        ("protocol", protocol(random)),
        ("port", port),
        ("endPort", end),
    ])
}
