//! From an interface to its pod's profile: prefix trees over the names, so that a packet meets a
//! bounded number of rules however many pods there are.
//!
//! Names are hashes, so the tree is balanced by nature: at 110 pods a packet meets some 16 rules
//! in the root and a dozen in one chain below. No chain has more than 33.

use std::collections::BTreeMap;

use super::name;
use crate::ruleset::{Action, Chain, ChainName, Interface, Match, Rule, VethPrefix};

/// 8: up to here a chain lists its pods; above, it splits on the next digit, 16 ways.
const LEAVES_MAX: usize = 8;

/// Every local pod's interface, and the chain that judges it; `None`: it is not isolated.
pub(super) type Leaves = BTreeMap<Interface, Option<ChainName>>;

/// The two trees.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tree {
    /// By the interface a packet came in by: egress of the pod.
    From,
    /// By the interface it goes out by: ingress of the pod.
    To,
}

impl Tree {
    /// Where it begins.
    pub(super) fn root(self) -> ChainName {
        self.chain("")
    }

    fn chain(self, digits: &str) -> ChainName {
        let root = match self {
            Self::From => "selvage-from",
            Self::To => "selvage-to",
        };
        if digits.is_empty() {
            name(root)
        } else {
            name(&format!("{root}-{digits}"))
        }
    }

    fn at(self, interface: Interface) -> Match {
        match self {
            Self::From => Match::In(interface),
            Self::To => Match::Out(interface),
        }
    }
}

/// Adds a tree's chains. Each ends in DROP: an interface with our prefix that nobody told us
/// about gets nothing through.
pub(super) fn grow(
    tree: Tree,
    prefix: &VethPrefix,
    leaves: &Leaves,
    chains: &mut BTreeMap<ChainName, Chain>,
) {
    let leaves: Vec<Leaf> = leaves
        .iter()
        .map(|(interface, chain)| Leaf {
            interface,
            chain: chain.as_ref(),
        })
        .collect();
    grow_from(tree, prefix, "", &leaves, chains);
}

#[derive(Clone, Copy)]
struct Leaf<'a> {
    interface: &'a Interface,
    chain: Option<&'a ChainName>,
}

/// The chain for the interfaces that begin with `digits`, and those below it.
fn grow_from(
    tree: Tree,
    prefix: &VethPrefix,
    digits: &str,
    leaves: &[Leaf<'_>],
    chains: &mut BTreeMap<ChainName, Chain>,
) {
    let mut rules = Vec::new();
    if leaves.len() <= LEAVES_MAX {
        for leaf in leaves {
            rules.extend(leaf_rules(tree, leaf));
        }
    } else {
        let depth = digits.len();
        let next = |leaf: &Leaf<'_>| prefix.digits(leaf.interface).as_bytes()[depth];
        // Sorted by name, so equal digits stand together.
        for branch in leaves.chunk_by(|a, b| next(a) == next(b)) {
            match branch {
                [leaf] => rules.extend(leaf_rules(tree, leaf)),
                _ => {
                    let digits = &prefix.digits(branch[0].interface)[..=depth];
                    rules.push(Rule {
                        matches: vec![tree.at(prefix.beginning(digits))],
                        action: Action::Goto(tree.chain(digits)),
                    });
                    grow_from(tree, prefix, digits, branch, chains);
                }
            }
        }
    }
    chains.insert(tree.chain(digits), Chain::ending_in(Action::Drop, rules));
}

/// A pod that reaches itself (through a Service: in and out by the same interface) is never
/// judged. So the profile is asked about all else, and the second rule takes what is left.
fn leaf_rules(tree: Tree, leaf: &Leaf<'_>) -> Vec<Rule> {
    let at = tree.at(leaf.interface.clone());
    let allowed = Rule {
        matches: vec![at.clone()],
        action: Action::Return,
    };
    let Some(chain) = leaf.chain else {
        return vec![allowed];
    };
    let matches = match tree {
        Tree::From => vec![at, Match::NotOut(leaf.interface.clone())],
        Tree::To => vec![at, Match::NotIn(leaf.interface.clone())],
    };
    vec![
        Rule {
            matches,
            action: Action::Goto(chain.clone()),
        },
        allowed,
    ]
}
