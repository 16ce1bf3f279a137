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
//! rules still see the packet; DROP is final. No drop depends on what conntrack thinks of a flow.

mod dispatch;
mod profile;

use std::collections::{BTreeMap, BTreeSet};

use crate::index::Index;
use crate::model::Direction;
use crate::ruleset::{
    Action, BaseChain, Chain, ChainName, Family, Hook, Interface, Match, Rule, Ruleset, Set,
    SetName,
};
use dispatch::{Leaves, Tree};

/// Compiles everything for one family, and ends what [`crate::index::Delta::recompile`] asked for.
///
/// *Cost*: linear in the pods of this node and in the members of their profiles' sets; selectors
/// new in use are counted over all pods.
#[must_use]
pub fn compile(index: &mut Index, family: Family) -> Ruleset {
    index.settle();
    let index = &*index;
    let veths = index.settings().prefix.any();
    let (forward, source) = (name("selvage-forward"), name("selvage-source"));
    let mut chains = BTreeMap::from([(forward.clone(), forward_chain(&veths))]);
    let mut hooks = BTreeSet::from([Hook {
        base: BaseChain::Forward,
        target: forward,
    }]);
    if index.settings().source_check {
        chains.insert(source.clone(), source_chain(&veths));
        hooks.insert(Hook {
            base: BaseChain::Prerouting,
            target: source,
        });
    }
    let mut sets: BTreeMap<SetName, Set> = BTreeMap::new();
    let mut profile_chains = BTreeMap::new();
    for (profile, folded) in index.profiles() {
        profile_chains.insert(profile, folded.chain().clone());
        chains.insert(
            folded.chain().clone(),
            profile::chain(profile.direction, folded, family),
        );
        profile::fill_sets(folded, family, index, &mut sets);
    }
    for tree in [Tree::From, Tree::To] {
        let direction = match tree {
            Tree::From => Direction::Egress,
            Tree::To => Direction::Ingress,
        };
        let leaves: Leaves = index
            .isolation()
            .iter()
            .map(|(pod, isolation)| {
                let profile = isolation.profile(direction);
                let chain = profile.and_then(|profile| profile_chains.get(profile));
                (index.veth(pod), chain.cloned())
            })
            .collect();
        dispatch::grow(tree, &index.settings().prefix, &leaves, &mut chains);
    }
    Ruleset {
        family,
        hooks,
        chains,
        sets,
    }
}

fn name(text: &str) -> ChainName {
    ChainName::new(text).expect("a constant, or one with hex digits behind it")
}

/// Flows that are known cost one rule. Their replies need no rule of their own.
fn forward_chain(veths: &Interface) -> Chain {
    Chain::ending_in(
        Action::Return,
        vec![
            Rule {
                matches: vec![Match::Established],
                action: Action::Return,
            },
            Rule {
                matches: vec![Match::In(veths.clone())],
                action: Action::Jump(Tree::From.root()),
            },
            Rule {
                matches: vec![Match::Out(veths.clone())],
                action: Action::Jump(Tree::To.root()),
            },
        ],
    )
}

/// Ingress is judged by source address, so a pod must not choose it. Only a flow's first packets
/// are asked: the lookup on every packet costs 5 to 8 % of forwarding one.
fn source_chain(veths: &Interface) -> Chain {
    Chain::ending_in(
        Action::Return,
        vec![
            Rule {
                matches: vec![Match::In(veths.clone()), Match::Established],
                action: Action::Return,
            },
            Rule {
                matches: vec![Match::In(veths.clone()), Match::SourceElsewhere],
                action: Action::Drop,
            },
        ],
    )
}
