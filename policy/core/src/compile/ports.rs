//! From a port to the rules about it: a chain's last rules, where many are about ranges of ports,
//! become a tree of chains, so that a packet meets those near its port and passes by the others.
//!
//! ```text
//! … ─► -p tcp --dport 1:4999     ─► selvage-r-… ─► rules
//!      -p tcp --dport 5000:65535 ─► selvage-r-… ─► -p tcp --dport 5000:5999 ─► selvage-r-… …
//! ```
//!
//! A packet then meets [`RULES_MAX`] rules and [`BRANCHES`] a level; or twice as many rules as there
//! are about its port, where those are more.

use std::collections::BTreeSet;

use sha2::{Digest as _, Sha256};

use super::name;
use crate::ruleset::marker::hex;
use crate::ruleset::{Action, Chain, ChainName, Match, PortRange, Protocol, Rule};

/// Up to so many ranges of ports, a chain lists the rules about them; above, it branches. Each
/// chain costs whoever restores it, so few ranges with many peers are left as they are.
const RULES_MAX: usize = 32;

/// Into how many.
const BRANCHES: usize = 8;

/// 8 bytes of SHA-256 name a chain, as they do a profile's.
const NAME_HASH_BYTES: usize = 8;

/// A rule about some ports.
#[derive(Debug, Clone)]
struct Ranged {
    ports: PortRange,
    rule: Rule,
}

/// The rules of a chain as they are to be, and the chains below it. Of rules on one port the first
/// decides, as before; what none decides, `otherwise` does.
pub(super) fn branch(
    chain: &ChainName,
    mut rules: Vec<Rule>,
    otherwise: &Action,
) -> (Vec<Rule>, Vec<(ChainName, Chain)>) {
    let others = rules.iter().rposition(|rule| about(rule).is_none());
    let tail = rules.split_off(others.map_or(0, |last| last + 1));
    let mut below = Vec::new();
    let mut gotos = Vec::new();
    for protocol in Protocol::ALL {
        let of = |rule: &&Rule| about(rule).is_some_and(|(is, _)| is == protocol);
        let ranged: Vec<Ranged> = tail.iter().filter(of).filter_map(ranged).collect();
        let tree = Tree {
            chain,
            protocol,
            otherwise,
            rules_max: RULES_MAX.max(2 * deepest(&ranged)),
        };
        let distinct: BTreeSet<PortRange> = ranged.iter().map(|it| it.ports).collect();
        if distinct.len() <= RULES_MAX || ranged.len() <= tree.rules_max {
            rules.extend(ranged.into_iter().map(|it| it.rule));
        } else {
            gotos.extend(tree.grow(&ranged, &mut below));
        }
    }
    rules.extend(gotos);
    (rules, below)
}

/// The ports that a rule is about, if it says so first.
fn about(rule: &Rule) -> Option<(Protocol, PortRange)> {
    match rule.matches.first() {
        Some(Match::Ports(protocol, ports)) => Some((*protocol, *ports)),
        Some(_) | None => None,
    }
}

fn ranged(rule: &Rule) -> Option<Ranged> {
    let (_, ports) = about(rule)?;
    Some(Ranged {
        ports,
        rule: rule.clone(),
    })
}

/// How many rules are about one port, at most.
fn deepest(ranged: &[Ranged]) -> usize {
    let mut turns: Vec<(u32, isize)> = ranged
        .iter()
        .flat_map(|it| [(it.ports.start(), 1), (it.ports.end() + 1, -1)])
        .collect();
    // Where one ends and another begins, the end comes first.
    turns.sort_unstable();
    let mut depth = 0;
    let depths = turns.into_iter().map(|(_, turn)| {
        depth += turn;
        depth
    });
    depths.max().unwrap_or(0).unsigned_abs()
}

/// The chains of one protocol below a chain.
struct Tree<'a> {
    chain: &'a ChainName,
    protocol: Protocol,
    otherwise: &'a Action,
    rules_max: usize,
}

impl Tree<'_> {
    /// Adds the chains to `below`, and returns the rules that lead to them.
    fn grow(&self, ranged: &[Ranged], below: &mut Vec<(ChainName, Chain)>) -> Vec<Rule> {
        let starts = ranged.iter().map(|it| it.ports.start());
        let ends = ranged.iter().map(|it| it.ports.end() + 1);
        // Between two of these all ports have the same rules.
        let cuts: BTreeSet<u32> = starts.chain(ends).collect();
        let cuts: Vec<u32> = cuts.into_iter().collect();
        let step = (cuts.len() - 1).div_ceil(BRANCHES).max(1);
        let edges = cuts.iter().step_by(step).chain(cuts.last());
        let edges: Vec<u32> = edges.copied().collect();
        let mut gotos = Vec::new();
        for pair in edges.windows(2).filter(|pair| pair[0] < pair[1]) {
            let Some(part) = PortRange::between(pair[0], pair[1] - 1) else {
                continue;
            };
            let near: Vec<Ranged> = ranged
                .iter()
                .filter_map(|it| {
                    let ports = it.ports.overlap(part)?;
                    let rule = it.rule.clone();
                    Some(Ranged { ports, rule })
                })
                .collect();
            if near.is_empty() {
                continue;
            }
            let name = self.name(part);
            let rules = if near.len() <= self.rules_max {
                near.into_iter().map(|it| it.rule).collect()
            } else {
                self.grow(&near, below)
            };
            below.push((
                name.clone(),
                Chain::ending_in(self.otherwise.clone(), rules),
            ));
            gotos.push(Rule {
                matches: vec![Match::Ports(self.protocol, part)],
                action: Action::Goto(name),
            });
        }
        gotos
    }

    fn name(&self, part: PortRange) -> ChainName {
        let mut hasher = Sha256::new();
        hasher.update(format!("{} {} {part}", self.chain, self.protocol));
        name(&format!(
            "selvage-r-{}",
            hex(&hasher.finalize()[..NAME_HASH_BYTES])
        ))
    }
}
