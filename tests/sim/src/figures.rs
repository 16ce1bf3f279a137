//! Runs of several seeds as figures: ours beside AWS's.

use std::thread;
use std::time::Duration;

use selvage_ipamd_core::limits::Mode;
use serde_json::{Value, json};

use crate::agent::aws::{Aws, warm};
use crate::agent::selvage::{Selvage, Setup};
use crate::report::Report;
use crate::trace::Trace;
use crate::trace::shape::{SHAPES, Shape, start};
use crate::world;

/// What pods get their addresses from, and what is added to a trace's name.
pub const MODES: [(Mode, &str); 2] = [(Mode::Addresses, ""), (Mode::Prefixes, "-prefixes")];

/// The settings of both, which mean the same.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Ours.
    pub ours: Setup,
    /// AWS's.
    pub theirs: warm::Targets,
}

impl Settings {
    /// The shipped manifest's, in a mode.
    pub fn shipped(mode: Mode) -> Self {
        let mut settings = Self::default();
        settings.ours.mode = mode;
        settings.theirs.prefixes = mode == Mode::Prefixes;
        settings
    }
}

/// Both on one trace.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Ours.
    pub ours: Report,
    /// AWS's.
    pub theirs: Report,
}

/// Runs both at the same time.
///
/// # Panics
/// When a run panics.
pub fn run(trace: &Trace, settings: &Settings, seed: u64) -> Pair {
    thread::scope(|scope| {
        let theirs = scope.spawn(|| world::run::<Aws>(trace, &settings.theirs, seed));
        let ours = world::run::<Selvage>(trace, &settings.ours, seed);
        Pair {
            ours,
            theirs: theirs.join().expect("the other run came to its end"),
        }
    })
}

/// One figure of several seeds: of values, floors and ratios the median, of ratios also the least and the greatest.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    name: String,
    unit: &'static str,
    value: f64,
    floor: Option<f64>,
    ratio: Option<f64>,
    bar: Option<f64>,
    spread: (f64, f64),
}

impl Row {
    /// As `tests/bench` reads it.
    pub fn as_json(&self) -> Value {
        json!({
            "name": self.name, "unit": self.unit, "value": self.value, "floor": self.floor, "ratio": self.ratio,
            "bar": self.bar, "spread": [self.spread.0, self.spread.1],
        })
    }
}

/// How a report is read, in which unit, and how large ours may be beside AWS's.
type Measure = (&'static str, &'static str, fn(&Report) -> f64, Option<f64>);

const MEASURES: [Measure; 5] = [
    (
        "calls",
        "per 1000 pods",
        Report::calls_per_thousand,
        Some(0.5),
    ),
    ("idle", "addresses", |r| r.idle_at_rest as f64, Some(1.0)),
    (
        "waited",
        "of 1000 pods",
        Report::waited_per_thousand,
        Some(1.0),
    ),
    ("add-p50", "s", |r| r.wait(50.0).as_secs_f64(), None),
    ("add-p99", "s", |r| r.wait(99.0).as_secs_f64(), None),
];

/// Times of all nodes together: of a run in which one never could, the whole run.
const NEVER: Duration = Duration::from_secs(3600);

/// How large, how often, and which.
#[derive(Debug, Clone)]
pub struct Extent {
    /// Nodes of each trace.
    pub nodes: u32,
    /// Nodes that start at once.
    pub starting: u32,
    /// Seeds, from 1 on.
    pub seeds: u64,
    /// Only rows whose names begin so.
    pub only: String,
}

/// All rows, or those asked for; or the promises that were broken.
pub fn rows(extent: &Extent) -> Result<Vec<Row>, Vec<String>> {
    let mut rows = Vec::new();
    let all = MODES
        .iter()
        .flat_map(|mode| SHAPES.map(|shape| (mode, shape)));
    for ((mode, suffix), (name, shape)) in all {
        let prefix = format!("sim/{name}{suffix}/");
        if extent.wants(&prefix) {
            let pairs = extent.pairs(shape, extent.nodes, *mode)?;
            for (measure, unit, read, bar) in MEASURES {
                let name = format!("{prefix}{measure}");
                rows.push(beside(name, unit, &pairs, read, bar));
            }
        }
    }
    if extent.wants("sim/start/") {
        let pairs = extent.pairs(start, extent.starting, Mode::Addresses)?;
        let ready = |r: &Report| r.all_ready().unwrap_or(NEVER).as_secs_f64();
        let name = |measure| format!("sim/start/{measure}");
        rows.push(beside(name("all-ready"), "s", &pairs, ready, Some(0.7)));
        rows.push(alone(
            name("throttled"),
            "%",
            &pairs,
            Report::throttled_percent,
            1.0,
        ));
        rows.push(beside(
            name("calls"),
            "calls",
            &pairs,
            |r| r.calls as f64,
            None,
        ));
    }
    rows.retain(|row| row.name.starts_with(&extent.only));
    Ok(rows)
}

impl Extent {
    fn wants(&self, prefix: &str) -> bool {
        prefix.starts_with(&self.only) || self.only.starts_with(prefix)
    }

    fn pairs(&self, shape: Shape, nodes: u32, mode: Mode) -> Result<Vec<Pair>, Vec<String>> {
        let settings = Settings::shipped(mode);
        let seeds = 1..=self.seeds;
        let pairs = seeds.map(|seed| run(&shape(nodes, seed, mode), &settings, seed));
        pairs
            .map(|pair| match pair.ours.breaches.is_empty() {
                true => Ok(pair),
                false => Err(pair.ours.breaches),
            })
            .collect()
    }
}

fn beside(
    name: String,
    unit: &'static str,
    pairs: &[Pair],
    read: impl Fn(&Report) -> f64,
    bar: Option<f64>,
) -> Row {
    let values: Vec<f64> = pairs.iter().map(|pair| read(&pair.ours)).collect();
    let floors: Vec<f64> = pairs.iter().map(|pair| read(&pair.theirs)).collect();
    let ratios: Vec<f64> = values
        .iter()
        .zip(&floors)
        .map(|(v, f)| ratio(*v, *f))
        .collect();
    Row {
        name,
        unit,
        value: round(median(&values)),
        floor: Some(round(median(&floors))),
        ratio: Some(round(median(&ratios))),
        bar,
        spread: spread(&ratios),
    }
}

fn alone(
    name: String,
    unit: &'static str,
    pairs: &[Pair],
    read: impl Fn(&Report) -> f64,
    bar: f64,
) -> Row {
    let values: Vec<f64> = pairs.iter().map(|pair| read(&pair.ours)).collect();
    Row {
        name,
        unit,
        value: round(median(&values)),
        floor: None,
        ratio: None,
        bar: Some(bar),
        spread: spread(&values),
    }
}

/// Nothing beside nothing is as much; something beside nothing is too much, whatever the bar.
fn ratio(value: f64, floor: f64) -> f64 {
    if floor > 0.0 {
        value / floor
    } else if value > 0.0 {
        999.0
    } else {
        1.0
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

fn spread(values: &[f64]) -> (f64, f64) {
    let sorted = sorted(values);
    let end = |value: Option<&f64>| round(value.copied().unwrap_or_default());
    (end(sorted.first()), end(sorted.last()))
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_beside_nothing_meets_a_bar_and_something_beside_nothing_does_not() {
        assert_eq!(ratio(0.0, 0.0), 1.0);
        assert!(ratio(1.0, 0.0) > 100.0);
        assert_eq!(ratio(1.0, 2.0), 0.5);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 9.0]), 4.0);
        assert_eq!(spread(&[4.0, 1.0, 9.0]), (1.0, 9.0));
    }
}
