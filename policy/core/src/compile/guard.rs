//! What keeps a flow that was cut from being begun again by the other side.
//!
//! Deleting a conntrack entry does not end a flow from a to b where b may send to a: any packet of
//! b's is then taken for a new flow from b to a, and passes; and a's next ones pass as its replies.
//! So here what begins a flow must look like it: TCP with a SYN, SCTP with an INIT. UDP has nothing
//! to look at; what was cut is in a set for a while.

use super::name;
use crate::ruleset::{
    Action, ChainName, Family, FlowState, Match, Protocol, Rule, SetKind, Side, guard_set,
};

/// The guards, for packets that no known flow has.
pub(super) fn rules(family: Family, drop_invalid: bool) -> Vec<Rule> {
    let new = Match::State(FlowState::New);
    let cut = Match::Set {
        set: guard_set(family),
        kind: SetKind::Guard,
        peer: Side::Source,
    };
    let mut rules = vec![
        vec![Match::NotSyn, new.clone()],
        vec![Match::NotInit, new.clone()],
        vec![Match::Protocol(Protocol::Udp), new, cut],
    ];
    if drop_invalid {
        rules.push(vec![Match::State(FlowState::Invalid)]);
    }
    rules
        .into_iter()
        .map(|matches| Rule {
            matches,
            action: Action::Drop,
        })
        .collect()
}

/// The guards as a chain, for trees whose root sees strangers' packets too.
pub(super) fn chain_name() -> ChainName {
    name("selvage-guard")
}
