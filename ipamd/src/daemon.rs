//! The daemon: one task owns the pool; everything else sends it messages.
//!
//! ```text
//!  gRPC ──requests──┐                       ┌── actions ──> cloud, host (tasks)
//!  timers ──────────┼──> keeper (owns Pool) ┤
//!  tasks ──outcomes─┘                       └── checkpoint ──> disk, then replies
//! ```
//!
//! The start waits for what it cannot do without (the instance's facts, EC2's description of its interfaces) for as
//! long as it takes, with growing pauses, and says in its answers what it waits for.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use selvage_ipamd_core::cloud::{Cloud, EniFacts, InstanceFacts, Operation};
use selvage_ipamd_core::ids::Timestamp;
use selvage_ipamd_core::limits::Limits;
use selvage_ipamd_core::pool::{Entry, Pool, RestoreError, Settings};
use selvage_ipamd_core::retry::{Jitter, Retry};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::checkpoint::{Checkpoint, CheckpointError, Resting};
use crate::clock::Clock;
use crate::config::Config;
use crate::events::EventSink;
use crate::hostnet::{
    DEFAULT_MARK, Host, HostError, NodeNet, PodNet, Pods, PodsV4, Snat, veth_suffix,
};
use crate::metrics::{self, Metrics};
use crate::server::{self, ServerError};

mod act;
mod journal;
mod keeper;
mod request;

pub use request::{Grant, Handle, NodeFacts, Refusal, Status};

/// Requests that wait to be read; a node has a few hundred pods.
const REQUESTS: usize = 256;
/// First pause after something failed at the start; doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
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
    /// A task of ours ended badly.
    #[error("a task of the daemon ended: {0}")]
    Task(String),
}

/// What the daemon's parts share.
pub(crate) struct Shared<C, H, E> {
    pub(crate) cloud: C,
    pub(crate) host: H,
    pub(crate) events: E,
    pub(crate) config: Config,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
}

/// Runs until `shutdown`. The checkpoint, the conflist and the host's network stay when it ends.
///
/// # Errors
/// When another daemon has the socket, or the checkpoint is not one we understand; never because the cloud fails.
///
/// *Needs*: what [`Host`] needs; a tokio runtime with everything enabled.
pub async fn run<C: Cloud, H: Host, E: EventSink>(
    config: Config,
    cloud: C,
    host: H,
    events: E,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    info!(?config, "settings");
    let checkpoint = Checkpoint::read(&config.checkpoint)?;
    let listener = server::bind(&config.socket).await?;

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
        events,
        metrics,
        clock: Clock::start(),
        config,
    });

    // The server outlives the keeper's last answers.
    let serving = CancellationToken::new();
    let stop_serving = serving.clone().drop_guard();
    let server = tokio::spawn(server::serve(listener, handle.clone(), serving.clone()));
    let pages = tokio::spawn(serve_metrics(shared.clone(), handle, serving));

    let kept = keep(&shared, checkpoint, status, facts, inbox, &shutdown).await;
    drop(stop_serving);
    let ended = tokio::time::timeout(DRAIN, async { (server.await, pages.await) }).await;
    kept?;
    match ended {
        Ok((Ok(served), Ok(()))) => Ok(served?),
        Ok((Err(error), _) | (_, Err(error))) => Err(RunError::Task(error.to_string())),
        Err(_) => Err(RunError::Task(format!(
            "connections still open after {DRAIN:?}"
        ))),
    }
}

