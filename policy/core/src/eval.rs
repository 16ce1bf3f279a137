//! One packet through a ruleset, as the kernel would take it: for tests, and for explaining.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::fold::Stamp;
use crate::ruleset::{BaseChain, Chain, ChainName, Family, Member, Ruleset, SetName};
use crate::walk::{Ground, Walked, walk};

pub use crate::walk::Packet;

/// What becomes of it, as far as the ruleset goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on to others' rules.
    Passed,
    /// It ends here.
    Dropped,
}

/// Takes a packet through the hooks in the order in which the kernel runs them. The sets of kind
/// [`crate::ruleset::SetKind::Guard`] are taken to be empty.
///
/// *Panics*: when the ruleset isn't closed (a chain or set that a rule names is missing), or goes
/// round in a circle.
#[must_use]
pub fn eval(ruleset: &Ruleset, packet: &Packet) -> Verdict {
    for base in [BaseChain::Prerouting, BaseChain::Forward] {
        for hook in ruleset.hooks.iter().filter(|hook| hook.base == base) {
            match walk(ruleset, &hook.target, packet) {
                Walked::Returned => {}
                Walked::Dropped => return Verdict::Dropped,
            }
        }
    }
    Verdict::Passed
}

impl Ground for Ruleset {
    fn chain(&self, name: &ChainName) -> Option<&Chain> {
        self.chains.get(name)
    }

    /// The longest prefixes first, as the kernel tries them: any hit is a hit.
    fn holds(&self, set: &SetName, address: IpAddr, stamp: Stamp) -> bool {
        let set = &self.sets[set];
        let longest = match Family::of_address(address) {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        // No member is a /0: the kernel has none.
        (1..=longest).rev().any(|prefix| {
            let net = IpNet::new_assert(address, prefix).trunc();
            set.members.contains(&Member { net, port: stamp })
        })
    }
}
