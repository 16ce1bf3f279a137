//! The daemon: one task owns the pool; everything else sends it messages.
//!
//! ```text
//!  gRPC ──requests──┐                       ┌── actions ──> cloud, host (tasks)
//!  timers ──────────┼──> keeper (owns Pool) ┤
//!  tasks ──outcomes─┘                       └── checkpoint ──> disk, then replies
//! ```
//!
//! The start waits for what it cannot do without (the instance's facts; EC2's description of its interfaces, unless the
//! instance is new, or for ten seconds where a daemon has run before) for as long as it takes, with growing pauses, and
//! says in its answers what it waits for.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ipnet::Ipv4Net;
use selvage_ipamd_core::bucket::Bucket;
use selvage_ipamd_core::cloud::{Cloud, EniFacts, InstanceFacts, Operation, SeenEni, is_as_made};
use selvage_ipamd_core::ids::{InstanceType, Timestamp};
use selvage_ipamd_core::limits::{Limits, Mode};
use selvage_ipamd_core::pool::{Entry, Lease, Pool, Provisioning, RestoreError, Settings};
use selvage_ipamd_core::retry::{Jitter, Retry};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::checkpoint::{Checkpoint, CheckpointError, Resting};
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::config::{Config, Family, Listen};
use crate::hostnet::{Host, HostError, NodeNet, PodNet, Pods, PodsV4, Snat, veth_suffix};
use crate::http::{self, Page};
use crate::instances;
use crate::metrics::Metrics;
use crate::pages;
use crate::server::{self, ServerError};
use crate::sweep;

mod act;
mod crowd;
mod journal;
mod keeper;
mod request;

pub(crate) use act::call;
pub use request::{Grant, Handle, NodeFacts, Refusal, Status};

/// Requests that wait to be read; a node has a few hundred pods.
const REQUESTS: usize = 256;
/// First pause after something failed at the start; doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// So long a start waits for EC2 before it trusts metadata: what changed before the start is shown there by then.
const EC2_PATIENCE: Duration = Duration::from_secs(10);
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

/// What the start found out.
pub(crate) struct Ready {
    pub(crate) instance: InstanceFacts,
    pub(crate) limits: Limits,
    pub(crate) vpc: Vec<Ipv4Net>,
    pub(crate) pool: Pool,
}

/// What a start knows of the interfaces.
enum Interfaces {
    /// What EC2 says, or would say.
    Described(Vec<EniFacts>),
    /// What metadata shows.
    Seen(Vec<SeenEni>),
}

struct Start<'a, C, H, K> {
    shared: &'a Arc<Shared<C, H, K>>,
    status: &'a watch::Sender<Status>,
    /// No daemon has written a checkpoint on this node since it booted.
    first: bool,
}

