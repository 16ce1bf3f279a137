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
pub mod drops;
mod guard;
mod ports;
pub(crate) mod profile;
mod source;
pub mod stage;

use std::collections::{BTreeMap, BTreeSet};

use crate::index::{Entries, Index, Veths};
use crate::model::Direction;
use crate::ruleset::{
    Action, BaseChain, Chain, ChainName, Family, FlowState, Hook, Match, MemberSet, Rule, Ruleset,
    Set, SetKind, VethPrefix, guard_set,
};
use dispatch::{Leaf, Leaves, Tree};
use drops::DropReason;

/// Compiles everything for one family, and ends what [`crate::index::Delta::recompile`] asked for.
///
/// *Cost*: linear in the pods of this node and in their profiles' rules and sets, not in members: what
/// didn't change since the last time is shared with it. What did is paid for by its own size: the
/// members of new sets, and the pods that selectors new in use may select.
#[must_use]
pub fn compile(index: &mut Index, family: Family) -> Ruleset {
    index.settle_and_fold();
    let mut chains = frame(index, family);
    index.share(family, &mut chains);
    index.compiled(family);
    let index = &*index;
    chains.extend(index.profile_chains(family).cloned());
    let mut hooks = BTreeSet::from([hook(BaseChain::Forward, "selvage-forward")]);
    if index.settings().source_check {
        hooks.insert(hook(BaseChain::Prerouting, source::ROOT));
    }
    let guard = Set {
        kind: SetKind::Guard,
        members: MemberSet::default(),
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

/// The chains that lead to the profiles'.
fn frame(index: &Index, family: Family) -> BTreeMap<ChainName, Chain> {
    let settings = index.settings();
    let veths = settings.prefix.any();
    let mut chains = BTreeMap::new();
    if settings.source_check {
        source::grow(&veths, family, settings.deny_log, &mut chains);
    }
    let pods = index.veths().iter();
    let pods: Vec<(&Veths, &Entries)> = pods
        .filter_map(|(pod, veths)| Some((veths, index.entries().get(pod)?)))
        .collect();
    let guards = guard::rules(family, settings);
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
        let leaves = leaves(&pods, tree);
        let stranger = DropReason::UnknownInterface.action(settings.deny_log);
        dispatch::grow(
            tree,
            &settings.prefix,
            &leaves,
            &guards,
            &stranger,
            &mut chains,
        );
    }
    for tree in [Tree::BranchFrom, Tree::BranchTo] {
        let leaves = leaves(&pods, tree);
        if leaves.is_empty() {
            continue;
        }
        let branch = VethPrefix::branch();
        forward.push(Rule {
            matches: vec![tree.at(branch.any())],
            action: Action::Jump(tree.root()),
        });
        // Of those whose name begins as a branch ENI pod's does we can't say that they are a pod's.
        dispatch::grow(tree, &branch, &leaves, &[], &Action::Return, &mut chains);
        chains.insert(
            guard::chain_name(),
            Chain::ending_in(Action::Return, guards.clone()),
        );
    }
    chains.insert(
        name("selvage-forward"),
        Chain::ending_in(Action::Return, forward),
    );
    drops::grow(family, settings.deny_log, &mut chains);
    chains
}

/// The interfaces of a tree, and what is to be asked about each.
fn leaves<'a>(pods: &[(&'a Veths, &'a Entries)], tree: Tree) -> Leaves<'a> {
    let (direction, is_branch) = match tree {
        Tree::From => (Direction::Egress, false),
        Tree::To => (Direction::Ingress, false),
        Tree::BranchFrom => (Direction::Egress, true),
        Tree::BranchTo => (Direction::Ingress, true),
    };
    let mut leaves = Leaves::new();
    for (veths, entries) in pods {
        let leaf = match entries.chain(direction) {
            Some(chain) => Leaf::Judged(chain),
            None => Leaf::Open,
        };
        let (main, cards) = if is_branch {
            (veths.branch.as_ref(), &[][..])
        } else {
            (Some(&veths.main), veths.cards.as_slice())
        };
        for interface in main.into_iter().chain(cards) {
            // Two pods whose names have the same hash: nobody can tell whose packets these are.
            leaves
                .entry(interface)
                .and_modify(|leaf| *leaf = Leaf::Closed)
                .or_insert(leaf);
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
