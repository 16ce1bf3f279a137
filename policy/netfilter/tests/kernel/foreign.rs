//! What a foreign hand does to our rules is noticed, told apart from what we do, and mended.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use selvage_netfilter::ipset::Glimpse;
use selvage_netfilter::{Backend, Kernel, Pace, Suspect, Watcher};
use selvage_policy_core::observe::SetState;
use selvage_policy_core::plan::plan;
use selvage_policy_core::ruleset::{Family, Ruleset, SetName};
use selvage_tests::{run, run_with_input};

use crate::rules::{FAMILIES, converge, on_both_backends, open, ruleset, tool};

/// A node whose rules are in force and watched, as the daemon does it.
pub(crate) struct Watched {
    pub(crate) backend: Backend,
    pub(crate) kernel: Kernel,
    pub(crate) watcher: Watcher,
    pub(crate) want: Vec<Ruleset>,
}

impl Watched {
    /// Only rules are watched.
    fn new(backend: Backend) -> Result<Self> {
        Self::at(backend, rules_only())
    }

    pub(crate) fn at(backend: Backend, pace: Pace) -> Result<Self> {
        let mut kernel = open(backend)?;
        let watcher = Watcher::open(backend, &FAMILIES, pace)?;
        let want: Vec<Ruleset> = FAMILIES.map(ruleset).into();
        for want in &want {
            converge(&mut kernel, want)?;
        }
        let mut watched = Self {
            backend,
            kernel,
            watcher,
            want,
        };
        // What was told of our own writes is no news.
        for suspect in watched.watcher.wait(Instant::now())? {
            assert!(!watched.is_so(suspect)?, "{suspect:?}: we did that");
        }
        Ok(watched)
    }

    /// Sets that are not as they should be, as far as headers show.
    pub(crate) fn differing(&mut self, family: Family) -> Result<BTreeSet<SetName>> {
        let glimpse = self.kernel.sets().glimpse()?;
        self.differing_from(family, &glimpse)
    }

    pub(crate) fn differing_from(
        &mut self,
        family: Family,
        glimpse: &Glimpse,
    ) -> Result<BTreeSet<SetName>> {
        let of_family = self.want.iter().filter(|want| want.family == family);
        let expected = of_family.flat_map(|want| &want.sets).map(|(name, set)| {
            let state = SetState::Known {
                kind: set.kind,
                members: set.members.clone(),
            };
            (name.clone(), state)
        });
        let expected = expected.collect();
        Ok(self.kernel.sets_changed(family, &expected, glimpse)?)
    }

