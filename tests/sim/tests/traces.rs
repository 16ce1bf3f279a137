//! Each trace in small, with every promise watched; CI runs these.

use selvage_ipamd_core::limits::Mode;
use selvage_sim::figures::{Settings, run};
use selvage_sim::trace::shape::{SHAPES, start};

const NODES: u32 = 12;

fn holds(name: &str) {
    let (_, shape) = SHAPES
        .into_iter()
        .find(|(known, _)| *known == name)
        .unwrap();
    for (seed, mode) in [
        (1, Mode::Addresses),
        (2, Mode::Addresses),
        (1, Mode::Prefixes),
    ] {
        let pair = run(&shape(NODES, seed, mode), &Settings::shipped(mode), seed);
        assert_eq!(
            pair.ours.breaches,
            Vec::<String>::new(),
            "seed {seed}, {mode:?}"
        );
        assert!(
            pair.ours.launched > 100,
            "seed {seed}, {mode:?}: the trace launches pods"
        );
        assert_eq!(
            pair.ours.launched, pair.theirs.launched,
            "seed {seed}, {mode:?}"
        );
        assert_eq!(pair.ours.unready, 0, "seed {seed}, {mode:?}");
    }
}

#[test]
fn a_rolling_deployment_keeps_every_promise() {
    holds("rolling");
}

#[test]
fn an_autoscaler_burst_keeps_every_promise() {
    holds("burst");
}

#[test]
fn cron_jobs_keep_every_promise() {
    holds("cron");
}

#[test]
fn a_drain_wave_keeps_every_promise() {
    holds("drain");
}

#[test]
fn a_subnet_nearly_full_keeps_every_promise() {
    holds("full");
}

#[test]
fn nodes_that_start_at_once_all_get_addresses() {
    let pair = run(&start(200, 1, Mode::Addresses), &Settings::default(), 1);
    assert_eq!(pair.ours.breaches, Vec::<String>::new());
    assert_eq!((pair.ours.unready, pair.theirs.unready), (0, 0));
}

#[test]
fn a_run_is_the_same_each_time() {
    let (_, shape) = SHAPES[0];
    let figures = || {
        let pair = run(&shape(NODES, 3, Mode::Addresses), &Settings::default(), 3);
        (
            pair.ours.by_api,
            pair.ours.waits,
            pair.theirs.by_api,
            pair.theirs.waits,
        )
    };
    assert_eq!(figures(), figures());
}
