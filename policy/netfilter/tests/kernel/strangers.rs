//! Living beside others: their rules, sets, native tables, other backend and lock stay theirs.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::fs::{FlockOperation, flock};
use selvage_netfilter::{Backend, Error, Kernel};
use selvage_policy_core::plan::plan;
use selvage_policy_core::ruleset::Family;
use selvage_tests::{assert_isolated, run, run_with_input};

use crate::rules::{FAMILIES, converge, listed, on_both_backends, open, ruleset, tool};

/// Rules, chains and a set of other people's, some with names almost like ours.
fn strangers(family: Family, backend: Backend) -> Result<()> {
    run_with_input(
        &format!("{}-restore --noflush", tool(family, backend)),
        "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\n:selvage - [0:0]\n:selvage-Theirs - [0:0]\n\
         -A FORWARD -i eth9 -j MARK --set-mark 0x1\n\
         -A FORWARD -j selvage-Theirs\n-A selvage-Theirs -i eth8 -j ACCEPT\n\
         -A selvage -m comment --comment \"selvage:0123456789abcdef\" -j RETURN\nCOMMIT\n\
         *filter\n:selvage-filter - [0:0]\n-A FORWARD -j selvage-filter\nCOMMIT\n",
    )
    .map(drop)
}

/// Everything there is, without counters and times.
fn everything(family: Family, backend: Backend) -> Result<String> {
    let text = run(&format!("{}-save", tool(family, backend)))?;
    Ok(text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .fold(String::new(), |all, line| all + line + "\n"))
}

on_both_backends![
    cleanup_takes_all_of_ours_and_nothing_of_anybody_elses,
    a_chain_that_a_stranger_jumps_to_is_emptied_reported_and_left,
    rules_of_the_other_backend_are_cleaned_and_the_sets_stay,
];

fn cleanup_takes_all_of_ours_and_nothing_of_anybody_elses(backend: Backend) -> Result<()> {
    let mut kernel = open(backend)?;
    run("ipset create selvage hash:net family inet")?;
    for family in FAMILIES {
        strangers(family, backend)?;
    }
    let before = (
        everything(Family::V4, backend)?,
        everything(Family::V6, backend)?,
    );
    for family in FAMILIES {
        converge(&mut kernel, &ruleset(family))?;
    }
    run(&format!(
        "iptables-{backend} -t mangle -A FORWARD -j selvage-forward"
    ))?;
    let cleaned = kernel.cleanup();
    assert_eq!((cleaned.hooks, cleaned.chains, cleaned.sets), (3, 4, 2));
    assert!(cleaned.left.is_empty(), "{:?}", cleaned.left);
    let after = (
        everything(Family::V4, backend)?,
        everything(Family::V6, backend)?,
    );
    assert_eq!(after, before);
    assert_eq!(run("ipset list -n")?, "selvage\n");
    Ok(())
}

fn a_chain_that_a_stranger_jumps_to_is_emptied_reported_and_left(backend: Backend) -> Result<()> {
    let mut kernel = open(backend)?;
    converge(&mut kernel, &ruleset(Family::V4))?;
    let theirs = "-A FORWARD -i eth9 -j selvage-forward";
    run(&format!("iptables-{backend} -t mangle {theirs}"))?;
    let cleaned = kernel.cleanup();
    assert_eq!((cleaned.hooks, cleaned.chains, cleaned.sets), (1, 1, 1));
    let [error] = &cleaned.left[..] else {
        panic!("{:?}", cleaned.left);
    };
    assert!(
        format!("{error:?}").contains("selvage-forward"),
        "{error:?}"
    );
    assert_eq!(
        listed(Family::V4, backend, "FORWARD"),
        ["-P FORWARD ACCEPT", theirs]
    );
    assert_eq!(
        listed(Family::V4, backend, "selvage-forward"),
        ["-N selvage-forward"]
    );
    Ok(())
}

