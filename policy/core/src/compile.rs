//! The index, as a ruleset: what the kernel should hold for the pods of this node.
//!
//! ```text
//! PREROUTING ─► selvage-source    a pod's packet whose source isn't routed back to it ─► DROP
//! FORWARD ────► selvage-forward   established ─► RETURN
//!                 -i eni+ ─► selvage-from ─► selvage-from-a ─► selvage-e-… (egress profile)
//!                 -o eni+ ─► selvage-to   ─► selvage-to-5   ─► selvage-i-… (ingress profile)
//! ```
//!
//! Inside the trees it is all `-g`, so a RETURN in a profile comes back to `selvage-forward`: a
//! packet between two pods of this node is judged by both. RETURN means allowed here, so others'
//! rules still see the packet; DROP is final. No policy's drop depends on what conntrack thinks of
//! a flow. The `guard`s at the head of both trees do: they only ever add a drop.
//!
//! Pods with security groups of their own may have a veth called `vlan` and the digits. Their
//! trees end in RETURN, since other interfaces' names begin so too.

mod dispatch;
mod guard;
pub(crate) mod profile;
mod source;
pub mod stage;

use std::collections::{BTreeMap, BTreeSet};

use crate::index::Index;
use crate::model::Direction;
use crate::ruleset::{
    Action, BaseChain, Chain, ChainName, Family, FlowState, Hook, Interface, Match, Rule, Ruleset,
    Set, SetKind, VethPrefix, guard_set,
};
use dispatch::{Leaf, Leaves, Tree};

/// Compiles everything for one family, and ends what [`crate::index::Delta::recompile`] asked for.
///
/// *Cost*: linear in the pods of this node and in the members of their profiles' sets; selectors
/// new in use are counted over all pods.
#[must_use]
pub fn compile(index: &mut Index, family: Family) -> Ruleset {
    index.settle();
    let index = &*index;
    let settings = index.settings();
    let veths = settings.prefix.any();
    let mut chains = BTreeMap::new();
    let mut hooks = BTreeSet::from([hook(BaseChain::Forward, "selvage-forward")]);
    if settings.source_check {
        source::grow(&veths, family, &mut chains);
        hooks.insert(hook(BaseChain::Prerouting, source::ROOT));
    }
    let mut profile_chains = BTreeMap::new();
    for (profile, folded) in index.profiles() {
        profile_chains.insert(profile, folded.chain().clone());
        for (name, chain) in profile::stages(profile.direction, folded, family) {
            let chain = match settings.deny_log {
                Some(group) => chain.logging_drops(group, &name),
                None => chain,
            };
            chains.insert(name, chain);
        }
    }
    let guards = guard::rules(family, settings.drop_invalid);
    let mut forward = vec![
        Rule {
            matches: vec![Match::State(FlowState::Established)],
            action: Action::Return,
        },
        Rule {
            matches: vec![Match::In(veths.clone())],
            action: Action::Jump(Tree::From.root()),
        },
        Rule {
            matches: vec![Match::Out(veths)],
            action: Action::Jump(Tree::To.root()),
        },
    ];
    for tree in [Tree::From, Tree::To] {
        let leaves = leaves(index, tree, &profile_chains, false);
        dispatch::grow(tree, &settings.prefix, &leaves, &guards, &mut chains);
    }
    for tree in [Tree::BranchFrom, Tree::BranchTo] {
        let leaves = leaves(index, tree, &profile_chains, true);
        if leaves.is_empty() {
            continue;
        }
        let branch = VethPrefix::branch();
        forward.push(Rule {
            matches: vec![tree.at(branch.any())],
            action: Action::Jump(tree.root()),
        });
        dispatch::grow(tree, &branch, &leaves, &[], &mut chains);
        chains.insert(
            guard::chain_name(),
            Chain::ending_in(Action::Return, guards.clone()),
        );
    }
    chains.insert(
        name("selvage-forward"),
        Chain::ending_in(Action::Return, forward),
    );
    let guard = Set {
        kind: SetKind::Guard,
        members: BTreeSet::new(),
    };
    Ruleset {
        family,
        hooks,
        chains,
        sets: index
            .sets(family)
            .chain([(guard_set(family), guard)])
            .collect(),
    }
}

/// The interfaces of a tree, and what is to be asked about each.
fn leaves(
    index: &Index,
    tree: Tree,
    chains: &BTreeMap<&crate::index::Profile, ChainName>,
    branch: bool,
) -> Leaves {
    let direction = match tree {
        Tree::From | Tree::BranchFrom => Direction::Egress,
        Tree::To | Tree::BranchTo => Direction::Ingress,
    };
    let mut leaves = Leaves::new();
    for (pod, isolation) in index.isolation() {
        let Some(veths) = index.veths().get(pod) else {
            continue;
        };
        let leaf = match isolation
            .profile(direction)
            .and_then(|profile| chains.get(profile))
        {
            Some(chain) => Leaf::Judged(chain.clone()),
            None => Leaf::Open,
        };
        let interfaces: Vec<&Interface> = if branch {
            veths.branch.iter().collect()
        } else {
            [&veths.main].into_iter().chain(&veths.cards).collect()
        };
        for interface in interfaces {
            // Two pods whose names have the same hash: nobody can tell whose packets these are.
            leaves
                .entry(interface.clone())
                .and_modify(|leaf| *leaf = Leaf::Closed)
                .or_insert_with(|| leaf.clone());
        }
    }
    leaves
}

fn hook(base: BaseChain, target: &str) -> Hook {
    Hook {
        base,
        target: name(target),
    }
}

fn name(text: &str) -> ChainName {
    ChainName::new(text).expect("a constant, or one with hex digits behind it")
}
