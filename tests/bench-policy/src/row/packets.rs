//! What enforcement costs a packet, beside conntrack with one ESTABLISHED rule: nodes, each
//! a network namespace with two pods, take turns. A fifth is a node whose member budget is too small.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result};
use selvage_tests::{Netns, Node, Place as _, Pod, run, run_with_input};
use serde_json::json;

use crate::agent::Launch;
use crate::cluster::{self, policy};
use crate::figures::{Row, percentile};
use crate::lab::PATIENCE;
use crate::packets::{self, PORT};
use crate::replay::{Kind, Object, Server};
use crate::rules::Backend;

const ROUNDS: usize = 60;
/// So many rounds are one value, their median: a burst that somebody interrupted says nothing.
const TOGETHER: usize = 10;
const CONNECTION_ROUNDS: usize = 8;
const SLICE: Duration = Duration::from_millis(250);

/// Everything on one processor, so that the sender's time is the whole path's.
const CPU: usize = 0;

const FROM: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 11);
const TO: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 12);

/// Policies that select both pods, in both directions; how many is what is measured.
const MANY: u32 = 1_000;

/// Those policies have more members than that, folded, and are laid out apart.
const TIGHT: &str = "--member-budget=1000";

/// A node with two pods and rules of its own.
struct Side {
    name: &'static str,
    netns: Netns,
    pods: Option<(Pod, Pod)>,
}

impl Side {
    fn new(name: &'static str) -> Result<Self> {
        run(&format!("ip netns add {name}"))?;
        let netns = Netns::open(format!("/run/netns/{name}"))?;
        let pods = netns.run(|| -> Result<(Pod, Pod)> {
            let node = Node::new()?;
            run("ip link set lo up")?;
            // Pods are named by their side: their namespaces share a folder.
            let from = node.pod("bench", &format!("{name}-from"), FROM)?;
            let to = node.pod("bench", &format!("{name}-to"), TO)?;
            for pod in [&from, &to] {
                // Ports for more connections than a minute's rest lets through.
                pod.netns().run(|| -> std::io::Result<()> {
                    fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")?;
                    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535")
                })??;
            }
            Ok((from, to))
        })??;
        Ok(Self {
            name,
            netns,
            pods: Some(pods),
        })
    }

    fn pods(&self) -> (&Pod, &Pod) {
        let (from, to) = self.pods.as_ref().expect("pods live as long as their side");
        (from, to)
    }

    /// The bare floor: connection tracking, and one rule that sees it.
    fn conntrack(&self, backend: Backend) -> Result<()> {
        let text =
            "*mangle\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\nCOMMIT\n";
        let tool = format!("{} --noflush", backend.restore("iptables"));
        self.netns.run(|| run_with_input(&tool, text))?.map(drop)
    }

    /// Rules as the daemon makes them for so many policies; then it is ended, and they stay.
    fn enforce(
        &self,
        program: &Path,
        backend: Backend,
        policies: u32,
        flags: &[&str],
    ) -> Result<()> {
        self.netns.run(|| -> Result<()> {
            let server = Server::start()?;
            server.store().fill(self.objects(policies).into_iter());
            let folder = tempfile::tempdir()?;
            let kubeconfig = server.kubeconfig(folder.path())?;
            let mut launch = Launch::new(program, kubeconfig, backend, folder.path());
            launch.flags = flags.iter().map(ToString::to_string).collect();
            let mut agent = launch.start()?;
            agent.in_force(PATIENCE)?;
            agent.end()
        })?
    }

