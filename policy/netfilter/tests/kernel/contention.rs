//! Others who write at the same time: waited for, read around, retried, and never believed to be us.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::fs::{FlockOperation, flock};
use selvage_netfilter::Backend;
use selvage_netfilter::ipset::IpSets;
use selvage_policy_core::plan::plan;
use selvage_policy_core::ruleset::{Action, Chain, Family, Ruleset, SetKind, SetName};
use selvage_tests::{assert_isolated, run, run_with_input};

use crate::rules::{FAMILIES, chain, converge, listed, on_both_backends, open, ruleset, tool};
use crate::sets::members;

/// Runs `others` again and again in another thread for as long as `ours` runs.
fn meanwhile<T>(
    others: impl Fn(u32) -> Result<()> + Sync,
    ours: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let theirs = scope.spawn(|| -> Result<u32> {
            let mut round = 0;
            while !over.load(Ordering::Relaxed) {
                others(round)?;
                round += 1;
            }
            Ok(round)
        });
        // Also when it panics, or the others would go on for ever.
        let ending = Ending(&over);
        let done = ours();
        drop(ending);
        let rounds = theirs.join().expect("the others don't panic")?;
        assert!(rounds > 1, "hardly anybody else was there: {rounds}");
        done
    })
}

struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The ruleset, and one whose inner chain ends otherwise.
fn two_rulesets(family: Family) -> [Ruleset; 2] {
    let mut other = ruleset(family);
    let open = Chain::ending_in(Action::Return, Vec::new());
    other.chains.insert(chain("selvage-inner"), open);
    other.sets.clear();
    [ruleset(family), other]
}

on_both_backends![
    somebody_who_writes_all_the_time_is_no_error_and_no_jump_is_doubled,
    a_change_is_noticed_also_when_it_follows_a_write_among_others_writes,
];

fn somebody_who_writes_all_the_time_is_no_error_and_no_jump_is_doubled(
    backend: Backend,
) -> Result<()> {
    let mut kernel = open(backend)?;
    for family in FAMILIES {
        let tool = tool(family, backend);
        // Another lock file, as in another mount namespace: they do not wait for us.
        let others = |round: u32| {
            let verb = if round.is_multiple_of(2) { "-A" } else { "-D" };
            let command = format!(
                "env XTABLES_LOCKFILE=/run/other.lock {tool} -t mangle {verb} INPUT -i eth9 -j DROP"
            );
            // They are refused at times; that is theirs to mend.
            drop(run(&command));
            Ok(())
        };
        meanwhile(others, || {
            for round in 0..30 {
                converge(&mut kernel, &two_rulesets(family)[round % 2])?;
            }
            converge(&mut kernel, &ruleset(family))
        })?;
        let want = ruleset(family);
        assert!(plan(&want, &open(backend)?.observe(family)?).is_empty());
        assert_eq!(
            listed(family, backend, "FORWARD"),
            ["-P FORWARD ACCEPT", "-A FORWARD -j selvage-forward"]
        );
    }
    Ok(())
}

fn a_change_is_noticed_also_when_it_follows_a_write_among_others_writes(
    backend: Backend,
) -> Result<()> {
    let mut kernel = open(backend)?;
    let family = Family::V4;
    let want = ruleset(family);
    let tool = tool(family, backend);
    let others = |_| run(&format!("{tool} -t filter -A INPUT -i eth9 -j DROP")).map(drop);
    meanwhile(others, || {
        for round in 0..12 {
            converge(&mut kernel, &two_rulesets(family)[round % 2])?;
        }
        converge(&mut kernel, &want)
    })?;
    // What could not be vouched for is written again, and then there is an end.
    let mut rounds = 0;
    while !kernel.rules_unchanged(family)? {
        converge(&mut kernel, &want)?;
        rounds += 1;
        assert!(rounds < 4, "there is no end to it");
    }
    run(&format!("{tool} -t mangle -R selvage-inner 2 -j RETURN"))?;
    assert!(!kernel.rules_unchanged(family)?);
    let todo = converge(&mut kernel, &want)?;
    assert_eq!(todo.write.len(), 1, "{todo:?}");
    assert!(kernel.rules_unchanged(family)?);
    Ok(())
}

