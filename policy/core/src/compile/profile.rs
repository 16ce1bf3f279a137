//! A profile's chain and sets.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::fold::{Bucket, Folded};
use crate::index::Index;
use crate::model::{Direction, Traffic};
use crate::ruleset::{Action, Chain, Family, Match, Rule, Set, SetName, Side};

/// What is allowed, then DROP. A peer pod that comes or goes changes no rule.
pub(super) fn chain(direction: Direction, folded: &Folded, family: Family) -> Chain {
    let side = match direction {
        Direction::Ingress => Side::Source,
        Direction::Egress => Side::Destination,
    };
    let mut rules: Vec<Rule> = Vec::new();
    for bucket in folded.buckets() {
        let rule = rule(bucket, side, family);
        // All single ports are in one set.
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    Chain::ending_in(Action::Drop, rules)
}

fn rule(bucket: &Bucket, peer: Side, family: Family) -> Rule {
    let traffic = match bucket.traffic() {
        Traffic::Any => None,
        Traffic::Protocol(protocol) => Some(Match::Protocol(protocol)),
        Traffic::Ports(protocol, ports) => match ports.single() {
            Some(_) => None,
            None => Some(Match::Ports(protocol, ports)),
        },
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

/// Adds the sets that the profile's rules match, whole. One without members is there too.
pub(super) fn fill_sets(
    folded: &Folded,
    family: Family,
    index: &Index,
    sets: &mut BTreeMap<SetName, Set>,
) {
    for bucket in folded.buckets() {
        let Some(id) = bucket.set() else {
            continue;
        };
        let set = sets.entry(id.name(family)).or_insert_with(|| Set {
            kind: id.kind(),
            members: BTreeSet::new(),
        });
        let pods = bucket
            .selectors()
            .iter()
            .flat_map(|selector| index.members(selector).addresses())
            .filter(|address| Family::of_address(*address) == family)
            .map(IpNet::from);
        let nets = bucket.block_nets(family).into_iter().chain(pods);
        set.members.extend(nets.map(|net| bucket.member(net)));
    }
}
