//! Nodes as machines: where they are and what they can hold.

use std::fmt;

use selvage_ipamd_core::limits::{Limits, Mode};

/// A node's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl NodeId {
    /// Its place in a list of all nodes.
    pub fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node-{}", self.0)
    }
}

/// A pod's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId(pub u32);

impl PodId {
    /// Its place in a list of all pods.
    pub fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// A node's machine.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Number of the subnet it is in.
    pub subnet: usize,
    /// What its type can hold.
    pub limits: Limits,
}

impl Machine {
    /// Pods on addresses of their own that the scheduler may put on it: kubelet's max-pods less the two agents on the
    /// host's network.
    pub fn pods(&self, mode: Mode) -> u32 {
        self.limits.max_pods(mode, false) - 2
    }
}
