//! A profile's chain: NetworkPolicy's stage.

use super::stage::{Decision, Stage, chains};
use crate::fold::{Bucket, Folded, Kind};
use crate::model::Direction;
use crate::ruleset::{Chain, ChainName, Family, Match, Side};

/// The chains of a profile; a packet enters at [`Folded::chain`]. A peer pod that comes or goes
/// changes no rule.
pub(crate) fn stages(
    direction: Direction,
    folded: &Folded,
    family: Family,
) -> Vec<(ChainName, Chain)> {
    let side = match direction {
        Direction::Ingress => Side::Source,
        Direction::Egress => Side::Destination,
    };
    let rules = folded
        .buckets()
        .map(|bucket| (matches(bucket, side, family), Decision::Accept));
    chains(vec![Stage {
        chain: folded.chain().clone(),
        rules: rules.collect(),
        otherwise: Decision::Deny,
    }])
}

fn matches(bucket: &Bucket, peer: Side, family: Family) -> Vec<Match> {
    let traffic = match bucket.kind() {
        Kind::Any | Kind::SinglePorts => None,
        Kind::Protocol(protocol) => Some(Match::Protocol(protocol)),
        Kind::Range(protocol, ports) => Some(Match::Ports(protocol, ports)),
    };
    let set = bucket.set().map(|set| Match::Set {
        set: set.id().name(family),
        kind: set.id().kind(),
        peer,
    });
    traffic.into_iter().chain(set).collect()
}
