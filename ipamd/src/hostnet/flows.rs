//! Connections out of the VPC that began while the chains were not there.
//!
//! A connection keeps what its first packet met: one that was not translated, or not marked, and so left by an interface
//! that may not send it, gets no answer, also when the chains are back. Its entry is removed; the next packet begins it
//! anew. What was answered works as it is, and is left alone.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use selvage_nodenet::conntrack::{self, Flow};

use super::{Change, HostError, NodeNet, Part, Pods, Snat};

/// Whether connections may have begun wrongly where this was not as it should be.
pub(super) fn depend_on(part: Part) -> bool {
    matches!(part, Part::Nat | Part::Mangle | Part::Nft)
}

/// Removes what began wrongly, and tells how many there were.
pub(super) fn restart(node: &NodeNet) -> Result<Option<Change>, HostError> {
    let Pods::V4(pods) = &node.pods else {
        return Ok(None);
    };
    let Snat::Here { exempt, .. } = &pods.snat else {
        return Ok(None);
    };
    let began_wrongly = |flow: &Flow| {
        let wanted = (pods.primary_address, node.mark.get());
        began_wrongly(exempt, wanted, flow)
    };
    let removed = conntrack::remove(began_wrongly)?;
    let what = format!("{removed} connections that had begun untranslated or unmarked");
    Ok((removed > 0).then(|| Change::new(Part::Flow, what)))
}

/// Whether a connection from blocks that are left alone to the world is not answered because its first packet was not
/// given the address and the mark that it should have.
fn began_wrongly(
    exempt: &BTreeSet<Ipv4Net>,
    (address, mark): (Ipv4Addr, u32),
    flow: &Flow,
) -> bool {
    let inside = |address: &Ipv4Addr| exempt.iter().any(|block| block.contains(address));
    let of_a_pod = inside(&flow.source) && flow.source != address;
    let abroad = !inside(&flow.destination) && !flow.destination.is_multicast();
    let as_wanted = flow.seen_as == address && flow.mark & mark != 0;
    of_a_pod && abroad && !flow.answered && !as_wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_waits_in_vain_for_an_answer_from_the_world_begins_anew() {
        let exempt = ["10.40.0.0/16".parse().unwrap()].into();
        let wanted = (Ipv4Addr::new(10, 40, 0, 4), 0x80);
        let untranslated = Flow {
            source: [10, 40, 0, 9].into(),
            destination: [198, 51, 100, 10].into(),
            seen_as: [10, 40, 0, 9].into(),
            mark: 0x80,
            answered: false,
        };
        let of = |change: fn(&mut Flow)| {
            let mut flow = untranslated;
            change(&mut flow);
            began_wrongly(&exempt, wanted, &flow)
        };
        let node_address: fn(&mut Flow) = |flow| flow.seen_as = [10, 40, 0, 4].into();
        assert!(of(|_| {}), "untranslated");
        assert!(
            of(|flow| {
                flow.seen_as = [10, 40, 0, 4].into();
                flow.mark = 0x4000;
            }),
            "unmarked"
        );
        assert!(!of(node_address), "as it should be");
        assert!(!of(|flow| flow.answered = true), "answered");
        assert!(
            !of(|flow| flow.destination = [10, 40, 16, 9].into()),
            "within the VPC"
        );
        assert!(
            !of(|flow| flow.destination = [224, 0, 0, 251].into()),
            "multicast"
        );
        assert!(
            !of(|flow| flow.source = [10, 40, 0, 4].into()),
            "the node's own"
        );
        assert!(
            !of(|flow| flow.source = [172, 17, 0, 2].into()),
            "a bridge's, which somebody else translates"
        );
    }
}
