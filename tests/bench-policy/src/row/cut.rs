//! What a change of policy forbids ends soon, among ten thousand other flows; what it still allows
//! loses nothing. UDP and TCP side by side, a packet each millisecond.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use selvage_tests::{Netns, Node, Place as _, run};
use serde_json::json;

use crate::cluster::{Size, local_pod, object, policy};
use crate::figures::{Row, ms, percentile};
use crate::lab::Lab;
use crate::process::{pause, wait_for};
use crate::replay::Kind;
use crate::rules::Backend;
use crate::ticks::{Arrived, accept, joined, receive, stream, upload};

const ROUNDS: usize = 40;

/// Flows of others in conntrack's table.
const CROWD: u32 = 10_000;

const SPACE: &str = "bench";
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 127, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 127, 0, 2);
const FORBIDDEN: SocketAddrV4 = SocketAddrV4::new(SERVER, 9999);
const ALLOWED: SocketAddrV4 = SocketAddrV4::new(SERVER, 9998);

/// So many packets of a flow make it one that goes on.
const BEGUN: usize = 50;

/// A flow of which nothing came for so long has ended.
const ENDED: Duration = Duration::from_millis(250);

const PATIENCE: Duration = Duration::from_secs(10);

const BAR_MS: f64 = 100.0;

/// Measures `policy/flow-cut-…` and `policy/flow-allowed-lost`.
///
/// *Errors*: a flow does not begin, or does not end.
pub fn measure(program: &Path, backend: Backend, node: &Node) -> Result<Vec<Row>> {
    let client = node.pod(SPACE, "client", CLIENT)?;
    let server = node.pod(SPACE, "server", SERVER)?;
    let lab = Lab::new(program, backend, Size::LOADED)?;
    let space = object("Namespace", "v1", "", SPACE, json!({}), json!({}));
    lab.server.store().put(Kind::Namespaces, space);
    for (name, address) in [("client", CLIENT), ("server", SERVER)] {
        let pod = local_pod(SPACE, name, &json!({"app": name}), Some(address));
        lab.server.store().put(Kind::Pods, pod);
    }
    let _up = lab.up()?;
    crowd()?;
    let (udp, tcp, kept) = (Arrived::default(), Arrived::default(), Arrived::default());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (server, client) = (server.netns(), client.netns());
        scope.spawn(|| receive(server, FORBIDDEN, true, &udp, &stop));
        scope.spawn(|| accept(server, FORBIDDEN, &tcp, &stop));
        let receiver = scope.spawn(|| receive(server, ALLOWED, true, &kept, &stop));
        let sender = scope.spawn(|| stream(client, CLIENT, ALLOWED, &stop));
        let rounds = rounds(&lab, client, &udp, &tcp);
        stop.store(true, Ordering::Relaxed);
        let sent = joined(sender)?;
        let unheard = joined(receiver)?;
        let (udp, tcp) = rounds?;
        ensure!(sent > 1_000, "{sent} allowed packets were sent");
        eprintln!("{} rounds, {sent} allowed packets", udp.len());
        let lost = sent.saturating_sub(kept.count() + unheard);
        let cut = |what: &str, values: &[f64]| {
            let name = format!("policy/flow-cut-{what}-p99");
            Row::plain(name, percentile(values, 99.0), "ms").at_most(BAR_MS)
        };
        Ok(vec![
            cut("udp", &udp),
            cut("tcp", &tcp),
            Row::plain("policy/flow-allowed-lost", lost as f64, "packets").at_most(0.0),
        ])
    })
}

/// Flows of machines that are no pods of this node, half of them UDP.
fn crowd() -> Result<()> {
    let mut lines = String::new();
    for number in 0..CROWD {
        let how = match number % 2 {
            0 => "-p tcp --state ESTABLISHED -u ASSURED,SEEN_REPLY",
            _ => "-p udp -u ASSURED,SEEN_REPLY",
        };
        let from = Ipv4Addr::from(u32::from_be_bytes([10, 200, 0, 1]) + number);
        let to = Ipv4Addr::from(u32::from_be_bytes([10, 201, 0, 1]) + number % 1_000);
        writeln!(
            lines,
            "-A {how} -s {from} -d {to} --sport 1024 --dport 80 -t 3600"
        )?;
    }
    std::fs::write("/run/crowd", lines)?;
    run("conntrack -R /run/crowd")?;
    let there: u32 = run("conntrack -C")?.trim().parse()?;
    ensure!(there >= CROWD, "conntrack holds {there} flows");
    Ok(())
}

/// Milliseconds from a policy to the last packet of the flows that it forbids, UDP and TCP.
fn rounds(lab: &Lab, client: &Netns, udp: &Arrived, tcp: &Arrived) -> Result<(Vec<f64>, Vec<f64>)> {
    let ports = json!([{"protocol": "UDP", "port": ALLOWED.port()}]);
    let closing = json!({
        "podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": ports}],
    });
    let (mut udp_took, mut tcp_took) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let stop = AtomicBool::new(false);
        let began = Instant::now();
        let asked = std::thread::scope(|scope| -> Result<Instant> {
            let datagrams = scope.spawn(|| stream(client, CLIENT, FORBIDDEN, &stop));
            let bytes = scope.spawn(|| upload(client, FORBIDDEN, &stop));
            let ended = (|| {
                for (what, arrived) in [("UDP", udp), ("TCP", tcp)] {
                    wait_for(what, PATIENCE, || {
                        Ok((arrived.count_after(began) >= BEGUN).then_some(()))
                    })?;
                }
                let asked = Instant::now();
                let policy = policy(SPACE, "closing", closing.clone());
                lab.server.store().put(Kind::Policies, policy);
                for (what, arrived) in [("UDP", udp), ("TCP", tcp)] {
                    // By when it was sent: what waits in a queue has been allowed.
                    wait_for(&format!("the end of {what}"), PATIENCE, || {
                        let last = arrived.last();
                        Ok(last.filter(|last| last.elapsed() > ENDED).map(drop))
                    })?;
                }
                Ok(asked)
            })();
            stop.store(true, Ordering::Relaxed);
            joined(datagrams)?;
            joined(bytes)?;
            ended
        })
        .with_context(|| format!("round {round}"))?;
        for (arrived, took) in [(udp, &mut udp_took), (tcp, &mut tcp_took)] {
            let last = arrived.last().context("packets arrived")?;
            took.push(ms(last.saturating_duration_since(asked)));
        }
        lab.server
            .store()
            .delete(Kind::Policies, SPACE, "closing")?;
        // What its end opens is open, and the last look at flows has rested.
        pause(ENDED);
    }
    Ok((udp_took, tcp_took))
}
