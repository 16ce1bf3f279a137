//! Ingress is judged by source address, so a pod must not choose it. Only a flow's first packets
//! are asked: the lookup on every packet costs 5 to 8 % of forwarding one.
//!
//! Pods on a branch ENI are not asked: replies to them are routed by a table of their own, which
//! this lookup doesn't see. All they send leaves by that ENI, and the VPC drops what isn't its own.

use std::collections::BTreeMap;

use super::drops::DropReason;
use super::name;
use crate::ruleset::{Action, Chain, ChainName, Family, FlowState, Interface, Match, Rule};

/// Where it begins.
pub(super) const ROOT: &str = "selvage-source";

/// What an IPv6 host needs before it has a routed address, and to keep one: multicast listeners
/// (130-132, 143), and neighbour and router discovery (133-136). Its source is a link-local
/// address or none, and no router passes it on. Redirects (137) are not for pods to send.
const LINK_TYPES: [u8; 8] = [130, 131, 132, 133, 134, 135, 136, 143];

/// Adds the chains.
pub(super) fn grow(
    veths: &Interface,
    family: Family,
    deny_log: Option<u16>,
    chains: &mut BTreeMap<ChainName, Chain>,
) {
    let elsewhere = Rule {
        matches: vec![Match::In(veths.clone()), Match::SourceElsewhere],
        action: DropReason::WrongSource.action(deny_log),
    };
    let mut rules = vec![Rule {
        matches: vec![
            Match::In(veths.clone()),
            Match::State(FlowState::Established),
        ],
        action: Action::Return,
    }];
    match family {
        Family::V4 => {}
        Family::V6 => {
            let link = name("selvage-link");
            rules.push(Rule {
                matches: vec![Match::In(veths.clone()), Match::Icmp6],
                action: Action::Goto(link.clone()),
            });
            let mut passed: Vec<Rule> = LINK_TYPES
                .into_iter()
                .map(|number| Rule {
                    matches: vec![Match::Icmp6Type(number)],
                    action: Action::Return,
                })
                .collect();
            passed.push(elsewhere.clone());
            chains.insert(link, Chain::ending_in(Action::Return, passed));
        }
    }
    rules.push(elsewhere);
    chains.insert(name(ROOT), Chain::ending_in(Action::Return, rules));
}
