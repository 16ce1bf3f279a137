//! The daemon: one task owns the pool; everything else sends it messages.
//!
//! ```text
//!  gRPC ──requests──┐                       ┌── actions ──> cloud, host (tasks)
//!  timers ──────────┼──> keeper (owns Pool) ┤
//!  tasks ──outcomes─┘                       └── checkpoint ──> disk, then replies
//! ```

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ipnet::Ipv4Net;
use selvage_ipamd_core::cloud::{Cloud, EniFacts, InstanceFacts};
use selvage_ipamd_core::ids::InstanceType;
use selvage_ipamd_core::pool::Lease;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::config::{Config, Family, Listen};
use crate::hostnet::{Host, HostError, NodeNet, PodNet, Pods, PodsV4, Snat, veth_suffix};
use crate::http::{self, Page};
use crate::metrics::Metrics;
use crate::pages;
use crate::server::{self, ServerError};
use crate::sweep;

mod act;
mod crowd;
mod journal;
mod keeper;
mod request;
mod start;

pub(crate) use act::call;
pub use request::{Grant, Handle, NodeFacts, Refusal, Status};
use start::Start;

/// Requests that wait to be read; a node has a few hundred pods.
const REQUESTS: usize = 256;
/// For what is under way when the daemon is told to end, and again for connections: both are over before a kubelet that
/// gives ten seconds loses its patience.
const DRAIN: Duration = Duration::from_secs(4);

/// Why the daemon ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// The checkpoint cannot be read or understood.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The socket cannot be served.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// IPv6 needs prefixes.
    #[error(
        "ENABLE_IPv6: an instance of type {0} has no prefixes; want one on Nitro or bare metal"
    )]
    NoPrefixes(InstanceType),
    /// A task of ours ended badly.
    #[error("a task of the daemon ended: {0}")]
    Task(String),
}

/// What the daemon's parts share.
pub(crate) struct Shared<C, H, K> {
    pub(crate) cloud: C,
    pub(crate) host: H,
    pub(crate) cluster: K,
    pub(crate) config: Config,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    /// EC2 has described the interfaces since the start.
    pub(crate) described: AtomicBool,
}

/// Runs until `shutdown`. The checkpoint, the conflist and the host's network stay when it ends.
///
/// # Errors
/// When another daemon has the socket, or takes it later, or the checkpoint is not one we understand; never because the
/// cloud fails.
///
/// *Needs*: what [`Host`] needs; a tokio runtime with everything enabled.
pub async fn run<C: Cloud, H: Host, K: Cluster>(
    config: Config,
    cloud: C,
    host: H,
    cluster: K,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    info!(?config, "settings");
    let (listener, place) = server::bind(&config.socket).await?;
    // Whoever has the socket writes the checkpoint; from here on that is nobody else.
    let first = !config.checkpoint.exists();
    let checkpoint = Checkpoint::read(&config.checkpoint)?;

    let (requests, inbox) = mpsc::channel(REQUESTS);
    let (status, watched) = watch::channel(Status::Starting {
        doing: "reading instance metadata".into(),
    });
    let (facts, known) = watch::channel(None);
    let metrics = Arc::new(Metrics::default());
    let handle = Handle::new(requests, watched, known, config.clone(), metrics.clone());
    let shared = Arc::new(Shared {
        cloud,
        host,
        cluster,
        metrics,
        clock: Clock::start(),
        config,
        described: AtomicBool::new(false),
    });

    // The server outlives the keeper's last answers.
    let serving = CancellationToken::new();
    let stop_serving = serving.clone().drop_guard();
    let server = tokio::spawn(server::serve(listener, handle.clone(), serving.clone()));
    let sweep = tokio::spawn(sweep::run(shared.clone(), handle.clone(), serving.clone()));
    let pages = {
        let shared = shared.clone();
        tokio::spawn(async move { serve_pages(&shared.config, handle, serving).await })
    };

    let kept = tokio::select! {
        kept = keep(&shared, checkpoint, first, status, facts, inbox, &shutdown) => kept,
        lost = place.lost() => {
            shared.cluster.warn("SocketLost", "Run".into(), lost.to_string());
            Err(lost.into())
        }
    };
    drop(stop_serving);
    let tasks = async { tokio::join!(server, pages, sweep) };
    let ended = tokio::time::timeout(DRAIN, tasks).await;
    kept?;
    match ended {
        Ok((Ok(served), Ok(()), Ok(()))) => Ok(served?),
        Ok((Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error))) => {
            Err(RunError::Task(error.to_string()))
        }
        // Somebody who says nothing keeps a connection open for as long as they like.
        Err(_) => {
            warn!(after = ?DRAIN, "connections still open");
            Ok(())
        }
    }
}

