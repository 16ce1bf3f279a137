//! What ADD does to a node, as data: steps in order, and the inverse of each. Decides; touches nothing.
//!
//! ```text
//!   pod's namespace                       host's namespace
//!   eth0  10.40.1.7/32  <---- veth ---->  eni0d7763386da
//!   default via 169.254.1.1               10.40.1.7 dev eni0d7763386da scope link   (table main)
//!   169.254.1.1 = the veth's MAC            512: from all to 10.40.1.7 lookup main
//!                                          1536: from 10.40.1.7 lookup 3            (not for the primary ENI)
//! ```
//!
//! An IPv6 pod is wired the same way: a /128, `fe80::1` for a gateway.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use selvage_nodenet::link::Veth;
use selvage_nodenet::rule::{Direction, Family, Rule};
use selvage_nodenet::sysctl::Key;
use selvage_nodenet::{LinkIndex, Mac, TableId};

use crate::lease::Lease;
use crate::request::AddRequest;

/// A pod's gateway: an address that nobody has; a permanent neighbour entry answers for it.
pub fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::new(169, 254, 1, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// Rules that send packets to a pod to main, before anything looks at where they come from.
pub const TO_POD: u32 = 512;
/// Rules that send packets from a pod to the table of its address's ENI.
pub const FROM_POD: u32 = 1536;

/// Which end of a pod's veth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The one in the pod.
    Pod,
    /// The one on the host.
    Host,
}

/// A route through one end of the veth, whose number is known only once it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VethRoute {
    /// What it leads to.
    pub destination: IpNet,
    /// The next hop; `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
}

/// One change to the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Remove the host's end of an older sandbox's veth: a pod of this name ran before.
    RemoveLink(LinkIndex),
    /// Make the veth, from inside the pod.
    CreateVeth(Veth),
    /// Set a sysctl of the host's end. One that this kernel does not have is let pass.
    SetSysctl(Key, &'static str),
    /// Set an end up.
    SetUp(End),
    /// Wait until an end takes packets.
    Await(End),
    /// Let the pod have IPv6: runtimes turn it off in sandboxes that they think will not use it.
    EnableIpv6(String),
    /// Wait until the kernel lets the pod use its address: one that it still tests is not sent from.
    AwaitAddress(IpAddr),
    /// Add a route in main.
    AddRoute(End, VethRoute),
    /// Add the address in the pod.
    AddAddress(IpNet),
    /// Introduce the pod to the host as a neighbour. Where that is IPv6 the host could not ask for it yet: its own address
    /// on the veth is tested for duplicates for a second or two.
    Introduce(IpAddr, Mac),
    /// Set a permanent neighbour in the pod.
    SetNeighbour(IpAddr, Mac),
    /// Remove rules that an earlier holder of the address left, whatever their tables.
    RemoveRules(u32, Direction),
    /// Add a rule on the host.
    AddRule(Rule),
}

/// What takes a step back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undo {
    /// Remove the veth, from inside the pod: with it go its addresses, routes, neighbours and sysctls.
    RemoveVeth,
    /// Remove the host's route to an address.
    RemoveHostRoute(IpNet),
    /// Remove a rule.
    RemoveRule(Rule),
}

impl Step {
    /// What takes this step back; `None` if it goes with the veth, or only removed what was dead.
    pub fn inverse(&self) -> Option<Undo> {
        match self {
            Step::CreateVeth(_) => Some(Undo::RemoveVeth),
            Step::AddRoute(End::Host, route) => Some(Undo::RemoveHostRoute(route.destination)),
            Step::AddRule(rule) => Some(Undo::RemoveRule(rule.clone())),
            Step::RemoveLink(_)
            | Step::SetSysctl(..)
            | Step::SetUp(_)
            | Step::Await(_)
            | Step::EnableIpv6(_)
            | Step::AwaitAddress(_)
            | Step::AddRoute(End::Pod, _)
            | Step::AddAddress(_)
            | Step::Introduce(..)
            | Step::SetNeighbour(..)
            | Step::RemoveRules(..) => None,
        }
    }
}

/// What a plan needs to know beside the request and the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFacts {
    /// A link that has the name that the veth's end will have.
    pub stale_link: Option<LinkIndex>,
    /// A random address for the host's end.
    pub host_mac: Mac,
    /// A random address for the pod's end.
    pub pod_mac: Mac,
}

/// The steps of ADD that need no address, in order: the veth, up. They can be done while ipamd is asked. A pod
/// without an address sends nothing but IPv6's own greetings.
pub fn plan_veth(request: &AddRequest, host: &HostFacts) -> Vec<Step> {
    let sysctl = |name, value| Step::SetSysctl(Key::ipv6_of_link(&request.host_veth, name), value);
    let mut steps = Vec::with_capacity(7);
    steps.extend(host.stale_link.map(Step::RemoveLink));
    steps.extend([
        Step::CreateVeth(Veth {
            name: request.sandbox.if_name.clone(),
            mac: host.pod_mac,
            peer_name: request.host_veth.clone(),
            peer_mac: host.host_mac,
            mtu: request.mtu,
        }),
        // A pod must not reconfigure the host by router advertisements.
        sysctl("accept_ra", "0"),
        sysctl("accept_redirects", "1"),
        sysctl("forwarding", "0"),
        Step::SetUp(End::Host),
        Step::SetUp(End::Pod),
    ]);
    steps
}

