//! A cluster made from a seed: what "loaded" means in every figure.
//!
//! Namespaces with a team and an environment; pods with an app of fifty, a tier of three and a
//! version of four; policies that mix selectors of pods and namespaces, blocks with exceptions,
//! single ports, ranges and named ports. The first pods are bound to the node under test.

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::replay::{Kind, Object};
use crate::seed::Seed;

/// The node under test.
pub const NODE: &str = "n1";

/// Where pods' addresses begin; each has the next one.
const FIRST_ADDRESS: u32 = u32::from_be_bytes([10, 64, 0, 10]);

/// A pod with what a real one carries and nobody here reads, as the API server writes it: on one
/// line. Reading past that is part of the cost.
static POD: LazyLock<String> = LazyLock::new(|| {
    let pod: Value = serde_json::from_str(include_str!("cluster/pod.json"))
        .expect("the pod beside this file is JSON");
    pod.to_string()
});

const APPS: u64 = 50;
const TEAMS: u64 = 20;
const TIERS: [&str; 3] = ["fe", "be", "db"];
const ENVIRONMENTS: [&str; 3] = ["prod", "dev", "stage"];
const PORTS: [u16; 7] = [80, 443, 8080, 5432, 6379, 9090, 53];
const WEB_PORTS: [u16; 3] = [80, 8080, 8443];

/// How much there is of everything.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Namespaces.
    pub namespaces: u32,
    /// Pods of the whole cluster.
    pub pods: u32,
    /// Pods of [`NODE`], among them.
    pub local: u32,
    /// NetworkPolicies.
    pub policies: u32,
}

impl Size {
    /// What the latency of changes is measured in.
    pub const LOADED: Self = Self {
        namespaces: 200,
        pods: 10_000,
        local: 110,
        policies: 2_000,
    };

    /// What memory and starting are measured in.
    pub const LARGE: Self = Self {
        namespaces: 200,
        pods: 100_000,
        local: 110,
        policies: 10_000,
    };
}

/// What a pod is labelled with.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Where it runs.
    pub node: String,
    app: u64,
    tier: &'static str,
    version: u64,
    web: u16,
}

impl Pod {
    /// The label `app`.
    #[must_use]
    pub fn app(&self) -> String {
        format!("app{}", self.app)
    }

    /// Another pod that is like it.
    #[must_use]
    pub fn twin(&self, name: String, address: Ipv4Addr) -> Self {
        Self {
            name,
            address,
            ..self.clone()
        }
    }

    /// The pod as the API server tells it.
    #[must_use]
    pub fn object(&self) -> Object {
        let json = POD
            .replace("$namespace", &self.namespace)
            .replace("$name", &self.name)
            .replace("$uid", &uid(&self.name))
            .replace("$app", &self.app())
            .replace("$tier", self.tier)
            .replace("$version", &format!("v{}", self.version))
            .replace("$node", &self.node)
            .replace("$address", &self.address.to_string())
            .replace(":65535,", &format!(":{},", self.web));
        Object {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            node: Some(self.node.clone()),
            json,
        }
    }
}

/// A stable uid for a name.
fn uid(name: &str) -> String {
    let mut seed = Seed::new(name.bytes().fold(7, |sum: u64, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    }));
    let (one, other) = (seed.next(), seed.next());
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        one >> 32,
        one & 0xffff,
        (one >> 16) & 0xfff,
        other >> 52,
        other & 0xffff_ffff_ffff
    )
}

/// The cluster of a seed.
#[derive(Debug)]
pub struct Cluster {
    /// Pods; the first ones are bound to [`NODE`].
    pub pods: Vec<Pod>,
    namespaces: Vec<Object>,
    policies: Vec<Object>,
}

