//! The keeper: owns the pool, and is the only one that changes it.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use selvage_ipamd_core::action::{Action, Outcome};
use selvage_ipamd_core::cause::why_empty;
use selvage_ipamd_core::cloud::{
    Budget, Cloud, CloudError, CloudErrorKind, EniFacts, InstanceFacts, SeenEni,
};
use selvage_ipamd_core::ids::{PodKey, PodName, Timestamp};
use selvage_ipamd_core::limits::Limits;
use selvage_ipamd_core::plan::{Targets, plan};
use selvage_ipamd_core::pool::Pool;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::journal::{Journal, Pending};
use super::request::{NodeFacts, Refusal, Reply, Request, Status};
use super::start::Ready;
use super::{DRAIN, RunError, Shared, act};
use crate::checkpoint::{self, Checkpoint, CheckpointError, Store};
use crate::cluster::{Cluster, NodeView};
use crate::conflist::{self, InstallError, Installed, Missing};
use crate::hostnet::{Disturbed, Host, HostError, Obstacle};

mod host;
mod leases;
mod look;
mod node;
mod survey;

/// How often pauses are looked at that no message ends.
const TICK: Duration = Duration::from_secs(1);
/// Between two looks at the VPC's blocks and the host's network.
const REFRESH: Duration = Duration::from_secs(30);
/// ADDs that wait for an address; more are refused at once.
const WAITING: usize = 512;

/// What a task has to say when it ends.
enum Done {
    Outcome(Box<Outcome>),
    Seen(Result<Vec<SeenEni>, CloudError>),
    Described(Result<Vec<EniFacts>, CloudError>),
    Crowd(Option<u32>),
    Blocks(Result<Vec<Ipv4Net>, CloudError>),
    Facts(Result<InstanceFacts, CloudError>),
    Host(host::Look),
    Forgot(Result<(), HostError>),
    Written(u64, Result<(), CheckpointError>),
    Installed(Result<Installed, InstallError>),
    Answered,
}

/// An ADD that waits for an address.
struct Waiter {
    key: PodKey,
    pod: PodName,
    until: Instant,
    reply: Reply,
}

/// What is under way or due, beside actions.
struct Timers {
    survey: Instant,
    surveying: bool,
    /// When to ask again how many nodes start; never, once this node's turn has come.
    crowd: Option<Instant>,
    refresh: Instant,
    refreshing: u8,
    /// Somebody has disturbed the host's network: when to look, and at what.
    disturbed: Option<(Instant, Disturbed)>,
    /// Pods were too young for the last look: when to look again.
    young: Option<Instant>,
    /// When a look at the host has last begun or ended.
    looked: Instant,
    installing: bool,
}

pub(super) struct Keeper<C, H, K> {
    shared: Arc<Shared<C, H, K>>,
    instance: InstanceFacts,
    limits: Limits,
    targets: Targets,
    vpc: Vec<Ipv4Net>,
    pool: Pool,
    status: watch::Sender<Status>,
    facts: watch::Sender<Option<NodeFacts>>,
    /// What the API server says of this node.
    node: watch::Receiver<NodeView>,
    work: JoinSet<Done>,
    waiting: VecDeque<Waiter>,
    journal: Journal,
    store: Arc<Store>,
    /// Where the checkpoint is, a write waits for no disk.
    in_memory: bool,
    timers: Timers,
    /// What is left out of the conflist.
    missing: Vec<Missing>,
    /// What was told of last that keeps pods' traffic from passing.
    obstacles: Vec<Obstacle>,
}

impl<C: Cloud, H: Host, K: Cluster> Keeper<C, H, K> {
    pub(super) fn new(
        shared: Arc<Shared<C, H, K>>,
        ready: Ready,
        status: watch::Sender<Status>,
        facts: watch::Sender<Option<NodeFacts>>,
    ) -> Self {
        let targets = shared.config.targets.clone();
        let now = Instant::now();
        // What was restored may differ from what is on disk.
        let mut journal = Journal::default();
        journal.changed(now);
        let reconcile = shared.config.reconcile;
        let in_memory = checkpoint::is_in_memory(&shared.config.checkpoint);
        let store = Arc::new(Store::new(shared.config.checkpoint.clone()));
        let node = shared.cluster.node();
        let look = ready.pool.bucket().look_in(shared.clock.now());
        Self {
            shared,
            instance: ready.instance,
            limits: ready.limits,
            targets,
            vpc: ready.vpc,
            pool: ready.pool,
            status,
            facts,
            node,
            work: JoinSet::new(),
            waiting: VecDeque::new(),
            journal,
            store,
            in_memory,
            timers: Timers {
                survey: now + reconcile,
                surveying: false,
                crowd: look.map(|pause| now + pause),
                refresh: now + REFRESH,
                refreshing: 0,
                disturbed: None,
                young: None,
                looked: now,
                installing: false,
            },
            missing: Vec::new(),
            obstacles: Vec::new(),
        }
    }

