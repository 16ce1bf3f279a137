//! A pod of another node appears or goes: from the event's last byte to the last member.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::cluster::{Pod, Size};
use crate::figures::{Row, ms, percentile};
use crate::ipset::{self, Entry, Ipset};
use crate::lab::Lab;
use crate::process::pause;
use crate::replay::Kind;
use crate::rules::{Backend, Writes};
use crate::seed::Seed;

/// Pods that go and come back, one after the other.
const ROUNDS: usize = 250;

/// Between two events: the daemon sleeps in between, as it does on a real node.
const APART: Duration = Duration::from_millis(15);

/// Between two questions to the kernel, so that they do not hold up what they wait for.
const LOOK: Duration = Duration::from_micros(15);

const PATIENCE: Duration = Duration::from_secs(10);

const BAR_MS: f64 = 2.0;

/// Where a pod's address is a member.
type Places = Vec<(String, Entry)>;

/// Measures `policy/peer-appears-…` and `policy/peer-goes-…`.
///
/// *Errors*: something did not happen, or the daemon started a process or wrote a rule for it.
pub fn measure(program: &Path, backend: Backend) -> Result<Vec<Row>> {
    let lab = Lab::new(program, backend, Size::LOADED)?;
    let up = lab.up()?;
    let mut ipset = Ipset::open()?;
    let candidates = pods_in_sets(&lab)?;
    let mut writes = Writes::hear(backend)?;
    let before = up.agent.used()?;
    let (mut goes, mut appears, mut places) = (Vec::new(), Vec::new(), 0);
    for (pod, held) in candidates.iter().take(ROUNDS) {
        let store = lab.server.store();
        pause(APART);
        let ticket = store.delete(Kind::Pods, &pod.namespace, &pod.name)?;
        let gone = all(&mut ipset, held, false)?;
        goes.push(since(gone, store.written(ticket, PATIENCE)?));
        pause(APART);
        let ticket = store.put(Kind::Pods, pod.object());
        let back = all(&mut ipset, held, true)?;
        appears.push(since(back, store.written(ticket, PATIENCE)?));
        places += held.len();
    }
    let processes = up.agent.used()?.child_faults - before.child_faults;
    ensure!(
        processes == 0,
        "the daemon started a process for a peer's pod"
    );
    ensure!(
        writes.next(Duration::ZERO)?.is_none(),
        "the daemon wrote rules for a peer's pod"
    );
    eprintln!(
        "{} pods, {} members each on average",
        goes.len(),
        places / goes.len()
    );
    let rows = [("appears", &appears), ("goes", &goes)];
    Ok(rows
        .into_iter()
        .flat_map(|(what, values)| {
            let row = |percent| {
                let name = format!("policy/peer-{what}-p{percent}");
                Row::plain(name, percentile(values, f64::from(percent)), "ms")
            };
            [row(50), row(99).at_most(BAR_MS)]
        })
        .collect())
}

/// Milliseconds; none when the kernel was seen right before the server knew that it had written.
fn since(later: Instant, earlier: Instant) -> f64 {
    ms(later.saturating_duration_since(earlier))
}

/// Pods of other nodes with their members, in no order that has to do with their names.
fn pods_in_sets(lab: &Lab) -> Result<Vec<(Pod, Places)>> {
    let mut places: BTreeMap<_, Places> = BTreeMap::new();
    for (name, set) in ipset::saved()? {
        for entry in set.entries {
            if entry.prefix == 32 {
                let held = places.entry(entry.address).or_default();
                held.push((name.clone(), entry));
            }
        }
    }
    let mut found: Vec<(Pod, Places)> = lab
        .cluster
        .remote()
        .filter_map(|pod| Some((pod.clone(), places.remove(&pod.address)?)))
        .collect();
    ensure!(
        found.len() >= ROUNDS,
        "only {} pods are members of a set",
        found.len()
    );
    let mut seed = Seed::new(7);
    for at in (1..found.len()).rev() {
        let other = seed.below(at as u64 + 1);
        found.swap(at, usize::try_from(other)?);
    }
    Ok(found)
}

/// Asks for the last place until it is as wanted, and then for the others: the moment when the
/// last of them was seen so.
fn all(ipset: &mut Ipset, held: &Places, wanted: bool) -> Result<Instant> {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Instant::now();
    for (name, entry) in held.iter().rev() {
        let mut first = true;
        while ipset.holds(name, entry)? != wanted {
            first = false;
            ensure!(
                Instant::now() < deadline,
                "{entry:?} in {name}: not {wanted} within {PATIENCE:?}"
            );
            let next = Instant::now() + LOOK;
            while Instant::now() < next {
                std::hint::spin_loop();
            }
        }
        if !first {
            seen = Instant::now();
        }
    }
    Ok(seen)
}
