//! A hundred thousand pods: how much memory, and how long from the process's start to rules in
//! force, beside a client that lists and decodes the same objects and does nothing with them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cluster::Size;
use crate::figures::{Row, ms};
use crate::lab::Lab;
use crate::process::{pause, resident};
use crate::row::start::timed;
use crate::rules::Backend;

/// What is freed after the start is free by then.
const SETTLE: Duration = Duration::from_secs(3);

const RESIDENT_BAR_MB: f64 = 130.0;
const START_BAR: f64 = 1.5;

/// Measures `policy/large-…`.
///
/// *Errors*: the daemon does not come up.
pub fn measure(program: &Path, backend: Backend) -> Result<Vec<Row>> {
    let lab = Lab::new(program, backend, Size::LARGE)?;
    let client = lab.server.bare()?;
    let (objects, bare) = timed(|| client.list())?;
    ensure!(
        objects > Size::LARGE.pods as usize,
        "the bare client read {objects} objects"
    );
    let up = lab.up()?;
    let start = up.in_force.saturating_duration_since(up.agent.started);
    let cpu = up.agent.used()?.cpu;
    pause(SETTLE);
    let (now, most) = resident(up.agent.pid())?;
    eprintln!("in force after {start:?} and {cpu:?} of CPU; bare list {bare:?}");
    let megabytes = |kilobytes: u64| kilobytes as f64 / 1000.0;
    Ok(vec![
        Row::plain("policy/large-rss", megabytes(now), "MB").at_most(RESIDENT_BAR_MB),
        Row::plain("policy/large-rss-peak", megabytes(most), "MB"),
        Row::over("policy/large-start", ms(start), ms(bare), "ms").at_most(START_BAR),
    ])
}