    /// Whether a suspicion is borne out by a cheap look.
    pub(crate) fn is_so(&mut self, suspect: Suspect) -> Result<bool> {
        match suspect {
            Suspect::Rules(family) => Ok(!self.kernel.rules_unchanged(family)?),
            Suspect::Sets => {
                let seen = self.watcher.glimpses().take();
                let seen = seen.expect("it has looked before it suspects");
                for family in FAMILIES {
                    if !self.differing_from(family, &seen)?.is_empty() {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Suspect::Members => Ok(true),
        }
    }

    /// Watches and mends until something was mended; returns how long that took from the call on,
    /// and what gave it away.
    pub(crate) fn mend(&mut self, patience: Duration) -> Result<(Duration, Suspect)> {
        let started = Instant::now();
        loop {
            let suspects = self.watcher.wait(started + patience)?;
            ensure!(!suspects.is_empty(), "nothing was noticed in {patience:?}");
            for suspect in suspects {
                if self.is_so(suspect)? {
                    let mut todo = Vec::new();
                    for want in &self.want {
                        todo.push(converge(&mut self.kernel, want)?);
                    }
                    if todo.iter().any(|plan| !plan.is_empty()) {
                        return Ok((started.elapsed(), suspect));
                    }
                }
            }
        }
    }

    /// Everything is as it should be by a reader that remembers nothing, and by ours.
    pub(crate) fn is_right(&mut self) -> Result<()> {
        let mut fresh = open(self.backend)?;
        for want in self.want.clone() {
            let todo = plan(&want, &fresh.observe(want.family)?);
            assert!(todo.is_empty(), "{todo:?}");
            assert!(self.kernel.rules_unchanged(want.family)?);
            let differing = self.differing(want.family)?;
            assert_eq!(differing, BTreeSet::new());
        }
        Ok(())
    }
}

/// Rules of mangle as the tool prints them, counters aside.
fn printed(family: Family, backend: Backend) -> Result<String> {
    let text = run(&format!("{} -t mangle -S", tool(family, backend)))?;
    // The order in which chains are declared means nothing.
    let (mut chains, rules): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| !line.starts_with("-A"));
    chains.sort_unstable();
    let filled = chains
        .into_iter()
        // A restore of the whole table declares base chains that nobody used before.
        .filter(|line| !line.starts_with("-P"));
    Ok(filled.chain(rules).collect::<Vec<_>>().join("\n"))
}

/// A year and a day.
const NEVER: Duration = Duration::from_secs(366 * 86_400);

fn rules_only() -> Pace {
    Pace {
        headers: NEVER,
        members: NEVER,
        ..Pace::default()
    }
}

/// No timer at all.
fn told_only() -> Pace {
    Pace {
        legacy: NEVER,
        ..rules_only()
    }
}

/// How soon a change must be mended here. The bars are 100 ms and 1.5 s on a quiet machine.
pub(crate) fn bound(backend: Backend) -> Duration {
    match backend {
        Backend::Nft => Duration::from_secs(1),
        Backend::Legacy => Duration::from_secs(3),
    }
}

/// Does this to each family in turn, in lines for the tool, and sees it undone.
fn undone(backend: Backend, does: &[&str]) -> Result<()> {
    let mut node = Watched::new(backend)?;
    for family in FAMILIES {
        let before = printed(family, backend)?;
        for line in does {
            run(&format!("{} -t mangle {line}", tool(family, backend)))?;
        }
        let (took, suspect) = node.mend(bound(backend))?;
        assert_eq!(suspect, Suspect::Rules(family), "{does:?}");
        assert!(took < bound(backend), "{took:?}");
        assert_eq!(printed(family, backend)?, before, "{does:?}");
        node.is_right()?;
    }
    Ok(())
}

on_both_backends![
    a_jump_that_is_deleted_is_put_back,
    a_jump_that_is_moved_behind_an_accept_is_first_again,
    a_jump_that_is_doubled_is_single_again,
    a_chain_that_is_flushed_is_filled_again,
    a_rule_replaced_under_its_chains_marker_is_put_right,
    two_rules_exchanged_under_their_chains_marker_are_put_right,
    a_base_chain_that_is_flushed_gets_its_jump_again,
    a_table_that_is_emptied_is_filled_again,
    a_table_that_another_tool_restores_whole_is_filled_again,
    a_jump_behind_rules_that_let_nothing_past_stays_where_it_is,
    what_others_do_elsewhere_is_no_change_of_ours,
    our_own_commits_end_at_a_look_that_finds_nothing,
    what_counters_say_is_no_change,
];

fn a_jump_that_is_deleted_is_put_back(backend: Backend) -> Result<()> {
    undone(backend, &["-D FORWARD -j selvage-forward"])
}

fn a_jump_that_is_doubled_is_single_again(backend: Backend) -> Result<()> {
    let again = "-A FORWARD -j selvage-forward";
    undone(backend, &[again, again])
}

fn a_chain_that_is_flushed_is_filled_again(backend: Backend) -> Result<()> {
    undone(backend, &["-F selvage-inner"])
}

fn a_rule_replaced_under_its_chains_marker_is_put_right(backend: Backend) -> Result<()> {
    undone(backend, &["-R selvage-inner 2 -j RETURN"])
}

fn two_rules_exchanged_under_their_chains_marker_are_put_right(backend: Backend) -> Result<()> {
    undone(
        backend,
        &["-D selvage-inner 2", "-I selvage-inner 1 -j DROP"],
    )
}

fn a_base_chain_that_is_flushed_gets_its_jump_again(backend: Backend) -> Result<()> {
    undone(backend, &["-F FORWARD"])
}

fn a_table_that_is_emptied_is_filled_again(backend: Backend) -> Result<()> {
    undone(backend, &["-F", "-X"])
}

fn a_jump_that_is_moved_behind_an_accept_is_first_again(backend: Backend) -> Result<()> {
    for accept in [
        "-I FORWARD -i eth9 -j ACCEPT",
        "-I FORWARD -i eth9 -j RETURN",
        "-I FORWARD -i eth9 -j theirs",
        "-I FORWARD -i eth9 -g harmless",
        "-I FORWARD -i eth9 -j NFQUEUE",
    ] {
        let mut node = Watched::new(backend)?;
        for family in FAMILIES {
            let tool = tool(family, backend);
            run_with_input(
                &format!("{tool}-restore --noflush"),
                "*mangle\n:theirs - [0:0]\n:harmless - [0:0]\n-A theirs -p udp -j ACCEPT\n\
                 -A harmless -j MARK --set-mark 0x1\nCOMMIT\n",
            )?;
            run(&format!("{tool} -t mangle {accept}"))?;
            node.mend(bound(backend))?;
            let forward = run(&format!("{tool} -t mangle -S FORWARD"))?;
            let rules: Vec<&str> = forward.lines().skip(1).collect();
            assert_eq!(rules.len(), 2, "{accept}: {rules:?}");
            assert_eq!(rules[0], "-A FORWARD -j selvage-forward", "{accept}");
            node.is_right()?;
            for command in [
                "-F FORWARD",
                "-F theirs",
                "-X theirs",
                "-F harmless",
                "-X harmless",
            ] {
                run(&format!("{tool} -t mangle {command}"))?;
            }
            node.mend(bound(backend))?;
        }
        node.kernel.cleanup();
    }
    Ok(())
}

fn a_jump_behind_rules_that_let_nothing_past_stays_where_it_is(backend: Backend) -> Result<()> {
    let mut node = Watched::new(backend)?;
    for family in FAMILIES {
        let tool = tool(family, backend);
        run_with_input(
            &format!("{tool}-restore --noflush"),
            "*mangle\n:theirs - [0:0]\n-A theirs -i eth8 -j RETURN\n-A theirs -j MARK --set-mark 0x1\n\
             -I FORWARD -j theirs\n-I FORWARD -i eth9 -j DROP\n\
             -I FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu\nCOMMIT\n",
        )?;
        let found = node.kernel.observe(family)?;
        let hooks: Vec<_> = found
            .hooks
            .iter()
            .map(|it| (it.position, it.shadowed))
            .collect();
        assert_eq!(hooks, [(3, false)], "{family}");
        node.is_right()?;
    }
    Ok(())
}

fn a_table_that_another_tool_restores_whole_is_filled_again(backend: Backend) -> Result<()> {
    let mut node = Watched::new(backend)?;
    for family in FAMILIES {
        let tool = tool(family, backend);
        run_with_input(
            &format!("{tool}-restore"),
            "*mangle\n:FORWARD ACCEPT [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n\
             -A FORWARD -i eth9 -j MARK --set-mark 0x1\nCOMMIT\n",
        )?;
        let (_, suspect) = node.mend(bound(backend))?;
        assert_eq!(suspect, Suspect::Rules(family));
        let forward = run(&format!("{tool} -t mangle -S FORWARD"))?;
        assert_eq!(forward.matches("selvage-forward").count(), 1, "{forward}");
        assert!(forward.contains("eth9"), "theirs stays: {forward}");
        node.is_right()?;
    }
    Ok(())
}

fn what_others_do_elsewhere_is_no_change_of_ours(backend: Backend) -> Result<()> {
    let mut node = Watched::new(backend)?;
    for family in FAMILIES {
        let tool = tool(family, backend);
        run(&format!("{tool} -t filter -A FORWARD -j ACCEPT"))?;
        run(&format!("{tool} -t mangle -A FORWARD -i eth9 -j ACCEPT"))?;
        run(&format!("{tool} -t mangle -N theirs"))?;
        assert!(node.kernel.rules_unchanged(family)?, "{family}");
    }
    node.is_right()
}

/// The handle of the rule in our inner chain that drops.
fn handle_of_drop(table: &str) -> Result<String> {
    let listed = run(&format!("nft -a list chain {table} mangle selvage-inner"))?;
    let line = listed.lines().find(|line| line.contains(" drop")).unwrap();
    Ok(line.rsplit(' ').next().unwrap().to_owned())
}

fn what_counters_say_is_no_change(backend: Backend) -> Result<()> {
    let mut node = Watched::new(backend)?;
    for family in FAMILIES {
        let tool = tool(family, backend);
        // The same rule over again, as if packets had met it. ip6tables-nft 1.8.9 ignores the
        // counters that it is given.
        let table = match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        match backend {
            Backend::Nft => run(&format!(
                "nft replace rule {table} mangle selvage-inner handle {} counter packets 7 bytes 700 drop",
                handle_of_drop(table)?
            ))?,
            Backend::Legacy => run(&format!(
                "{tool} -t mangle -R selvage-inner 2 -c 7 700 -j DROP"
            ))?,
        };
        let listed = run(&format!("{tool} -t mangle -vS selvage-inner"))?;
        assert!(listed.contains("-c 7 700"), "{listed}");
        assert!(node.kernel.rules_unchanged(family)?, "{family}");
    }
    node.is_right()
}

fn our_own_commits_end_at_a_look_that_finds_nothing(backend: Backend) -> Result<()> {
    let mut node = Watched::at(backend, told_only())?;
    let (full, bare) = (node.want[0].clone(), Ruleset::empty(Family::V4));
    for want in [&bare, &full, &bare, &full] {
        converge(&mut node.kernel, want)?;
        // Each commit is told once or twice, and then there is silence.
        let mut told = 0;
        loop {
            let patience = Duration::from_millis(200);
            let suspects = node.watcher.wait(Instant::now() + patience)?;
            if suspects.is_empty() {
                break;
            }
            for suspect in suspects {
                assert!(!node.is_so(suspect)?, "{suspect:?}");
            }
            told += 1;
            assert!(told < 6, "there is no end to it");
        }
    }
    Ok(())
}

#[test]
fn a_ruleset_that_nft_flushes_is_made_again() -> Result<()> {
    let mut node = Watched::new(Backend::Nft)?;
    for command in ["nft flush ruleset", "nft delete table ip6 mangle"] {
        run(command)?;
        let (took, _) = node.mend(bound(Backend::Nft))?;
        assert!(took < bound(Backend::Nft), "{command}: {took:?}");
        node.is_right()?;
    }
    Ok(())
}

#[test]
fn native_rules_in_our_way_are_noticed_and_jumps_do_not_pile_up() -> Result<()> {
    let mut node = Watched::new(Backend::Nft)?;
    // iptables-nft can neither list, check nor delete in this chain any more.
    run("nft add rule ip mangle FORWARD ct state established counter")?;
    run("nft add chain ip mangle theirs")?;
    for native in [
        "nft insert rule ip mangle FORWARD iifname eth9 accept",
        "nft insert rule ip mangle FORWARD ip protocol vmap { tcp : accept, udp : drop }",
        "nft insert rule ip mangle FORWARD iifname eth9 goto theirs",
        "nft flush chain ip mangle selvage-inner",
        "nft add rule ip mangle FORWARD counter jump selvage-forward",
    ] {
        run(native)?;
        node.mend(bound(Backend::Nft))?;
        let listed = run("nft list chain ip mangle FORWARD")?;
        assert_eq!(
            listed.matches("selvage-forward").count(),
            1,
            "{native}: {listed}"
        );
        node.is_right()?;
    }
    Ok(())
}

#[test]
fn a_rule_changed_by_nft_under_the_marker_is_put_right() -> Result<()> {
    let mut node = Watched::new(Backend::Nft)?;
    let drop = handle_of_drop("ip")?;
    run(&format!(
        "nft replace rule ip mangle selvage-inner handle {drop} counter accept"
    ))?;
    node.mend(bound(Backend::Nft))?;
    assert!(!run("nft list chain ip mangle selvage-inner")?.contains("accept"));
    node.is_right()
}

#[test]
fn notifications_that_are_lost_make_everything_suspect() -> Result<()> {
    let pace = Pace {
        buffer: 4096,
        ..told_only()
    };
    let mut node = Watched::at(Backend::Nft, pace)?;
    let many = "-A INPUT -s 10.0.0.1 -j DROP\n".repeat(500);
    run_with_input(
        "iptables-nft-restore --noflush",
        &format!("*filter\n{many}COMMIT\n"),
    )?;
    run("ip6tables-nft -t mangle -F selvage-inner")?;
    let suspects = node.watcher.wait(Instant::now() + Duration::from_secs(5))?;
    // Nothing happened in IPv4's mangle.
    for family in FAMILIES {
        assert!(suspects.contains(&Suspect::Rules(family)), "{suspects:?}");
    }
    assert!(node.kernel.rules_unchanged(Family::V4)?);
    assert!(!node.kernel.rules_unchanged(Family::V6)?);
    Ok(())
}

#[test]
fn a_writer_with_another_lock_file_is_noticed_by_the_timer() -> Result<()> {
    let mut node = Watched::new(Backend::Legacy)?;
    run("env XTABLES_LOCKFILE=/run/other.lock iptables-legacy -t mangle -F selvage-inner")?;
    let (took, suspect) = node.mend(bound(Backend::Legacy))?;
    assert_eq!(suspect, Suspect::Rules(Family::V4));
    assert!(took < bound(Backend::Legacy), "{took:?}");
    node.is_right()
}

#[test]
fn a_lock_file_that_is_replaced_is_followed() -> Result<()> {
    let mut node = Watched::at(Backend::Legacy, told_only())?;
    std::fs::remove_file("/run/xtables.lock")?;
    let suspects = node.watcher.wait(Instant::now() + Duration::from_secs(5))?;
    assert!(!suspects.is_empty(), "its going is noticed");
    run("iptables-legacy -t mangle -F selvage-inner")?;
    node.mend(bound(Backend::Legacy))?;
    node.is_right()
}

#[test]
fn watching_legacy_tables_that_do_not_exist_creates_none() -> Result<()> {
    let mut kernel = open(Backend::Legacy)?;
    let mut watcher = Watcher::open(Backend::Legacy, &FAMILIES, rules_only())?;
    assert!(kernel.observe(Family::V4)?.chains.is_empty());
    let suspects = watcher.wait(Instant::now() + Duration::from_secs(3))?;
    assert!(
        suspects.contains(&Suspect::Rules(Family::V4)),
        "{suspects:?}"
    );
    assert!(kernel.rules_unchanged(Family::V4)?);
    let tables = std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    assert_eq!(tables, "");
    Ok(())
}
