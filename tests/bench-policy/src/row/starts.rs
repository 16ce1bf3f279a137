//! Pods start on a loaded node while packets are sent, one a millisecond: what is forbidden passes
//! at no moment from the veth's creation on; what is allowed passes soon.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use selvage_tests::{Netns, Node, Place, Pod, interface_name, run};
use serde_json::{Value, json};

use crate::cluster::{Size, local_pod, object, policy, remote_pod};
use crate::figures::{Row, ms, percentile};
use crate::lab::Lab;
use crate::process::{pause, wait_for};
use crate::replay::Kind;
use crate::rules::Backend;
use crate::ticks::{Arrived, receive, send};

const STARTS: u8 = 200;
const REMOTE: u8 = 40;

const SPACE: &str = "bench";
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 127, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 127, 0, 2);
const ALLOWED: u16 = 9998;
const FORBIDDEN: u16 = 9999;

/// Packets go on for so long after the pod is there.
const HOLD: Duration = Duration::from_millis(60);

const PATIENCE: Duration = Duration::from_secs(5);

/// A pod's route to its veth has told the daemon its address by then, or it never will; a status
/// follows, as a kubelet writes it.
const ROUTE: Duration = Duration::from_millis(400);

const SETTLE: Duration = Duration::from_secs(2);

/// When the API server tells of a pod, beside the making of its veth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// A while before, as usual: it had to be bound first.
    Before,
    /// At the same moment.
    Meanwhile,
    /// When its veth has been there for a while: the daemon heard nothing of it.
    After,
}

