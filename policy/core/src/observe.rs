//! What was found in the kernel: names, hashes and counts, as far as a plan needs them.
//!
//! The kernel's reader fills these. It reports what bears our prefix
//! ([`crate::ruleset::name::PREFIX`]) and is a well-formed name of ours, of one family, and leaves
//! out everything else: what is not in an [`Observed`] is never touched.

use std::collections::BTreeMap;

use crate::ruleset::{BaseChain, ChainName, Hook, Marker, MemberSet, SetKind, SetName};

/// What the kernel holds of ours, for one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our chains in table `mangle`.
    pub chains: BTreeMap<ChainName, ChainState>,
    /// Every rule in a base chain of `mangle` that jumps to a chain of ours, in order. The same
    /// jump found twice is listed twice.
    pub hooks: Vec<HookState>,
    /// Our sets *of this family* (names are one space for both families, so the reader sorts them
    /// by the set's own family).
    pub sets: BTreeMap<SetName, SetState>,
}

/// A chain as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainState {
    /// The comment of the *last* rule, if that is a marker ([`Marker::from_comment`]).
    pub marker: Option<Marker>,
    /// How many rules there are, the marker's own included.
    pub rules: usize,
}

/// A jump to one of our chains, as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookState {
    /// The base chain it is in.
    pub base: BaseChain,
    /// The chain of ours it jumps to.
    pub target: ChainName,
    /// How many rules stand before it.
    pub position: usize,
    /// Whether one of those may let a packet go that this jump would then never see: an accept, or
    /// a chain that holds one.
    pub shadowed: bool,
}

impl HookState {
    /// The hook that this is.
    #[must_use]
    pub fn hook(&self) -> Hook {
        Hook {
            base: self.base,
            target: self.target.clone(),
        }
    }
}

/// A set as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetState {
    /// One of the types that we make.
    Known {
        /// Its type.
        kind: SetKind,
        /// Everything in it.
        members: MemberSet,
    },
    /// A set that bears a name of ours and is of a type that we never make.
    Foreign,
}
