//! A node, five pods on it, another node and the world, in namespaces; their rules change, they stay.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use selvage_netfilter::conntrack::Conntrack;
use selvage_netfilter::{Backend, Kernel};
use selvage_oracle::probe::{End, Probe, pods};
use selvage_policy_core::plan::plan;
use selvage_policy_core::ruleset::Family;
use selvage_tests::{Netns, PATIENCE, assert_isolated, interface_name, run, run_with_input};
use serde_json::{Value, json};

use super::compiled::Compiled;
use super::probe::reaches;

/// The pods that exist, and their addresses: those that the generator gives to its first pods.
const PODS: [(&str, &str, &str, &str); 5] = [
    ("n0", "p0", "10.0.0.1", "fd00::1"),
    ("n0", "p1", "10.0.0.2", "fd00::2"),
    ("n1", "p0", "10.0.0.3", "fd00::3"),
    ("n1", "p2", "10.0.0.4", "fd00::4"),
    ("n2", "p1", "10.0.1.1", "fd00::1:1"),
];

/// The node itself.
const NODE: (&str, &str) = ("10.1.0.1", "fd00:1::1");

/// Machines that are no pods: interface and addresses.
const OTHERS: [(&str, &str, &str); 2] = [
    ("ens5", "198.51.100.10", "2001:db8::10"),
    ("ens6", "10.1.0.2", "fd00:1::2"),
];

/// Gives the first pods of a cluster the names, the place and the addresses of those that exist;
/// the others are elsewhere, or of a name that nobody has here.
pub(super) fn realise(mut cluster: Value) -> Value {
    let pods = cluster["pods"].as_array_mut().expect("a list");
    let count = PODS.len().min(pods.len());
    for (pod, (namespace, name, v4, v6)) in pods.iter_mut().zip(PODS) {
        let metadata = &mut pod["metadata"];
        metadata["namespace"] = json!(namespace);
        metadata["name"] = json!(name);
        metadata["annotations"] = json!({});
        metadata["deletionTimestamp"] = Value::Null;
        pod["spec"]["nodeName"] = json!("node-a");
        pod["spec"]["hostNetwork"] = json!(false);
        pod["status"] = json!({"phase": "Running", "podIPs": [{"ip": v4}, {"ip": v6}]});
    }
    let is_taken = |pod: &Value| {
        PODS.iter().any(|(namespace, name, ..)| {
            pod["metadata"]["namespace"] == *namespace && pod["metadata"]["name"] == *name
        })
    };
    let others = pods.split_off(count);
    for mut pod in others.into_iter().filter(|pod| !is_taken(pod)) {
        if pod["spec"]["nodeName"].is_string() {
            pod["spec"]["nodeName"] = json!("node-b");
        }
        pods.push(pod);
    }
    cluster
}

pub(super) struct Ground {
    family: Family,
    kernel: Kernel,
    conntrack: Conntrack,
    places: Vec<(IpAddr, Netns)>,
}

impl Ground {
    pub(super) fn new(backend: Backend, family: Family) -> Result<Self> {
        assert_isolated()?;
        for (key, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv6/conf/all/forwarding", "1"),
            // A link-local address would be of no use for its first second.
            ("ipv6/conf/default/accept_dad", "0"),
        ] {
            set(key, value)?;
        }
        quick_refusals()?;
        let pick = |v4: &str, v6: &str| -> Result<IpAddr> {
            Ok(match family {
                Family::V4 => v4.parse()?,
                Family::V6 => v6.parse()?,
            })
        };
        for address in [NODE.0, NODE.1] {
            run(&format!("ip addr add {address} dev lo"))?;
        }
        let mut places = vec![(pick(NODE.0, NODE.1)?, Netns::current()?)];
        let pods = PODS.map(|(namespace, name, v4, v6)| (interface_name(namespace, name), v4, v6));
        let others = OTHERS.map(|(interface, v4, v6)| (interface.to_owned(), v4, v6));
        for (interface, v4, v6) in pods.iter().chain(&others) {
            places.push((pick(v4, v6)?, place(interface, v4, v6)?));
        }
        Ok(Self {
            family,
            kernel: Kernel::open(backend, Duration::from_secs(10))?,
            conntrack: Conntrack::open(Duration::from_secs(10))?,
            places,
        })
    }

