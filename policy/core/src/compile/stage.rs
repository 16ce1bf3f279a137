//! Stages: ordered rules that accept, deny or pass, and what comes after each.
//!
//! A pod's packet in one direction is judged by one stage after the other. NetworkPolicy is the
//! stage that accepts what any of its rules allows and denies the rest. Tiers before and after it
//! are stages too (docs/adr/0004-tiers.md): that is why a rule can deny or pass.
//!
//! | decision | in the kernel                                                               |
//! |----------|-----------------------------------------------------------------------------|
//! | accept   | RETURN to `selvage-forward`: no later stage is asked, the other end's pod is |
//! | deny     | DROP                                                                        |
//! | pass     | `-g` to the next stage; after the last one, as accept                       |

use super::ports;
use crate::ruleset::{Action, Chain, ChainName, Match, Rule};

/// What a rule decides about the packets that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    /// They may go, as far as this pod is concerned.
    Accept,
    /// They may not.
    Deny,
    /// The next stage decides.
    Pass,
}

/// One stage of a pod's judgement.
///
/// *Shape*: the first rule that holds decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// The chain that it becomes.
    pub chain: ChainName,
    /// Conditions, all of which must hold, and what then is decided.
    pub rules: Vec<(Vec<Match>, Decision)>,
    /// What is decided when no rule holds.
    pub otherwise: Decision,
}

/// The chains of stages that follow one another. A packet enters at the first one's. A stage with
/// many rules about ports has more chains than its own.
#[must_use]
pub fn chains(stages: Vec<Stage>) -> Vec<(ChainName, Chain)> {
    let names: Vec<ChainName> = stages.iter().map(|stage| stage.chain.clone()).collect();
    let stages = stages.into_iter().enumerate();
    let chains = stages.flat_map(|(number, stage)| {
        let action = |decision| match decision {
            Decision::Accept => Action::Return,
            Decision::Deny => Action::Drop,
            Decision::Pass => match names.get(number + 1) {
                Some(next) => Action::Goto(next.clone()),
                None => Action::Return,
            },
        };
        let rules = stage.rules.into_iter().map(|(matches, decision)| Rule {
            matches,
            action: action(decision),
        });
        let otherwise = action(stage.otherwise);
        let (rules, mut all) = ports::branch(&stage.chain, rules.collect(), &otherwise);
        all.push((stage.chain, Chain::ending_in(otherwise, rules)));
        all
    });
    chains.collect()
}
