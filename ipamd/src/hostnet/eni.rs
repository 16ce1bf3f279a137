//! What a secondary interface needs: its address, a table of its own, and the rule that leads there.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use selvage_nodenet::addr::Address;
use selvage_nodenet::link::Link;
use selvage_nodenet::route::Route;
use selvage_nodenet::rule::{Direction, Family, Rule};
use selvage_nodenet::{Socket, TableId, addr, link, route, rule};

use super::{Change, EniNet, HostError, Part, priority};

/// The VPC's router, on every link: AWS's number, the same in each subnet.
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0x0ec2, 0, 0, 0, 0, 0, 1);

/// The route table of an interface: main for the primary, else its device index and one (AWS's numbers).
pub fn route_table(device_index: u16) -> u32 {
    if device_index == 0 {
        TableId::MAIN.0
    } else {
        u32::from(device_index) + 1
    }
}

/// An address alone, as a net.
pub(super) fn alone(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// The family of an address.
pub(super) fn family(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// The router of an interface's subnet: its own, wherever the primary interface is.
fn gateway(eni: &EniNet) -> IpAddr {
    match eni.subnet {
        // A VPC's router is the first address of each subnet.
        IpNet::V4(subnet) => subnet.hosts().next().unwrap_or(subnet.network()).into(),
        IpNet::V6(_) => ROUTER_V6.into(),
    }
}

/// What is wanted, before anything is looked at.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    address: IpNet,
    connected: IpNet,
    routes: [Route; 2],
    rule: Rule,
}

fn wanted(eni: &EniNet, link: &Link) -> Wanted {
    let table = TableId(route_table(eni.device_index));
    let gateway = gateway(eni);
    Wanted {
        address: IpNet::new(eni.address, eni.subnet.prefix_len()).unwrap_or(eni.subnet),
        connected: eni.subnet.trunc(),
        routes: [
            Route::on_link(table, alone(gateway), link.index),
            Route::default_via(table, gateway, link.index),
        ],
        rule: Rule::new(family(eni.address), priority::FROM_ENI, table).from(alone(eni.address)),
    }
}

/// The links and rules of a node, listed once for all of its interfaces.
pub(super) struct View<'a> {
    pub(super) links: &'a [Link],
    pub(super) rules: &'a [Rule],
}

/// Makes what the interface needs and tells what was changed.
pub(super) fn ensure(
    socket: &mut Socket,
    view: &View<'_>,
    eni: &EniNet,
) -> Result<Vec<Change>, HostError> {
    let link = find(view.links, eni)?;
    let mut changed = Vec::new();
    let mut note = |part, what: String| changed.push(Change::new(part, what));
    if link.mtu != eni.mtu {
        socket.run_one(link::set_mtu(link.index, eni.mtu))?;
        note(Part::EniLink, format!("{}: mtu {}", link.name, eni.mtu));
    }
    if !link.up {
        socket.run_one(link::set_up(link.index))?;
        note(Part::EniLink, format!("{}: up", link.name));
    }
    if eni.device_index == 0 {
        return Ok(changed);
    }
    let wanted = wanted(eni, link);
    // An address of a pod on the host's link would make the host answer for the pod.
    let keep = [wanted.address];
    for gone in addr::flush_global(socket, link.index, family(eni.address), &keep)? {
        let what = format!("{}: address {gone} removed", link.name);
        note(Part::HostAddress, what);
    }
    let there = addr::list(socket, Some(link.index))?;
    if !there.iter().any(|a| a.net == wanted.address) {
        socket.run_one(addr::ensure(link.index, wanted.address))?;
        let what = format!("{}: address {}", link.name, wanted.address);
        note(Part::EniAddress, what);
    }
    // The kernel makes a route to the whole subnet with the address: it would take the primary interface's traffic.
    let connected = route::list(socket, TableId::MAIN, eni.address)?
        .into_iter()
        .any(|r| r.link == link.index && r.destination == wanted.connected && r.gateway.is_none());
    if connected {
        let index = Some(link.index);
        socket.run_one(route::remove(TableId::MAIN, wanted.connected, index))?;
        let what = format!(
            "{}: route to {} removed from main",
            link.name, wanted.connected
        );
        note(Part::EniRoute, what);
    }
    let table = wanted.rule.table;
    // What had this table before may have been detached by hand: its rule led nowhere, and its address may be a pod's by
    // now. Before the table leads somewhere again.
    let others = view.rules.iter().filter(|r| {
        r.priority == priority::FROM_ENI && r.table == table && r.from != wanted.rule.from
    });
    for stale in others {
        socket.run_one(rule::remove(stale))?;
        note(Part::EniRule, format!("rule {stale} removed"));
    }
    let have = route::list(socket, table, eni.address)?;
    for want in &wanted.routes {
        let right = have.iter().any(|r| {
            (r.destination, r.gateway, r.link) == (want.destination, want.gateway, want.link)
        });
        if !right {
            socket.run_one(route::replace(want))?;
            let what = format!("table {table}: route {}", want.destination);
            note(Part::EniRoute, what);
        }
    }
    if !view.rules.contains(&wanted.rule) {
        // One to another table would be asked first.
        let own = Direction::From(alone(eni.address));
        rule::remove_every(socket, priority::FROM_ENI, own)?;
        socket.run_one(rule::ensure(&wanted.rule))?;
        note(Part::EniRule, format!("rule {}", wanted.rule));
    }
    Ok(changed)
}

