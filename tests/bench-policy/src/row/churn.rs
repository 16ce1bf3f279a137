//! What a thousand events of peers' pods a second cost.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::cluster::Size;
use crate::figures::Row;
use crate::lab::Lab;
use crate::process::pause;
use crate::replay::Kind;
use crate::rules::Backend;
use crate::seed::Seed;

const SECONDS: u32 = 10;
const RATE: u32 = 1_000;

/// Events come ten at a time: a sleep of a millisecond is not to be had exactly.
const TOGETHER: u32 = 10;

const BAR_PERCENT: f64 = 25.0;

/// Measures `policy/cpu-at-1000-events`.
///
/// *Errors*: the events could not be sent at that rate, or the daemon started a process for one.
pub fn measure(program: &Path, backend: Backend) -> Result<Vec<Row>> {
    let lab = Lab::new(program, backend, Size::LOADED)?;
    let up = lab.up()?;
    let pods: Vec<_> = lab.cluster.remote().collect();
    let mut seed = Seed::new(3);
    let store = lab.server.store();
    let before = up.agent.used()?;
    let began = Instant::now();
    let mut gone = Vec::new();
    for batch in 0..SECONDS * RATE / TOGETHER {
        for _ in 0..TOGETHER / 2 {
            // One goes, and one that went a while ago comes back.
            let pod = *seed.pick(&pods);
            if store
                .delete_unstamped(Kind::Pods, &pod.namespace, &pod.name)
                .is_err()
            {
                store.put_unstamped(Kind::Pods, pod.object());
            }
            gone.push(pod);
            let back = gone[gone.len().saturating_sub(100)];
            store.put_unstamped(Kind::Pods, back.object());
        }
        let next = began + Duration::from_secs(1) * (batch + 1) / (RATE / TOGETHER);
        pause(next.saturating_duration_since(Instant::now()));
    }
    let took = began.elapsed();
    ensure!(
        took < Duration::from_secs(u64::from(SECONDS)) * 11 / 10,
        "the events took {took:?}"
    );
    pause(Duration::from_millis(200));
    let after = up.agent.used()?;
    ensure!(
        after.child_faults == before.child_faults,
        "the daemon started a process for a peer's pod"
    );
    let percent = 100.0 * (after.cpu - before.cpu).as_secs_f64() / took.as_secs_f64();
    Ok(vec![
        Row::plain("policy/cpu-at-1000-events", percent, "%").at_most(BAR_PERCENT),
    ])
}
