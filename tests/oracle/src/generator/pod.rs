//! Random pods.

use serde_json::{Value, json};

use super::{NAMESPACES, NODES, Size, node_address, object};
use crate::random::Random;

pub(super) const KEYS: [&str; 3] = ["app", "tier", "example.org/role"];
pub(super) const VALUES: [&str; 3] = ["web", "db", ""];
pub(super) const PORT_NAMES: [&str; 4] = ["http", "dns", "metrics", "p-1"];
pub(super) const PORTS: [u16; 9] = [1, 53, 80, 81, 443, 8080, 8081, 9000, 65535];

const PODS: [&str; 5] = ["p0", "p1", "p2", "p3", "p4"];

pub(super) fn labels(random: &mut Random) -> Value {
    let mut labels = json!({});
    for _ in 0..random.below(3) {
        labels[random.pick(&KEYS)] = json!(random.pick(&VALUES));
    }
    labels
}

/// Pods of different names.
pub(super) fn pods(random: &mut Random, size: Size) -> Vec<Value> {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for _ in 0..random.between(1, size.pods) {
        let name = (random.pick(&NAMESPACES), random.pick(&PODS));
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let pods = names.into_iter().enumerate();
    pods.map(|(number, name)| pod(random, number, name, size))
        .collect()
}

fn pod(random: &mut Random, number: usize, name: (&str, &str), size: Size) -> Value {
    let node = random.below(NODES.len());
    let host_network = random.percent(8);
    // Few addresses: now and then two pods have the same one, or one lies in another's block.
    let number = if random.percent(6) {
        random.below(3)
    } else {
        number
    };
    let address = |random: &mut Random, v6: bool| match (host_network, v6) {
        (true, _) => node_address(node + 1, v6),
        (false, false) => {
            let mapped = if random.percent(4) { "::ffff:" } else { "" };
            format!("{mapped}{}", address_of(number))
        }
        (false, true) => random.pick(&[
            format!("fd00::{}:{}", number / 4, 1 + number % 4),
            format!("FD00:0:0:0:0:0:{}:{}", number / 4, 1 + number % 4),
        ]),
    };
    let families: &[bool] = match random.below(20) {
        0 => &[],
        1..7 => &[false],
        7..10 => &[true],
        10..15 => &[true, false],
        _ => &[false, true],
    };
    let known: Vec<String> = families.iter().map(|v6| address(random, *v6)).collect();
    let (status, annotation) = match random.below(20) {
        0 => (Vec::new(), Some(known.join(","))),
        1 => (Vec::new(), Some(known.join(", "))),
        2 => (known.clone(), Some(known.join(","))),
        3 => (known.clone(), Some(String::new())),
        // The status is behind, and still tells of an address that is another's.
        4 => (vec![address_of(random.below(4))], Some(known.join(","))),
        _ => (known, None),
    };
    let labels = random.percent(90).then(|| labels(random));
    let annotations = annotation.map(|text| json!({"vpc.amazonaws.com/pod-ips": text}));
    let going = random.percent(6).then(|| json!("2026-01-01T00:00:00Z"));
    let metadata = object([
        ("namespace", Some(json!(name.0))),
        ("name", Some(json!(name.1))),
        ("uid", Some(json!(format!("uid-{}-{}", name.0, name.1)))),
        ("labels", labels),
        ("annotations", annotations),
        ("deletionTimestamp", going),
    ]);
    let bound = random.percent(95).then(|| json!(NODES[node]));
    let spec = object([
        ("nodeName", bound),
        ("hostNetwork", host_network.then_some(json!(true))),
        ("containers", Some(containers(random, size.odd))),
        (
            "initContainers",
            random
                .percent(15)
                .then(|| init_containers(random, size.odd)),
        ),
    ]);
    let phase = match random.below(12) {
        0 => "Succeeded",
        1 => "Failed",
        2 => "Pending",
        3 => "Unknown",
        _ => "Running",
    };
    let ips: Vec<Value> = status.iter().map(|ip| json!({"ip": ip})).collect();
    let status = object([
        ("phase", Some(json!(phase))),
        ("podIP", status.first().map(|ip| json!(ip))),
        ("podIPs", (!ips.is_empty()).then_some(json!(ips))),
    ]);
    json!({"metadata": metadata, "spec": spec, "status": status})
}

fn address_of(number: usize) -> String {
    format!("10.0.{}.{}", number / 4, 1 + number % 4)
}

fn containers(random: &mut Random, odd: usize) -> Value {
    let count = random.between(1, 2);
    (0..count).map(|_| container(random, odd)).collect()
}

fn init_containers(random: &mut Random, odd: usize) -> Value {
    let mut container = container(random, odd);
    if random.percent(50) {
        container["restartPolicy"] = json!("Always");
    }
    json!([container])
}

fn container(random: &mut Random, odd: usize) -> Value {
    let count = random.below(4);
    let ports: Vec<Value> = (0..count)
        .map(|_| {
            let number = if random.percent(odd) {
                0
            } else {
                random.pick(&PORTS)
            };
            object([
                (
                    "name",
                    random.percent(80).then(|| json!(random.pick(&PORT_NAMES))),
                ),
                ("protocol", protocol(random)),
                ("containerPort", Some(json!(number))),
            ])
        })
        .collect();
    object([("ports", (count > 0).then_some(json!(ports)))])
}

pub(super) fn protocol(random: &mut Random) -> Option<Value> {
    let name = random.pick(&["", "", "TCP", "UDP", "SCTP"]);
    (!name.is_empty()).then(|| json!(name))
}
