//! A profile's chain: NetworkPolicy's stage.

use super::stage::{Decision, Stage, chains};
use crate::fold::{Bucket, Contents, Folded, Kind, SetId};
use crate::model::Direction;
use crate::ruleset::{Chain, ChainName, Match, SetName, Side};

/// The chains of a profile; a packet enters at [`Folded::chain`]. A peer pod that comes or goes
/// changes no rule, unless it is its family's first or last. No rule matches on a set that `is_void`, which can
/// have no member; `names` gives the names of the others, so that all who use a set can share its.
pub(crate) fn stages(
    direction: Direction,
    folded: &Folded,
    is_void: impl Fn(&Contents) -> bool,
    names: impl Fn(&SetId) -> SetName,
) -> Vec<(ChainName, Chain)> {
    let side = match direction {
        Direction::Ingress => Side::Source,
        Direction::Egress => Side::Destination,
    };
    // Those about ports last: where they are many, they branch.
    let (ranged, others): (Vec<&Bucket>, Vec<&Bucket>) = folded
        .buckets()
        .filter(|bucket| !bucket.set().is_some_and(|contents| is_void(contents)))
        .partition(|bucket| matches!(bucket.kind(), Kind::Range(..)));
    let buckets = others.into_iter().chain(ranged);
    let rules = buckets.map(|bucket| (matches(bucket, side, &names), Decision::Accept));
    chains(vec![Stage {
        chain: folded.chain().clone(),
        rules: rules.collect(),
        otherwise: Decision::Deny,
    }])
}

fn matches(bucket: &Bucket, peer: Side, names: impl Fn(&SetId) -> SetName) -> Vec<Match> {
    let traffic = match bucket.kind() {
        Kind::Any | Kind::SinglePorts => None,
        Kind::Protocol(protocol) => Some(Match::Protocol(protocol)),
        Kind::Range(protocol, ports) => Some(Match::Ports(protocol, ports)),
    };
    let set = bucket.set().map(|set| Match::Set {
        set: names(set.id()),
        kind: set.id().kind(),
        peer,
    });
    traffic.into_iter().chain(set).collect()
}
