//! A client and a server behind veths, a Service, and rules like those of a compiled ruleset.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::Result;
use selvage_netfilter::Backend;
use selvage_netfilter::ipset::IpSets;
use selvage_policy_core::ruleset::{Family, SetKind, guard_set};
use selvage_tests::{Node, Pod, run, run_with_input};

pub struct World {
    pub client: Pod,
    pub server: Pod,
    pub client_address: IpAddr,
    pub server_address: IpAddr,
    pub service_address: IpAddr,
    tool: String,
    _node: Node,
}

impl World {
    pub fn new(backend: Backend, family: Family) -> Result<Self> {
        let node = Node::new()?;
        let client = node.pod("default", "client", Ipv4Addr::new(10, 40, 0, 11))?;
        let server = node.pod("default", "server", Ipv4Addr::new(10, 40, 0, 12))?;
        let (tool, addresses) = match family {
            Family::V4 => ("iptables", ["10.40.0.11", "10.40.0.12", "10.96.0.1"]),
            Family::V6 => {
                client.add_ipv6("fd00::11".parse()?)?;
                server.add_ipv6("fd00::12".parse()?)?;
                ("ip6tables", ["fd00::11", "fd00::12", "fd96::1"])
            }
        };
        let [client_address, server_address, service_address] =
            addresses.map(|it| it.parse().expect("an address"));
        let set = guard_set(family);
        let mut sets = IpSets::open(Duration::from_secs(10))?;
        sets.create(&set, family, SetKind::Guard, &BTreeSet::new())?;
        let tool = format!("{tool}-{backend}");
        let guard = super::GUARD.as_secs();
        run_with_input(
            &format!("{tool}-restore --noflush"),
            &format!(
                "*mangle\n:forward - [0:0]\n:guards - [0:0]\n:cut - [0:0]\n:policy - [0:0]\n\
                 -A FORWARD -j forward\n\
                 -A forward -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n\
                 -A forward -i eni+ -j guards\n\
                 -A forward -j policy\n\
                 -A guards -p tcp -m tcp ! --syn -m conntrack --ctstate NEW,INVALID -j DROP\n\
                 -A guards -p sctp -m sctp ! --chunk-types any INIT \
                   -m conntrack --ctstate NEW,INVALID -j DROP\n\
                 -A guards -m conntrack --ctstate NEW \
                   -m set --match-set {set} src,src,dst -g cut\n\
                 -A cut -j SET --add-set {set} src,src,dst --exist --timeout {guard}\n\
                 -A cut -j DROP\n\
                 COMMIT\n"
            ),
        )?;
        Ok(Self {
            client,
            server,
            client_address,
            server_address,
            service_address,
            tool,
            _node: node,
        })
    }

    /// The Service's port leads to a port of the server's.
    pub fn service(&self, port: u16, target: u16) -> Result<()> {
        let (tool, from, to) = (&self.tool, self.service_address, self.server_address);
        let to = std::net::SocketAddr::new(to, target);
        for protocol in ["tcp", "udp"] {
            run(&format!(
                "{tool} -t nat -A PREROUTING -d {from} -p {protocol} --dport {port} \
                 -j DNAT --to-destination {to}"
            ))?;
        }
        Ok(())
    }

    /// From now on the client may not reach these ports of the server's.
    pub fn forbid(&self, ports: &RangeInclusive<u16>) -> Result<()> {
        let (tool, from, to) = (&self.tool, self.client_address, self.server_address);
        let (first, last) = (ports.start(), ports.end());
        let rules: String = ["tcp", "udp", "sctp"]
            .map(|it| {
                format!("-A policy -s {from} -d {to} -p {it} --dport {first}:{last} -j DROP\n")
            })
            .concat();
        run_with_input(
            &format!("{tool}-restore --noflush"),
            &format!("*mangle\n{rules}COMMIT\n"),
        )
        .map(drop)
    }
}