    /// Puts the rules of the cluster in force, as the node's agent would, and forgets the flows of the
    /// cluster before: what has no ports would be part of them.
    pub(super) fn enforce(&mut self, cluster: &Value) -> Result<()> {
        let want = Compiled::new(cluster).into_ruleset("node-a", self.family);
        let todo = plan(&want, &self.kernel.observe(self.family)?);
        let left = self.kernel.apply(&todo)?;
        ensure!(left.is_empty(), "{left:?}");
        let mut flows = Vec::new();
        self.conntrack
            .each(self.family, &mut |entry| flows.push(*entry))?;
        self.conntrack.delete(&flows)?;
        Ok(())
    }

    /// Whether both ends are here, and packets between them cross the node or end on it.
    pub(super) fn knows(&self, probe: &Probe) -> bool {
        let here = |end: &End| match end {
            End::Pod {
                namespace,
                name,
                address,
            } => PODS
                .iter()
                .any(|pod| pod.0 == namespace && pod.1 == name && self.place(*address).is_some()),
            End::Node { address, .. } => self.place(*address).is_some(),
            End::Address(address) => {
                let others: BTreeSet<&str> =
                    OTHERS.iter().flat_map(|other| [other.1, other.2]).collect();
                self.place(*address).is_some() && others.contains(&*address.to_string())
            }
        };
        here(&probe.from) && here(&probe.to) && probe.from.address() != probe.to.address()
    }

    pub(super) fn knows_in(&self, cluster: &Value, probe: &Probe) -> bool {
        let there = |end: &End| !matches!(end, End::Pod { .. }) || pods(cluster).contains(end);
        self.knows(probe) && there(&probe.from) && there(&probe.to)
    }

    fn place(&self, address: IpAddr) -> Option<&Netns> {
        let found = self.places.iter().find(|place| place.0 == address);
        found.map(|(_, netns)| netns)
    }

    /// Which of the flows' first packets arrive, all sent at once.
    pub(super) fn ask(&self, probes: &[Probe]) -> Result<Vec<bool>> {
        thread::scope(|scope| {
            let asked: Vec<_> = (0_u16..)
                .zip(probes)
                .map(|(number, probe)| scope.spawn(move || self.ask_one(number, probe, PATIENCE)))
                .collect();
            let answers = asked
                .into_iter()
                .map(|asked| asked.join().expect("no panic in a probe"));
            answers.collect()
        })
    }

    pub(super) fn ask_patiently(&self, probe: &Probe) -> Result<bool> {
        // 9999: a source port that no probe of the first round had.
        self.ask_one(9999, probe, 5 * PATIENCE)
    }

    fn ask_one(&self, number: u16, probe: &Probe, patience: Duration) -> Result<bool> {
        let place = |end: &End| {
            self.place(end.address())
                .with_context(|| format!("{end} is not here"))
        };
        reaches(
            place(&probe.from)?,
            place(&probe.to)?,
            number,
            probe,
            patience,
        )
        .with_context(|| probe.to_string())
    }
}

/// Sets a key of the calling thread's namespace.
fn set(key: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{key}");
    fs::write(&path, value).with_context(|| format!("set {path} to {value}"))
}

/// Refusals tell that a packet arrived: each must be sent, however many there are.
fn quick_refusals() -> Result<()> {
    set("ipv4/icmp_ratelimit", "0")?;
    set("ipv6/icmp/ratelimit", "0")
}

/// A namespace with one address of each family behind an interface of the node.
fn place(interface: &str, v4: &str, v6: &str) -> Result<Netns> {
    run(&format!("ip netns add {interface}"))?;
    let netns = Netns::open(format!("/run/netns/{interface}"))?;
    netns.run(|| {
        quick_refusals()?;
        set("ipv6/conf/default/accept_dad", "0")
    })??;
    run_with_input(
        "ip -batch -",
        &format!(
            "link add {interface} type veth peer name eth0 netns {interface}\n\
             link set {interface} up\n\
             addr add fe80::1/64 dev {interface} nodad\n"
        ),
    )?;
    run_with_input(
        &format!("ip -n {interface} -batch -"),
        &format!(
            "link set lo up\nlink set eth0 up\n\
             addr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n\
             route add 169.254.1.1 dev eth0 scope link\nroute add default via 169.254.1.1 dev eth0\n\
             route add default via fe80::1 dev eth0\n"
        ),
    )?;
    let link = run(&format!("ip -br link show dev {interface}"))?;
    let mac = link.split_whitespace().nth(2);
    let mac = mac.with_context(|| format!("no MAC address in {link:?}"))?;
    run(&format!(
        "ip -n {interface} neigh add 169.254.1.1 lladdr {mac} nud permanent dev eth0"
    ))?;
    run_with_input(
        "ip -batch -",
        &format!(
            "route add {v4}/32 dev {interface} scope link\nroute add {v6}/128 dev {interface}\n"
        ),
    )?;
    Ok(netns)
}
