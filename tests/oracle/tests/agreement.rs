//! Two readings of ten thousand random clusters: the plain one, and what policy-core compiles.
//!
//! `SELVAGE_SEED=<number>` asks about the cluster of one seed alone.

#[path = "agreement/compiled.rs"]
mod compiled;

use compiled::Compiled;
use selvage_oracle::generator::{Size, cluster};
use selvage_oracle::probe::{End, Probe, nodes, pods, probes};
use selvage_oracle::random::Random;
use selvage_oracle::reading::allowed;
use selvage_oracle::shrink::shrink;
use serde_json::Value;

/// Four tests of these make the ten thousand, so that they run side by side.
const CLUSTERS: u64 = 2_500;

/// Questions a cluster: of about 30 addresses and 20 ports, so each pair is met within few clusters.
const PROBES: usize = 100;

/// Whether both ends are still there, and the readings still differ.
fn differs(cluster: &Value, probe: &Probe) -> bool {
    let there = |end: &End| match end {
        End::Pod { .. } => pods(cluster).contains(end),
        End::Node { .. } => nodes(cluster).contains(end),
        End::Address(_) => true,
    };
    there(&probe.from)
        && there(&probe.to)
        && Compiled::new(cluster).passes(probe) != reading(cluster, probe)
}

fn reading(cluster: &Value, probe: &Probe) -> bool {
    allowed(cluster, &probe.from, &probe.to, probe.traffic)
}

fn check(seed: u64) -> (usize, usize) {
    let mut random = Random::new(seed);
    let cluster = cluster(&mut random, Size::CROWD);
    let compiled = Compiled::new(&cluster);
    let asked = probes(&cluster, &mut random, PROBES);
    let mut passed = 0;
    for probe in &asked {
        let (got, want) = (compiled.passes(probe), reading(&cluster, probe));
        passed += usize::from(want);
        if got != want {
            let least = shrink(&cluster, &|candidate| differs(candidate, probe));
            panic!(
                "seed {seed}: {probe}: policy-core {}, the reading {}, in\n{least:#}",
                word(got),
                word(want),
            );
        }
    }
    (asked.len(), passed)
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allows" } else { "forbids" }
}

fn quarter(number: u64) {
    if let Ok(seed) = std::env::var("SELVAGE_SEED") {
        let seed = seed.parse().expect("SELVAGE_SEED is a number");
        check(seed);
        return;
    }
    let (mut asked, mut passed) = (0, 0);
    for seed in number * CLUSTERS..(number + 1) * CLUSTERS {
        let (of_these, passing) = check(seed);
        asked += of_these;
        passed += passing;
    }
    println!("{CLUSTERS} clusters, {asked} flows, {passed} allowed");
    // A generator that isolates nobody, or everybody, would agree with anything.
    assert!(
        passed > asked / 5 && passed < asked * 4 / 5,
        "{passed} of {asked} allowed"
    );
}

#[test]
fn policy_core_and_a_plain_reading_agree_on_the_first_quarter_of_the_clusters() {
    quarter(0);
}

#[test]
fn policy_core_and_a_plain_reading_agree_on_the_second_quarter_of_the_clusters() {
    quarter(1);
}

#[test]
fn policy_core_and_a_plain_reading_agree_on_the_third_quarter_of_the_clusters() {
    quarter(2);
}

#[test]
fn policy_core_and_a_plain_reading_agree_on_the_fourth_quarter_of_the_clusters() {
    quarter(3);
}
