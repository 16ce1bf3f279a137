//! From the write of a policy to its effect on packets, one a millisecond, each a new flow; and
//! beside it a bare watch that has read the same event.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use selvage_tests::{Node, Place as _};
use serde_json::json;

use crate::cluster::{Size, local_pod, object, policy};
use crate::figures::{Row, ms, percentile};
use crate::lab::Lab;
use crate::process::{pause, wait_for};
use crate::replay::Kind;
use crate::rules::Backend;
use crate::ticks::{Arrived, receive, send};

const ROUNDS: usize = 30;

/// Longer than a change takes; the daemon may write at once again after it.
const APART: Duration = Duration::from_millis(300);

const PATIENCE: Duration = Duration::from_secs(10);

const FROM: Ipv4Addr = Ipv4Addr::new(10, 127, 0, 1);
const TO: Ipv4Addr = Ipv4Addr::new(10, 127, 0, 2);
const PORT: u16 = 9999;
const SPACE: &str = "bench";

const BAR_P50_MS: f64 = 13.0;
const BAR_P90_MS: f64 = 25.0;

/// Measures `policy/effect-…`: until the last packet that a new policy forbids, and until the
/// first that its end allows.
///
/// *Errors*: packets do not stop, or do not come again.
pub fn measure(program: &Path, backend: Backend, node: &Node) -> Result<Vec<Row>> {
    let from = node.pod(SPACE, "from", FROM)?;
    let to = node.pod(SPACE, "to", TO)?;
    let lab = Lab::new(program, backend, Size::LOADED)?;
    // A namespace of their own, in which no policy is.
    let space = object("Namespace", "v1", "", SPACE, json!({}), json!({}));
    lab.server.store().put(Kind::Namespaces, space);
    for (name, address) in [("from", FROM), ("to", TO)] {
        let pod = local_pod(SPACE, name, &json!({"bench": name}), Some(address));
        lab.server.store().put(Kind::Pods, pod);
    }
    let _up = lab.up()?;
    let bare = lab.server.bare()?;
    let (events, heard) = sync_channel(1_000);
    let (arrived, stop) = (Arrived::default(), AtomicBool::new(false));
    let target = SocketAddrV4::new(TO, PORT);
    std::thread::scope(|scope| {
        // It ends with the server's watch, or when nobody hears any more.
        let watching = scope.spawn(move || bare.watch_policies(&events));
        scope.spawn(|| receive(to.netns(), target, false, &arrived, &stop));
        scope.spawn(|| send(from.netns(), FROM, target, &stop));
        let rows = rounds(&lab, &arrived, heard);
        stop.store(true, Ordering::Relaxed);
        // One more event wakes the bare watch, which then finds nobody there.
        lab.server.store().put(
            Kind::Policies,
            policy(SPACE, "end", json!({"podSelector": {}})),
        );
        match watching.join() {
            Ok(ended) => ended?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        rows
    })
}

/// What a change took until it could be seen.
#[derive(Default)]
struct Waits {
    closed: Vec<f64>,
    opened: Vec<f64>,
    heard: Vec<f64>,
}

#[expect(clippy::needless_pass_by_value, reason = "hanging up ends the watch")]
fn rounds(lab: &Lab, arrived: &Arrived, heard: Receiver<Instant>) -> Result<Vec<Row>> {
    wait_for("a first packet", PATIENCE, || Ok(arrived.last()))?;
    let deny = json!({"podSelector": {"matchLabels": {"bench": "to"}}, "policyTypes": ["Ingress"]});
    let mut waits = Waits::default();
    for _ in 0..ROUNDS {
        pause(APART);
        let asked = Instant::now();
        lab.server
            .store()
            .put(Kind::Policies, policy(SPACE, "deny", deny.clone()));
        let told = heard.recv_timeout(PATIENCE).context("the bare watch")?;
        waits.heard.push(ms(told - asked));
        pause(APART);
        // Closed: nothing has come for a while.
        let last = wait_for("packets to stop", PATIENCE, || {
            Ok(arrived.last().filter(|sent| sent.elapsed() > APART / 2))
        })?;
        ensure!(last.elapsed() > APART / 2, "packets go on");
        waits.closed.push(ms(last.saturating_duration_since(asked)));
        let asked = Instant::now();
        lab.server.store().delete(Kind::Policies, SPACE, "deny")?;
        let told = heard.recv_timeout(PATIENCE).context("the bare watch")?;
        waits.heard.push(ms(told - asked));
        let first = wait_for("packets to come again", PATIENCE, || {
            Ok(arrived.first_after(asked))
        })?;
        waits.opened.push(ms(first - asked));
    }
    let floor = percentile(&waits.heard, 50.0);
    let row = |what: &str, values: &[f64], percent: f64, bar| {
        let name = format!("policy/effect-{what}-p{percent}");
        Row::plain(name, percentile(values, percent), "ms")
            .beside(floor)
            .at_most(bar)
    };
    Ok(vec![
        row("closed", &waits.closed, 50.0, BAR_P50_MS),
        row("closed", &waits.closed, 90.0, BAR_P90_MS),
        row("opened", &waits.opened, 50.0, BAR_P50_MS),
        row("opened", &waits.opened, 90.0, BAR_P90_MS),
    ])
}
