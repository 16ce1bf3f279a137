//! What CHECK looks at: everything that ADD made, against the result that ADD told.

use ipnet::IpNet;
use selvage_nodenet::route::{self, Route};
use selvage_nodenet::rule;
use selvage_nodenet::{Error, TableId, addr, link, neigh};

use crate::apply::{Host, PodSide};
use crate::plan::{family, gateway, rules};
use crate::teardown::Told;

/// Everything that is not as ADD made it, in words; empty if all is well.
///
/// *Cost*: listings, linear in the node's rules and the routes of its main table.
pub fn differences(host: &mut Host, pod: &mut PodSide, told: &Told) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    let Some(inner) = link::find(pod.socket(), &told.if_name)? else {
        return Ok(vec![format!("the pod has no interface {}", told.if_name)]);
    };
    let Some(outer) = link::find(host.socket(), &told.host_veth)? else {
        return Ok(vec![format!("the host has no link {}", told.host_veth)]);
    };
    let mut expect = |holds: bool, what: String| {
        if !holds {
            found.push(what);
        }
    };
    expect(
        inner.peer == Some(outer.index),
        format!(
            "{} in the pod and {} on the host are not one veth",
            told.if_name, told.host_veth
        ),
    );
    for link in [&inner, &outer] {
        expect(link.up, format!("{} is down", link.name));
    }

    let Some(first) = told.leases.first().map(|lease| lease.address) else {
        return Ok(found);
    };
    let gateway = gateway(first);
    let addresses = addr::list(pod.socket(), Some(inner.index))?;
    let inside = route::list(pod.socket(), TableId::MAIN, gateway)?;
    for wanted in [
        Route::on_link(TableId::MAIN, IpNet::from(gateway), inner.index),
        Route::default_via(TableId::MAIN, gateway, inner.index),
    ] {
        expect(
            has(&inside, &wanted),
            format!("the pod has no route {}", wanted.destination),
        );
    }
    let neighbours = neigh::list(pod.socket(), inner.index, gateway)?;
    expect(
        neighbours
            .iter()
            .any(|n| n.ip == gateway && n.permanent && Some(n.mac) == outer.mac),
        format!("the pod has no permanent neighbour {gateway}"),
    );

    let outside = route::list(host.socket(), TableId::MAIN, gateway)?;
    let all = rule::list(host.socket(), family(first))?;
    for lease in &told.leases {
        let address = IpNet::from(lease.address);
        expect(
            addresses.iter().any(|a| a.net == address),
            format!("the pod has no address {address}"),
        );
        let wanted = Route::on_link(TableId::MAIN, address, outer.index);
        expect(
            has(&outside, &wanted),
            format!("the host has no route {address} dev {}", told.host_veth),
        );
        for wanted in rules(lease) {
            expect(
                all.contains(&wanted),
                format!("the host has no rule {wanted}"),
            );
        }
    }
    Ok(found)
}

/// Whoever made it: another agent's repair is as good.
fn has(routes: &[Route], wanted: &Route) -> bool {
    routes.iter().any(|route| {
        route.destination == wanted.destination
            && route.gateway == wanted.gateway
            && route.link == wanted.link
    })
}
