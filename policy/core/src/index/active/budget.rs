//! How many members this node's sets may have, and what gives way when they would be more.
//!
//! Folded, a profile's sets hold its peers times its ports, and each profile has its own. That is
//! what keeps a packet's rules few, and with enough peers and ports it is more than a node has room
//! for. So the profiles that would hold most are laid out apart ([`Folded::apart`]) until the rest
//! fits.
//!
//! It goes by what is known before any set is filled: peers are counted once for each port and
//! selector, those under two selectors twice. So the first start doesn't fill what it then drops.
//!
//! [`Folded::apart`]: crate::fold::Folded::apart

use std::cmp::Reverse;
use std::sync::Arc;

use super::layout::InUse;
use super::{Active, Profile};

/// Members of all sets of a node, both families together. A million take the kernel 40 MB and half
/// a second to fill, and this process 24 MB; no cluster needs as many whose policies name the peers
/// that pods talk to, so what is above comes of few policies with many ports.
pub const MEMBER_BUDGET: usize = 1_000_000;

/// A profile is folded again when three quarters of the budget are enough: one pod more or less
/// must not turn it back and forth.
const FOLDED_AGAIN: (usize, usize) = (3, 4);

/// How much of the budget is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberUse {
    /// How many members the sets may have.
    pub budget: usize,
    /// How many they have. More than the budget where even sets that all share hold more.
    pub used: usize,
    /// How many profiles there are.
    pub profiles: usize,
    /// How many of those are laid out apart: with more rules, and sets that all share.
    pub apart: usize,
}

impl Active {
    pub(in crate::index) fn set_budget(&mut self, budget: usize) {
        self.budget = budget;
    }

    pub(in crate::index) fn member_use(&self) -> MemberUse {
        MemberUse {
            budget: self.budget,
            used: self.held,
            profiles: self.profiles.len(),
            apart: self
                .profiles
                .values()
                .filter(|it| it.apart.is_some())
                .count(),
        }
    }

    /// Whether a profile is laid out apart.
    pub(in crate::index) fn is_apart(&self, profile: &Profile) -> bool {
        let in_use = self.profiles.get(profile);
        in_use.is_some_and(|in_use| in_use.apart.is_some())
    }

    /// Whether the sets have outgrown the budget, and settling again can help that.
    pub(in crate::index) fn is_over_budget(&self) -> bool {
        self.held > self.budget && self.profiles.values().any(|it| it.apart.is_none())
    }

    /// Whether settling again may fold a profile that is apart.
    pub(in crate::index) fn is_any_apart(&self) -> bool {
        self.profiles.values().any(|it| it.apart.is_some())
    }

    /// Lays profiles out apart, the heaviest first, until the budget is enough; or folds again, the
    /// lightest first, what there is ample room for. Says which it turned.
    pub(super) fn balance(&mut self) -> Vec<Arc<Profile>> {
        let sizes = self.sources.sizes(&self.families);
        let mut turned = Vec::new();
        let (apart, folded): (Vec<_>, Vec<_>) = self
            .profiles
            .iter()
            .map(|(profile, in_use)| (weight(in_use, &sizes), profile, in_use))
            .partition(|(_, _, in_use)| in_use.apart.is_some());
        let mut total: usize = folded.iter().map(|(weight, _, _)| weight).sum();
        let mut shared = vec![false; sizes.len()];
        let needed = share(
            apart.iter().map(|(_, _, in_use)| *in_use),
            &sizes,
            &mut shared,
        );
        if total + needed > self.budget {
            total += needed;
            let mut heaviest = folded;
            heaviest.sort_by_key(|(weight, profile, _)| (Reverse(*weight), *profile));
            for (weight, profile, in_use) in heaviest {
                if total <= self.budget {
                    break;
                }
                let blocks = in_use.folded.apart().block_members(&self.families);
                total = total - weight + blocks + share([in_use], &sizes, &mut shared);
                turned.push((Arc::clone(profile), Some(blocks)));
            }
        } else {
            let (part, whole) = FOLDED_AGAIN;
            let ample = self.budget / whole * part;
            let mut lightest = apart;
            lightest.sort_by_key(|(weight, profile, _)| (*weight, *profile));
            let mut rest = lightest.as_slice();
            while let [(weight, profile, _), others @ ..] = rest {
                total += weight;
                let others_share = others.iter().map(|(_, _, in_use)| *in_use);
                let mut shared = vec![false; sizes.len()];
                if total + share(others_share, &sizes, &mut shared) > ample {
                    break;
                }
                turned.push((Arc::clone(profile), None));
                rest = others;
            }
        }
        for (profile, apart) in &turned {
            if let Some(in_use) = self.profiles.get_mut(profile) {
                in_use.apart = *apart;
            }
        }
        turned.into_iter().map(|(profile, _)| profile).collect()
    }
}

/// How many members a profile's sets have folded, at most.
fn weight(in_use: &InUse, sizes: &[usize]) -> usize {
    let pods: usize = in_use.sources.iter().map(|number| sizes[*number]).sum();
    pods + in_use.blocks
}

/// How many members are in the sets that profiles need which are apart, but for those of the
/// sources that are `shared` already.
fn share<'a>(
    profiles: impl IntoIterator<Item = &'a InUse>,
    sizes: &[usize],
    shared: &mut [bool],
) -> usize {
    let mut members = 0;
    for in_use in profiles {
        members += in_use.apart.unwrap_or_default();
        for number in &in_use.sources {
            if !std::mem::replace(&mut shared[*number], true) {
                members += sizes[*number];
            }
        }
    }
    members
}
