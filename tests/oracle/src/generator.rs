//! Random clusters, as the JSON that an API server would give: small worlds, so that names, labels,
//! addresses and ports meet often, and with what no API server takes today mixed in.

mod block;
mod pod;
mod policy;

use serde_json::{Map, Value, json};

use crate::random::Random;

/// The nodes of every cluster.
pub const NODES: [&str; 2] = ["node-a", "node-b"];

const NAMESPACES: [&str; 3] = ["n0", "n1", "n2"];

/// How large, and how odd.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Pods at most.
    pub pods: usize,
    /// Policies at most.
    pub policies: usize,
    /// In how many of a hundred places something stands that the API server refuses.
    pub odd: usize,
}

impl Size {
    /// For readings, which are fast.
    pub const CROWD: Self = Self {
        pods: 10,
        policies: 8,
        odd: 2,
    };
}

/// The cluster of a seed.
///
/// *Shape*: lists `nodes`, `namespaces`, `pods`, `policies`; no two objects of a list have the same
/// name; addresses may be shared.
#[must_use]
pub fn cluster(random: &mut Random, size: Size) -> Value {
    let mut namespaces = Vec::new();
    for name in NAMESPACES {
        if !random.percent(4) {
            let mut labels = pod::labels(random);
            labels["kubernetes.io/metadata.name"] = json!(name);
            namespaces.push(json!({"metadata": {"name": name, "labels": labels}}));
        }
    }
    let pods = pod::pods(random, size);
    let mut policies = Vec::new();
    // Now and then one where no pod is.
    let mut homes: Vec<&Value> = pods
        .iter()
        .map(|pod| &pod["metadata"]["namespace"])
        .collect();
    let elsewhere = json!(random.pick(&NAMESPACES));
    homes.push(&elsewhere);
    for number in 0..random.between(1, size.policies) {
        let home = random.pick(&homes);
        policies.push(policy::policy(random, home, number, size.odd));
    }
    let nodes: Vec<Value> = NODES
        .iter()
        .zip(1..)
        .map(|(name, number)| {
            json!({
                "metadata": {"name": name},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": node_address(number, false)},
                    {"type": "InternalIP", "address": node_address(number, true)},
                ]},
            })
        })
        .collect();
    json!({"nodes": nodes, "namespaces": namespaces, "pods": pods, "policies": policies})
}

/// The address of the node of a number, which pods with `hostNetwork` share.
fn node_address(number: usize, v6: bool) -> String {
    if v6 {
        format!("fd00:1::{number}")
    } else {
        format!("10.1.0.{number}")
    }
}

/// An object of the fields that are there.
fn object(fields: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Value {
    let mut object = Map::new();
    for (name, value) in fields {
        if let Some(value) = value {
            object.insert(name.to_owned(), value);
        }
    }
    Value::Object(object)
}
