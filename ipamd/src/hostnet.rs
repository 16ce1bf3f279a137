//! The host's own network: what every node needs, what each interface needs, and what each pod needs beside its veth.
//!
//! ```text
//!                      rules                               tables                   chains
//!  node     1024 fwmark 0x80/0x80 -> main                                   nat AWS-SNAT-CHAIN-0, AWS-CONNMARK-CHAIN-0
//!           1535 to external services -> main                               mangle PREROUTING marks, filter FORWARD
//!  ENI n>0  32765 from its address -> n+1                  n+1: gateway, default via it
//!  pod      512 to it -> main, 1536 from it -> n+1         main: /32 dev veth
//! ```
//!
//! Everything is `ensure`: what is right is left alone, so the same calls set up, restart and repair. Each tells what it
//! changed, by [`Part`]. A pod's rules, route and veth are the plugin's work; they are made again when somebody has
//! taken them away.
//!
//! [`Host::disturbed`] tells that somebody may have, by the kernel's notifications.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use selvage_ipamd_core::ids::Mac;
use thiserror::Error;

use crate::config::RandomizeSnat;

mod change;
mod eni;
mod filter;
mod firewall;
mod flows;
mod forward;
mod iptables;
mod nft;
mod node;
mod pods;
mod prepare;
mod rules;
mod tables;
mod watch;

pub use change::{Change, Looked, Part};
pub use eni::route_table;
pub use firewall::Obstacle;
pub(crate) use iptables::dump as dump_tables;
pub use node::Kernel;
pub use pods::veth_suffix;
pub use prepare::{Prepare, PrepareError, prepare_node};
pub use selvage_nodenet::rule::Family;

/// The bit that marks connections which belong to the primary interface, if nothing else is set. Not kube-proxy's
/// (0xc000), not Calico's (0xffff0000).
pub const DEFAULT_MARK: NonZeroU32 = NonZeroU32::new(0x80).expect("0x80 is not 0");

/// Priorities of rules, AWS's.
pub(crate) mod priority {
    /// To a pod: main.
    pub(crate) const TO_POD: u32 = 512;
    /// Marked connections: main.
    pub(crate) const MARKED: u32 = 1024;
    /// To services outside the VPC that are reached by the primary interface: main.
    pub(crate) const EXTERNAL_SERVICE: u32 = 1535;
    /// From a pod: its interface's table.
    pub(crate) const FROM_POD: u32 = 1536;
    /// From an interface's own address: its table.
    pub(crate) const FROM_ENI: u32 = 32765;

    /// All of them.
    pub(crate) const ALL: [u32; 5] = [TO_POD, MARKED, EXTERNAL_SERVICE, FROM_POD, FROM_ENI];
}

/// What the node as a whole needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeNet {
    /// Hardware address of the primary interface.
    pub primary_mac: Mac,
    /// Prefix of pods' veths on the host.
    pub veth_prefix: String,
    /// The bit that marks connections which belong to the primary interface.
    pub mark: NonZeroU32,
    /// What pods speak.
    pub pods: Pods,
}

/// What pods speak, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pods {
    /// IPv4.
    V4(PodsV4),
    /// IPv6, by the primary interface: nothing is translated, nothing marked.
    V6,
}

/// What the node needs for pods that speak IPv4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodsV4 {
    /// The node's address: what pods' connections out of the VPC come from.
    pub primary_address: Ipv4Addr,
    /// Who translates sources on the way out of the VPC.
    pub snat: Snat,
    /// Whether what comes to a port of the node by the primary interface is answered by it, wherever the pod is.
    pub node_port: bool,
    /// Blocks outside the VPC that pods reach by the primary interface, translated or not.
    pub external_services: BTreeSet<Ipv4Net>,
}

impl NodeNet {
    /// The family of pods' addresses.
    pub fn family(&self) -> Family {
        match self.pods {
            Pods::V4(_) => Family::V4,
            Pods::V6 => Family::V6,
        }
    }
}