    /// Until `shutdown`; then everything that is under way is given a moment to end.
    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Request>,
        shutdown: &CancellationToken,
    ) -> Result<(), RunError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // What a start makes is not repaired: not counted.
        self.look_at_host(host::Scope::All, host::Why::Start);
        self.take_node();
        let shared = self.shared.clone();
        loop {
            self.advance();
            let patience = self.waiting.iter().map(|w| w.until).min();
            let write = self.journal.due_at(Instant::now());
            let disturbed = self.timers.disturbed.map(|(due, _)| due);
            let look = disturbed.into_iter().chain(self.timers.young).min();
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(request) = inbox.recv() => {
                    self.answer(request);
                    // Those that came with it share its write.
                    while let Ok(request) = inbox.try_recv() {
                        self.answer(request);
                    }
                    // Answers that wait for no write go out before it.
                    give_way().await;
                    self.write();
                    // Answers go out before it is thought about what follows from them.
                    give_way().await;
                }
                Some(done) = self.work.join_next() => {
                    let done = done.map_err(|e| RunError::Task(e.to_string()))?;
                    self.take_in(done);
                }
                // Of a sender that has gone, what it last said holds.
                Ok(()) = self.node.changed() => self.take_node(),
                _ = tick.tick() => {
                    self.journal.unstick();
                    self.look_around();
                }
                by = shared.host.disturbed(), if disturbed.is_none() => self.disturbed(by),
                () = at(look) => self.look_again(),
                () = at(patience.into_iter().chain(write).min()) => {}
            }
        }
        inbox.close();
        self.end(inbox).await
    }

    fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// Everything that follows from the present state.
    fn advance(&mut self) {
        let now = self.now();
        if self.pool.take_survey_wanted() && !self.timers.surveying {
            self.describe();
        }
        let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        for action in plan(&self.pool, &self.targets, &self.limits, waiting, now) {
            match &action {
                // A look at the host that began before would make again what this takes away.
                Action::TearDown { .. } if self.timers.refreshing > 0 => {}
                Action::TearDown { .. }
                | Action::Create(_)
                | Action::Attach { .. }
                | Action::Keep { .. }
                | Action::SetUp { .. }
                | Action::Describe { .. }
                | Action::Assign { .. }
                | Action::Unassign { .. }
                | Action::Tag { .. }
                | Action::Regroup { .. }
                | Action::DescribeSubnets
                | Action::Detach { .. }
                | Action::Delete { .. } => self.begin(action, now),
            }
        }
        self.serve_waiting(now);
        self.publish(now);
        self.write();
    }

    fn begin(&mut self, action: Action, now: Timestamp) {
        // Before the pool forgets where it is.
        let net = action.eni().and_then(|eni| self.eni_net(eni));
        self.pool.begin(&action, now);
        debug!(%action, "begin");
        let shared = self.shared.clone();
        self.work.spawn(async move {
            Done::Outcome(Box::new(act::carry_out(shared, action, net).await))
        });
    }

    fn answer(&mut self, request: Request) {
        let now = self.now();
        match request {
            Request::Add { key, pod, reply } => self.add(key, pod, reply, now),
            Request::Del { key, reply } => self.del(key, reply, now),
            Request::Collect {
                network,
                valid,
                reply,
            } => self.collect(&network, &valid, reply, now),
            Request::Permit { budget, reply } => {
                let pause = self.permit(budget, now);
                // Who asked has gone, and makes no call.
                if reply.send(pause).is_ok() && pause.is_zero() {
                    self.pool.bucket_mut().take(budget, now);
                }
            }
            Request::Told {
                budget,
                throttled: true,
            } => self.pool.bucket_mut().throttled(budget, now),
            Request::Told {
                budget,
                throttled: false,
            } => self.pool.bucket_mut().went_well(budget, now),
            Request::View { reply } => {
                // A reader that has gone does not matter.
                let _ = reply.send(Box::new(self.view(now)));
            }
        }
    }

    /// How long a call that can wait has to; nothing if it may be made now.
    fn permit(&self, budget: Budget, now: Timestamp) -> Duration {
        let bucket = self.pool.bucket();
        if bucket.is_calm(budget, now) {
            return Duration::ZERO;
        }
        bucket.ready_in(budget, now).max(TICK)
    }

    fn take_in(&mut self, done: Done) {
        let now = self.now();
        match done {
            Done::Outcome(outcome) => self.take_outcome(*outcome, now),
            Done::Seen(seen) => self.take_seen(seen, now),
            Done::Described(enis) => self.take_described(enis, now),
            Done::Crowd(nodes) => self.take_crowd(nodes, now),
            Done::Blocks(blocks) => self.take_blocks(blocks),
            Done::Facts(facts) => self.take_facts(facts),
            Done::Host(look) => self.take_host(look),
            Done::Forgot(Ok(())) | Done::Answered => {}
            Done::Forgot(Err(error)) => {
                error!(%error, "rules of a gone pod");
                self.shared.metrics.count_error("forget_pod");
            }
            Done::Written(version, result) => self.take_written(version, result),
            Done::Installed(result) => {
                self.timers.installing = false;
                match result {
                    Ok(installed) => self.take_installed(installed),
                    Err(error) => {
                        error!(%error, "plugin and conflist");
                        self.trouble("InstallFailed", "Install".into(), error.to_string());
                    }
                }
            }
        }
    }

    fn take_outcome(&mut self, outcome: Outcome, now: Timestamp) {
        match outcome.failure() {
            Some(words) if is_still_detaching(&outcome) => debug!(error = words, "pool"),
            Some(words) => {
                warn!(error = words, "pool");
                let (reason, action) = match outcome.cloud_error() {
                    Some(error) => (reason(error), format!("ec2:{}", error.operation.api())),
                    None => ("InterfaceSetupFailed", "SetUp".to_owned()),
                };
                self.trouble(reason, action, words);
            }
            None => info!(?outcome, "pool"),
        }
        self.pool.apply(outcome, now);
    }

    fn trouble(&self, reason: &'static str, action: String, words: String) {
        self.shared.metrics.count_error(reason);
        self.shared.cluster.warn(reason, action, words);
    }

    fn take_written(&mut self, version: u64, result: Result<(), CheckpointError>) {
        let words = result.as_ref().err().map(ToString::to_string);
        if let Some(error) = &words {
            error!(%error, "checkpoint");
            self.trouble("CheckpointFailed", "Checkpoint".into(), error.clone());
        }
        for mut pending in self.journal.ended(version, words.is_none()) {
            if let (Some(_), Some(key)) = (&words, pending.cancel.take()) {
                self.pool.cancel(&key);
            }
            self.deliver(pending, words.clone().map_or(Ok(()), Err));
        }
    }

    /// Writes what is not on disk; answers what is.
    fn write(&mut self) {
        for pending in self.journal.due() {
            self.deliver(pending, Ok(()));
        }
        let Some(version) = self.journal.start(Instant::now()) else {
            return;
        };
        let now = self.now();
        let start = Instant::now();
        let checkpoint = Checkpoint {
            entries: self.pool.entries(),
            cooling: self.pool.cooling(now),
        };
        if self.in_memory {
            // Cheaper than waking a thread, and ADD waits for it.
            let result = self.store.write(&checkpoint);
            self.shared.metrics.count_checkpoint(start.elapsed());
            self.take_written(version, result);
        } else {
            let shared = self.shared.clone();
            let store = self.store.clone();
            self.work.spawn_blocking(move || {
                let result = store.write(&checkpoint);
                shared.metrics.count_checkpoint(start.elapsed());
                Done::Written(version, result)
            });
        }
    }

    /// Answers, once what was written is written; an ADD whose pod is to be annotated, a moment later.
    fn deliver(&mut self, pending: Pending, written: Result<(), String>) {
        let annotate = self.shared.config.annotate_pod_ip;
        let (reply, answer) = pending.outcome(written);
        match answer {
            Ok(grant) if annotate => {
                let shared = self.shared.clone();
                self.work.spawn(async move {
                    let lease = &grant.lease;
                    shared.cluster.annotate(&lease.pod, lease.address).await;
                    // Whoever asked may have gone.
                    let _ = reply.send(Ok(grant));
                    Done::Answered
                });
            }
            // Whoever asked may have gone; a lease of theirs is found by their DEL.
            answer => drop(reply.send(answer)),
        }
    }

    fn publish(&mut self, now: Timestamp) {
        let status = if self.pool.can_serve() {
            Status::Ready
        } else {
            let cause = why_empty(&self.pool, &self.targets, &self.limits, now);
            Status::NotReady {
                why: cause.to_string(),
            }
        };
        let became_ready = status == Status::Ready && *self.status.borrow() != Status::Ready;
        if became_ready {
            info!(stats = ?self.pool.stats(now), "ready");
            self.install();
        }
        self.status.send_if_modified(|old| {
            let new = *old != status;
            *old = status;
            new
        });
    }

    fn install(&mut self) {
        if self.timers.installing {
            return;
        }
        self.timers.installing = true;
        let shared = self.shared.clone();
        let runtime = tokio::runtime::Handle::current();
        self.work.spawn_blocking(move || {
            let versions = |plugin: &Path| runtime.block_on(conflist::versions_of(plugin));
            Done::Installed(conflist::install(&shared.config, versions))
        });
    }

    /// What is missing is told once, and again when it has come and gone.
    fn take_installed(&mut self, installed: Installed) {
        if !installed.changed.is_empty() {
            info!(files = ?installed.changed, "installed");
        }
        if self.missing != installed.missing {
            for missing in &installed.missing {
                warn!(%missing, "conflist");
                self.trouble("PluginMissing", "Install".into(), missing.to_string());
            }
            self.missing = installed.missing;
        }
    }

    /// Tells who waits that it ends, writes what is not on disk, and lets what is under way come to its end.
    async fn end(mut self, mut inbox: mpsc::Receiver<Request>) -> Result<(), RunError> {
        while let Ok(request) = inbox.try_recv() {
            match request {
                Request::Add { reply, .. } | Request::Del { reply, .. } => {
                    let _ = reply.send(Err(Refusal::Stopping));
                }
                Request::Collect { .. }
                | Request::View { .. }
                | Request::Permit { .. }
                | Request::Told { .. } => {}
            }
        }
        for waiter in self.waiting.drain(..) {
            let _ = waiter.reply.send(Err(Refusal::Stopping));
        }
        let deadline = Instant::now() + DRAIN;
        self.journal.hurry();
        loop {
            self.write();
            if self.work.is_empty() {
                break;
            }
            match tokio::time::timeout_at(deadline, self.work.join_next()).await {
                Ok(Some(done)) => {
                    let done = done.map_err(|e| RunError::Task(e.to_string()))?;
                    self.take_in(done);
                }
                Ok(None) => {}
                Err(_) => {
                    warn!(
                        tasks = self.work.len(),
                        "given up; the next start finds what they did"
                    );
                    break;
                }
            }
        }
        let clean = self.journal.is_clean();
        self.work.shutdown().await;
        info!(clean, "ended");
        Ok(())
    }
}

