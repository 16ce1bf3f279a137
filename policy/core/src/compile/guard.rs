//! What keeps a flow that was cut from being begun again by the other side.
//!
//! Deleting a conntrack entry does not end a flow from a to b where b may send to a: any packet of
//! b's is then taken for a new flow from b to a, and passes; and a's next ones pass as its replies.
//! So here what no known flow has must begin one: TCP with a SYN, SCTP with an INIT. INVALID doesn't
//! excuse it: that is what SCTP's data is called then, and all of TCP's where `nf_conntrack_tcp_loose`
//! is off. Other protocols have nothing to look at; what was cut of them is in a set for a while.

use super::name;
use crate::ruleset::{Action, ChainName, Family, FlowState, Match, Rule, SetKind, Side, guard_set};

/// The guards, for packets that no known flow has.
pub(super) fn rules(family: Family, drop_invalid: bool) -> Vec<Rule> {
    let cut = Match::Set {
        set: guard_set(family),
        kind: SetKind::Guard,
        peer: Side::Source,
    };
    let mut rules = vec![
        vec![Match::NotSyn, Match::OfNoFlow],
        vec![Match::NotInit, Match::OfNoFlow],
        vec![Match::State(FlowState::New), cut],
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
