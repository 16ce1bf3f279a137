//! What a cluster becomes, read line by line as the restore tool would.

use std::collections::{BTreeMap, BTreeSet};

use selvage_policy_core::compile::compile;
use selvage_policy_core::index::{Event, Index, Profile, Settings};
use selvage_policy_core::model::{Direction, NodeName};
use selvage_policy_core::observe::{ChainState, Observed};
use selvage_policy_core::plan::{Plan, plan};
use selvage_policy_core::render::render;
use selvage_policy_core::ruleset::{ChainName, Family, Ruleset, VethPrefix};

/// The node whose pods are enforced.
pub(crate) const NODE: &str = "here";

/// Compiles what the events tell of, and reads what would be handed to the kernel.
pub(crate) fn check(events: Vec<Event>) {
    let mut index = Index::new(Settings {
        node: NodeName::new(NODE),
        prefix: VethPrefix::default(),
        families: [Family::V4, Family::V6].into(),
        source_check: true,
        drop_invalid: true,
        deny_log: Some(7),
    });
    for event in events {
        index.apply(event);
    }
    for family in [Family::V4, Family::V6] {
        let ruleset = compile(&mut index, family);
        let plan_in = plan(&ruleset, &Observed::default());
        let lines = 2
            + plan_in.write.len()
            + plan_in.hook.len()
            + plan_in
                .write
                .values()
                .map(|chain| chain.rules().len() + 1)
                .sum::<usize>();
        read(&plan_in, lines);
        let plan_out = plan(&Ruleset::empty(family), &observed(&ruleset));
        read(&plan_out, 2 + 2 * plan_out.delete.len());
        names(&mut index, &ruleset);
        for set in ruleset.sets.values() {
            for member in &set.members {
                assert_eq!(Family::of(&member.net), family, "{member}");
                assert_ne!(member.net.prefix_len(), 0, "the kernel refuses a /0");
            }
        }
    }
}

/// All chains of a ruleset, as they are read from the kernel.
fn observed(ruleset: &Ruleset) -> Observed {
    let chains = ruleset.chains.iter().map(|(name, chain)| {
        let state = ChainState {
            marker: Some(chain.marker()),
            rules: chain.rules_in_kernel(),
        };
        (name.clone(), state)
    });
    Observed {
        chains: chains.collect(),
        ..Observed::default()
    }
}

/// A batch is as many lines as it has things to say, and each is one of the few forms.
fn read(plan: &Plan, expected: usize) {
    let rendered = render(plan);
    let mut lines = 0;
    for batch in [&rendered.apply, &rendered.whole].into_iter().flatten() {
        let inner = batch
            .strip_prefix("*mangle\n")
            .and_then(|rest| rest.strip_suffix("COMMIT\n"))
            .expect("a batch is for table mangle and ends in COMMIT");
        lines += 2 + inner.lines().count();
        for line in inner.lines() {
            assert!(is_ours(line), "{line:?} is no line of ours");
        }
    }
    assert!(lines == 0 || lines == expected, "{lines}, not {expected}");
}

fn is_ours(line: &str) -> bool {
    let plain = line
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b" -:.,!+\"[]".contains(&byte));
    let words: Vec<&str> = line.split(' ').collect();
    let chain = |name: &str| ChainName::new(name).is_ok();
    plain
        && match words.as_slice() {
            [head, "-", "[0:0]"] => head.strip_prefix(':').is_some_and(chain),
            ["-X", name] => chain(name),
            ["-I", "FORWARD" | "PREROUTING", "-j", name] => chain(name),
            ["-A", name, rest @ ..] => {
                chain(name)
                    && !rest.is_empty()
                    && rest.iter().all(|word| !word.is_empty())
                    && rest.iter().filter(|word| word.contains('"')).count() <= 1
            }
            _ => false,
        }
}

/// Each profile has a chain of its own, and each set is one profile's.
fn names(index: &mut Index, ruleset: &Ruleset) {
    let profiles: BTreeSet<&Profile> = index
        .local_pods()
        .values()
        .flat_map(|isolation| Direction::BOTH.map(|it| isolation.profile(it)))
        .flatten()
        .collect();
    let mut chains = 0;
    let mut owners = BTreeMap::new();
    for (name, chain) in &ruleset.chains {
        if name.as_str().starts_with("selvage-i-") || name.as_str().starts_with("selvage-e-") {
            chains += 1;
            let sets: Vec<_> = chain.sets().collect();
            let distinct: BTreeSet<_> = sets.iter().collect();
            assert_eq!(
                sets.len(),
                distinct.len(),
                "two rules of {name} share a set"
            );
            for set in sets {
                let other = owners.insert(set, name);
                assert_eq!(other, None, "{set} is {name}'s, too");
            }
        }
    }
    assert_eq!(chains, profiles.len(), "two profiles share a chain");
}