/// EC2 refuses to delete an interface that it is still detaching: not a trouble.
fn is_still_detaching(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Deleted(_, Err(error)) => error.code.as_deref() == Some("InvalidParameterValue"),
        Outcome::Deleted(_, Ok(()))
        | Outcome::Created(..)
        | Outcome::Attached(..)
        | Outcome::Kept(..)
        | Outcome::SetUp(..)
        | Outcome::Described(..)
        | Outcome::Assigned(..)
        | Outcome::Unassigned(..)
        | Outcome::Tagged(..)
        | Outcome::Regrouped(..)
        | Outcome::Subnets(_)
        | Outcome::TornDown(..)
        | Outcome::Detached(..) => false,
    }
}

/// One word for an Event.
fn reason(error: &CloudError) -> &'static str {
    match error.kind {
        CloudErrorKind::Denied => "MissingIAMPermissions",
        CloudErrorKind::Throttled => "CloudThrottled",
        CloudErrorKind::SubnetExhausted | CloudErrorKind::PrefixesExhausted => "SubnetExhausted",
        CloudErrorKind::NoSuchNetwork => "NoSuchNetwork",
        CloudErrorKind::EniLimit => "InterfaceLimit",
        CloudErrorKind::AddressLimit
        | CloudErrorKind::NotFound
        | CloudErrorKind::Refused
        | CloudErrorKind::Unknown => "CloudCallFailed",
    }
}

/// Lets an answer go out on the wire: it passes the task of its request and that of its connection.
async fn give_way() {
    for _ in 0..2 {
        tokio::task::yield_now().await;
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
