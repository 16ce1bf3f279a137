//! A pod: a namespace behind one veth, addressed as the AWS VPC CNI and Calico do.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use sha1::{Digest, Sha1};

use crate::command::run;
use crate::netns::{Netns, Place};
use crate::probe::Protocol;
use crate::server::Server;

/// The interface on the node's side of a pod: `eni` and 11 hex digits of SHA-1 over
/// `<namespace>.<name>`.
#[must_use]
pub fn interface_name(namespace: &str, name: &str) -> String {
    let digest = Sha1::digest(format!("{namespace}.{name}"));
    let mut hex = String::from("eni");
    for byte in &digest[..6] {
        let _ = write!(hex, "{byte:02x}");
    }
    hex.truncate("eni".len() + 11);
    hex
}

/// A namespace with `eth0` and one /32, reached through its own veth on the node.
#[derive(Debug)]
pub struct Pod {
    netns: Netns,
    interface: String,
    address: Ipv4Addr,
}

impl Pod {
    pub(crate) fn create(interface: &str, address: Ipv4Addr) -> Result<Self> {
        run(&format!("ip netns add {interface}"))?;
        run(&format!(
            "ip link add {interface} type veth peer name eth0 netns {interface}"
        ))?;
        run(&format!("ip link set {interface} up"))?;
        let within = |words: &str| run(&format!("ip -n {interface} {words}"));
        within("link set lo up")?;
        within("link set eth0 up")?;
        within(&format!("addr add {address}/32 dev eth0"))?;
        within("route add 169.254.1.1 dev eth0 scope link")?;
        within("route add default via 169.254.1.1 dev eth0")?;
        let link = run(&format!("ip -br link show dev {interface}"))?;
        let mac = link
            .split_whitespace()
            .nth(2)
            .with_context(|| format!("no MAC address in {link:?}"))?;
        within(&format!(
            "neigh replace 169.254.1.1 lladdr {mac} nud permanent dev eth0"
        ))?;
        run(&format!(
            "ip route add {address}/32 dev {interface} scope link"
        ))?;
        Ok(Self {
            netns: Netns::open(format!("/run/netns/{interface}"))?,
            interface: interface.to_owned(),
            address,
        })
    }

    /// Gives it an IPv6 address beside the other, and makes the node forward IPv6.
    ///
    /// *Errors*: `ip`'s own.
    pub fn add_ipv6(&self, address: Ipv6Addr) -> Result<()> {
        let name = &self.interface;
        let forwarding = "/proc/sys/net/ipv6/conf/all/forwarding";
        std::fs::write(forwarding, "1").with_context(|| format!("set {forwarding}"))?;
        run(&format!("ip addr add fe80::1/64 dev {name} nodad"))?;
        run(&format!("ip -6 route add {address}/128 dev {name}"))?;
        let within = |words: &str| run(&format!("ip -n {name} {words}"));
        within(&format!("addr add {address}/128 dev eth0 nodad"))?;
        within("-6 route add default via fe80::1 dev eth0").map(drop)
    }

    /// The interface on the node's side.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Its one address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Answers on a port until the [`Server`] is dropped.
    ///
    /// *Errors*: the port is taken.
    pub fn serve(&self, protocol: Protocol, port: u16) -> Result<Server> {
        Server::start(&self.netns, protocol, port)
    }

    /// Takes the pod away: its route, its veth, its namespace.
    ///
    /// *Errors*: `ip`'s own.
    pub fn delete(self) -> Result<()> {
        run(&format!("ip link del {}", self.interface))?;
        run(&format!("ip netns del {}", self.interface)).map(drop)
    }
}

impl Place for Pod {
    fn netns(&self) -> &Netns {
        &self.netns
    }
}

#[cfg(test)]
mod tests {
    use super::interface_name;

    #[test]
    fn an_interface_is_named_by_calicos_rule() {
        for (namespace, name, interface) in [
            ("default", "nginx", "enic440f455693"),
            ("default", "web-0", "eni0d7763386da"),
            ("kube-system", "coredns-5d78c9869d-abcde", "eni4d5f75c480c"),
            ("kube-system", "aws-node", "eni91c0f2ebbec"),
        ] {
            assert_eq!(
                interface_name(namespace, name),
                interface,
                "{namespace}/{name}"
            );
        }
    }
}
