//! The third reading: random clusters in namespaces, and packets that pass or don't.
//!
//! `SELVAGE_PACKETS=<number>` is how many clusters each test makes (20 by itself), `SELVAGE_SEED` the
//! seed of the first.

mod ground;
mod probe;

#[path = "../oracle/tests/readings/compiled.rs"]
mod compiled;

use std::env;

use anyhow::{Result, ensure};
use selvage_netfilter::Backend;
use selvage_oracle::generator::{Size, cluster};
use selvage_oracle::probe::{Probe, probes};
use selvage_oracle::random::Random;
use selvage_oracle::reading::allowed;
use selvage_oracle::shrink::shrink;
use selvage_policy_core::ruleset::Family;
use serde_json::Value;

use compiled::Compiled;
use ground::{Ground, realise};

/// Asked at once: silence costs the same once or a dozen times.
const PROBES: usize = 12;

const SIZE: Size = Size {
    pods: 8,
    policies: 8,
    odd: 2,
};

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect(name))
}

/// The first probe on which packets say otherwise than the plain reading, and what they say.
fn difference(
    ground: &mut Ground,
    cluster: &Value,
    probes: &[Probe],
) -> Result<Option<(Probe, bool)>> {
    ground.enforce(cluster)?;
    for (probe, passed) in probes.iter().zip(ground.ask(probes)?) {
        let expected = allowed(cluster, &probe.from, &probe.to, probe.traffic);
        // On a busy machine silence proves little: a packet that should have passed is sent again.
        if passed != expected && (passed || !ground.ask_patiently(probe)?) {
            return Ok(Some((probe.clone(), passed)));
        }
    }
    Ok(None)
}

fn packets_agree(backend: Backend, family: Family) -> Result<()> {
    let (count, first) = (number("SELVAGE_PACKETS", 20), number("SELVAGE_SEED", 0));
    let mut ground = Ground::new(backend, family)?;
    let (mut asked, mut passed) = (0, 0);
    for seed in first..first + count {
        let mut random = Random::new(seed);
        let cluster = realise(cluster(&mut random, SIZE));
        let mut probes = probes(&cluster, &mut random, 50 * PROBES);
        probes.retain(|probe| ground.knows(probe));
        probes.truncate(PROBES);
        if let Some((probe, got)) = difference(&mut ground, &cluster, &probes)? {
            let word = |passes| if passes { "pass" } else { "don't" };
            let compiled = Compiled::new(&cluster).passes(&probe);
            let least = shrink(&cluster, &mut |candidate| {
                ground.knows_in(candidate, &probe)
                    && difference(&mut ground, candidate, std::slice::from_ref(&probe))
                        .is_ok_and(|difference| difference.is_some())
            });
            panic!(
                "seed {seed}, {family}, {backend}: {probe}: packets {}, by the compiled rules they {}, in\n{least:#}",
                word(got),
                word(compiled),
            );
        }
        asked += probes.len();
        let expected = |probe: &&Probe| allowed(&cluster, &probe.from, &probe.to, probe.traffic);
        passed += probes.iter().filter(expected).count();
    }
    println!(
        "{count} clusters from seed {first}, {family}, {backend}: {asked} flows, {passed} passed"
    );
    ensure!(
        passed > asked / 10 && passed < asked * 9 / 10,
        "{passed} of {asked} passed"
    );
    Ok(())
}

#[test]
fn packets_over_nft_and_ipv4_agree_with_both_readings() -> Result<()> {
    packets_agree(Backend::Nft, Family::V4)
}

#[test]
fn packets_over_nft_and_ipv6_agree_with_both_readings() -> Result<()> {
    packets_agree(Backend::Nft, Family::V6)
}

#[test]
fn packets_over_legacy_and_ipv4_agree_with_both_readings() -> Result<()> {
    packets_agree(Backend::Legacy, Family::V4)
}

#[test]
fn packets_over_legacy_and_ipv6_agree_with_both_readings() -> Result<()> {
    packets_agree(Backend::Legacy, Family::V6)
}
