//! From an interface to its pod's profile: prefix trees over the names, so that a packet meets a
//! bounded number of rules however many pods there are.
//!
//! Names are hashes, so the tree is balanced by nature: at 110 pods a packet meets some 16 rules
//! in the root and a dozen in one chain below. No chain has more than 33.

use std::collections::BTreeMap;

use super::{guard, name};
use crate::ruleset::{Action, Chain, ChainName, Interface, Match, Rule, VethPrefix};

/// 8: up to here a chain lists its pods; above, it splits on the next digit, 16 ways.
const LEAVES_MAX: usize = 8;

/// Every local pod's interface, and what is to be asked about its packets.
pub(super) type Leaves<'a> = BTreeMap<&'a Interface, Leaf<'a>>;

/// What happens to the packets of an interface.
#[derive(Debug, Clone, Copy)]
pub(super) enum Leaf<'a> {
    /// They pass: the pod isn't isolated.
    Open,
    /// This chain judges them.
    Judged(&'a ChainName),
    /// They don't pass.
    Closed,
}

/// The trees.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tree {
    /// By the interface a packet came in by: egress of the pod.
    From,
    /// By the interface it goes out by: ingress of the pod.
    To,
    /// [`Tree::From`] for pods on a branch ENI.
    BranchFrom,
    /// [`Tree::To`] for pods on a branch ENI.
    BranchTo,
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
            Self::BranchFrom => "selvage-branch-from",
            Self::BranchTo => "selvage-branch-to",
        };
        if digits.is_empty() {
            name(root)
        } else {
            name(&format!("{root}-{digits}"))
        }
    }

    /// The packets of this direction of an interface.
    pub(super) fn at(self, interface: Interface) -> Match {
        match self {
            Self::From | Self::BranchFrom => Match::In(interface),
            Self::To | Self::BranchTo => Match::Out(interface),
        }
    }

    /// Not those that a pod sends to itself.
    fn not_back(self, interface: Interface) -> Match {
        match self {
            Self::From | Self::BranchFrom => Match::NotOut(interface),
            Self::To | Self::BranchTo => Match::NotIn(interface),
        }
    }

    /// Whether the guards must wait for the leaf.
    fn guards_at_leaves(self) -> bool {
        match self {
            Self::From | Self::To => false,
            Self::BranchFrom | Self::BranchTo => true,
        }
    }
}

/// Adds a tree's chains, the root with `first` before all else. `stranger` is what becomes of the
/// packets of an interface that nobody told us about.
pub(super) fn grow(
    tree: Tree,
    prefix: &VethPrefix,
    leaves: &Leaves<'_>,
    first: &[Rule],
    stranger: &Action,
    chains: &mut BTreeMap<ChainName, Chain>,
) {
    let leaves: Vec<(&Interface, Leaf<'_>)> = leaves
        .iter()
        .map(|(interface, leaf)| (*interface, *leaf))
        .collect();
    let trunk = Trunk {
        tree,
        prefix,
        stranger,
    };
    trunk.grow("", &leaves, first.to_vec(), chains);
}

/// What is the same all over a tree.
#[derive(Clone, Copy)]
struct Trunk<'a> {
    tree: Tree,
    prefix: &'a VethPrefix,
    stranger: &'a Action,
}

impl Trunk<'_> {
    /// The chain for the interfaces that begin with `digits`, and those below it.
    fn grow(
        self,
        digits: &str,
        leaves: &[(&Interface, Leaf<'_>)],
        mut rules: Vec<Rule>,
        chains: &mut BTreeMap<ChainName, Chain>,
    ) {
        let Self {
            tree,
            prefix,
            stranger,
        } = self;
        if leaves.len() <= LEAVES_MAX {
            for (interface, leaf) in leaves {
                rules.extend(leaf_rules(tree, interface, *leaf));
            }
        } else {
            let depth = digits.len();
            let next = |interface: &Interface| prefix.digits(interface).as_bytes()[depth];
            // Sorted by name, so equal digits stand together.
            for branch in leaves.chunk_by(|(a, _), (b, _)| next(a) == next(b)) {
                match branch {
                    [(interface, leaf)] => rules.extend(leaf_rules(tree, interface, *leaf)),
                    _ => {
                        let digits = &prefix.digits(branch[0].0)[..=depth];
                        rules.push(Rule {
                            matches: vec![tree.at(prefix.beginning(digits))],
                            action: Action::Goto(tree.chain(digits)),
                        });
                        self.grow(digits, branch, Vec::new(), chains);
                    }
                }
            }
        }
        chains.insert(
            tree.chain(digits),
            Chain::ending_in(stranger.clone(), rules),
        );
    }
}

/// A pod that reaches itself (through a Service: in and out by the same interface) is never
/// judged. So the profile is asked about all else, and the last rule takes what is left.
fn leaf_rules(tree: Tree, interface: &Interface, leaf: Leaf<'_>) -> Vec<Rule> {
    let at = tree.at(interface.clone());
    let last = |action| Rule {
        matches: vec![at.clone()],
        action,
    };
    let mut rules = Vec::new();
    if tree.guards_at_leaves() {
        rules.push(last(Action::Jump(guard::chain_name())));
    }
    match leaf {
        Leaf::Open => rules.push(last(Action::Return)),
        Leaf::Closed => rules.push(last(Action::Drop)),
        Leaf::Judged(chain) => {
            rules.push(Rule {
                matches: vec![at.clone(), tree.not_back(interface.clone())],
                action: Action::Goto(chain.clone()),
            });
            rules.push(last(Action::Return));
        }
    }
    rules
}