fn rules_of_the_other_backend_are_cleaned_and_the_sets_stay(backend: Backend) -> Result<()> {
    let mut old = open(backend.other())?;
    converge(&mut old, &ruleset(Family::V4))?;
    drop(old);
    let mut kernel = open(backend)?;
    let want = ruleset(Family::V4);
    converge(&mut kernel, &want)?;
    let cleaned = kernel.clean_rules(backend.other());
    assert_eq!(
        (cleaned.hooks, cleaned.chains),
        (1, 2),
        "{:?}",
        cleaned.left
    );
    assert_eq!(
        listed(Family::V4, backend.other(), "FORWARD"),
        ["-P FORWARD ACCEPT"]
    );
    assert!(plan(&want, &kernel.observe(Family::V4)?).is_empty());
    Ok(())
}

#[test]
fn native_rules_that_blind_iptables_nft_do_not_blind_us() -> Result<()> {
    let mut kernel = open(Backend::Nft)?;
    let want = ruleset(Family::V4);
    converge(&mut kernel, &want)?;
    run("nft add rule ip mangle FORWARD ct state established counter")?;
    run("nft insert rule ip mangle FORWARD ip saddr { 10.9.9.9, 10.9.9.10 } counter")?;
    // What makes this test worth having: the tool prints nothing and says all is well.
    assert!(!run("iptables-nft-save -t mangle")?.contains("selvage-forward"));
    let found = kernel.observe(Family::V4)?;
    assert!(plan(&want, &found).is_empty(), "{found:?}");
    assert_eq!(found.hooks[0].position, 1);
    // Changing and taking away work too.
    run("nft flush chain ip mangle selvage-inner")?;
    run("nft add rule ip mangle FORWARD counter jump selvage-forward")?;
    let todo = converge(&mut kernel, &want)?;
    assert_eq!((todo.write.len(), todo.unhook.len()), (1, 1));
    assert!(plan(&want, &kernel.observe(Family::V4)?).is_empty());
    let cleaned = kernel.cleanup();
    assert!(cleaned.left.is_empty(), "{:?}", cleaned.left);
    let left = run("nft list table ip mangle")?;
    assert!(!left.contains("selvage"), "{left}");
    assert!(left.contains("10.9.9.9"), "{left}");
    Ok(())
}

#[test]
fn a_native_jump_with_conditions_is_a_strangers_and_no_hook_of_ours() -> Result<()> {
    let mut kernel = open(Backend::Nft)?;
    let want = ruleset(Family::V4);
    converge(&mut kernel, &want)?;
    run("nft add rule ip mangle FORWARD ip saddr 10.9.9.9 jump selvage-forward")?;
    run("nft add rule ip mangle FORWARD goto selvage-forward")?;
    assert!(plan(&want, &kernel.observe(Family::V4)?).is_empty());
    Ok(())
}

#[test]
fn looking_at_legacy_tables_that_do_not_exist_creates_none() -> Result<()> {
    let mut kernel = open(Backend::Legacy)?;
    assert!(kernel.observe(Family::V4)?.chains.is_empty());
    assert!(kernel.cleanup().left.is_empty());
    let tables = std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    assert_eq!(tables, "");
    Ok(())
}

#[test]
fn a_legacy_lock_that_is_never_released_is_an_error_in_time() -> Result<()> {
    assert_isolated()?;
    let lock = File::create("/run/xtables.lock")?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let mut kernel = Kernel::open(Backend::Legacy, Duration::from_secs(2))?;
    let todo = plan(&ruleset(Family::V4), &kernel.observe(Family::V4)?);
    let started = Instant::now();
    let error = kernel.apply(&todo).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(10));
    let Error::Tool { stderr, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(stderr.contains("lock"), "{error}");
    flock(&lock, FlockOperation::Unlock)?;
    kernel = Kernel::open(Backend::Legacy, Duration::from_secs(10))?;
    converge(&mut kernel, &ruleset(Family::V4))?;
    Ok(())
}
