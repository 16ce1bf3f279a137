//! What a secondary interface needs: its address, a table of its own, and the rule that leads there.

use ipnet::{IpNet, Ipv4Net};
use selvage_nodenet::link::Link;
use selvage_nodenet::route::Route;
use selvage_nodenet::rule::{Direction, Family, Rule};
use selvage_nodenet::{Socket, TableId, addr, link, route, rule};

use super::{EniNet, HostError, priority};

/// The route table of an interface: main for the primary, else its device index and one (AWS's numbers).
pub fn route_table(device_index: u16) -> u32 {
    if device_index == 0 {
        TableId::MAIN.0
    } else {
        u32::from(device_index) + 1
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
    let own = IpNet::from(Ipv4Net::from(eni.address));
    // A VPC's router is the first address of each subnet.
    let gateway = eni.subnet.hosts().next().unwrap_or(eni.subnet.network());
    let masked = Ipv4Net::new(eni.address, eni.subnet.prefix_len()).unwrap_or(eni.subnet);
    Wanted {
        address: IpNet::from(masked),
        connected: IpNet::from(eni.subnet.trunc()),
        routes: [
            Route::on_link(table, IpNet::from(Ipv4Net::from(gateway)), link.index),
            Route::default_via(table, gateway.into(), link.index),
        ],
        rule: Rule::new(Family::V4, priority::FROM_ENI, table).from(own),
    }
}

/// Makes what the interface needs and tells what was changed.
pub(super) fn ensure(socket: &mut Socket, eni: &EniNet) -> Result<Vec<String>, HostError> {
    let link = find(socket, eni)?;
    let mut changed = Vec::new();
    if link.mtu != eni.mtu {
        socket.run_one(link::set_mtu(link.index, eni.mtu))?;
        changed.push(format!("{}: mtu {}", link.name, eni.mtu));
    }
    if !link.up {
        socket.run_one(link::set_up(link.index))?;
        changed.push(format!("{}: up", link.name));
    }
    if eni.device_index == 0 {
        return Ok(changed);
    }
    let wanted = wanted(eni, &link);
    // An address of a pod on the host's link would make the host answer for the pod.
    for gone in addr::flush_global(socket, link.index, &[wanted.address])? {
        changed.push(format!("{}: address {gone} removed", link.name));
    }
    let there = addr::list(socket, Some(link.index))?;
    if !there.iter().any(|a| a.net == wanted.address) {
        socket.run_one(addr::ensure(link.index, wanted.address))?;
        changed.push(format!("{}: address {}", link.name, wanted.address));
    }
    // The kernel makes a route to the whole subnet with the address: it would take the primary interface's traffic.
    let like = eni.address.into();
    let connected = route::list(socket, TableId::MAIN, like)?
        .into_iter()
        .any(|r| r.link == link.index && r.destination == wanted.connected && r.gateway.is_none());
    if connected {
        socket.run_one(route::remove(
            TableId::MAIN,
            wanted.connected,
            Some(link.index),
        ))?;
        changed.push(format!(
            "{}: route to {} removed from main",
            link.name, wanted.connected
        ));
    }
    let table = wanted.rule.table;
    let have = route::list(socket, table, like)?;
    for want in &wanted.routes {
        let right = have.iter().any(|r| {
            (r.destination, r.gateway, r.link) == (want.destination, want.gateway, want.link)
        });
        if !right {
            socket.run_one(route::replace(want))?;
            changed.push(format!("table {table}: route {}", want.destination));
        }
    }
    if !rule::list(socket, Family::V4)?.contains(&wanted.rule) {
        // One to another table would be asked first.
        let own = IpNet::from(Ipv4Net::from(eni.address));
        rule::remove_every(socket, priority::FROM_ENI, Direction::From(own))?;
        socket.run_one(rule::ensure(&wanted.rule))?;
        changed.push(format!("rule {}", wanted.rule));
    }
    Ok(changed)
}

/// Removes the rule and the routes. The link may be gone already, and its routes with it.
pub(super) fn remove(socket: &mut Socket, eni: &EniNet) -> Result<(), HostError> {
    if eni.device_index == 0 {
        return Ok(());
    }
    let own = IpNet::from(Ipv4Net::from(eni.address));
    rule::remove_every(socket, priority::FROM_ENI, Direction::From(own))?;
    let link = match find(socket, eni) {
        Ok(link) => link,
        Err(HostError::NoLink { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let wanted = wanted(eni, &link);
    // The default route first: it needs the other.
    for route in wanted.routes.iter().rev() {
        socket.run_one(route::remove(
            route.table,
            route.destination,
            Some(link.index),
        ))?;
    }
    Ok(())
}

/// The link of an interface.
pub(super) fn find(socket: &mut Socket, eni: &EniNet) -> Result<Link, HostError> {
    let mac = selvage_nodenet::Mac::new(eni.mac.0);
    link::find_by_mac(socket, mac)?.ok_or(HostError::NoLink { mac: eni.mac })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_awss_numbers() {
        assert_eq!(route_table(0), 254);
        assert_eq!(route_table(1), 2);
        assert_eq!(route_table(14), 15);
    }
}
