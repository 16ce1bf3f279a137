//! The node: the test's own network namespace, made to forward.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::command::run;
use crate::netns::{Netns, Place, assert_isolated};
use crate::pod::{Pod, interface_name};

/// The node under test: the namespace that the test process is in.
#[derive(Debug)]
pub struct Node {
    netns: Netns,
}

impl Node {
    /// The node's own address. It is on `lo`: the node has no uplink unless the test makes one.
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 10);

    /// Takes the process's namespace as the node: IPv4 forwarding on, no reverse path filter.
    ///
    /// *Errors*: the process is not isolated ([`assert_isolated`]).
    pub fn new() -> Result<Self> {
        assert_isolated()?;
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ] {
            fs::write(format!("/proc/sys/{key}"), value)
                .with_context(|| format!("set {key} to {value}"))?;
        }
        run(&format!("ip addr add {}/32 dev lo", Self::ADDRESS))?;
        Ok(Self {
            netns: Netns::current()?,
        })
    }

    /// Makes a pod as a CNI plugin would: [`Node::endpoint`] behind the interface that the naming
    /// rule gives it.
    ///
    /// *Errors*: as [`Node::endpoint`].
    pub fn pod(&self, namespace: &str, name: &str, address: Ipv4Addr) -> Result<Pod> {
        self.endpoint(&interface_name(namespace, name), address)
    }

    /// Makes a namespace with one address behind `interface`, a name of the test's choice: an
    /// `eni…` that nobody knows, or `ens6` for a machine that is no pod.
    ///
    /// *Errors*: `ip`'s own, for instance when the interface exists.
    pub fn endpoint(&self, interface: &str, address: Ipv4Addr) -> Result<Pod> {
        Pod::create(interface, address)
    }
}

impl Place for Node {
    fn netns(&self) -> &Netns {
        &self.netns
    }
}