/// Measures `policy/starts-forbidden-packets` and `policy/first-allowed-…`.
///
/// *Errors*: what is allowed does not pass, or nothing forbidden was ever sent.
pub fn measure(program: &Path, backend: Backend, node: &Node) -> Result<Vec<Row>> {
    let server = node.pod(SPACE, "server", SERVER)?;
    let other = node.pod(SPACE, "other", OTHER)?;
    let lab = Lab::new(program, backend, Size::LOADED)?;
    let put = |kind, object| lab.server.store().put(kind, object);
    put(
        Kind::Namespaces,
        object("Namespace", "v1", "", SPACE, json!({}), json!({})),
    );
    for (name, address) in [("server", SERVER), ("other", OTHER)] {
        put(
            Kind::Pods,
            local_pod(SPACE, name, &json!({"app": name}), Some(address)),
        );
    }
    let ports = json!([{"protocol": "UDP", "port": ALLOWED}]);
    let guarded = json!({
        "podSelector": {"matchLabels": {"app": "new"}}, "policyTypes": ["Ingress", "Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "server"}}}], "ports": ports}],
    });
    put(Kind::Policies, policy(SPACE, "guarded", guarded));
    let open = json!({
        "podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "new"}}}], "ports": ports}],
    });
    put(Kind::Policies, policy(SPACE, "open", open));
    let _up = lab.up()?;
    let mut rows = starts(&lab, node, &server, &other)?;
    rows.extend(remote(&lab, node, &server)?);
    Ok(rows)
}

fn starts(lab: &Lab, node: &Node, server: &Pod, other: &Pod) -> Result<Vec<Row>> {
    let (mut sent, mut passed) = (0, 0);
    let mut waits = Vec::new();
    for number in 0..STARTS {
        let told = match number % 4 {
            0 | 1 => Told::Before,
            2 => Told::Meanwhile,
            _ => Told::After,
        };
        let started = start(lab, node, server, other, number, told)
            .with_context(|| format!("start {number}, told {told:?}"))?;
        sent += started.sent;
        passed += started.passed;
        waits.extend(started.allowed);
    }
    ensure!(sent > 0, "no forbidden packet was ever sent");
    eprintln!("{sent} forbidden packets were sent in {STARTS} starts");
    let mut rows =
        vec![Row::plain("policy/starts-forbidden-packets", passed as f64, "packets").at_most(0.0)];
    // Told by the kernel's route to its veth: no start here has an address in its status.
    let name = "policy/first-allowed-same-node-p99";
    rows.push(Row::plain(name, percentile(&waits, 99.0), "ms").at_most(50.0));
    Ok(rows)
}

/// What one start showed.
struct Started {
    /// Forbidden packets that left their sender, and those that arrived.
    sent: usize,
    passed: usize,
    /// Milliseconds from the pod's being complete to the first allowed packet; only where the
    /// daemon had been told of it.
    allowed: Option<f64>,
}

fn start(
    lab: &Lab,
    node: &Node,
    server: &Pod,
    other: &Pod,
    number: u8,
    told: Told,
) -> Result<Started> {
    let name = format!("new-{number}");
    let address = Ipv4Addr::new(10, 127, 1, number);
    let tell = || {
        let pod = local_pod(SPACE, &name, &json!({"app": "new"}), None);
        lab.server.store().put(Kind::Pods, pod);
    };
    let stop = AtomicBool::new(false);
    let (into, out, allowed) = (Arrived::default(), Arrived::default(), Arrived::default());
    let (pod, complete, sent) = std::thread::scope(|scope| -> Result<_> {
        if told == Told::Before {
            tell();
            pause(HOLD / 3);
        }
        let to = |address, port| SocketAddrV4::new(address, port);
        let (stop, into, out, allowed) = (&stop, &into, &out, &allowed);
        scope.spawn(move || receive(other.netns(), to(OTHER, FORBIDDEN), false, out, stop));
        scope.spawn(move || receive(server.netns(), to(SERVER, ALLOWED), false, allowed, stop));
        let inward = scope.spawn(move || send(other.netns(), OTHER, to(address, FORBIDDEN), stop));
        // From within, as soon as there is a namespace; until there is an address, nothing leaves.
        let path = format!("/run/netns/{}", interface_name(SPACE, &name));
        let within = scope.spawn(move || -> Result<usize> {
            // Its file is there a moment before it is a namespace.
            let netns = wait_for("the pod's namespace", PATIENCE, || {
                let found = Netns::open(&path).ok();
                Ok(found.filter(|netns| netns.run(|| ()).is_ok()))
            })?;
            std::thread::scope(|scope| {
                let here = &netns;
                scope.spawn(move || {
                    receive(
                        here,
                        to(Ipv4Addr::UNSPECIFIED, FORBIDDEN),
                        false,
                        into,
                        stop,
                    )
                });
                scope.spawn(move || send(here, address, to(SERVER, ALLOWED), stop));
                send(here, address, to(OTHER, FORBIDDEN), stop)
            })
        });
        if told == Told::Meanwhile {
            tell();
        }
        let made = node.pod(SPACE, &name, address);
        let complete = Instant::now();
        if told == Told::After {
            pause(HOLD / 2);
            tell();
        }
        let seen = wait_for("the first allowed packet", ROUTE, || Ok(allowed.first()));
        let seen = seen.or_else(|_| {
            // Its route told nobody: the kubelet's status does.
            let pod = local_pod(SPACE, &name, &json!({"app": "new"}), Some(address));
            lab.server.store().put(Kind::Pods, pod);
            wait_for("the first allowed packet", PATIENCE, || Ok(allowed.first()))
        });
        pause(HOLD);
        stop.store(true, Ordering::Relaxed);
        let mut sent = 0;
        for sender in [inward, within] {
            sent += sender
                .join()
                .map_err(|_| anyhow::anyhow!("a sender panicked"))??;
        }
        let pod = made?;
        seen?;
        Ok((pod, complete, sent))
    })?;
    let passed = into.count() + out.count();
    let first = allowed.first();
    pod.delete()?;
    lab.server.store().delete(Kind::Pods, SPACE, &name)?;
    Ok(Started {
        sent,
        passed,
        allowed: first
            .filter(|_| told != Told::After)
            .map(|first| ms(first.saturating_duration_since(complete))),
    })
}

/// A pod of another node: its address by annotation, as a CNI writes it, and by status alone.
fn remote(lab: &Lab, node: &Node, server: &Pod) -> Result<Vec<Row>> {
    // What the last starts left to do is done.
    pause(SETTLE);
    let machine = node.endpoint("ens6", Ipv4Addr::new(10, 127, 3, 1))?;
    let (mut annotated, mut by_status) = (Vec::new(), Vec::new());
    for number in 0..REMOTE {
        let address = Ipv4Addr::new(10, 127, 2, number);
        run(&format!("ip -n ens6 addr add {address}/32 dev eth0"))?;
        run(&format!("ip route add {address}/32 dev ens6 scope link"))?;
        let name = format!("remote-{number}");
        let (annotations, status) = match number % 2 {
            0 => (
                json!({"vpc.amazonaws.com/pod-ips": address}),
                json!({"phase": "Pending"}),
            ),
            _ => (
                Value::Null,
                json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}),
            ),
        };
        let pod = remote_pod(SPACE, &name, &json!({"app": "new"}), annotations, status);
        let (stop, allowed) = (AtomicBool::new(false), Arrived::default());
        let to = SocketAddrV4::new(SERVER, ALLOWED);
        let took = std::thread::scope(|scope| -> Result<Duration> {
            let receiver = scope.spawn(|| receive(server.netns(), to, false, &allowed, &stop));
            let sender = scope.spawn(|| send(machine.netns(), address, to, &stop));
            pause(HOLD / 3);
            let began = Instant::now();
            lab.server.store().put(Kind::Pods, pod);
            let first = wait_for("the first allowed packet", PATIENCE, || {
                Ok(allowed.first_after(began))
            });
            stop.store(true, Ordering::Relaxed);
            sender
                .join()
                .map_err(|_| anyhow::anyhow!("the sender panicked"))??;
            receiver
                .join()
                .map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
            Ok(first?.saturating_duration_since(began))
        })
        .with_context(|| name.clone())?;
        match number % 2 {
            0 => annotated.push(ms(took)),
            _ => by_status.push(ms(took)),
        }
        lab.server.store().delete(Kind::Pods, SPACE, &name)?;
    }
    let row = |what: &str, values: &[f64]| {
        let name = format!("policy/first-allowed-{what}-p99");
        Row::plain(name, percentile(values, 99.0), "ms")
    };
    Ok(vec![
        row("by-annotation", &annotated).at_most(150.0),
        row("by-status", &by_status),
    ])
}
