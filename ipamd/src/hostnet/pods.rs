//! What the host has for each pod beside its veth: a route, rules, and the address that the veth was born with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use selvage_ipamd_core::ids::PodName;
use selvage_nodenet::link::Link;
use selvage_nodenet::route::Route;
use selvage_nodenet::rule::{Direction, Rule};
use selvage_nodenet::{Mac, Request, Socket, TableId, link, route, rule};
use sha1::{Digest, Sha1};

use super::eni::{alone, family};
use super::{Change, HostError, Looked, Part, PodNet, priority, route_table};

/// Digits of a hash in the name of a veth.
const SUFFIX: usize = 11;

/// What follows the prefix in the name of a pod's veth: 11 hexadecimal digits of a hash of its name (the rule of
/// Calico and of AWS).
pub fn veth_suffix(pod: &PodName) -> String {
    let hash = Sha1::digest(format!("{}.{}", pod.namespace, pod.name));
    let mut digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.truncate(SUFFIX);
    digits
}

/// What is there, listed once for all pods.
pub(super) struct There<'a> {
    veths: BTreeMap<&'a str, &'a Link>,
    routes: BTreeMap<IpNet, Vec<&'a Route>>,
    to: BTreeSet<&'a Rule>,
    from: BTreeMap<IpNet, Vec<&'a Rule>>,
}

impl<'a> There<'a> {
    /// `routes` are those of main, `rules` those of the pods' family.
    pub(super) fn new(links: &'a [Link], routes: &'a [Route], rules: &'a [Rule]) -> Self {
        let mut there = There {
            veths: links.iter().map(|l| (end(&l.name), l)).collect(),
            routes: BTreeMap::new(),
            to: BTreeSet::new(),
            from: BTreeMap::new(),
        };
        for route in routes {
            let list = there.routes.entry(route.destination).or_default();
            list.push(route);
        }
        for rule in rules {
            match (rule.priority, rule.from) {
                (priority::TO_POD, None) => {
                    there.to.insert(rule);
                }
                (priority::FROM_POD, Some(net)) => there.from.entry(net).or_default().push(rule),
                _ => {}
            }
        }
        there
    }

    fn has_route(&self, want: &Route) -> bool {
        // Whoever made it, and whatever scope it has: IPv6 has none.
        let right = |have: &&Route| have.link == want.link && have.gateway.is_none();
        let have = self.routes.get(&want.destination);
        have.is_some_and(|list| list.first().is_some_and(right))
    }
}

/// The part of a link's name that tells a pod's veth, whatever its prefix.
fn end(name: &str) -> &str {
    let start = name.len().saturating_sub(SUFFIX);
    name.get(start..).unwrap_or(name)
}

/// What a pod needs that is not there.
#[derive(Default)]
struct Lack {
    /// A rule that leads to another table would be asked first: all of them go.
    stale_rules: bool,
    requests: Vec<Request>,
    changes: Vec<Change>,
}

impl Lack {
    fn add(&mut self, part: Part, request: Request, what: String) {
        self.requests.push(request);
        self.changes.push(Change::new(part, what));
    }
}

/// What is wrong with a pod; `None` if it has no veth. `born` is the hardware address that its veth had at first.
fn lack(there: &There<'_>, pod: &PodNet, born: impl Fn(&Link) -> Option<Mac>) -> Option<Lack> {
    let veth = there.veths.get(end(&pod.veth))?;
    let own = alone(pod.address);
    let mut lack = Lack::default();
    if let Some(mac) = born(veth).filter(|mac| veth.mac != Some(*mac)) {
        let what = format!("{}: address {mac}, as its pod knows it", veth.name);
        lack.add(Part::VethMac, link::set_mac(veth.index, mac), what);
    }
    let route = Route::on_link(TableId::MAIN, own, veth.index);
    if !there.has_route(&route) {
        let what = format!("route {own} dev {}", veth.name);
        lack.add(Part::PodRoute, route::replace(&route), what);
    }
    let family = family(pod.address);
    let to = Rule::new(family, priority::TO_POD, TableId::MAIN).to(own);
    if !there.to.contains(&to) {
        lack.add(Part::PodRule, rule::ensure(&to), format!("rule {to}"));
    }
    let table = TableId(route_table(pod.device_index));
    let from =
        (table != TableId::MAIN).then(|| Rule::new(family, priority::FROM_POD, table).from(own));
    let have: &[&Rule] = there.from.get(&own).map_or(&[], Vec::as_slice);
    if !have.iter().copied().eq(&from) {
        lack.stale_rules = !have.is_empty();
        match &from {
            Some(from) => lack.add(Part::PodRule, rule::ensure(from), format!("rule {from}")),
            None => {
                let what = format!("rules from {own} removed");
                lack.changes.push(Change::new(Part::PodRule, what));
            }
        }
    }
    Some(lack)
}

/// Makes what pods need whose veth is there. One that fails does not keep the others back.
pub(super) fn ensure(
    socket: &mut Socket,
    there: &There<'_>,
    pods: &[PodNet],
    born: impl Fn(&Link) -> Option<Mac>,
    looked: &mut Looked,
) {
    for pod in pods {
        let Some(lack) = lack(there, pod, &born) else {
            continue;
        };
        if lack.changes.is_empty() {
            continue;
        }
        let mut done = || -> Result<(), HostError> {
            if lack.stale_rules {
                let from = Direction::From(alone(pod.address));
                rule::remove_every(socket, priority::FROM_POD, from)?;
            }
            socket.run_all(&lack.requests)?;
            Ok(())
        };
        match done() {
            Ok(()) => {
                looked.pods.insert(pod.address);
                looked.changed.extend(lack.changes);
            }
            Err(error) => looked.failed.push(error),
        }
    }
}

/// Removes the route and every rule of a pod's address.
pub(super) fn forget(socket: &mut Socket, address: IpAddr) -> Result<(), HostError> {
    let own = alone(address);
    rule::remove_every(socket, priority::TO_POD, Direction::To(own))?;
    rule::remove_every(socket, priority::FROM_POD, Direction::From(own))?;
    socket.run_one(route::remove(TableId::MAIN, own, None))?;
    Ok(())
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

    #[test]
    fn a_veth_is_found_whatever_its_prefix() {
        for name in ["eni0d7763386da", "cali0d7763386da", "0d7763386da"] {
            assert_eq!(end(name), "0d7763386da", "{name}");
        }
        assert_eq!(end("enia"), "enia");
    }
}
