//! A profile's chain.

use crate::fold::{Bucket, Folded, Kind};
use crate::model::Direction;
use crate::ruleset::{Action, Chain, Family, Match, Rule, Side};

/// What is allowed, then DROP. A peer pod that comes or goes changes no rule.
pub(crate) fn chain(direction: Direction, folded: &Folded, family: Family) -> Chain {
    let side = match direction {
        Direction::Ingress => Side::Source,
        Direction::Egress => Side::Destination,
    };
    let rules = folded.buckets().map(|bucket| rule(bucket, side, family));
    Chain::ending_in(Action::Drop, rules.collect())
}

fn rule(bucket: &Bucket, peer: Side, family: Family) -> Rule {
    let traffic = match bucket.kind() {
        Kind::Any | Kind::SinglePorts => None,
        Kind::Protocol(protocol) => Some(Match::Protocol(protocol)),
        Kind::Range(protocol, ports) => Some(Match::Ports(protocol, ports)),
    };
    let set = bucket.set().map(|set| Match::Set {
        set: set.name(family),
        kind: set.kind(),
        peer,
    });
    Rule {
        matches: traffic.into_iter().chain(set).collect(),
        action: Action::Return,
    }
}