impl<C: Cloud, H: Host, K: Cluster> Start<'_, C, H, K> {
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
        let mut bucket = Bucket::new(clock.now().unix_nanos());
        if checkpoint.entries.is_empty() {
            self.wait_for_turn(&mut bucket).await;
        }
        let interfaces = self.interfaces(&instance).await;
        let now = clock.now();
        let mode = self.mode(&instance, &limits)?;
        let mut pool = Pool::new(&instance, settings(config, mode, now));
        *pool.bucket_mut() = bucket;
        match &interfaces {
            Interfaces::Described(enis) => {
                pool.reconcile(enis, now);
            }
            Interfaces::Seen(seen) => pool.begin_with(seen, &checkpoint.entries, now),
        }
        self.restore(&mut pool, checkpoint, &node, now).await?;
        Ok(Ready {
            instance,
            limits,
            vpc,
            pool,
        })
    }

    /// The interfaces: by EC2, or, where it has not answered for a while, by metadata, if a daemon has run here before. A
    /// node whose daemon is started again while EC2 throttles goes on serving.
    async fn interfaces(&self, instance: &InstanceFacts) -> Interfaces {
        if let Some(enis) = self.as_made(instance).await {
            return Interfaces::Described(enis);
        }
        let Shared { cloud, clock, .. } = self.shared.as_ref();
        let begun = clock.now();
        self.insist("describe the interfaces", || async {
            let enis = act::interfaces(self.shared, self.first).await;
            let enis = enis.map_err(|error| error.to_string());
            match enis.and_then(|enis| with_primary(enis, instance)) {
                Ok(enis) => Ok(Interfaces::Described(enis)),
                Err(error) if !self.first && clock.now().since(begun) >= EC2_PATIENCE => {
                    let seen = act::call(self.shared, Operation::SeenEnis, cloud.seen_enis()).await;
                    let seen = seen.ok().filter(|seen| {
                        let mut ids = seen.iter().map(|eni| &eni.id);
                        ids.any(|id| *id == instance.primary_eni)
                    });
                    let seen = seen.ok_or_else(|| error.clone())?;
                    let words = format!(
                        "EC2 does not describe the interfaces: those that pods use go on serving as metadata shows them; \
                         the others wait for EC2 ({error})"
                    );
                    warn!("{words}");
                    let cluster = &self.shared.cluster;
                    cluster.warn("StartWithoutEC2", "Start".into(), words);
                    Ok(Interfaces::Seen(seen))
                }
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// The interfaces of a new instance, for which EC2 need not be asked; `None`: it must be. Tags that the user wants are
    /// put only where nobody has put another value, which EC2 alone knows.
    async fn as_made(&self, instance: &InstanceFacts) -> Option<Vec<EniFacts>> {
        let Shared { cloud, config, .. } = self.shared.as_ref();
        if !self.first || config.provisioning != Provisioning::Full || !config.tags.is_empty() {
            return None;
        }
        let seen = act::call(self.shared, Operation::SeenEnis, cloud.seen_enis()).await;
        // Where metadata is silent, EC2 is asked.
        let seen = seen.ok()?;
        let enis = || seen.iter().map(SeenEni::facts).collect();
        is_as_made(&seen, &instance.primary_eni).then(enis)
    }

    /// What pods get their addresses from; with IPv6 there is nothing to fall back to.
    fn mode(&self, instance: &InstanceFacts, limits: &Limits) -> Result<Mode, RunError> {
        let config = &self.shared.config;
        let mode = instances::mode(config, limits);
        let kind = &instance.instance_type;
        match mode {
            Mode::Ipv6 if !limits.can_have_prefixes() => Err(RunError::NoPrefixes(kind.clone())),
            Mode::Addresses if config.prefix_delegation => {
                let words = format!("{kind} has no prefixes (no Nitro): single addresses are used");
                warn!("{words}");
                self.shared
                    .cluster
                    .warn("NoPrefixes", "Start".into(), words);
                Ok(mode)
            }
            Mode::Ipv6 | Mode::Prefixes | Mode::Addresses => Ok(mode),
        }
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
                        .cluster
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
        let (here, gone): (Vec<Arc<Entry>>, Vec<Arc<Entry>>) = checkpoint
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
        let pods = pod_nets(pool.leases());
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

fn settings(config: &Config, mode: Mode, now: Timestamp) -> Settings {
    Settings {
        mode,
        cooldown: config.cooldown,
        cluster: config.cluster.clone(),
        tags: config.tags.clone(),
        custom_networking: config.custom_networking.is_some(),
        subnet_discovery: config.subnet_discovery,
        manage_untagged: config.manage_untagged,
        manage_unschedulable: config.manage_unschedulable,
        provisioning: config.provisioning,
        seed: now.unix_nanos(),
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

/// An entry without a pod's name cannot be looked for, and stays.
fn has_veth(entry: &Entry, links: &BTreeSet<String>) -> bool {
    let suffix = veth_suffix(&entry.pod);
    entry.pod.name.is_empty() || links.iter().any(|name| name.ends_with(&suffix))
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