/// From the start to the end of the keeper.
async fn keep<C: Cloud, H: Host, K: Cluster>(
    shared: &Arc<Shared<C, H, K>>,
    checkpoint: Checkpoint,
    first: bool,
    status: watch::Sender<Status>,
    facts: watch::Sender<Option<NodeFacts>>,
    inbox: mpsc::Receiver<request::Request>,
    shutdown: &CancellationToken,
) -> Result<(), RunError> {
    let starting = async {
        let start = Start {
            shared,
            status: &status,
            first,
        };
        start.run(checkpoint, &facts).await
    };
    let ready = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        ready = starting => ready?,
    };
    keeper::Keeper::new(shared.clone(), ready, status, facts)
        .run(inbox, shutdown)
        .await
}

/// What the host needs for each pod whose address is on an interface. A pod without a name has no veth that could be
/// found.
pub(crate) fn pod_nets(leases: Vec<Lease>) -> Vec<PodNet> {
    leases
        .into_iter()
        .filter(|lease| !lease.pod.name.is_empty())
        .filter_map(|lease| {
            Some(PodNet {
                address: lease.address,
                device_index: lease.device_index?,
                veth: veth_suffix(&lease.pod),
            })
        })
        .collect()
}

/// An answer without the primary interface is no answer: we run on it.
fn with_primary(enis: Vec<EniFacts>, instance: &InstanceFacts) -> Result<Vec<EniFacts>, String> {
    if enis.iter().any(|e| e.id == instance.primary_eni) {
        Ok(enis)
    } else {
        Err(format!(
            "EC2 does not show the primary interface {}",
            instance.primary_eni
        ))
    }
}

/// What the node needs, by settings and facts.
pub(crate) fn node_net(config: &Config, instance: &InstanceFacts, vpc: &[Ipv4Net]) -> NodeNet {
    let excluded: BTreeSet<Ipv4Net> = config.exclude_snat_cidrs.iter().copied().collect();
    let snat = if config.external_snat {
        Snat::External
    } else {
        Snat::Here {
            exempt: vpc
                .iter()
                .map(Ipv4Net::trunc)
                .chain(excluded.clone())
                .collect(),
            excluded: excluded
                .into_iter()
                .filter(|block| !vpc.contains(block))
                .collect(),
            randomize: config.randomize_snat,
        }
    };
    NodeNet {
        primary_mac: instance.primary_mac,
        veth_prefix: config.veth_prefix.clone(),
        mark: config.connmark,
        pods: match config.family {
            Family::V4 => Pods::V4(PodsV4 {
                primary_address: instance.primary_address,
                snat,
                node_port: config.node_port,
                external_services: config.external_service_cidrs.iter().copied().collect(),
            }),
            Family::V6 => Pods::V6,
        },
    }
}

/// Serves the metrics and the introspection. A port that is taken is tried again: addresses are given all the same.
async fn serve_pages(config: &Config, handle: Handle, shutdown: CancellationToken) {
    let metrics = config.metrics_addr.map(Listen::Tcp);
    let metrics = serve_at(metrics, handle.clone(), pages::metrics, &shutdown);
    let looks = config.introspection.clone();
    let looks = serve_at(looks, handle, pages::introspection, &shutdown);
    tokio::join!(metrics, looks);
}

async fn serve_at<P>(
    listen: Option<Listen>,
    handle: Handle,
    page: impl Fn(Handle, String) -> P + Copy + Send + Sync + 'static,
    shutdown: &CancellationToken,
) where
    P: Future<Output = Page> + Send + 'static,
{
    let Some(listen) = listen else {
        return;
    };
    loop {
        let asked = handle.clone();
        let pages = move |path| page(asked.clone(), path);
        match http::serve(&listen, pages, shutdown.clone()).await {
            Ok(()) => return,
            Err(error) => {
                warn!(%error, "not served, tried again");
                handle.metrics().count_error("pages");
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(10)) => {}
        }
    }
}

/// The words of a host's failure, for an outcome.
pub(crate) fn words(error: &HostError) -> String {
    error.to_string()
}