/// From the start to the end of the keeper.
async fn keep<C: Cloud, H: Host, E: EventSink>(
    shared: &Arc<Shared<C, H, E>>,
    checkpoint: Checkpoint,
    status: watch::Sender<Status>,
    facts: watch::Sender<Option<NodeFacts>>,
    inbox: mpsc::Receiver<request::Request>,
    shutdown: &CancellationToken,
) -> Result<(), RunError> {
    let starting = async {
        let start = Start {
            shared,
            status: &status,
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

/// What the start found out.
pub(crate) struct Ready {
    pub(crate) instance: InstanceFacts,
    pub(crate) limits: Limits,
    pub(crate) vpc: Vec<Ipv4Net>,
    pub(crate) pool: Pool,
}

struct Start<'a, C, H, E> {
    shared: &'a Arc<Shared<C, H, E>>,
    status: &'a watch::Sender<Status>,
}

impl<C: Cloud, H: Host, E: EventSink> Start<'_, C, H, E> {
    async fn run(
        &self,
        checkpoint: Checkpoint,
        facts: &watch::Sender<Option<NodeFacts>>,
    ) -> Result<Ready, RunError> {
        let Shared {
            cloud,
            host,
            config,
            clock,
            ..
        } = self.shared.as_ref();
        let shared = self.shared;
        let instance = self
            .insist("read instance metadata", || {
                act::call(shared, Operation::Facts, cloud.facts())
            })
            .await;
        info!(?instance, "instance");
        let kind = &instance.instance_type;
        let limits = self
            .insist("learn the instance's limits", || {
                act::call(shared, Operation::Limits, cloud.limits(kind))
            })
            .await;
        let vpc = self
            .insist("read the VPC's blocks", || async {
                let blocks = act::call(shared, Operation::VpcCidrs, cloud.vpc_cidrs()).await;
                blocks
                    .map_err(|e| e.to_string())
                    .and_then(|b| some(b, "the VPC has no blocks"))
            })
            .await;
        info!(?limits, ?vpc, "limits");
        facts.send_replace(Some(NodeFacts::new(&instance, &vpc)));
        let node = node_net(config, &instance, &vpc);
        let changed = self
            .insist("set up the host's network", || host.ensure_node(&node))
            .await;
        info!(?changed, "host network");
        let enis = self
            .insist("describe the interfaces", || async {
                let enis = act::call(shared, Operation::DescribeEnis, cloud.describe_enis()).await;
                let enis = enis.map_err(|e| e.to_string())?;
                with_primary(enis, &instance)
            })
            .await;
        let now = clock.now();
        let mut pool = Pool::new(&instance, settings(config, now));
        pool.reconcile(&enis, now);
        self.restore(&mut pool, checkpoint, &node, now).await?;
        Ok(Ready {
            instance,
            limits,
            vpc,
            pool,
        })
    }

    /// Tries until it works, with growing pauses, and says what it waits for.
    async fn insist<T, R, X: std::fmt::Display>(
        &self,
        doing: &'static str,
        attempt: impl Fn() -> R,
    ) -> T
    where
        R: Future<Output = Result<T, X>>,
    {
        let clock = &self.shared.clock;
        let mut retry = Retry::default();
        let mut jitter = Jitter::new(clock.now().unix_nanos());
        self.status.send_replace(Status::Starting {
            doing: doing.into(),
        });
        loop {
            match attempt().await {
                Ok(value) => return value,
                Err(error) => {
                    let now = clock.now();
                    retry.fail(FIRST_PAUSE, &mut jitter, now);
                    let pause = retry.left(now);
                    warn!(doing, %error, again_in = ?pause, "start is held up");
                    let words = format!("{doing}: {error}");
                    self.shared
                        .events
                        .warn("StartHeldUp", "Start".into(), words.clone());
                    self.status.send_replace(Status::Starting { doing: words });
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Takes over the leases of pods that are still there, and lets go of the others.
    async fn restore(
        &self,
        pool: &mut Pool,
        checkpoint: Checkpoint,
        node: &NodeNet,
        now: Timestamp,
    ) -> Result<(), RunError> {
        let Shared { host, config, .. } = self.shared.as_ref();
        let links = self.insist("list the links", || host.links()).await;
        let (here, gone): (Vec<Entry>, Vec<Entry>) = checkpoint
            .entries
            .into_iter()
            .partition(|entry| has_veth(entry, &links));
        // Not longer than an address rests, whatever the clock was when it was written.
        let mut resting: Resting = checkpoint.cooling;
        for (_, until) in &mut resting {
            *until = (*until).min(now + config.cooldown);
        }
        for entry in gone {
            info!(pod = %entry.pod, address = %entry.address, "pod has gone while nobody looked");
            self.insist("remove a gone pod's rules", || {
                host.forget_pod(entry.address)
            })
            .await;
            resting.push((entry.address, now + config.cooldown));
        }
        let aside = pool.restore(&here, &resting).map_err(|error| {
            let why = match error {
                RestoreError::Twice { .. } | RestoreError::SameKey { .. } => error.to_string(),
            };
            CheckpointError::Corrupt {
                path: config.checkpoint.clone(),
                why,
            }
        })?;
        for lease in aside {
            warn!(pod = %lease.pod, address = %lease.address, "pod's address is on no interface");
        }
        let pods = pod_nets(pool);
        info!(pods = pods.len(), "pods taken over");
        for error in host.ensure_routing(node, &[], &pods).await.failed {
            // They may work all the same.
            error!(%error, "routes and rules of pods taken over");
        }
        Ok(())
    }
}

/// What the host needs for each pod whose address is on an interface. A pod without a name has no veth that could be
/// found.
pub(crate) fn pod_nets(pool: &Pool) -> Vec<PodNet> {
    let leases = pool.leases().into_iter();
    leases
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

fn some<T>(list: Vec<T>, words: &str) -> Result<Vec<T>, String> {
    if list.is_empty() {
        Err(words.to_owned())
    } else {
        Ok(list)
    }
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

fn settings(config: &Config, now: Timestamp) -> Settings {
    Settings {
        cooldown: config.cooldown,
        cluster: config.cluster.clone(),
        tags: config.tags.clone(),
        seed: now.unix_nanos(),
        ..Settings::default()
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
        mark: DEFAULT_MARK,
        pods: Pods::V4(PodsV4 {
            primary_address: instance.primary_address,
            snat,
            node_port: true,
            external_services: BTreeSet::new(),
        }),
    }
}

/// An entry without a pod's name cannot be looked for, and stays.
fn has_veth(entry: &Entry, links: &BTreeSet<String>) -> bool {
    let suffix = veth_suffix(&entry.pod);
    entry.pod.name.is_empty() || links.iter().any(|name| name.ends_with(&suffix))
}

/// Serves the metrics. A port that is taken is tried again: addresses are given all the same.
async fn serve_metrics<C: Cloud, H: Host, E: EventSink>(
    shared: Arc<Shared<C, H, E>>,
    handle: Handle,
    shutdown: CancellationToken,
) {
    let Some(addr) = shared.config.metrics_addr else {
        return;
    };
    let metrics = handle.metrics().clone();
    loop {
        let handle = handle.clone();
        let snapshot = move || {
            let handle = handle.clone();
            async move { handle.snapshot().await.unwrap_or_default() }
        };
        match metrics::serve(addr, metrics.clone(), snapshot, shutdown.clone()).await {
            Ok(()) => return,
            Err(error) => {
                warn!(%error, "metrics");
                metrics.count_error("metrics");
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
