//! The loop: gather events, wait out the gap, compile, hand to the kernel, try again.
//!
//! ```text
//! Syncing ──every list came once──► Standby ──lock taken──► Enforcing ──told to stop──► gone,
//!  kernel untouched                 kernel untouched        rules kept right           rules stay
//! ```
//!
//! Each phase is a type that the one before becomes: what may touch the kernel can only be reached
//! with every watch in sync and the lock held.

mod cutting;
mod enforcing;
mod node;
mod pace;
mod pending;
mod rejected;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use selvage_policy_core::index::{Index, Settings};
use selvage_policy_core::model::NodeName;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::sync::mpsc::channel;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::config::Config;
use crate::dataplane::Dataplane;
use crate::denials;
use crate::endpoint_status::EndpointStatus;
use crate::events::{Reporter, watch_unenforced};
use crate::failpoint::{self, BadFailpoint, Failpoint};
use crate::health::{HealthError, Listener, Sources};
use crate::lock::{Lock, LockError};
use crate::metrics::{self, Lag, Metrics};
use crate::questions::{self, Asker};
use crate::source::{Doubts, Source};
use crate::status::{Phase, Status, TURN, join};
use enforcing::Enforcing;
use node::Node;
use pending::Pending;
use rejected::Rejected;

/// Notices that wait for the loop; a source that is faster waits.
const NOTICES_MAX: usize = 1024;

/// Pause between two tries to take the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// How long stopping may take for each of: work under way, a task.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// What ends the daemon before it is told to.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The health socket.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// The environment names a failpoint that there is not.
    #[error(transparent)]
    Failpoint(#[from] BadFailpoint),
    /// The lock, other than that somebody holds it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Events have ended.
    #[error("the source of events has ended: {0}")]
    Source(String),
    /// A thread or task of ours panicked.
    #[error("{0} ended by itself")]
    Task(&'static str),
    /// The kernel's work has failed for long.
    #[error("kernel work has failed for {failing_for:?}; what was in force stays: {reason}")]
    Kernel {
        /// How long.
        failing_for: Duration,
        /// What it said last.
        reason: String,
    },
    /// The kernel's work did not end in time; it is left behind.
    #[error("kernel work under way did not end within {0:?}")]
    Slow(Duration),
}

/// Runs until told to stop. Rules stay in place, whatever the reason for the end. `in_force` hears
/// once, when rules are in force for the first time; `reporter`, of pods that are enforced in part.
///
/// *Errors*: [`DaemonError`]. The API server does not end it, nor does a kernel that refuses for less
/// than ten minutes.
///
/// *Needs*: a runtime with time, I/O and blocking threads; for the node's kernel `CAP_NET_ADMIN`.
pub async fn run<S: Source>(
    config: Config,
    source: S,
    dataplane: impl Dataplane,
    metrics: Arc<Metrics>,
    in_force: Arc<Notify>,
    reporter: Reporter,
    stop: CancellationToken,
) -> Result<(), DaemonError> {
    failpoint::arm()?;
    let listener = Listener::bind(&config.socket)?;
    let (status, asked) = watch::channel(Status::new(Instant::now()));
    // Ends with this function, before or after `stop`.
    let ending = CancellationToken::new();
    let (asker, asked_of) = questions::channel();
    let sources = Sources {
        node: config.node.clone(),
        families: config.families.iter().map(ToString::to_string).collect(),
        status: asked,
        metrics: Arc::clone(&metrics),
        asker: asker.clone(),
    };
    let answering = tokio::spawn(listener.serve(sources, ending.clone()));
    let (sender, notices) = channel(NOTICES_MAX);
    let doubts = Doubts::default();
    let mut sourcing = tokio::spawn(source.run(sender, doubts.clone(), ending.clone()));
    let node = Node {
        index: Index::new(Settings {
            node: NodeName::new(config.node.clone()),
            prefix: config.interface_prefix.clone(),
            families: config.families.clone(),
            source_check: config.source_check,
            drop_invalid: config.drop_invalid,
            deny_log: config.deny_log.map(|settings| settings.group),
        })
        .with_member_budget(config.member_budget),
        notices,
        questions: asked_of,
        lag: Lag::default(),
        status,
        metrics: Arc::clone(&metrics),
        rejected: Rejected::default(),
        pending: Pending::new(config.apply_gap),
        doubts,
        failing_since: None,
        repairing: None,
        in_force,
        stop: stop.clone(),
    };
    let mut ended = phases(node, &config, dataplane, (asker, reporter), &ending).await;
    ending.cancel();
    match timeout(STOP_DEADLINE, &mut sourcing).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => {
            ended = Err(DaemonError::Source(crate::error_chain(&error)));
        }
        Ok(Err(_)) => ended = ended.and(Err(DaemonError::Task("the source of events"))),
        Err(_) => {
            sourcing.abort();
            warn!("the source of events did not stop in time");
        }
    }
    if timeout(STOP_DEADLINE, answering).await.is_err() {
        warn!("the health socket did not close in time");
    }
    ended
}

