//! What table `mangle` holds of ours, whichever backend keeps it.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use selvage_policy_core::observe::{ChainState, HookState};
use selvage_policy_core::ruleset::{BaseChain, ChainName, Marker};

/// The base chains that we may be hooked into.
pub(crate) const BASES: [BaseChain; 2] = [BaseChain::Prerouting, BaseChain::Forward];

/// The table of ours and everybody's.
pub(crate) const TABLE: &str = "mangle";

/// A hash of a chain's rules as the kernel keeps them: conditions, verdicts, set indexes and
/// comments, no counters. It compares two readings of one kernel and means nothing elsewhere, nor
/// to a program that another compiler's library made: that takes all chains for changed, once.
///
/// A set's index is part of it. That is no noise: a set that a rule refers to can be neither
/// destroyed nor renamed, and swapping exchanges contents under the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint(u64);

impl Fingerprint {
    /// Reads what `Display` writes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok()?;
        digits.then_some(Self(number))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A fingerprint being taken. Each part is told from the next by its length.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hashing(DefaultHasher);

impl Hashing {
    pub(crate) fn add(&mut self, part: &[u8]) {
        part.hash(&mut self.0);
    }

    pub(crate) fn finish(&self) -> Fingerprint {
        Fingerprint(self.0.finish())
    }
}

/// All of ours in one reading.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) chains: BTreeMap<ChainName, FoundChain>,
    pub(crate) hooks: Vec<FoundHook>,
}

/// A chain of ours.
#[derive(Debug)]
pub(crate) struct FoundChain {
    pub(crate) state: ChainState,
    pub(crate) fingerprint: Fingerprint,
}

/// A jump to a chain of ours, and how to name it to nf_tables; x_tables has no handles.
#[derive(Debug)]
pub(crate) struct FoundHook {
    pub(crate) state: HookState,
    pub(crate) handle: Option<u64>,
}

/// A chain being read, rule by rule.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    rules: usize,
    marker: Option<Marker>,
    hashing: Hashing,
}

impl Reading {
    /// One more rule, with the text of its comment; what it is made of goes into the answer.
    pub(crate) fn rule(&mut self, comment: Option<&str>) -> &mut Hashing {
        self.rules += 1;
        self.marker = comment.and_then(Marker::from_comment);
        self.hashing.add(b"rule");
        &mut self.hashing
    }

    pub(crate) fn finish(self) -> FoundChain {
        FoundChain {
            state: ChainState {
                marker: self.marker,
                rules: self.rules,
            },
            fingerprint: self.hashing.finish(),
        }
    }
}

/// How a rule can end a packet's walk through the chain it is in, as far as our jumps care: what
/// is dropped before them is none of their business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way<'a> {
    /// On to the next rule, or dropped.
    On,
    /// Past everything behind it.
    Past,
    /// Back to where the chain was called from.
    Back,
    /// Through another chain, and then on, unless that chain ends the walk.
    Through(&'a str),
    /// Through another chain, and then back.
    Into(&'a str),
}

/// How far a chain has been looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// It is on the way to where we are.
    Begun,
    /// Nothing in it ends a walk: where something does, the looking is over.
    Done,
}

/// The ways that the rules of each chain of a table lead, by chain.
#[derive(Debug, Default)]
pub(crate) struct Ways<'a>(BTreeMap<&'a str, Vec<Way<'a>>>);

impl<'a> Ways<'a> {
    pub(crate) fn add(&mut self, chain: &'a str, way: Way<'a>) {
        self.0.entry(chain).or_default().push(way);
    }

    /// Whether a packet may be let go by one of the first `before` rules of a base chain.
    pub(crate) fn may_pass(&self, base: &str, before: usize) -> bool {
        let rules = self.0.get(base).map_or(&[][..], Vec::as_slice);
        rules.iter().take(before).any(|way| match way {
            Way::On => false,
            // Back from a base chain is its policy.
            Way::Past | Way::Back | Way::Into(_) => true,
            Way::Through(chain) => self.may_end_in(chain, &mut BTreeMap::new()),
        })
    }

