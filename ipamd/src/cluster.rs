//! The cluster as the daemon sees it: what the API server says of this node, and what is left there for people and
//! for others.
//!
//! Addresses never wait for it. An API server that is away leaves what was last known in force.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;

use selvage_ipamd_core::ids::{InstanceId, PodName};
use selvage_ipamd_core::pool::EniConfig;
use tokio::sync::watch;

/// What the API server says of this node. What it has not said yet is as if it were not there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeView {
    /// Whether the node is tainted `node.kubernetes.io/unschedulable:NoSchedule`.
    pub unschedulable: bool,
    /// How many pods its kubelet takes.
    pub max_pods: Option<u32>,
    /// Where custom networking makes pods' interfaces.
    pub eni_config: EniConfigView,
}

/// The node's ENIConfig.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum EniConfigView {
    /// Not asked for.
    #[default]
    Unused,
    /// The API server has not told yet, or there is none: why.
    Missing(String),
    /// What it says.
    Found(EniConfig),
}

/// The API server, or nothing.
pub trait Cluster: Clone + Send + Sync + 'static {
    /// Leaves a warning for `kubectl describe node`: `reason` one word in CamelCase, `action` what was being done
    /// (`ec2:CreateNetworkInterface`), `note` what happened, for people. Never waits: what it cannot take it drops.
    fn warn(&self, reason: &'static str, action: String, note: String);

    /// What is known of this node, as it changes.
    fn node(&self) -> watch::Receiver<NodeView>;

    /// Writes a pod's address to its annotation. Comes back within a second, written or not: what could not be written
    /// is tried again later.
    fn annotate(&self, pod: &PodName, address: IpAddr) -> impl Future<Output = ()> + Send;

    /// Empties a pod's annotation if it still holds `address`. Never waits.
    fn clear(&self, pod: &PodName, address: IpAddr);

    /// The instances of all nodes that the cluster has now.
    ///
    /// # Errors
    /// When the API server does not say.
    fn instances(&self) -> impl Future<Output = Result<BTreeSet<InstanceId>, String>> + Send;

    /// How many nodes of the cluster start: have a daemon that gives no addresses yet, this node included. Some seconds
    /// old.
    ///
    /// # Errors
    /// When the API server does not say.
    fn starting(&self) -> impl Future<Output = Result<u32, String>> + Send;

    /// Whether this node is the one, of all that ask, that works for the cluster now.
    ///
    /// # Errors
    /// When the API server does not say: then it is not.
    fn lead(&self) -> impl Future<Output = Result<bool, String>> + Send;
}

/// No API server: nothing is told to anybody, and nothing is known.
#[derive(Debug, Clone)]
pub struct NoCluster {
    node: watch::Sender<NodeView>,
}

impl Default for NoCluster {
    fn default() -> Self {
        Self {
            node: watch::Sender::new(NodeView::default()),
        }
    }
}

impl Cluster for NoCluster {
    fn warn(&self, _: &'static str, _: String, _: String) {}

    fn node(&self) -> watch::Receiver<NodeView> {
        self.node.subscribe()
    }

    async fn annotate(&self, _: &PodName, _: IpAddr) {}

    fn clear(&self, _: &PodName, _: IpAddr) {}

    async fn instances(&self) -> Result<BTreeSet<InstanceId>, String> {
        Err("there is no API server".to_owned())
    }

    async fn starting(&self) -> Result<u32, String> {
        Err("there is no API server".to_owned())
    }

    async fn lead(&self) -> Result<bool, String> {
        Ok(false)
    }
}
