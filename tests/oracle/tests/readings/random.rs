//! Both readings of ten thousand random clusters.
//!
//! `SELVAGE_SEED=<number>` asks about the cluster of one seed alone.

use selvage_oracle::generator::{Size, cluster};
use selvage_oracle::probe::{End, Probe, nodes, pods, probes};
use selvage_oracle::random::Random;
use selvage_oracle::reading::allowed;
use selvage_oracle::shrink::shrink;
use serde_json::Value;

use crate::compiled::Compiled;

/// Four tests of these make the ten thousand, so that they run side by side.
const CLUSTERS: u64 = 2_500;

/// Questions a cluster: of about 30 addresses and 20 ports, so each pair is met within few clusters.
const PROBES: usize = 64;

/// Whether both ends are still there, and the readings still differ.
fn differs(cluster: &Value, probe: &Probe) -> bool {
    let there = |end: &End| match end {
        End::Pod { .. } => pods(cluster).contains(end),
        End::Node { .. } => nodes(cluster).contains(end),
        End::Address(_) => true,
    };
    there(&probe.from) && there(&probe.to) && Asked::new(cluster).difference(probe).is_some()
}

struct Asked<'a> {
    cluster: &'a Value,
    compiled: Compiled,
    pods: Vec<End>,
}

impl<'a> Asked<'a> {
    fn new(cluster: &'a Value) -> Self {
        Self {
            cluster,
            compiled: Compiled::new(cluster),
            pods: pods(cluster),
        }
    }

    fn reading(&self, probe: &Probe) -> bool {
        allowed(self.cluster, &probe.from, &probe.to, probe.traffic)
    }

    /// What policy-core says otherwise than the plain reading, if anything.
    fn difference(&self, probe: &Probe) -> Option<String> {
        let want = self.reading(probe);
        let passes = self.compiled.passes(probe);
        if passes != want {
            return Some(format!("the compiled rules {}", word(passes)));
        }
        // Established flows are known by addresses alone: they must tell who it is.
        let known = self.is_known_by_address(&probe.from) && self.is_known_by_address(&probe.to);
        let stays = self.compiled.stays(probe);
        (known && stays != want)
            .then(|| format!("the verdict on an established flow {}", word(stays)))
    }

    fn is_known_by_address(&self, end: &End) -> bool {
        let pods = self
            .pods
            .iter()
            .filter(|pod| pod.address() == end.address());
        match end {
            End::Pod { .. } => pods.count() == 1,
            End::Node { .. } | End::Address(_) => pods.count() == 0,
        }
    }
}

/// How many flows were asked about, and how many are allowed.
fn check(seed: u64) -> (usize, usize) {
    let mut random = Random::new(seed);
    let cluster = cluster(&mut random, Size::CROWD);
    let asked = Asked::new(&cluster);
    let probes = probes(&cluster, &mut random, PROBES);
    for probe in &probes {
        if let Some(difference) = asked.difference(probe) {
            let least = shrink(&cluster, &mut |candidate| differs(candidate, probe));
            panic!(
                "seed {seed}: {probe}: {difference} it, the plain reading doesn't, in\n{least:#}"
            );
        }
    }
    let allowed = probes.iter().filter(|probe| asked.reading(probe));
    (probes.len(), allowed.count())
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
