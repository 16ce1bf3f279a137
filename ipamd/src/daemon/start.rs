//! The start: from metadata, EC2 and the checkpoint to a pool.
//!
//! It waits for what it cannot do without (the instance's facts; EC2's description of its interfaces, unless the instance is
//! new, or for ten seconds where a daemon has run before) for as long as it takes, with growing pauses, and says in its
//! answers what it waits for.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use selvage_ipamd_core::bucket::Bucket;
use selvage_ipamd_core::cloud::{Cloud, EniFacts, InstanceFacts, Operation, SeenEni, is_as_made};
use selvage_ipamd_core::ids::Timestamp;
use selvage_ipamd_core::limits::{Limits, Mode};
use selvage_ipamd_core::pool::{Entry, Pool, Provisioning, RestoreError, Settings};
use selvage_ipamd_core::retry::{Jitter, Retry};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::{NodeFacts, RunError, Shared, Status, act, node_net, pod_nets, with_primary};
use crate::checkpoint::{Checkpoint, CheckpointError, Resting};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::hostnet::{Host, NodeNet, veth_suffix};
use crate::instances;

/// First pause after something failed; doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// So long EC2 is waited for before metadata is trusted: what changed before the start is shown there by then.
const EC2_PATIENCE: Duration = Duration::from_secs(10);

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

pub(super) struct Start<'a, C, H, K> {
    pub(super) shared: &'a Arc<Shared<C, H, K>>,
    pub(super) status: &'a watch::Sender<Status>,
    /// No daemon has written a checkpoint on this node since it booted.
    pub(super) first: bool,
}

impl<C: Cloud, H: Host, K: Cluster> Start<'_, C, H, K> {
    pub(super) async fn run(
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

fn some<T>(list: Vec<T>, words: &str) -> Result<Vec<T>, String> {
    if list.is_empty() {
        Err(words.to_owned())
    } else {
        Ok(list)
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

/// An entry without a pod's name cannot be looked for, and stays.
fn has_veth(entry: &Entry, links: &BTreeSet<String>) -> bool {
    let suffix = veth_suffix(&entry.pod);
    entry.pod.name.is_empty() || links.iter().any(|name| name.ends_with(&suffix))
}
