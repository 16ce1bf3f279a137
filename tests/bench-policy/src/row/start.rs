//! A loaded node from nothing, and a restart that finds everything right.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::cluster::Size;
use crate::figures::{Row, ms, percentile};
use crate::ipset;
use crate::lab::{Lab, Up};
use crate::rules::{Backend, Chains, Writes};
use crate::twin::Twin;

const ROUNDS: usize = 3;

/// A restarted daemon that wants to write has done so by then.
const QUIET: Duration = Duration::from_millis(500);

const COLD_BAR: f64 = 1.5;
const READY_BAR_MS: f64 = 1_000.0;

/// Measures `policy/cold-start` and `policy/restart-…`.
///
/// *Errors*: the daemon does not come up, or leaves something behind that it should not.
pub fn measure(program: &Path, backend: Backend) -> Result<Vec<Row>> {
    let lab = Lab::new(program, backend, Size::LOADED)?;
    let (mut cold, mut floors, mut ready, mut writes) = (Vec::new(), Vec::new(), Vec::new(), 0_u32);
    for _ in 0..ROUNDS {
        lab.cleanup()?;
        let up = lab.up()?;
        cold.push(took(&up));
        let sets = ipset::saved()?;
        let rules = Chains::read(backend)?;
        let twin = Twin::new("twin", backend)?;
        let filled = twin.fill(&sets)?;
        let restored = twin.restore(&rules.texts())?;
        floors.push(ms(filled + restored));
        eprintln!(
            "{} sets, {} members: {filled:?}; {} rules: {restored:?}; daemon: {:?} ms",
            sets.len(),
            sets.values().map(|set| set.entries.len()).sum::<usize>(),
            rules.rules(),
            cold.last(),
        );
        drop(twin);
        up.agent.end()?;
        let mut heard = Writes::hear(backend)?;
        let again = lab.up()?;
        ready.push(took(&again));
        while heard.next(QUIET)?.is_some() {
            writes += 1;
        }
        ensure!(
            again.outcome == "unchanged",
            "a restart says that its outcome is {}",
            again.outcome
        );
        // What cannot be heard is compared.
        ensure!(sets == ipset::saved()?, "a restart changed sets");
        again.agent.end()?;
    }
    let name = |what: &str| format!("policy/{what}-{}", backend.as_str());
    Ok(vec![
        Row::of_rounds(name("cold-start"), &cold, &floors, "ms").at_most(COLD_BAR),
        Row::plain(name("restart-ready"), percentile(&ready, 100.0), "ms").at_most(READY_BAR_MS),
        Row::plain(name("restart-writes"), f64::from(writes), "writes").at_most(0.0),
    ])
}

/// Milliseconds from the last list's end to rules in force.
fn took(up: &Up) -> f64 {
    ms(up.in_force.saturating_duration_since(up.synced))
}

/// How long something took.
pub fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let began = Instant::now();
    Ok((work()?, began.elapsed()))
}
