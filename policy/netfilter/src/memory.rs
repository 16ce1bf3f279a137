//! What one [`crate::Kernel`] left in the kernel, to tell later whether somebody touched it.
//!
//! The plan compares names, markers and counts. A rule replaced in place, its chain's marker kept,
//! shows only in the [`Fingerprint`] of the chain, taken right after it was written; it counts as
//! taken in time when nobody else committed in between. Chains that an earlier process wrote are
//! believed once: by its [`crate::Record`] where there is one, else by their marker.

use std::collections::BTreeMap;

use selvage_policy_core::observe::ChainState;
use selvage_policy_core::plan::Plan;
use selvage_policy_core::ruleset::{ChainName, Hook, Marker};

use crate::content::{Fingerprint, Found};
use crate::nftables::Generation;

/// Where somebody else commits whenever we do, a new chain is written this often and believed when
/// it was found the same each time, or there would be no end.
const DOUBTS: u32 = 3;

/// One family's rules in one backend, as they were left.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    chains: BTreeMap<ChainName, Known>,
    hooks: Vec<(Hook, bool)>,
    /// The generation in which that was so; always `None` for legacy.
    generation: Option<Generation>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    /// What there should be, and the marker that it was written with.
    Is(Fingerprint, Option<Marker>),
    /// Written by us, but it cannot be told whether what was then read is what was written.
    Doubtful {
        read: Option<Fingerprint>,
        times: u32,
        before: Option<(Fingerprint, Marker)>,
    },
}

impl Known {
    fn shows(&self, fingerprint: Fingerprint) -> bool {
        match self {
            Self::Is(known, _) => *known == fingerprint,
            Self::Doubtful { .. } => false,
        }
    }