    fn objects(&self, policies: u32) -> Vec<(Kind, Object)> {
        let labels = json!({"app": "bench"});
        let mut all = vec![(
            Kind::Namespaces,
            cluster::object("Namespace", "v1", "", "bench", json!({}), json!({})),
        )];
        for (name, address) in [("from", FROM), ("to", TO)] {
            let name = format!("{}-{name}", self.name);
            let pod = cluster::local_pod("bench", &name, &labels, Some(address));
            all.push((Kind::Pods, pod));
        }
        for number in 0..policies {
            // Each allows somebody else too, on ports of its own, so that none is like another.
            let block = format!("172.{}.{}.0/24", 16 + number / 256, number % 256);
            let peers = json!([{"podSelector": {"matchLabels": {"app": "bench"}}}, {"ipBlock": {"cidr": block}}]);
            let ports = json!([
                {"protocol": "UDP", "port": PORT}, {"protocol": "TCP", "port": PORT, "endPort": PORT + 7},
                {"protocol": "TCP", "port": 10_000 + number},
            ]);
            let spec = json!({
                "podSelector": {"matchLabels": labels}, "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": peers, "ports": ports}], "egress": [{"to": peers, "ports": ports}],
            });
            all.push((
                Kind::Policies,
                policy("bench", &format!("policy-{number}"), spec),
            ));
        }
        all
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Some((from, to)) = self.pods.take() {
            let _ = self.netns.run(|| {
                let _ = from.delete();
                let _ = to.delete();
            });
        }
        let _ = run(&format!("ip netns del {}", self.name));
    }
}

/// Measures `policy/first-packet-…`, `policy/established-…`, `policy/connections-…` and what the
/// source check adds.
///
/// *Errors*: a packet that every policy allows did not arrive.
pub fn measure(program: &Path, backend: Backend) -> Result<Vec<Row>> {
    let sides = [
        Side::new("ct")?,
        Side::new("one")?,
        Side::new("many")?,
        Side::new("check")?,
        Side::new("apart")?,
    ];
    let [ct, one, many, check, apart] = &sides;
    let bare = "--source-check=false";
    ct.conntrack(backend)?;
    one.enforce(program, backend, 1, &[bare])?;
    many.enforce(program, backend, MANY, &[bare])?;
    check.enforce(program, backend, 1, &["--source-check=true"])?;
    apart.enforce(program, backend, MANY, &[bare, TIGHT])?;
    packets::stay(CPU)?;
    let mut paths = Vec::new();
    for side in &sides {
        let (from, to) = side.pods();
        let path = packets::Path::open(from, to).with_context(|| side.name)?;
        paths.push(path);
    }
    let (mut first, mut established) = ([const { Vec::new() }; 5], [const { Vec::new() }; 5]);
    for _ in 0..ROUNDS {
        for (at, path) in paths.iter_mut().enumerate() {
            first[at].push(path.first()?);
            established[at].push(path.established()?);
        }
    }
    drop(paths);
    let mut connections = [const { Vec::new() }; 3];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let mut servers = Vec::new();
        for side in &sides[..3] {
            servers.push(packets::serve(scope, side.pods().1, &stop, CPU)?);
        }
        for _ in 0..CONNECTION_ROUNDS {
            for (side, counted) in sides.iter().zip(&mut connections) {
                counted.push(packets::connections(side.pods().0, TO, SLICE, CPU)?);
            }
        }
        drop(servers);
        Ok(())
    })?;
    let name = |what: &str| format!("policy/{what}-{}", backend.as_str());
    let (first_bar, connections_bar) = match backend {
        Backend::Nft => (1.6, 0.85),
        Backend::Legacy => (1.25, 0.95),
    };
    let over = |what, values: &[f64], floors: &[f64], unit| {
        let medians = |all: &[f64]| -> Vec<f64> {
            let some = all.chunks(if unit == "ns" { TOGETHER } else { 1 });
            some.map(|few| percentile(few, 50.0)).collect()
        };
        Row::of_rounds(name(what), &medians(values), &medians(floors), unit)
    };
    Ok(vec![
        over(
            "first-packet-1000-policies-over-1",
            &first[2],
            &first[1],
            "ns",
        )
        .at_most(1.1),
        over(
            "first-packet-1000-policies-apart-over-folded",
            &first[4],
            &first[2],
            "ns",
        ),
        over("first-packet-1-policy", &first[1], &first[0], "ns").at_most(first_bar),
        over("established-packet", &established[2], &established[0], "ns").at_most(1.1),
        over("source-check-first-packet", &first[3], &first[1], "ns"),
        over(
            "source-check-established",
            &established[3],
            &established[1],
            "ns",
        ),
        over(
            "connections-1000-policies",
            &connections[2],
            &connections[0],
            "/s",
        )
        .at_least(connections_bar),
    ])
}