/// One phase after the other; `Ok` when told to stop.
async fn phases(
    node: Node,
    config: &Config,
    dataplane: impl Dataplane,
    (asker, reporter): (Asker, Reporter),
    ending: &CancellationToken,
) -> Result<(), DaemonError> {
    let Some(standby) = Syncing { node }.until_synced().await? else {
        return Ok(());
    };
    failpoint::hit(Failpoint::Synced);
    let run_dir = config.run_dir.clone();
    let Some((node, lock)) = standby.until_locked(run_dir).await? else {
        return Ok(());
    };
    failpoint::hit(Failpoint::Locked);
    let scraping = config.metrics_address.map(|address| {
        let metrics = Arc::clone(&node.metrics);
        tokio::spawn(metrics::serve(address, metrics, ending.clone()))
    });
    let files = config.endpoint_status_dir.clone().map(EndpointStatus::new);
    let unenforced = tokio::spawn(watch_unenforced(asker.clone(), reporter, ending.clone()));
    let logging = config.deny_log.map(|settings| {
        let metrics = Arc::clone(&node.metrics);
        tokio::spawn(denials::run(settings, asker, metrics, ending.clone()))
    });
    let enforcing = Enforcing::new(node, lock, dataplane, files);
    let ended = enforcing.run(config.resync).await;
    ending.cancel();
    if let Some(scraping) = scraping
        && timeout(STOP_DEADLINE, scraping).await.is_err()
    {
        warn!("metrics did not stop in time");
    }
    if timeout(STOP_DEADLINE, unenforced).await.is_err() {
        warn!("looking for pods enforced in part did not stop in time");
    }
    if let Some(logging) = logging
        && timeout(STOP_DEADLINE, logging).await.is_err()
    {
        warn!("the deny log did not stop in time");
    }
    ended
}

fn turns() -> tokio::time::Interval {
    let mut turns = interval(TURN);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    turns
}

/// Reads the cluster. The kernel is not touched.
struct Syncing {
    node: Node,
}

impl Syncing {
    async fn until_synced(mut self) -> Result<Option<Standby>, DaemonError> {
        let node = &mut self.node;
        node.enter(Phase::Syncing);
        let mut turns = turns();
        let mut buffer = Vec::new();
        while !node.status.borrow().waiting_for.is_empty() {
            tokio::select! {
                () = node.stop.cancelled() => return Ok(None),
                _ = turns.tick() => {
                    node.turn();
                    let waiting_for = join(node.status.borrow().waiting_for.iter());
                    debug!(waiting_for, "syncing");
                }
                Some(question) = node.questions.recv() => question(&mut node.index),
                more = Node::gather(&mut node.notices, &mut buffer) => {
                    if !more {
                        return Err(Node::ended_early());
                    }
                    node.take_in(&mut buffer);
                }
            }
        }
        Ok(Some(Standby { node: self.node }))
    }
}

/// Knows the cluster and keeps knowing it. The kernel is not touched.
struct Standby {
    node: Node,
}

impl Standby {
    async fn until_locked(mut self, run_dir: PathBuf) -> Result<Option<(Node, Lock)>, DaemonError> {
        let node = &mut self.node;
        if let Some(lock) = Lock::try_take(&run_dir)? {
            return Ok(Some((self.node, lock)));
        }
        node.enter(Phase::Standby);
        let mut turns = turns();
        let mut tries = interval(LOCK_PAUSE);
        tries.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = Vec::new();
        loop {
            tokio::select! {
                () = node.stop.cancelled() => return Ok(None),
                _ = turns.tick() => node.turn(),
                Some(question) = node.questions.recv() => question(&mut node.index),
                _ = tries.tick() => {
                    if let Some(lock) = Lock::try_take(&run_dir)? {
                        return Ok(Some((self.node, lock)));
                    }
                }
                more = Node::gather(&mut node.notices, &mut buffer) => {
                    if !more {
                        return Err(Node::ended_early());
                    }
                    node.take_in(&mut buffer);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
