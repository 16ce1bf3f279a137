//! A foreign hand changes rules of ours on a loaded node: how long until that is repaired, and what
//! passed meanwhile.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use selvage_tests::{Node, Place as _, Pod, run};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::cluster::{Size, local_pod, object, policy};
use crate::figures::{Row, ms, percentile};
use crate::lab::Lab;
use crate::process::pause;
use crate::replay::Kind;
use crate::rules::{Backend, Chains, Writes};
use crate::ticks::{Arrived, joined, receive, stream};

const ROUNDS_NFT: usize = 40;
const ROUNDS_LEGACY: usize = 15;

/// What happens more often than that to the same node is a fight, which gets slower.
pub const APART: Duration = Duration::from_millis(2_200);

/// A silence that means that nobody writes any more.
const QUIET: Duration = Duration::from_millis(80);

const PATIENCE: Duration = Duration::from_secs(20);

const SPACE: &str = "bench";
const FROM: Ipv4Addr = Ipv4Addr::new(10, 127, 0, 1);
const TO: Ipv4Addr = Ipv4Addr::new(10, 127, 0, 2);
/// Where packets go that are allowed from nobody.
pub const TARGET: SocketAddrV4 = SocketAddrV4::new(TO, 9999);

const BAR_NFT_MS: f64 = 100.0;
const BAR_LEGACY_MS: f64 = 1_500.0;

/// What the daemon says when it is done.
const REPAIRED: &str = "somebody else's change is repaired";

/// A loaded node with a pod that nobody may reach, and one that tries each millisecond.
pub struct Ground {
    /// The one that tries.
    pub from: Pod,
    /// The one that nobody may reach.
    pub to: Pod,
    /// The cluster.
    pub lab: Lab,
}

impl Ground {
    /// Makes the pods and the cluster; `ingress` is what the policy on the second pod allows.
    ///
    /// *Errors*: as [`Lab::new`].
    pub fn new(program: &Path, backend: Backend, node: &Node, ingress: &Value) -> Result<Self> {
        let from = node.pod(SPACE, "from", FROM)?;
        let to = node.pod(SPACE, "to", TO)?;
        let lab = Lab::new(program, backend, Size::LOADED)?;
        let put = |kind, object| lab.server.store().put(kind, object);
        let space = object("Namespace", "v1", "", SPACE, json!({}), json!({}));
        put(Kind::Namespaces, space);
        for (name, address) in [("from", FROM), ("to", TO)] {
            let pod = local_pod(SPACE, name, &json!({"bench": name}), Some(address));
            put(Kind::Pods, pod);
        }
        let closed = json!({
            "podSelector": {"matchLabels": {"bench": "to"}}, "policyTypes": ["Ingress"], "ingress": ingress,
        });
        put(Kind::Policies, policy(SPACE, "closed", closed));
        Ok(Self { from, to, lab })
    }

    /// Does something while packets are sent that nobody may send: what it came to, and those that
    /// arrived, by when they were sent.
    ///
    /// *Errors*: its own; no packet was sent.
    pub fn under_packets<T>(&self, work: impl FnOnce(&Arrived) -> Result<T>) -> Result<T> {
        let (arrived, stop) = (Arrived::default(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(self.to.netns(), TARGET, false, &arrived, &stop));
            let sender = scope.spawn(|| stream(self.from.netns(), FROM, TARGET, &stop));
            let done = work(&arrived);
            stop.store(true, Ordering::Relaxed);
            ensure!(joined(sender)? > 0, "no packet was sent");
            joined(receiver)?;
            done
        })
    }
}

/// Measures `policy/repair-rules-…`.
///
/// *Errors*: a change does not open anything, or is not repaired.
pub fn measure(program: &Path, backend: Backend, node: &Node) -> Result<Vec<Row>> {
    let ground = Ground::new(program, backend, node, &json!([]))?;
    // The look at everything, once a minute, would find some of it by chance.
    let mut launch = ground.lab.launch()?;
    launch.flags = vec!["--resync-seconds=3600".to_owned()];
    let mut agent = launch.start()?;
    agent.in_force(PATIENCE)?;
    let (rounds, bar) = match backend {
        Backend::Nft => (ROUNDS_NFT, BAR_NFT_MS),
        Backend::Legacy => (ROUNDS_LEGACY, BAR_LEGACY_MS),
    };
    let profile = Chains::read(backend)?
        .profile_of(ground.to.interface())
        .context("no profile isolates the pod")?;
    let tool = format!("iptables-{} -w 5 -t mangle", backend.as_str());
    let hands = [
        format!("{tool} -D FORWARD -j selvage-forward"),
        format!("{tool} -F {profile}"),
        format!("{tool} -I selvage-to -j RETURN"),
        format!("{tool} -I FORWARD -j ACCEPT"),
    ];
    let mut writes = Writes::hear(backend)?;
    let (took, passed) = ground.under_packets(|arrived| {
        let (mut took, mut passed) = (Vec::new(), Vec::new());
        for (round, hand) in (0..rounds).zip(hands.iter().cycle()) {
            pause(APART);
            let before = arrived.count();
            let one = repair(&mut agent, &mut writes, hand);
            took.push(ms(one.with_context(|| format!("round {round}: {hand}"))?));
            passed.push((arrived.count() - before) as f64);
            if round % hands.len() == 3 {
                run(&format!("{tool} -D FORWARD -j ACCEPT"))?;
            }
        }
        Ok((took, passed))
    })?;
    ensure!(
        passed.iter().sum::<f64>() > 0.0,
        "no change opened anything"
    );
    let name = |what: &str| format!("policy/repair-rules-{}-{what}", backend.as_str());
    Ok(vec![
        Row::plain(name("p50"), percentile(&took, 50.0), "ms"),
        Row::plain(name("p99"), percentile(&took, 99.0), "ms").at_most(bar),
        Row::plain(name("passed-p50"), percentile(&passed, 50.0), "packets"),
        Row::plain(name("passed-most"), percentile(&passed, 100.0), "packets"),
    ])
}

/// From the foreign hand's write to the daemon's last one.
fn repair(agent: &mut Agent, writes: &mut Writes, hand: &str) -> Result<Duration> {
    writes.last(QUIET)?;
    run(hand)?;
    let changed: Instant = writes.next(PATIENCE)?.context("nobody wrote")?;
    agent.says(REPAIRED, PATIENCE)?;
    let repaired = writes.last(QUIET)?.context("the daemon wrote nothing")?;
    Ok(repaired - changed)
}
