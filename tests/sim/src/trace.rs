//! What happens to a cluster: nodes that come and go, pods that come and go. The same for both algorithms.

use ipnet::Ipv4Net;
use selvage_ipamd_core::ids::Timestamp;

use crate::machine::{Machine, NodeId, PodId};

mod place;
pub mod shape;

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// An instance boots.
    NodeUp(NodeId),
    /// A node takes no more pods: it is drained.
    Cordon(NodeId),
    /// An instance ends.
    NodeDown(NodeId),
    /// The scheduler has bound a pod to a node.
    PodUp(PodId, NodeId),
    /// A pod ends.
    PodDown(PodId),
}

/// A cluster and what happens to it.
pub struct Trace {
    /// Its name.
    pub name: &'static str,
    /// The subnets, and how many addresses of each others have.
    pub subnets: Vec<(Ipv4Net, u32)>,
    /// The machines that nodes are.
    pub machines: Vec<Machine>,
    /// How many pods there are in all.
    pub pods: u32,
    /// In order of time.
    pub inputs: Vec<(Timestamp, Input)>,
    /// Counted from here on: before, the cluster is brought up.
    pub from: Timestamp,
    /// The end, after a time in which nothing happens.
    pub end: Timestamp,
}