    /// Whether the walk may end inside of a chain. Each chain is looked into once, however many
    /// ways lead there. Chains cannot call in a circle; a reading that says they do may end.
    fn may_end_in<'s>(&'s self, chain: &'s str, seen: &mut BTreeMap<&'s str, Look>) -> bool {
        match seen.insert(chain, Look::Begun) {
            Some(Look::Begun) => return true,
            Some(Look::Done) => {
                seen.insert(chain, Look::Done);
                return false;
            }
            None => {}
        }
        let rules = self.0.get(chain).map_or(&[][..], Vec::as_slice);
        let ends = rules.iter().any(|way| match way {
            Way::On | Way::Back => false,
            Way::Past => true,
            Way::Through(next) | Way::Into(next) => self.may_end_in(next, seen),
        });
        seen.insert(chain, Look::Done);
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::{Hashing, Reading, Way, Ways};

    #[test]
    fn a_packet_may_pass_where_a_rule_before_lets_it_go() {
        let mut ways = Ways::default();
        for (chain, way) in [
            ("FORWARD", Way::On),
            ("FORWARD", Way::Through("clamp")),
            ("FORWARD", Way::Through("deep")),
            ("FORWARD", Way::Back),
            ("clamp", Way::On),
            ("clamp", Way::Back),
            ("deep", Way::Into("deeper")),
            ("deeper", Way::Past),
            ("GOTO", Way::Into("clamp")),
            ("ROUND", Way::Through("round")),
            ("round", Way::Through("round")),
        ] {
            ways.add(chain, way);
        }
        for (base, before, passes, why) in [
            ("FORWARD", 0, false, "nothing stands before"),
            ("FORWARD", 2, false, "a chain that only goes on and back"),
            ("FORWARD", 3, true, "a chain with a goto to an accept"),
            ("FORWARD", 4, true, "back from a base chain"),
            ("GOTO", 1, true, "a goto never comes back to a base chain"),
            ("ROUND", 1, true, "a circle is not followed for ever"),
            ("NOWHERE", 9, false, "an empty chain"),
        ] {
            assert_eq!(ways.may_pass(base, before), passes, "{why}");
        }
        let mut early = Ways::default();
        early.add("FORWARD", Way::Back);
        assert!(early.may_pass("FORWARD", 1));
    }

    /// Looked into once for each way there, 64 chains would take 2^64 looks.
    #[test]
    fn a_chain_that_many_ways_lead_to_is_looked_into_once() {
        let names: Vec<String> = (0..64).map(|n| format!("chain-{n}")).collect();
        let mut ways = Ways::default();
        ways.add("FORWARD", Way::Through(&names[0]));
        for pair in names.windows(2) {
            ways.add(&pair[0], Way::Through(&pair[1]));
            ways.add(&pair[0], Way::Through(&pair[1]));
        }
        assert!(!ways.may_pass("FORWARD", 1));
        ways.add(&names[63], Way::Past);
        assert!(ways.may_pass("FORWARD", 1));
    }

    #[test]
    fn parts_are_told_apart_and_so_are_rules() {
        let taken = |parts: &[&[u8]]| {
            let mut hashing = Hashing::default();
            parts.iter().for_each(|part| hashing.add(part));
            hashing.finish()
        };
        assert_eq!(taken(&[b"ab", b"c"]), taken(&[b"ab", b"c"]));
        assert_ne!(taken(&[b"ab", b"c"]), taken(&[b"a", b"bc"]));
        let mut two = Reading::default();
        two.rule(None).add(b"x");
        two.rule(None);
        let mut one = Reading::default();
        one.rule(None).add(b"x");
        assert_ne!(two.finish().fingerprint, one.finish().fingerprint);
    }
}