/// Removes addresses for pods that the host has as its own: what is local to the host does not reach the pod.
/// Distribution scripts give the host all that metadata shows for an interface, the primary one included.
pub(super) fn take_from_host(
    socket: &mut Socket,
    links: &[Link],
    enis: &[EniNet],
) -> Result<Vec<Change>, HostError> {
    let is_for_pods = |address: &Address| {
        let ip = address.net.addr();
        let block = |net: &IpNet| net.contains(&ip);
        !enis.iter().any(|eni| eni.address == ip)
            && enis.iter().flat_map(|eni| &eni.for_pods).any(block)
    };
    let mut changed = Vec::new();
    for address in addr::list(socket, None)?.iter().filter(|a| is_for_pods(a)) {
        socket.run_one(addr::remove(address.link, address.net))?;
        let link = links.iter().find(|link| link.index == address.link);
        let name = link.map_or("a link", |link| &link.name);
        let what = format!("{name}: address {} removed", address.net);
        changed.push(Change::new(Part::HostAddress, what));
    }
    Ok(changed)
}

/// Removes the rule and the routes, and rules of pods that somebody has left behind: their addresses may come back on
/// another interface. The link may be gone already, and its routes with it.
pub(super) fn remove(socket: &mut Socket, eni: &EniNet) -> Result<(), HostError> {
    if eni.device_index == 0 {
        return Ok(());
    }
    let own = Direction::From(alone(eni.address));
    rule::remove_every(socket, priority::FROM_ENI, own)?;
    let table = TableId(route_table(eni.device_index));
    let rules = rule::list(socket, family(eni.address))?;
    for stale in rules
        .iter()
        .filter(|r| r.priority == priority::FROM_POD && r.table == table)
    {
        socket.run_one(rule::remove(stale))?;
        if let Some(pod) = stale.from {
            rule::remove_every(socket, priority::TO_POD, Direction::To(pod))?;
        }
    }
    let links = link::list(socket)?;
    let link = match find(&links, eni) {
        Ok(link) => link,
        Err(HostError::NoLink { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let wanted = wanted(eni, link);
    // The default route first: it needs the other.
    for route in wanted.routes.iter().rev() {
        let index = Some(link.index);
        socket.run_one(route::remove(route.table, route.destination, index))?;
    }
    Ok(())
}

/// The link of an interface: the lowest-numbered with its address that does not repeat that of the link below.
pub(super) fn find<'a>(links: &'a [Link], eni: &EniNet) -> Result<&'a Link, HostError> {
    let mac = selvage_nodenet::Mac::new(eni.mac.0);
    link::with_mac(links, mac).ok_or(HostError::NoLink { mac: eni.mac })
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvage_ipamd_core::ids::Mac;

    #[test]
    fn tables_have_awss_numbers() {
        assert_eq!(route_table(0), 254);
        assert_eq!(route_table(1), 2);
        assert_eq!(route_table(14), 15);
    }

    #[test]
    fn an_interface_leaves_by_the_router_of_its_own_subnet() {
        let eni = |address: &str, subnet: &str| EniNet {
            mac: Mac([2, 0, 0, 0, 0, 6]),
            device_index: 1,
            address: address.parse().unwrap(),
            subnet: subnet.parse().unwrap(),
            mtu: 9001,
            for_pods: vec![],
        };
        for (address, subnet, router) in [
            ("10.40.0.5", "10.40.0.0/20", "10.40.0.1"),
            ("100.64.33.7", "100.64.32.0/19", "100.64.32.1"),
            ("2001:db8::5", "2001:db8::/64", "fe80:ec2::1"),
        ] {
            let eni = eni(address, subnet);
            assert_eq!(gateway(&eni), router.parse::<IpAddr>().unwrap(), "{subnet}");
        }
    }
}
