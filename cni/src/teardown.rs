//! What DEL does to a node: the rules and the route of a lease go, the veth is left to die with its namespace
//! (deleting a link waits 16 to 24 ms in the kernel, removing a namespace does it without anybody waiting).

use ipnet::IpNet;
use selvage_nodenet::rule::{self, Direction};
use selvage_nodenet::{Error, NetNs, Socket, TableId, link, route};

use crate::apply::Host;
use crate::lease::Lease;
use crate::plan::{FROM_POD, TO_POD};
use crate::spec::PrevResult;

/// Removes the rules and the host's route of addresses that a sandbox held until now. What is gone already
/// is no trouble; an error does not keep the rest from being tried, and the first is told.
pub fn unwire(socket: &mut Socket, leases: &[Lease]) -> Result<(), Error> {
    let mut first = Ok(());
    for lease in leases {
        let address = IpNet::from(lease.address);
        // An older agent may have left several rules: that a second one is there too is found out along with the rest.
        let requests = [
            rule::remove_any_table(TO_POD, Direction::To(address)),
            rule::remove_any_table(FROM_POD, Direction::From(address)),
            route::remove(TableId::MAIN, address, None),
            rule::remove_any_table(TO_POD, Direction::To(address)),
            rule::remove_any_table(FROM_POD, Direction::From(address)),
        ];
        let results = match socket.run(&requests) {
            Ok(results) => results,
            Err(error) => {
                first = first.and(Err(error));
                continue;
            }
        };
        // More than two of one kind.
        let more = results
            .iter()
            .skip(3)
            .any(|result| result.as_ref().is_ok_and(|reply| reply.changed));
        for result in results {
            first = first.and(result.map(drop));
        }
        if more {
            for (priority, direction) in [
                (TO_POD, Direction::To(address)),
                (FROM_POD, Direction::From(address)),
            ] {
                let removed = rule::remove_every(socket, priority, direction);
                first = first.and(removed.map(drop));
            }
        }
    }
    first
}

/// What an earlier result says the pod has: the name of the host's end, and the leases.
///
/// *Shape*: AWS's: each address points to the entry of the pod's interface, whose `mac` is the table; the
/// host's end is the entry before it; the dummy's `sandbox` is the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Name of the host's end of the veth.
    pub host_veth: String,
    /// Name of the interface in the pod.
    pub if_name: String,
    /// Its addresses.
    pub leases: Vec<Lease>,
}

/// Reads an earlier result; `None` if it is not of that shape, or of a branch interface.
pub fn told(result: &PrevResult) -> Option<Told> {
    let dummy = result.interfaces.last()?;
    if !dummy.name.starts_with("dummy") || dummy.mac != "0" {
        return None;
    }
    let device = dummy.sandbox.parse().ok()?;
    let inner = result.ips.first()?.interface?;
    let host = result.interfaces.get(inner.checked_sub(1)?)?;
    let mut leases = Vec::new();
    for ip in &result.ips {
        let table = result.interfaces.get(ip.interface?)?.mac.parse().ok()?;
        let net: IpNet = ip.address.parse().ok()?;
        leases.push(Lease::new(net.addr(), table, device));
    }
    Some(Told {
        host_veth: host.name.clone(),
        if_name: result.interfaces.get(inner)?.name.clone(),
        leases,
    })
}

/// Whether what was told is still this sandbox's, without anybody to ask: a newer sandbox of the same pod has
/// the same veth name, and an address may have been leased again.
pub fn is_ours(host: &mut Host, told: &Told, netns: &str) -> Result<bool, Error> {
    if let Some(outer) = link::find(host.socket(), &told.host_veth)? {
        // Ours if our namespace holds the other end. If it cannot be looked into, its veth dies with it.
        let Ok(pod) = NetNs::open(netns.as_ref()) else {
            return Ok(false);
        };
        let Some(mut side) = host.enter(pod)? else {
            return Ok(false);
        };
        let inner = link::find(side.socket(), &told.if_name)?;
        return Ok(inner.is_some_and(|inner| inner.peer == Some(outer.index)));
    }
    // The veth is dead, and its routes with it: a route that is there is somebody else's.
    let main = match told.leases.first() {
        Some(lease) => route::list(host.socket(), TableId::MAIN, lease.address)?,
        None => Vec::new(),
    };
    let taken = |lease: &Lease| {
        let net = IpNet::from(lease.address);
        main.iter().any(|route| route.destination == net)
    };
    Ok(!told.leases.iter().any(taken))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn read(json: &str) -> Option<Told> {
        told(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_result_of_ours_or_of_awss_plugin_tells_name_address_and_table() {
        let json = r#"{"cniVersion":"0.4.0","interfaces":[{"name":"eni1"},{"name":"eth0","mac":"3","sandbox":"/n"},{"name":"dummy1","mac":"0","sandbox":"2"}],"ips":[{"version":"4","interface":1,"address":"10.40.1.7/32"}],"dns":{}}"#;
        let lease = Lease::new(Ipv4Addr::new(10, 40, 1, 7), 3, 2);
        assert_eq!(
            read(json),
            Some(Told {
                host_veth: "eni1".into(),
                if_name: "eth0".into(),
                leases: vec![lease]
            })
        );
    }

    #[test]
    fn a_result_of_another_shape_tells_nothing() {
        for json in [
            "{}",
            // a branch interface: the dummy's mac is a VLAN
            r#"{"interfaces":[{"name":"eni1"},{"name":"eth0","mac":"3"},{"name":"dummy1","mac":"7"}],"ips":[{"interface":1,"address":"10.40.1.7/32"}]}"#,
            // another plugin's
            r#"{"interfaces":[{"name":"veth1"},{"name":"eth0","mac":"02:00:00:00:00:01"}],"ips":[{"interface":1,"address":"10.40.1.7/24"}]}"#,
            // an index that points nowhere
            r#"{"interfaces":[{"name":"eni1"},{"name":"dummy1","mac":"0","sandbox":"0"}],"ips":[{"interface":7,"address":"10.40.1.7/32"}]}"#,
        ] {
            assert_eq!(read(json), None, "{json}");
        }
    }
}
