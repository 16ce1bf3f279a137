//! The address daemon's side towards the Kubernetes API server.
//!
//! ```text
//!  API server ── watch of one Node ─────┐
//!             ── watch of one ENIConfig ┴─> NodeView ──> daemon
//!  daemon ──> Events, annotations of pods, a Lease ──> API server
//! ```
//!
//! | module | does |
//! |---|---|
//! | [`client`] | finds the API server |
//! | [`events`] | Events on the node |
//! | [`node`] | what the node's object and its ENIConfig say |
//! | [`annotate`] | pods' addresses in their annotations |
//! | [`crowd`] | how many nodes start |
//! | [`election`] | one node of all for the work of the cluster |
//! | [`instances`] | the instances of all nodes, for that work |
//!
//! Each object is watched alone, by its name: a node costs the API server the same however large the cluster is.

use std::collections::BTreeSet;
use std::net::IpAddr;

use selvage_ipamd::cluster::{Cluster, EniConfigView, NodeView};
use selvage_ipamd::config::Config;
use selvage_ipamd_core::ids::{InstanceId, PodName};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::warn;

pub mod annotate;
pub mod client;
pub mod crowd;
pub mod election;
pub mod events;
pub mod instances;
pub mod node;
#[cfg(test)]
mod server;

use annotate::Annotations;
use client::Connection;
use election::Election;
use events::Events;
use kube::Client;

/// The API server as the daemon's [`Cluster`]. Cheap to clone; its tasks end when the last one is dropped.
#[derive(Clone)]
pub struct Kubernetes {
    events: Events,
    node: watch::Receiver<NodeView>,
    annotations: Option<Annotations>,
    election: Option<Election>,
    /// The client, and the namespace that the daemon runs in.
    home: Option<(Client, String)>,
}

impl Kubernetes {
    /// Starts what the settings need. The second value ends when every Event has been written, after the last clone of
    /// the first is gone.
    ///
    /// Without a configuration (no KUBECONFIG, not in a pod) nothing is told to anybody, and modes that need the API
    /// server say that it is missing.
    pub async fn start(config: &Config) -> (Self, JoinHandle<()>) {
        match client::connect(config.cluster_endpoint.as_deref()).await {
            Ok(connection) => Self::with(connection, config),
            Err(error) => {
                warn!(%error, "no API server configured: no events are written, nothing of the node is known");
                let (events, writer) = Events::discard();
                let missing = NodeView {
                    eni_config: match config.custom_networking {
                        Some(_) => {
                            EniConfigView::Missing(format!("no API server is configured: {error}"))
                        }
                        None => EniConfigView::Unused,
                    },
                    ..NodeView::default()
                };
                let cluster = Self {
                    events,
                    node: watch::channel(missing).1,
                    annotations: None,
                    election: None,
                    home: None,
                };
                (cluster, writer)
            }
        }
    }

    fn with(connection: Connection, config: &Config) -> (Self, JoinHandle<()>) {
        let Connection { client, namespace } = connection;
        let node = config.node_name.clone();
        let (events, writer) = Events::start(client.clone(), node.clone());
        let cluster = Self {
            node: node::start(client.clone(), config),
            annotations: config
                .annotate_pod_ip
                .then(|| Annotations::start(client.clone())),
            election: config
                .leak_cleanup
                .then(|| Election::new(client.clone(), &namespace, node)),
            home: Some((client, namespace)),
            events,
        };
        (cluster, writer)
    }
}

impl Cluster for Kubernetes {
    fn warn(&self, reason: &'static str, action: String, note: String) {
        self.events.warn(reason, action, note);
    }

    fn node(&self) -> watch::Receiver<NodeView> {
        self.node.clone()
    }

    async fn annotate(&self, pod: &PodName, address: IpAddr) {
        if let Some(annotations) = &self.annotations {
            annotations.write(pod, address).await;
        }
    }

    fn clear(&self, pod: &PodName, address: IpAddr) {
        if let Some(annotations) = &self.annotations {
            annotations.clear(pod, address);
        }
    }

    async fn instances(&self) -> Result<BTreeSet<InstanceId>, String> {
        match &self.election {
            Some(election) => instances::list(election.client()).await,
            None => Err("no API server is configured".to_owned()),
        }
    }

    async fn starting(&self) -> Result<u32, String> {
        match &self.home {
            Some((client, namespace)) => crowd::starting(client, namespace).await,
            None => Err("no API server is configured".to_owned()),
        }
    }

    async fn lead(&self) -> Result<bool, String> {
        match &self.election {
            Some(election) => election.lead().await,
            None => Ok(false),
        }
    }
}
