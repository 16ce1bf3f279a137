//! Pods that were here before us: which of them are still there, and what they need.

use std::net::IpAddr;

use ipnet::IpNet;
use selvage_ipamd_core::ids::PodName;
use selvage_nodenet::route::Route;
use selvage_nodenet::rule::{Direction, Family, Rule};
use selvage_nodenet::{Socket, TableId, link, route, rule};
use sha1::{Digest, Sha1};

use super::{HostError, PodNet, priority, route_table};

/// What follows the prefix in the name of a pod's veth: 11 hexadecimal digits of a hash of its name (the rule of
/// Calico and of AWS).
pub fn veth_suffix(pod: &PodName) -> String {
    let hash = Sha1::digest(format!("{}.{}", pod.namespace, pod.name));
    let mut digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.truncate(11);
    digits
}

/// Makes a pod's route and rules, if its veth is there.
pub(super) fn ensure(socket: &mut Socket, pod: &PodNet) -> Result<(), HostError> {
    let Some(veth) = link::find(socket, &pod.veth)? else {
        return Ok(());
    };
    let own = IpNet::from(pod.address);
    let family = family(pod.address);
    let to = Rule::new(family, priority::TO_POD, TableId::MAIN).to(own);
    let mut requests = vec![
        route::replace(&Route::on_link(TableId::MAIN, own, veth.index)),
        rule::ensure(&to),
    ];
    // An address may have moved to another interface since.
    let table = TableId(route_table(pod.device_index));
    let from =
        (table != TableId::MAIN).then(|| Rule::new(family, priority::FROM_POD, table).from(own));
    let there: Vec<Rule> = rule::list(socket, family)?
        .into_iter()
        .filter(|r| r.priority == priority::FROM_POD && r.from == Some(own))
        .collect();
    if there != from.clone().into_iter().collect::<Vec<_>>() {
        rule::remove_every(socket, priority::FROM_POD, Direction::From(own))?;
        requests.extend(from.as_ref().map(rule::ensure));
    }
    socket.run_all(&requests)?;
    Ok(())
}

/// Removes every rule of a pod's address.
pub(super) fn forget(socket: &mut Socket, address: IpAddr) -> Result<(), HostError> {
    let own = IpNet::from(address);
    rule::remove_every(socket, priority::TO_POD, Direction::To(own))?;
    rule::remove_every(socket, priority::FROM_POD, Direction::From(own))?;
    Ok(())
}

fn family(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_veth_is_named_by_the_rule_that_calico_and_aws_share() {
        // sha1("default.web-0") by sha1sum.
        let pod = PodName {
            namespace: "default".into(),
            name: "web-0".into(),
        };
        assert_eq!(veth_suffix(&pod), "0d7763386da");
    }
}
