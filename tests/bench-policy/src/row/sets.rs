//! A foreign hand changes members of a set in use on a loaded node: seen by the set's header, or,
//! where the number of members is the same, by reading them all.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use selvage_tests::{Node, run, run_with_input};
use serde_json::json;

use crate::cluster::remote_pod;
use crate::figures::{Row, ms, percentile};
use crate::ipset::{self, Entry, Ipset};
use crate::process::{pause, wait_for};
use crate::replay::Kind;
use crate::row::repair::{APART, Ground, TARGET};
use crate::rules::Backend;
use crate::ticks::Arrived;

const ROUNDS: usize = 20;

/// A peer that may reach the pod, on another node.
const FRIEND: Ipv4Addr = Ipv4Addr::new(10, 127, 0, 3);

const PATIENCE: Duration = Duration::from_secs(20);
const LONG_PATIENCE: Duration = Duration::from_secs(330);

const BAR_HEADER_MS: f64 = 1_500.0;
const BAR_MEMBERS_MS: f64 = 300_000.0;

/// Measures `policy/repair-sets-…`.
///
/// *Errors*: a change does not open anything, or is not repaired.
pub fn measure(program: &Path, backend: Backend, node: &Node) -> Result<Vec<Row>> {
    let friends = json!([{
        "from": [{"podSelector": {"matchLabels": {"bench": "friend"}}}],
        "ports": [{"protocol": "UDP", "port": TARGET.port()}],
    }]);
    let ground = Ground::new(program, backend, node, &friends)?;
    let status = json!({"phase": "Running", "podIP": FRIEND, "podIPs": [{"ip": FRIEND}]});
    let friend = remote_pod(
        "bench",
        "friend",
        &json!({"bench": "friend"}),
        json!({}),
        status,
    );
    ground.lab.server.store().put(Kind::Pods, friend);
    let _up = ground.lab.up()?;
    let member = |address| Entry {
        address,
        prefix: 32,
        port: Some((17, TARGET.port())),
    };
    let sets = ipset::saved()?;
    let mut held = sets
        .iter()
        .filter(|(_, set)| set.entries == [member(FRIEND)]);
    let (set, _) = held.next().context("no set holds the peer alone")?;
    let from = ground.from.address();
    let port = TARGET.port();
    // A header tells of each: one more member, another table under the name.
    let hands = [
        format!("add {set} {from},udp:{port}\n"),
        format!(
            "create foreign hash:net,port\nadd foreign {from},udp:{port}\nswap foreign {set}\n"
        ),
    ];
    let mut ipset = Ipset::open()?;
    let mut look = |arrived: &Arrived, hand: &str, patience| -> Result<(f64, f64)> {
        let before = arrived.count();
        run_with_input("ipset restore", hand)?;
        let changed = Instant::now();
        ensure!(ipset.holds(set, &member(from))?, "nothing is changed");
        let repaired = wait_for("the set to be repaired", patience, || {
            Ok((!ipset.holds(set, &member(from))?).then(Instant::now))
        })?;
        Ok((ms(repaired - changed), (arrived.count() - before) as f64))
    };
    let (headers, whole) = ground.under_packets(|arrived| {
        let (mut took, mut passed) = (Vec::new(), Vec::new());
        for (round, hand) in (0..ROUNDS).zip(hands.iter().cycle()) {
            // Not in step with the daemon's own clock.
            pause(APART + Duration::from_millis(137) * u32::try_from(round % 7)?);
            let one = look(arrived, hand, PATIENCE);
            let (time, packets) = one.with_context(|| format!("round {round}: {hand}"))?;
            took.push(time);
            passed.push(packets);
            if hand.starts_with("create") {
                wait_for("the foreign set to be let go", PATIENCE, || {
                    Ok(run("ipset destroy foreign").ok())
                })?;
            }
        }
        pause(APART);
        let hand = format!("add {set} {from},udp:{port}\ndel {set} {FRIEND},udp:{port}\n");
        let whole = look(arrived, &hand, LONG_PATIENCE).context("as many members as before")?;
        Ok(((took, passed), whole))
    })?;
    let (took, passed) = headers;
    ensure!(
        passed.iter().all(|one| *one > 0.0),
        "a change opened nothing: {passed:?}"
    );
    let plain =
        |what: &str, value, unit| Row::plain(format!("policy/repair-sets-{what}"), value, unit);
    Ok(vec![
        plain("header-p99", percentile(&took, 99.0), "ms").at_most(BAR_HEADER_MS),
        plain("header-passed-p50", percentile(&passed, 50.0), "packets"),
        plain("header-passed-most", percentile(&passed, 100.0), "packets"),
        plain("equal-count", whole.0, "ms").at_most(BAR_MEMBERS_MS),
        plain("equal-count-passed", whole.1, "packets"),
    ])
}
