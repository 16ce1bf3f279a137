//! What a foreign hand does to our sets: seen by their headers, or by reading all members.

use std::time::{Duration, Instant};

use anyhow::Result;
use selvage_netfilter::{Backend, Error, Pace, Suspect};
use selvage_policy_core::index::{MemberChange, MemberChanges};
use selvage_policy_core::observe::SetState;
use selvage_policy_core::ruleset::{Family, Member, SetName};
use selvage_tests::run;

use crate::foreign::Watched;
use crate::rules::{FAMILIES, on_both_backends, tool};

/// The bar is 1.5 s on a quiet machine.
const BOUND: Duration = Duration::from_secs(3);

fn set(family: Family) -> &'static str {
    match family {
        Family::V4 => "selvage-peers-4",
        Family::V6 => "selvage-peers-6",
    }
}

fn inet(family: Family) -> &'static str {
    match family {
        Family::V4 => "inet",
        Family::V6 => "inet6",
    }
}

/// The member that `ruleset` gives the set, and another.
fn members(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("0.0.0.0/1", "10.0.0.0/8"),
        Family::V6 => ("::/1", "fd00::/8"),
    }
}

fn held(node: &mut Watched, family: Family) -> Result<Vec<String>> {
    let sets = node.kernel.observe(family)?.sets;
    let name = selvage_policy_core::ruleset::SetName::new(set(family))?;
    let SetState::Known { members, .. } = &sets[&name] else {
        panic!("{sets:?}");
    };
    Ok(members.iter().map(|member| member.to_string()).collect())
}

/// Runs these commands, the family's names filled in, and sees them undone by a look at headers.
fn undone(backend: Backend, does: &[&str]) -> Result<()> {
    let mut node = Watched::at(backend, Pace::default())?;
    for family in FAMILIES {
        for command in does {
            let (mine, other) = members(family);
            run(&command
                .replace("SET", set(family))
                .replace("TOOL", &tool(family, backend))
                .replace("INET", inet(family))
                .replace("MINE", mine)
                .replace("OTHER", other))?;
        }
        let (took, _) = node.mend(BOUND)?;
        assert!(took < BOUND, "{took:?}");
        assert_eq!(held(&mut node, family)?, [members(family).0], "{does:?}");
        node.is_right()?;
    }
    Ok(())
}

on_both_backends![
    a_set_that_is_emptied_is_filled_again,
    a_set_swapped_for_one_of_the_same_size_gets_its_member_back,
    a_set_destroyed_with_the_rules_is_made_again,
    a_set_that_no_rule_matches_on_any_more_gives_the_rules_away,
    a_set_made_anew_with_as_many_members_is_no_longer_believed,
    what_we_changed_since_headers_were_listed_is_no_suspicion_and_is_looked_at_anew,
    a_set_of_another_type_that_our_rules_refer_to_is_replaced,
    one_member_exchanged_for_another_is_found_by_reading_all,
    a_set_that_a_strangers_rule_holds_is_an_error_that_says_what_to_do,
];

fn a_set_that_is_emptied_is_filled_again(backend: Backend) -> Result<()> {
    undone(backend, &["ipset flush SET"])
}

fn a_set_swapped_for_one_of_the_same_size_gets_its_member_back(backend: Backend) -> Result<()> {
    undone(
        backend,
        &[
            "ipset create theirs hash:net family INET",
            "ipset add theirs OTHER",
            "ipset swap theirs SET",
            "ipset destroy theirs",
        ],
    )
}

fn a_set_destroyed_with_the_rules_is_made_again(backend: Backend) -> Result<()> {
    let mut node = Watched::at(backend, Pace::default())?;
    for family in FAMILIES {
        run(&format!("{} -t mangle -F", tool(family, backend)))?;
        destroy(set(family))?;
        node.mend(BOUND)?;
        assert_eq!(held(&mut node, family)?, [members(family).0]);
        node.is_right()?;
    }
    Ok(())
}

fn a_set_that_no_rule_matches_on_any_more_gives_the_rules_away(backend: Backend) -> Result<()> {
    let mut node = Watched::at(backend, Pace::default())?;
    for family in FAMILIES {
        run(&format!(
            "{} -t mangle -F selvage-inner",
            tool(family, backend)
        ))?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while node.differing(family)?.is_empty() {
            assert!(Instant::now() < deadline, "{family}");
        }
        node.mend(BOUND)?;
        node.is_right()?;
    }
    Ok(())
}