    /// What is known of a chain after a write among others' writes, from which `read` came.
    fn doubted(last: Option<Self>, read: Option<Fingerprint>, marker: Marker) -> Self {
        let (before, times) = match last {
            Some(Self::Is(known, Some(of))) => (Some((known, of)), 0),
            Some(Self::Doubtful {
                read: last,
                times,
                before,
            }) => (before, if last == read { times } else { 0 }),
            Some(Self::Is(_, None)) | None => (None, 0),
        };
        let times = times + 1;
        // The same may have been written before, and read with nobody else around.
        let same = before.as_ref().filter(|(_, of)| *of == marker);
        let believed = |read| same.map_or(times >= DOUBTS, |(known, _)| *known == read);
        match read {
            Some(read) if believed(read) => Self::Is(read, Some(marker)),
            Some(_) | None => Self::Doubtful {
                read,
                times,
                before,
            },
        }
    }
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
    /// `earlier` says whether one that is not known was left so by an earlier process.
    pub(crate) fn learn(
        &mut self,
        found: &Found,
        generation: Option<Generation>,
        earlier: &dyn Fn(&ChainName, Fingerprint) -> bool,
    ) -> BTreeMap<ChainName, ChainState> {
        let mut chains = BTreeMap::new();
        let mut states = BTreeMap::new();
        for (name, chain) in &found.chains {
            let mut state = chain.state.clone();
            let known = match self.chains.remove(name) {
                None if earlier(name, chain.fingerprint) => {
                    Known::Is(chain.fingerprint, state.marker)
                }
                None => Known::Doubtful {
                    read: None,
                    times: 0,
                    before: None,
                },
                Some(known) => known,
            };
            if !known.shows(chain.fingerprint) && state.marker.take().is_some() {
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

    /// The chains that are known for certain, and what they should be.
    pub(crate) fn certain(&self) -> impl Iterator<Item = (&ChainName, Fingerprint)> {
        self.chains.iter().filter_map(|(name, known)| match known {
            Known::Is(fingerprint, _) => Some((name, *fingerprint)),
            Known::Doubtful { .. } => None,
        })
    }

    /// Whether a reading shows what was left.
    pub(crate) fn recognises(&self, found: &Found) -> bool {
        let same = |(name, known): (&ChainName, &Known)| {
            let found = found.chains.get(name);
            found.is_some_and(|found| known.shows(found.fingerprint))
        };
        self.chains.len() == found.chains.len()
            && self.chains.iter().all(same)
            && self.hooks == hooks(found)
    }

    /// Learns what a plan left behind, from a reading after it. `alone` says that nobody else
    /// committed from its beginning to that reading; `generation` is there when nobody did since
    /// the reading that the plan was made from.
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
        for (name, chain) in &plan.write {
            let read = found.chains.get(name).map(|it| it.fingerprint);
            let marker = chain.marker();
            let last = self.chains.remove(name);
            let known = match read {
                Some(read) if alone => Known::Is(read, Some(marker)),
                Some(_) | None => Known::doubted(last, read, marker),
            };
            self.chains.insert(name.clone(), known);
        }
        for name in &plan.delete {
            // One that a stranger's rule jumps to stays, empty.
            match found.chains.get(name) {
                Some(chain) => self
                    .chains
                    .insert(name.clone(), Known::Is(chain.fingerprint, None)),
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
        self.generation = generation;
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

#[cfg(test)]
mod tests {
    use super::{DOUBTS, Memory};
    use crate::content::{Found, FoundHook, Hashing, Reading};
    use selvage_policy_core::observe::{HookState, Observed};
    use selvage_policy_core::plan::{Plan, plan};
    use selvage_policy_core::ruleset::{
        Action, BaseChain, Chain, ChainName, Family, Hook, Ruleset,
    };

    fn name() -> ChainName {
        ChainName::new("selvage-forward").unwrap()
    }

    fn chain() -> Chain {
        Chain::ending_in(Action::Drop, Vec::new())
    }

    /// Everything is written.
    fn everything() -> Plan {
        let mut want = Ruleset::empty(Family::V4);
        want.chains.insert(name(), chain());
        want.hooks.insert(Hook {
            base: BaseChain::Forward,
            target: name(),
        });
        plan(&want, &Observed::default())
    }

    /// The chain, made of this, under its right marker; and its jump.
    fn reading(content: &[u8], shadowed: bool) -> Found {
        let mut reading = Reading::default();
        let add = |hashing: &mut Hashing| hashing.add(content);
        add(reading.rule(None));
        add(reading.rule(Some(&chain().marker().to_string())));
        let state = HookState {
            base: BaseChain::Forward,
            target: name(),
            position: 0,
            shadowed,
        };
        Found {
            chains: [(name(), reading.finish())].into(),
            hooks: vec![FoundHook {
                state,
                handle: None,
            }],
        }
    }

    fn marked(memory: &mut Memory, found: &Found) -> bool {
        memory.learn(found, None, &|_, _| true)[&name()]
            .marker
            .is_some()
    }

    #[test]
    fn what_an_earlier_process_left_is_believed_when_it_is_still_so() {
        let left = reading(b"drop", false);
        let fingerprint = left.chains[&name()].fingerprint;
        let believes = |found: &Found| {
            let mut memory = Memory::default();
            let earlier = |_: &ChainName, found| found == fingerprint;
            let chains = memory.learn(found, None, &earlier);
            (chains[&name()].marker.is_some(), memory.certain().count())
        };
        assert_eq!(believes(&left), (true, 1));
        assert_eq!(believes(&reading(b"accept", false)), (false, 0));
    }

    #[test]
    fn what_was_written_alone_is_known_and_nothing_else_passes_for_it() {
        let mut memory = Memory::default();
        memory.written(&everything(), &reading(b"drop", false), true, Some(7));
        assert_eq!(memory.generation(), Some(7));
        assert!(memory.recognises(&reading(b"drop", false)));
        assert!(!memory.recognises(&reading(b"accept", false)));
        assert!(!memory.recognises(&reading(b"drop", true)), "shadowed");
        assert!(!memory.recognises(&Found::default()), "gone");
        assert!(!marked(&mut memory, &reading(b"accept", false)));
        assert!(marked(&mut memory, &reading(b"drop", false)), "put back");
    }

    #[test]
    fn what_was_written_among_others_writes_is_written_again() {
        let mut memory = Memory::default();
        memory.written(&everything(), &reading(b"accept", true), false, None);
        assert_eq!(memory.generation(), None);
        assert!(!memory.recognises(&reading(b"accept", false)));
        assert!(!marked(&mut memory, &reading(b"accept", false)));
        let again = Plan {
            hook: [].into(),
            ..everything()
        };
        memory.written(&again, &reading(b"drop", false), true, Some(9));
        assert!(memory.recognises(&reading(b"drop", false)));
    }

    #[test]
    fn a_chain_that_never_changes_however_often_it_is_written_is_believed_at_last() {
        let mut memory = Memory::default();
        for _ in 1..DOUBTS {
            memory.written(&everything(), &reading(b"drop", false), false, None);
            assert!(!marked(&mut memory, &reading(b"drop", false)));
        }
        memory.written(&everything(), &reading(b"drop", false), false, None);
        assert!(marked(&mut memory, &reading(b"drop", false)));
    }

    #[test]
    fn what_was_known_once_is_not_given_up_for_what_others_make_of_it() {
        let mut memory = Memory::default();
        memory.written(&everything(), &reading(b"drop", false), true, Some(1));
        memory.written(&everything(), &reading(b"accept", false), false, None);
        assert!(!marked(&mut memory, &reading(b"accept", false)));
        memory.written(&everything(), &reading(b"drop", false), false, None);
        assert!(marked(&mut memory, &reading(b"drop", false)));
    }

    #[test]
    fn a_chain_that_was_gone_before_it_could_be_read_is_missed() {
        let mut memory = Memory::default();
        memory.written(&everything(), &Found::default(), false, None);
        assert!(!memory.recognises(&Found::default()));
    }
}