/// Who translates sources on the way out of the VPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Snat {
    /// Somebody else, or nobody: a NAT gateway, a transit gateway.
    External,
    /// We do.
    Here {
        /// Blocks to which sources are left alone: the VPC's and those that were configured. Never empty.
        exempt: BTreeSet<Ipv4Net>,
        /// Those among them that were configured (told apart in comments, as AWS does).
        excluded: BTreeSet<Ipv4Net>,
        /// How source ports are chosen.
        randomize: RandomizeSnat,
    },
}

/// What an interface needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniNet {
    /// Hardware address.
    pub mac: Mac,
    /// Device index; 0 is the primary interface, which has its address and routes from the distribution.
    pub device_index: u16,
    /// Its own address.
    pub address: IpAddr,
    /// Block of its subnet.
    pub subnet: IpNet,
    /// MTU.
    pub mtu: u32,
    /// What it holds for pods, addresses and prefixes: none of them may be the host's own.
    pub for_pods: Vec<IpNet>,
}

/// A pod that has a lease, and what the host needs for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNet {
    /// Its address.
    pub address: IpAddr,
    /// Device index of the interface that has it.
    pub device_index: u16,
    /// How the name of its veth on the host ends, at least in eleven characters if it has as many.
    pub veth: String,
}

/// The host's network is not as it should be, and could not be made so.
#[derive(Debug, Error)]
pub enum HostError {
    /// An interface that EC2 calls attached is not in the kernel (yet).
    #[error("no link with hardware address {mac}: the interface has not appeared on the node")]
    NoLink {
        /// Its address.
        mac: Mac,
    },
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] selvage_nodenet::Error),
    /// One of the iptables tools failed.
    #[error("{command}: {words}")]
    Iptables {
        /// What was run.
        command: String,
        /// What it said.
        words: String,
    },
    /// One of the iptables tools took too long.
    #[error("{command}: no end within {after:?}")]
    IptablesTimeout {
        /// What was run.
        command: String,
        /// The deadline that passed.
        after: Duration,
    },
    /// There is no block to leave alone: everything would be translated, the VPC's own traffic too.
    #[error("the VPC has no blocks: refusing to translate every connection")]
    NoExemptBlocks,
    /// The work's thread ended badly.
    #[error("host network: {0}")]
    Thread(String),
}

/// What the daemon asks of the host. The kernel in the shipped binary, a book in tests.
pub trait Host: Send + Sync + 'static {
    /// Makes what the node as a whole needs. Tells what was changed.
    fn ensure_node(
        &self,
        node: &NodeNet,
    ) -> impl Future<Output = Result<Vec<Change>, HostError>> + Send;

    /// Makes what an interface needs. Tells what was changed.
    fn ensure_eni(
        &self,
        eni: &EniNet,
    ) -> impl Future<Output = Result<Vec<Change>, HostError>> + Send;

    /// Makes all rules and routes, addresses and links as they should be: the node's, the interfaces', the pods'. A pod
    /// without a veth is left alone, and what fails does not keep the rest back.
    fn ensure_routing(
        &self,
        node: &NodeNet,
        enis: &[EniNet],
        pods: &[PodNet],
    ) -> impl Future<Output = Looked> + Send;

    /// Removes what an interface needed, before it goes.
    fn remove_eni(&self, eni: &EniNet) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Names of all links.
    fn links(&self) -> impl Future<Output = Result<BTreeSet<String>, HostError>> + Send;

    /// Removes route and rules of an address whose pod is gone.
    fn forget_pod(&self, address: IpAddr) -> impl Future<Output = Result<(), HostError>> + Send;

    /// What keeps pods' traffic from passing that is not ours to change, in words for whoever can.
    fn obstacles(
        &self,
        node: &NodeNet,
    ) -> impl Future<Output = Result<Vec<Obstacle>, HostError>> + Send;

    /// Ends when somebody may have changed what [`Host::ensure_routing`] or [`Host::ensure_node`] makes, and tells
    /// which. What happened before the first call is told too. Can be dropped at any time.
    fn disturbed(&self) -> impl Future<Output = Disturbed> + Send;
}

/// What somebody may have changed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Disturbed {
    /// What [`Host::ensure_routing`] makes.
    #[default]
    Routing,
    /// Tables, of [`Host::ensure_node`]: told of nft and iptables-nft, not of legacy tables.
    Tables,
}
