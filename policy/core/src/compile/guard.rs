//! What keeps a flow that was cut from being begun again by the other side.
//!
//! Deleting a conntrack entry does not end a flow from a to b where b may send to a: any packet of
//! b's is then taken for a new flow from b to a, and passes; and a's next ones pass as its replies.
//! So here what no known flow has must begin one: TCP with a SYN, SCTP with an INIT. INVALID doesn't
//! excuse it: that is what SCTP's data is called then, and all of TCP's where `nf_conntrack_tcp_loose`
//! is off. Other protocols have nothing to look at; what was cut of them is in a set for a while, and
//! stays there for as long as its other end goes on sending.

use super::drops::DropReason;
use super::name;
use crate::index::Settings;
use crate::ruleset::{
    Action, ChainName, Family, FlowState, GUARD_SECONDS, Match, Rule, SetKind, Side, guard_set,
};

/// The guards, for packets that no known flow has.
pub(super) fn rules(family: Family, settings: &Settings) -> Vec<Rule> {
    let cut = Match::Set {
        set: guard_set(family),
        kind: SetKind::Guard,
        peer: Side::Source,
    };
    let mut rules = vec![
        (vec![Match::NotSyn, Match::OfNoFlow], DropReason::NoFlow),
        (vec![Match::NotInit, Match::OfNoFlow], DropReason::NoFlow),
        (vec![Match::State(FlowState::New), cut], DropReason::CutFlow),
    ];
    if settings.drop_invalid {
        rules.push((vec![Match::State(FlowState::Invalid)], DropReason::Invalid));
    }
    rules
        .into_iter()
        .map(|(matches, reason)| Rule {
            matches,
            action: reason.action(settings.deny_log),
        })
        .collect()
}

/// Keeps a packet's flow in the set of those that were cut, from now on for as long as ever.
pub(super) fn renewing(family: Family) -> Rule {
    Rule {
        matches: Vec::new(),
        action: Action::Renew {
            set: guard_set(family),
            seconds: GUARD_SECONDS,
        },
    }
}

/// The guards as a chain, for trees whose root sees strangers' packets too.
pub(super) fn chain_name() -> ChainName {
    name("selvage-guard")
}