impl Cluster {
    /// Makes it up.
    #[must_use]
    pub fn generate(size: Size, seed: u64) -> Self {
        let mut seed = Seed::new(seed);
        let namespaces = (0..size.namespaces)
            .map(|number| {
                let name = namespace_name(number);
                let team = format!("t{}", u64::from(number) % TEAMS);
                let environment = ENVIRONMENTS[number as usize % ENVIRONMENTS.len()];
                object(
                    "Namespace",
                    "v1",
                    "",
                    &name,
                    json!({"team": team, "env": environment, "kubernetes.io/metadata.name": name}),
                    json!({"finalizers": ["kubernetes"]}),
                )
            })
            .collect();
        let pods = (0..size.pods)
            .map(|number| Pod {
                namespace: namespace_name(number % size.namespaces),
                name: format!("pod-{number:05}"),
                address: Ipv4Addr::from(FIRST_ADDRESS + number),
                node: if number < size.local {
                    NODE.to_owned()
                } else {
                    format!("node-{:03}", number % 90)
                },
                app: seed.below(APPS),
                tier: seed.pick::<&str>(&TIERS),
                version: seed.below(4),
                web: *seed.pick(&WEB_PORTS),
            })
            .collect();
        let policies = (0..size.policies)
            .map(|number| {
                let namespace = namespace_name(number % size.namespaces);
                let name = format!("policy-{number:05}");
                policy(&namespace, &name, policy_spec(&mut seed))
            })
            .collect();
        Self {
            pods,
            namespaces,
            policies,
        }
    }

    /// Pods of [`NODE`].
    pub fn local(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().take_while(|pod| pod.node == NODE)
    }

    /// Pods of other nodes.
    pub fn remote(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().skip_while(|pod| pod.node == NODE)
    }

    /// Every object, for a server to begin with.
    pub fn objects(&self) -> impl Iterator<Item = (Kind, Object)> {
        let namespaces = self.namespaces.iter().cloned();
        let policies = self.policies.iter().cloned();
        namespaces
            .map(|object| (Kind::Namespaces, object))
            .chain(policies.map(|object| (Kind::Policies, object)))
            .chain(self.pods.iter().map(|pod| (Kind::Pods, pod.object())))
    }
}

fn namespace_name(number: u32) -> String {
    format!("ns-{number:03}")
}

/// A NetworkPolicy as the API server tells it.
#[must_use]
pub fn policy(namespace: &str, name: &str, spec: Value) -> Object {
    object(
        "NetworkPolicy",
        "networking.k8s.io/v1",
        namespace,
        name,
        json!({}),
        spec,
    )
}

/// A pod of [`NODE`] with any labels, before or after it has an address.
#[must_use]
pub fn local_pod(namespace: &str, name: &str, labels: &Value, address: Option<Ipv4Addr>) -> Object {
    let status = match address {
        None => json!({"phase": "Pending"}),
        Some(address) => {
            json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]})
        }
    };
    pod(namespace, name, NODE, labels, Value::Null, status)
}

/// A pod of another node, with any labels, annotations and status.
#[must_use]
pub fn remote_pod(
    namespace: &str,
    name: &str,
    labels: &Value,
    annotations: Value,
    status: Value,
) -> Object {
    pod(namespace, name, "node-001", labels, annotations, status)
}

fn pod(
    namespace: &str,
    name: &str,
    node: &str,
    labels: &Value,
    annotations: Value,
    status: Value,
) -> Object {
    let spec = json!({"nodeName": node, "containers": [{"name": "c", "image": "x"}]});
    let object = object("Pod", "v1", namespace, name, labels.clone(), spec);
    let mut value: Value = serde_json::from_str(&object.json).expect("made of JSON");
    value["metadata"]["annotations"] = annotations;
    value["status"] = status;
    Object {
        node: Some(node.to_owned()),
        json: value.to_string(),
        ..object
    }
}

/// Any object without a node.
#[must_use]
pub fn object(
    kind: &str,
    version: &str,
    namespace: &str,
    name: &str,
    labels: Value,
    spec: Value,
) -> Object {
    let mut metadata = json!({
        "name": name, "uid": uid(&format!("{kind}/{namespace}/{name}")), "resourceVersion": "@",
        "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1, "labels": labels,
    });
    if !namespace.is_empty() {
        metadata["namespace"] = json!(namespace);
    }
    let json = json!({"kind": kind, "apiVersion": version, "metadata": metadata, "spec": spec});
    Object {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        node: None,
        json: json.to_string(),
    }
}

