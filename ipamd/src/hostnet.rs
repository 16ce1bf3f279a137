//! The host's own network: what every node needs, what each interface needs, and what pods of an earlier process need.
//!
//! ```text
//!                      rules                        tables                       chains
//!  node     1024 fwmark 0x80/0x80 -> main                                nat AWS-SNAT-CHAIN-0, AWS-CONNMARK-CHAIN-0
//!                                                                        mangle PREROUTING restore, filter FORWARD
//!  ENI n>0  32765 from its address -> n+1   n+1: gateway, default via it
//!  pod      512 to it -> main, 1536 from it -> n+1    main: /32 dev veth
//! ```
//!
//! Everything is `ensure`: what is right is left alone, so the same calls set up, restart and repair.
//! Pods' own rules are the plugin's work; they are made again only for pods found at the start.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::Ipv4Net;
use selvage_ipamd_core::ids::Mac;
use thiserror::Error;

use crate::config::RandomizeSnat;

mod eni;
mod filter;
mod forward;
mod iptables;
mod nft;
mod node;
mod pods;
mod prepare;

pub use eni::route_table;
pub use node::Kernel;
pub use pods::veth_suffix;
pub use prepare::{PrepareError, prepare_node};

/// The mark of connections that leave the VPC, and its mask. Not kube-proxy's (0xc000), not Calico's (0xffff0000).
pub(crate) const MARK: u32 = 0x80;

/// Priorities of rules, AWS's.
pub(crate) mod priority {
    /// To a pod: main.
    pub(crate) const TO_POD: u32 = 512;
    /// Marked connections: main.
    pub(crate) const MARKED: u32 = 1024;
    /// From a pod: its interface's table.
    pub(crate) const FROM_POD: u32 = 1536;
    /// From an interface's own address: its table.
    pub(crate) const FROM_ENI: u32 = 32765;
}

/// What the node as a whole needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeNet {
    /// Hardware address of the primary interface.
    pub primary_mac: Mac,
    /// The node's address: what pods' connections out of the VPC come from.
    pub primary_address: Ipv4Addr,
    /// MTU of the primary interface.
    pub mtu: u32,
    /// Prefix of pods' veths on the host.
    pub veth_prefix: String,
    /// Who translates sources on the way out of the VPC.
    pub snat: Snat,
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
    /// Device index; 0 is the primary interface, which needs its MTU only.
    pub device_index: u16,
    /// Its own address.
    pub address: Ipv4Addr,
    /// Block of its subnet.
    pub subnet: Ipv4Net,
    /// MTU.
    pub mtu: u32,
}

/// A pod that an earlier process has set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNet {
    /// Its address.
    pub address: IpAddr,
    /// Device index of the interface that has it.
    pub device_index: u16,
    /// The name of its veth on the host.
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
    /// Makes what the node as a whole needs. Tells what was changed, for the log.
    fn ensure_node(
        &self,
        node: &NodeNet,
    ) -> impl Future<Output = Result<Vec<String>, HostError>> + Send;

    /// Makes what an interface needs. Tells what was changed.
    fn ensure_eni(
        &self,
        eni: &EniNet,
    ) -> impl Future<Output = Result<Vec<String>, HostError>> + Send;

    /// Removes what an interface needed, before it goes.
    fn remove_eni(&self, eni: &EniNet) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Names of all links.
    fn links(&self) -> impl Future<Output = Result<BTreeSet<String>, HostError>> + Send;

    /// Makes routes and rules of pods that were here before us. One that fails does not keep the others back.
    fn ensure_pods(&self, pods: &[PodNet]) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Removes every rule of an address whose pod is gone.
    fn forget_pod(&self, address: IpAddr) -> impl Future<Output = Result<(), HostError>> + Send;
}
