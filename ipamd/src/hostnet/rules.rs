//! The rules of the node as a whole.

use ipnet::IpNet;
use selvage_nodenet::rule::{Mark, Rule};
use selvage_nodenet::{Socket, TableId, rule};

use super::{Change, HostError, NodeNet, Part, Pods, Snat, priority};

/// The rules that a node should have.
fn wanted(node: &NodeNet) -> Vec<Rule> {
    let mark = node.mark.get();
    let main = |priority| Rule::new(node.family(), priority, TableId::MAIN);
    let marked = main(priority::MARKED).mark(mark, mark);
    match &node.pods {
        // Nothing sets the mark there; AWS's agent has the rule all the same.
        Pods::V6 => vec![marked],
        Pods::V4(pods) => {
            let marks = match pods.snat {
                Snat::Here { .. } => true,
                Snat::External => pods.node_port,
            };
            let services = pods.external_services.iter();
            marks
                .then_some(marked)
                .into_iter()
                .chain(services.map(|net| main(priority::EXTERNAL_SERVICE).to(IpNet::from(*net))))
                .collect()
        }
    }
}

/// Whether a rule is of the forms that we (and AWS's agent) make for a node: only such a one is ever removed.
fn is_ours(rule: &Rule) -> bool {
    let plain = rule.table == TableId::MAIN && rule.from.is_none() && rule.incoming.is_none();
    match rule.priority {
        priority::MARKED => {
            plain
                && rule.to.is_none()
                && matches!(rule.mark, Some(Mark { value, mask }) if value == mask)
        }
        priority::EXTERNAL_SERVICE => plain && rule.to.is_some() && rule.mark.is_none(),
        _ => false,
    }
}

/// Makes the node's rules as wanted and tells what was changed. `there` are all rules of its family.
pub(super) fn ensure(
    socket: &mut Socket,
    node: &NodeNet,
    there: &[Rule],
) -> Result<Vec<Change>, HostError> {
    let wanted = wanted(node);
    let mut changed = Vec::new();
    // The new ones first: no packet is without either.
    for rule in wanted.iter().filter(|rule| !there.contains(rule)) {
        socket.run_one(rule::ensure(rule))?;
        changed.push(Change::new(Part::NodeRule, format!("rule {rule}")));
    }
    for rule in there.iter().filter(|r| is_ours(r) && !wanted.contains(r)) {
        socket.run_one(rule::remove(rule))?;
        changed.push(Change::new(Part::NodeRule, format!("rule {rule} removed")));
    }
    Ok(changed)
}
