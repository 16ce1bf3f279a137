//! Drops that are no policy's, each with its reason.
//!
//! With the deny log a reason has a chain of its own, which copies what it drops under its name.
//! Without, a rule drops by itself. What was cut goes to a chain in any case: see `guard.rs`.

use std::collections::BTreeMap;

use super::guard;
use super::name;
use crate::ruleset::{Action, Chain, ChainName, Family};

/// Why a packet is dropped that no policy denies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// Its interface begins as a pod's does, and no pod of this node that we know has it.
    UnknownInterface,
    /// Its source does not route back to the interface that it came in by.
    WrongSource,
    /// It is in the middle of a TCP connection or SCTP association that conntrack does not know.
    NoFlow,
    /// Conntrack can make nothing of it.
    Invalid,
    /// It would begin a flow anew that was cut, from its other end.
    CutFlow,
}

impl DropReason {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::UnknownInterface,
        Self::WrongSource,
        Self::NoFlow,
        Self::Invalid,
        Self::CutFlow,
    ];

    /// Its name, in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownInterface => "unknown-interface",
            Self::WrongSource => "wrong-source",
            Self::NoFlow => "no-flow",
            Self::Invalid => "invalid",
            Self::CutFlow => "cut-flow",
        }
    }

    /// The reason that labels what a chain of this name logs; `None`: it is no such chain's.
    #[must_use]
    pub fn of_label(label: &str) -> Option<Self> {
        let reason = label.strip_prefix("selvage-d-")?;
        Self::ALL.into_iter().find(|it| it.as_str() == reason)
    }

    fn chain(self) -> ChainName {
        // 28 characters at most, the kernel's limit: the longest has 27.
        name(&format!("selvage-d-{}", self.as_str()))
    }

    /// What a rule does with a packet that is dropped for this reason.
    pub(super) fn action(self, deny_log: Option<u16>) -> Action {
        match (self, deny_log) {
            (Self::CutFlow, None | Some(_)) | (_, Some(_)) => Action::Goto(self.chain()),
            (Self::UnknownInterface | Self::WrongSource | Self::NoFlow | Self::Invalid, None) => {
                Action::Drop
            }
        }
    }

    fn content(self, family: Family) -> Chain {
        let before = match self {
            Self::CutFlow => vec![guard::renewing(family)],
            Self::UnknownInterface | Self::WrongSource | Self::NoFlow | Self::Invalid => Vec::new(),
        };
        Chain::ending_in(Action::Drop, before)
    }
}

/// Adds the chains of the reasons that a rule gives.
pub(super) fn grow(family: Family, deny_log: Option<u16>, chains: &mut BTreeMap<ChainName, Chain>) {
    for reason in DropReason::ALL {
        let name = reason.chain();
        let goes = Action::Goto(name.clone());
        let mut rules = chains.values().flat_map(Chain::rules);
        if !rules.any(|rule| rule.action == goes) {
            continue;
        }
        let chain = reason.content(family);
        let chain = match deny_log {
            Some(group) => chain.logging_drops(group, &name),
            None => chain,
        };
        chains.insert(name, chain);
    }
}