fn selector(seed: &mut Seed) -> Value {
    match seed.below(100) {
        0..50 => json!({"matchLabels": {"app": format!("app{}", seed.below(APPS))}}),
        50..70 => json!({"matchLabels": {"tier": seed.pick(&TIERS)}}),
        70..85 => {
            let first = seed.below(APPS);
            let values: Vec<String> = (0..3)
                .map(|step| format!("app{}", (first + 7 * step) % APPS))
                .collect();
            json!({"matchExpressions": [{"key": "app", "operator": "In", "values": values}]})
        }
        _ => {
            json!({"matchExpressions": [{"key": "version", "operator": "NotIn", "values": ["v0"]}]})
        }
    }
}

fn peer(seed: &mut Seed) -> Value {
    match seed.below(100) {
        0..35 => json!({"podSelector": selector(seed)}),
        35..60 => {
            json!({"namespaceSelector": {"matchLabels": {"team": format!("t{}", seed.below(TEAMS))}}})
        }
        60..85 => json!({
            "namespaceSelector": {"matchLabels": {"env": seed.pick(&ENVIRONMENTS)}},
            "podSelector": selector(seed),
        }),
        _ => {
            let (second, third) = (16 + seed.below(16), seed.below(256));
            let hole = 16 * seed.below(15);
            json!({"ipBlock": {
                "cidr": format!("172.{second}.{third}.0/24"),
                "except": [format!("172.{second}.{third}.{hole}/28")],
            }})
        }
    }
}

fn ports(seed: &mut Seed) -> Vec<Value> {
    (0..1 + seed.below(3))
        .map(|_| {
            let protocol = if seed.chance(75) { "TCP" } else { "UDP" };
            match seed.below(100) {
                0..60 => json!({"protocol": protocol, "port": seed.pick(&PORTS)}),
                60..85 => {
                    let start = 20_000 + seed.below(10_000);
                    json!({"protocol": protocol, "port": start, "endPort": start + 1 + seed.below(199)})
                }
                _ => json!({"protocol": "TCP", "port": "web"}),
            }
        })
        .collect()
}

fn rules(seed: &mut Seed, peers: &str) -> Vec<Value> {
    (0..1 + seed.below(2))
        .map(|_| {
            let list: Vec<Value> = (0..1 + seed.below(3)).map(|_| peer(seed)).collect();
            json!({peers: list, "ports": ports(seed)})
        })
        .collect()
}

fn policy_spec(seed: &mut Seed) -> Value {
    let subject = if seed.chance(80) {
        selector(seed)
    } else {
        json!({})
    };
    let mut spec = json!({"podSelector": subject});
    let mut types = Vec::new();
    if seed.chance(80) {
        types.push("Ingress");
        spec["ingress"] = json!(rules(seed, "from"));
    }
    if types.is_empty() || seed.chance(40) {
        types.push("Egress");
        spec["egress"] = json!(rules(seed, "to"));
    }
    spec["policyTypes"] = json!(types);
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Size = Size {
        namespaces: 4,
        pods: 40,
        local: 3,
        policies: 60,
    };

    fn texts(seed: u64) -> Vec<String> {
        let cluster = Cluster::generate(SMALL, seed);
        cluster.objects().map(|(_, object)| object.json).collect()
    }

    #[test]
    fn a_seed_makes_one_cluster() {
        assert_eq!(texts(1), texts(1));
        assert_ne!(texts(1), texts(2));
    }

    #[test]
    fn every_object_is_json_and_every_kind_of_rule_is_there() {
        let texts = texts(1);
        assert_eq!(texts.len(), 104);
        for text in &texts {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(value["metadata"]["resourceVersion"], "@", "{text}");
        }
        let all = texts.concat();
        for word in [
            "ipBlock",
            "except",
            "endPort",
            r#""port":"web""#,
            "matchExpressions",
            "namespaceSelector",
            "Egress",
            "UDP",
        ] {
            assert!(all.contains(word), "no policy has {word}");
        }
    }

    #[test]
    fn local_pods_come_first() {
        let cluster = Cluster::generate(SMALL, 1);
        assert_eq!(cluster.local().count(), 3);
        assert_eq!(cluster.remote().count(), 37);
    }
}
