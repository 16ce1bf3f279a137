//! What one [`crate::Kernel`] left in the kernel, to tell later whether somebody touched it.
//!
//! The plan compares names, markers and counts. A rule replaced in place, its chain's marker kept,
//! shows only in the [`Fingerprint`] of the chain, taken right after it was written; it counts as
//! taken in time when nobody else committed in between. Chains that an earlier process wrote are
//! believed once, by their marker.

use std::collections::BTreeMap;

use selvage_policy_core::observe::ChainState;
use selvage_policy_core::plan::Plan;
use selvage_policy_core::ruleset::{ChainName, Hook};

use crate::content::{Fingerprint, Found};
use crate::nftables::Generation;

/// A chain is written this often in a row while somebody else commits at the same time; then it is
/// believed by its marker, or there would be no end.
const DOUBTS: u32 = 3;

/// One family's rules in one backend, as they were left.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    chains: BTreeMap<ChainName, Known>,
    hooks: Vec<(Hook, bool)>,
    /// The generation in which that was so; always `None` for legacy.
    generation: Option<Generation>,
    doubts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Is(Fingerprint),
    /// Written by us, but it cannot be told whether what was then read is what was written.
    Doubtful,
}

impl Memory {
    /// The generation that everything was left in, if there is one.
    pub(crate) fn generation(&self) -> Option<Generation> {
        self.generation
    }

    /// Nobody else's rules changed, and not ours in this family: a later generation is as good.
    pub(crate) fn carry_to(&mut self, generation: Option<Generation>) {
        self.generation = generation;
    }

    /// Learns a reading that a plan is going to be made from, and returns the chains in it. One
    /// that is not as it was left has lost its marker in the answer, so that it is written again.
    pub(crate) fn learn(
        &mut self,
        found: &Found,
        generation: Option<Generation>,
    ) -> BTreeMap<ChainName, ChainState> {
        let mut chains = BTreeMap::new();
        let mut states = BTreeMap::new();
        for (name, chain) in &found.chains {
            let known = match self.chains.get(name) {
                None => Known::Is(chain.fingerprint),
                Some(known) => *known,
            };
            let mut state = chain.state.clone();
            if known != Known::Is(chain.fingerprint) && state.marker.take().is_some() {
                tracing::debug!(%name, "the chain is not as it was written");
            }
            states.insert(name.clone(), state);
            chains.insert(name.clone(), known);
        }
        self.chains = chains;
        self.hooks = hooks(found);
        self.generation = generation;
        states
    }

    /// Whether a reading shows what was left.
    pub(crate) fn recognises(&self, found: &Found) -> bool {
        let same = |(name, known): (&ChainName, &Known)| {
            let found = found.chains.get(name);
            found.is_some_and(|found| *known == Known::Is(found.fingerprint))
        };
        self.chains.len() == found.chains.len()
            && self.chains.iter().all(same)
            && self.hooks == hooks(found)
    }

    /// Learns what a plan left behind, from a reading after it. `alone` says that nobody else
    /// committed between the reading that the plan was made from and this one.
    ///
    /// What the plan didn't touch is remembered as it was, so that what somebody did to it
    /// meanwhile is still seen later.
    pub(crate) fn written(
        &mut self,
        plan: &Plan,
        found: &Found,
        alone: bool,
        generation: Option<Generation>,
    ) {
        let believe = alone || self.doubts >= DOUBTS;
        self.doubts = if believe { 0 } else { self.doubts + 1 };
        for name in plan.write.keys() {
            let known = match found.chains.get(name) {
                Some(chain) if believe => Known::Is(chain.fingerprint),
                Some(_) | None => Known::Doubtful,
            };
            self.chains.insert(name.clone(), known);
        }
        for name in &plan.delete {
            // One that a stranger's rule jumps to stays, empty.
            match found.chains.get(name) {
                Some(chain) => self
                    .chains
                    .insert(name.clone(), Known::Is(chain.fingerprint)),
                None => self.chains.remove(name),
            };
        }
        // As they were meant, not as they are: what was inserted stood in first place.
        self.hooks
            .extend(plan.hook.iter().map(|it| (it.clone(), false)));
        self.hooks.sort();
        for gone in &plan.unhook {
            // The last of equals go, and those are the shadowed ones.
            if let Some(at) = self.hooks.iter().rposition(|(hook, _)| hook == gone) {
                self.hooks.remove(at);
            }
        }
        self.generation = if alone { generation } else { None };
    }
}

fn hooks(found: &Found) -> Vec<(Hook, bool)> {
    let mut hooks: Vec<(Hook, bool)> = found
        .hooks
        .iter()
        .map(|hook| (hook.state.hook(), hook.state.shadowed))
        .collect();
    hooks.sort();
    hooks
}