fn a_set_made_anew_with_as_many_members_is_no_longer_believed(backend: Backend) -> Result<()> {
    let mut node = Watched::at(backend, Pace::default())?;
    for family in FAMILIES {
        run(&format!("{} -t mangle -F", tool(family, backend)))?;
        destroy(set(family))?;
        let (_, other) = members(family);
        run(&format!(
            "ipset create {} hash:net family {}",
            set(family),
            inet(family)
        ))?;
        run(&format!("ipset add {} {other}", set(family)))?;
        let differing = node.differing(family)?;
        assert_eq!(differing.len(), 1, "{family}");
        node.mend(BOUND)?;
        assert_eq!(held(&mut node, family)?, [members(family).0]);
        node.is_right()?;
    }
    Ok(())
}

fn what_we_changed_since_headers_were_listed_is_no_suspicion_and_is_looked_at_anew(
    backend: Backend,
) -> Result<()> {
    let mut node = Watched::at(backend, Pace::default())?;
    for family in FAMILIES {
        let name = SetName::new(set(family))?;
        let other = Member {
            net: members(family).1.parse()?,
            port: None,
        };
        let before = node.kernel.sets().glimpse()?;
        let change = MemberChange {
            add: [other].into(),
            ..MemberChange::default()
        };
        let changes = MemberChanges::from([(name.clone(), change)]);
        node.kernel.sets().change_members(&changes, &mut || {})?;
        for want in node.want.iter_mut().filter(|it| it.family == family) {
            want.sets.get_mut(&name).unwrap().members.insert(other);
        }
        assert!(node.differing_from(family, &before)?.is_empty());
        // The same old headers, and one of ours is gone.
        run(&format!("ipset del {name} {}", other.net))?;
        assert_eq!(node.differing_from(family, &before)?, [name].into());
    }
    Ok(())
}

fn a_set_of_another_type_that_our_rules_refer_to_is_replaced(backend: Backend) -> Result<()> {
    let mut node = Watched::at(backend, Pace::default())?;
    for family in FAMILIES {
        let tool = tool(family, backend);
        let saved = run(&format!("{tool}-save -t mangle"))?;
        run(&format!("{tool} -t mangle -F"))?;
        destroy(set(family))?;
        // Another tool brings our rules back, over a set that matches the wrong things.
        run(&format!(
            "ipset create {} hash:ip family {}",
            set(family),
            inet(family)
        ))?;
        selvage_tests::run_with_input(&format!("{tool}-restore"), &saved)?;
        node.mend(BOUND)?;
        assert_eq!(held(&mut node, family)?, [members(family).0]);
        node.is_right()?;
    }
    Ok(())
}

fn one_member_exchanged_for_another_is_found_by_reading_all(backend: Backend) -> Result<()> {
    let pace = Pace {
        members: Duration::from_millis(1500),
        ..Pace::default()
    };
    let mut node = Watched::at(backend, pace)?;
    for family in FAMILIES {
        let (mine, other) = members(family);
        run(&format!("ipset del {} {mine}", set(family)))?;
        run(&format!("ipset add {} {other}", set(family)))?;
        let (_, suspect) = node.mend(BOUND)?;
        assert_eq!(suspect, Suspect::Members, "headers don't show it");
        assert_eq!(held(&mut node, family)?, [mine]);
        node.is_right()?;
    }
    Ok(())
}

fn a_set_that_a_strangers_rule_holds_is_an_error_that_says_what_to_do(
    backend: Backend,
) -> Result<()> {
    let mut node = Watched::at(backend, Pace::default())?;
    let (family, tool) = (Family::V4, tool(Family::V4, backend));
    run(&format!("{tool} -t mangle -F"))?;
    destroy(set(family))?;
    run(&format!("ipset create {} hash:ip", set(family)))?;
    run(&format!(
        "{tool} -t mangle -A INPUT -m set --match-set {} src",
        set(family)
    ))?;
    let want = &node.want[0];
    let todo = selvage_policy_core::plan::plan(want, &node.kernel.observe(family)?);
    let error = node.kernel.apply(&todo).unwrap_err();
    assert!(matches!(&error, Error::InUse { set: it } if it.as_str() == set(family)));
    assert!(
        error
            .to_string()
            .contains("iptables-save | grep selvage-peers-4")
    );
    // Until then our chains, wherever they are met, let nothing through.
    run(&format!("{tool} -t mangle -F INPUT"))?;
    node.mend(BOUND)?;
    node.is_right()
}

/// iptables-nft's rules let go of their sets a little after they are deleted.
fn destroy(set: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match run(&format!("ipset destroy {set}")) {
            Err(_) if Instant::now() < deadline => {}
            done => return done.map(drop),
        }
    }
}