/// The steps of ADD behind those of [`plan_veth`]. The host's come first: the pod's first packet finds
/// everything in place.
pub fn plan_address(request: &AddRequest, host: &HostFacts, lease: &Lease) -> Vec<Step> {
    let address = IpNet::from(lease.address);
    let gateway = gateway(lease.address);
    let route = |destination, gateway| VethRoute {
        destination,
        gateway,
    };
    let mut steps = Vec::with_capacity(12);
    steps.push(Step::RemoveRules(FROM_POD, Direction::From(address)));
    steps.push(Step::AddRoute(End::Host, route(address, None)));
    steps.extend(rules(lease).into_iter().map(Step::AddRule));
    if lease.address.is_ipv6() {
        steps.push(Step::Introduce(lease.address, host.pod_mac));
        steps.push(Step::EnableIpv6(request.sandbox.if_name.clone()));
    }
    steps.extend([
        Step::AddRoute(End::Pod, route(gateway.into(), None)),
        Step::AddRoute(End::Pod, route(everything(gateway), Some(gateway))),
        Step::SetNeighbour(gateway, host.host_mac),
        Step::AddAddress(address),
    ]);
    if lease.address.is_ipv6() {
        steps.push(Step::AwaitAddress(lease.address));
    }
    // The end that was set up first is the one that takes packets last.
    steps.push(Step::Await(End::Host));
    steps
}

/// The block of all addresses of a family.
fn everything(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
    }
}

/// The rules of a lease: to the pod by main; from the pod by its ENI's table, unless that is main.
pub fn rules(lease: &Lease) -> Vec<Rule> {
    let address = IpNet::from(lease.address);
    let family = family(lease.address);
    let mut rules = vec![Rule::new(family, TO_POD, TableId::MAIN).to(address)];
    if lease.table != TableId::MAIN {
        rules.push(Rule::new(family, FROM_POD, lease.table).from(address));
    }
    rules
}

/// The family of the rules for an address.
pub fn family(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Pod, Sandbox};
    use proptest::prelude::*;

    fn request() -> AddRequest {
        AddRequest {
            sandbox: Sandbox {
                network: "aws-cni".into(),
                container_id: "0123".into(),
                if_name: "eth0".into(),
                netns: "/var/run/netns/cni-1".into(),
            },
            pod: Pod::default(),
            host_veth: "eni0d7763386da".into(),
            mtu: 9001,
            policy_ready: None,
        }
    }

    fn facts(stale_link: Option<LinkIndex>) -> HostFacts {
        HostFacts {
            stale_link,
            host_mac: Mac::new([2, 0, 0, 0, 0, 1]),
            pod_mac: Mac::new([2, 0, 0, 0, 0, 2]),
        }
    }

    #[test]
    fn only_a_pod_on_a_secondary_interface_has_a_rule_for_what_it_sends() {
        for (table, rules) in [(254, 1), (3, 2)] {
            let lease = Lease::new(Ipv4Addr::new(10, 40, 1, 7), table, 0);
            let steps = plan_address(&request(), &facts(None), &lease);
            let found = steps.iter().filter(|s| matches!(s, Step::AddRule(_)));
            assert_eq!(found.count(), rules, "table {table}");
        }
    }

    proptest! {
        #[test]
        fn whatever_survives_the_veth_has_an_inverse(
            v4 in any::<[u8; 4]>(), v6 in any::<[u16; 8]>(), is_v6 in any::<bool>(), table in 0..20_000i32,
            stale in any::<bool>(),
        ) {
            let address: IpAddr = if is_v6 { v6.into() } else { v4.into() };
            let lease = Lease::new(address, table, 1);
            let facts = facts(LinkIndex::new(u32::from(stale) * 9));
            let mut steps = plan_veth(&request(), &facts);
            steps.extend(plan_address(&request(), &facts, &lease));
            let create = steps.iter().position(|s| matches!(s, Step::CreateVeth(_))).unwrap();
            for (at, step) in steps.iter().enumerate() {
                let on_host = matches!(step, Step::AddRoute(End::Host, _) | Step::AddRule(_));
                prop_assert_eq!(step.inverse().is_some(), on_host || at == create, "{:?}", step);
                // Nothing but the dead is touched before the veth can be made.
                prop_assert!(at >= create || matches!(step, Step::RemoveLink(_)), "{:?}", step);
                // One family alone: the other's routes would lead a pod nowhere.
                if let Step::AddRoute(_, route) = step {
                    prop_assert_eq!(route.destination.addr().is_ipv6(), is_v6, "{:?}", step);
                }
            }
        }
    }
}
