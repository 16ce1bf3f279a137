//! A cluster to which a test adds one thing, asked in words.
//!
//! Namespaces x, y, z, labelled `ns: <name>`, each with pods a, b, c, labelled `pod: <name>`; a and
//! c on node-a, b on node-b. Pod a of x has the addresses 10.0.1.1 and fd00::1:1, pod c of z
//! 10.0.3.3 and fd00::3:3.

use selvage_oracle::probe::{End, Probe, Traffic, nodes};
use selvage_oracle::reading::{addresses, allowed, list};
use serde_json::{Value, json};

use crate::compiled::Compiled;

pub(crate) struct World {
    cluster: Value,
}

impl World {
    pub(crate) fn new() -> Self {
        let (mut namespaces, mut pods) = (Vec::new(), Vec::new());
        for (namespace, third) in ["x", "y", "z"].into_iter().zip(1..) {
            namespaces.push(json!({"metadata": {
                "name": namespace,
                "labels": {"ns": namespace, "kubernetes.io/metadata.name": namespace},
            }}));
            for (name, fourth) in ["a", "b", "c"].into_iter().zip(1..) {
                pods.push(json!({
                    "metadata": {
                        "namespace": namespace, "name": name, "uid": format!("{namespace}-{name}"),
                        "labels": {"pod": name},
                    },
                    "spec": {
                        "nodeName": if name == "b" { "node-b" } else { "node-a" },
                        "containers": [{}],
                    },
                    "status": {"phase": "Running", "podIPs": [
                        {"ip": format!("10.0.{third}.{fourth}")},
                        {"ip": format!("fd00::{third}:{fourth}")},
                    ]},
                }));
            }
        }
        let node = |name: &str, address: &str| {
            json!({
                "metadata": {"name": name},
                "status": {"addresses": [{"type": "InternalIP", "address": address}]},
            })
        };
        Self {
            cluster: json!({
                "nodes": [node("node-a", "10.1.0.1"), node("node-b", "10.1.0.2")],
                "namespaces": namespaces,
                "pods": pods,
                "policies": [],
            }),
        }
    }

    /// Adds a policy of namespace x.
    pub(crate) fn policy(self, spec: Value) -> Self {
        self.policy_in("x", spec)
    }

    pub(crate) fn policy_in(mut self, namespace: &str, spec: Value) -> Self {
        let policies = self.cluster["policies"].as_array_mut().unwrap();
        let of_namespace = policies
            .iter()
            .filter(|policy| policy["metadata"]["namespace"] == namespace);
        let name = format!("policy-{}", of_namespace.count());
        policies.push(json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec}));
        self
    }

    /// Adds an ingress policy that selects pod a of x and has one rule.
    pub(crate) fn into_a(self, rule: Value) -> Self {
        self.policy(json!({"podSelector": {"matchLabels": {"pod": "a"}}, "ingress": [rule]}))
    }

    /// Adds an egress policy that selects pod a of x and has one rule.
    pub(crate) fn out_of_a(self, rule: Value) -> Self {
        self.policy(json!({
            "podSelector": {"matchLabels": {"pod": "a"}},
            "policyTypes": ["Egress"],
            "egress": [rule],
        }))
    }

    pub(crate) fn without_policies(mut self) -> Self {
        self.cluster["policies"] = json!([]);
        self
    }

    /// Sets a field of a pod, given as a JSON pointer whose parents exist.
    pub(crate) fn pod(mut self, name: &str, field: &str, value: Value) -> Self {
        let (namespace, name) = name.split_once('/').unwrap();
        let pods = self.cluster["pods"].as_array_mut().unwrap();
        let pod = pods.iter_mut().find(|pod| {
            pod["metadata"]["namespace"] == namespace && pod["metadata"]["name"] == name
        });
        set(pod.unwrap(), field, value);
        self
    }

    pub(crate) fn namespace(mut self, name: &str, field: &str, value: Value) -> Self {
        let namespaces = self.cluster["namespaces"].as_array_mut().unwrap();
        let object = namespaces
            .iter_mut()
            .find(|object| object["metadata"]["name"] == name);
        set(object.unwrap(), field, value);
        self
    }

    /// Takes a Namespace away; its pods stay, as they do until they are told to be gone.
    pub(crate) fn without_namespace(mut self, name: &str) -> Self {
        let namespaces = self.cluster["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|object| object["metadata"]["name"] != name);
        self
    }

    pub(crate) fn without_pods_of(mut self, namespace: &str) -> Self {
        let pods = self.cluster["pods"].as_array_mut().unwrap();
        pods.retain(|pod| pod["metadata"]["namespace"] != namespace);
        self
    }

    /// Each flow passes, by both readings.
    ///
    /// A flow is `from > to TCP 80`; an end is `x/a`, `x/a@6` (by its IPv6 address), a node or an
    /// address; `ICMP` has no port.
    #[track_caller]
    pub(crate) fn allows(&self, flows: &[&str]) -> &Self {
        self.check(flows, true)
    }

    /// No flow passes, by either reading.
    #[track_caller]
    pub(crate) fn forbids(&self, flows: &[&str]) -> &Self {
        self.check(flows, false)
    }

    #[track_caller]
    fn check(&self, flows: &[&str], expected: bool) -> &Self {
        let compiled = Compiled::new(&self.cluster);
        for flow in flows {
            let probe = self.probe(flow);
            let reading = allowed(&self.cluster, &probe.from, &probe.to, probe.traffic);
            let (passes, stays) = (compiled.passes(&probe), compiled.stays(&probe));
            assert_eq!(
                (reading, passes, stays),
                (expected, expected, expected),
                "{flow}: (plain reading, compiled, verdict on an established flow)"
            );
        }
        self
    }

    fn probe(&self, flow: &str) -> Probe {
        let words: Vec<&str> = flow.split(' ').collect();
        let (from, to) = (self.end(words[0]), self.end(words[2]));
        let port = words.get(4).map_or(0, |port| port.parse().unwrap());
        let traffic = match words[3] {
            "TCP" => Traffic::Tcp(port),
            "UDP" => Traffic::Udp(port),
            "SCTP" => Traffic::Sctp(port),
            "ICMP" => Traffic::Other,
            other => panic!("{flow}: {other}?"),
        };
        Probe { from, to, traffic }
    }

    fn end(&self, word: &str) -> End {
        if let Ok(address) = word.parse() {
            return End::Address(address);
        }
        let Some((namespace, name)) = word.split_once('/') else {
            let mut nodes = nodes(&self.cluster).into_iter();
            let is = |end: &End| matches!(end, End::Node { name, .. } if name == word);
            return nodes.find(is).unwrap();
        };
        let (name, v6) = match name.split_once('@') {
            Some((name, _)) => (name, true),
            None => (name, false),
        };
        let mut pods = list(&self.cluster["pods"]).iter();
        let pod = pods.find(|pod| {
            pod["metadata"]["namespace"] == namespace && pod["metadata"]["name"] == name
        });
        let addresses = addresses(pod.unwrap());
        let mut of_family = addresses
            .into_iter()
            .filter(|address| address.is_ipv6() == v6);
        End::pod(namespace, name, of_family.next().unwrap())
    }
}

fn set(object: &mut Value, field: &str, value: Value) {
    let (parent, key) = field.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[key] = value;
}