#[test]
fn a_rule_changed_between_our_write_and_our_reading_is_not_taken_for_ours() -> Result<()> {
    let mut kernel = open(Backend::Nft)?;
    let family = Family::V4;
    let want = ruleset(family);
    converge(&mut kernel, &want)?;
    for _ in 0..10 {
        // A stranger who is as stubborn as we are, and leaves the marker alone.
        let others = |_| {
            drop(run("iptables-nft -t mangle -R selvage-inner 2 -j RETURN"));
            Ok(())
        };
        meanwhile(others, || {
            let until = Instant::now() + Duration::from_millis(150);
            while Instant::now() < until {
                converge(&mut kernel, &want)?;
            }
            Ok(())
        })?;
        let mut rounds = 0;
        while !kernel.rules_unchanged(family)? {
            converge(&mut kernel, &want)?;
            rounds += 1;
            assert!(rounds < 4, "there is no end to it");
        }
        let inner = listed(family, Backend::Nft, "selvage-inner");
        assert_eq!(inner[2], "-A selvage-inner -j DROP", "{inner:?}");
    }
    Ok(())
}

#[test]
fn a_commit_in_the_midst_of_a_reading_is_read_around() -> Result<()> {
    let mut kernel = open(Backend::Nft)?;
    run("nft add table ip mangle")?;
    // Either the one chain or the other, with all its rules, at every moment.
    let state = |is: &str, was: &str| {
        let rules: String = (0..300)
            .map(|port| format!("add rule ip mangle selvage-{is} tcp dport {port} counter drop\n"))
            .collect();
        format!(
            "add chain ip mangle selvage-{was}\ndelete chain ip mangle selvage-{was}\n\
             add chain ip mangle selvage-{is}\n{rules}"
        )
    };
    std::fs::write("/run/a.nft", state("a", "b"))?;
    std::fs::write("/run/b.nft", state("b", "a"))?;
    run("nft -f /run/a.nft")?;
    let others = |round: u32| {
        let file = if round.is_multiple_of(2) { "b" } else { "a" };
        run(&format!("nft -f /run/{file}.nft")).map(drop)
    };
    let mut seen = BTreeSet::new();
    meanwhile(others, || {
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            let found = kernel.observe(Family::V4)?;
            let found: Vec<_> = found
                .chains
                .iter()
                .map(|(name, state)| (name.to_string(), state.rules))
                .collect();
            let [(name, 300)] = &found[..] else {
                panic!("neither one nor the other: {found:?}");
            };
            seen.insert(name.clone());
        }
        Ok(())
    })?;
    assert_eq!(seen.len(), 2, "{seen:?}");
    Ok(())
}

#[test]
fn a_legacy_lock_that_is_let_go_is_waited_for() -> Result<()> {
    let mut kernel = open(Backend::Legacy)?;
    let lock = File::create("/run/xtables.lock")?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let held = Duration::from_millis(1500);
    let started = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            // Nothing happens meanwhile, which is the point.
            drop(run("sleep 1.5"));
            flock(&lock, FlockOperation::Unlock).unwrap();
        });
        converge(&mut kernel, &ruleset(Family::V4))
    })?;
    assert!(started.elapsed() >= held);
    assert!(plan(&ruleset(Family::V4), &kernel.observe(Family::V4)?).is_empty());
    Ok(())
}

#[test]
fn a_full_set_that_somebody_is_reading_is_swapped_when_they_are_done() -> Result<()> {
    assert_isolated()?;
    let mut sets = IpSets::open(Duration::from_secs(10))?;
    run("ipset create selvage-small hash:net family inet hashsize 64 maxelem 9000")?;
    let name = SetName::new("selvage-small")?;
    sets.add(&name, &members(Family::V4, SetKind::Net, 9000))?;
    assert_eq!(sets.list()?[0].room, 9000, "full, and not rebuilt yet");
    // The kernel counts by regions of the table, and lets a few more in where one has room.
    let more = members(Family::V4, SetKind::Net, 9900);
    thread::scope(|scope| -> Result<()> {
        // The tool stops in the middle of its reading when nobody takes what it prints.
        let reader =
            scope.spawn(|| run_with_input("sh", "ipset save selvage-small | (sleep 1; wc -l)"));
        // Until that is so, a set can be swapped with itself; it reads a first time in passing.
        let mut refused = 0;
        while refused < 10 {
            match run("ipset swap selvage-small selvage-small") {
                Ok(_) => refused = 0,
                Err(_) => refused += 1,
            }
        }
        let started = Instant::now();
        sets.add(&name, &more)?;
        assert!(started.elapsed() > Duration::from_millis(100), "it waited");
        reader.join().expect("it doesn't panic").map(drop)
    })?;
    assert_eq!(sets.read(&name)?.1, more);
    assert_eq!(sets.list()?.len(), 1);
    Ok(())
}
