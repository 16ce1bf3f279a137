//! What the keeper can be asked, and by whom.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use selvage_ipamd_core::cloud::{Budget, CloudError, CloudErrorKind, InstanceFacts};
use selvage_ipamd_core::ids::{PodKey, PodName};
use selvage_ipamd_core::pool::Lease;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::view::View;

/// Beyond the wait for an address: for the checkpoint's write, and for the queue.
const ANSWER: Duration = Duration::from_secs(10);
/// Between two questions whether a call may be made.
const PERMIT: Duration = Duration::from_millis(500);
/// The same, while the keeper does not answer.
const BUSY: Duration = Duration::from_secs(5);

/// Whether addresses can be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Not yet.
    Starting {
        /// What is being done, or waited for.
        doing: String,
    },
    /// An interface serves.
    Ready,
    /// No interface serves.
    NotReady {
        /// Why.
        why: String,
    },
}

/// What others ask of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node's address.
    pub address: Ipv4Addr,
    /// Its IPv6 address, if its subnet has IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// The instance.
    pub instance_id: String,
    /// Its region.
    pub region: String,
    /// The VPC's blocks.
    pub vpc: Vec<Ipv4Net>,
}

impl NodeFacts {
    pub(crate) fn new(instance: &InstanceFacts, vpc: &[Ipv4Net]) -> Self {
        Self {
            address: instance.primary_address,
            ipv6: instance.primary_ipv6,
            instance_id: instance.instance_id.to_string(),
            region: instance.region.clone(),
            vpc: vpc.to_vec(),
        }
    }
}

/// A lease, as an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The lease.
    pub lease: Lease,
}

/// Why there is no lease. The words reach the pod's events.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The daemon has only just started.
    #[error("ipamd is starting: {0}")]
    Starting(String),
    /// No address is free.
    #[error("no address is free: {cause}")]
    Empty {
        /// Why.
        cause: String,
    },
    /// The lease could not be made safe.
    #[error("{0}")]
    Checkpoint(String),
    /// Nobody of that name has one.
    #[error("{}", selvage_ipamd_rpc::UNKNOWN_POD)]
    UnknownPod,
    /// Its DEL came before the ADD was answered.
    #[error("the sandbox was deleted while it was being added")]
    Withdrawn,
    /// The daemon is ending.
    #[error("ipamd is stopping")]
    Stopping,
    /// The daemon is busier than it can be.
    #[error("ipamd did not answer within {0:?}")]
    Busy(Duration),
}

pub(crate) type Reply = oneshot::Sender<Result<Grant, Refusal>>;

/// A question to the keeper.
#[derive(Debug)]
pub(crate) enum Request {
    Add {
        key: PodKey,
        pod: PodName,
        reply: Reply,
    },
    Del {
        key: PodKey,
        reply: Reply,
    },
    Collect {
        network: String,
        /// Sandbox id and name of the interface.
        valid: BTreeSet<(String, String)>,
        reply: oneshot::Sender<Vec<Lease>>,
    },
    View {
        reply: oneshot::Sender<Box<View>>,
    },
    /// A call to EC2 that is none of the pool's and can wait: nothing, when it may be made, else how long to wait.
    Permit {
        budget: Budget,
        reply: oneshot::Sender<Duration>,
    },
    /// How such a call ended.
    Told {
        budget: Budget,
        throttled: bool,
    },
}

/// How to reach the keeper. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<Status>,
    facts: watch::Receiver<Option<NodeFacts>>,
    config: Arc<Config>,
    metrics: Arc<Metrics>,
}

impl Handle {
    pub(crate) fn new(
        requests: mpsc::Sender<Request>,
        status: watch::Receiver<Status>,
        facts: watch::Receiver<Option<NodeFacts>>,
        config: Config,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            requests,
            status,
            facts,
            config: Arc::new(config),
            metrics,
        }
    }

    /// An address for a pod, safe on disk when this returns.
    pub async fn add(&self, key: PodKey, pod: PodName) -> Result<Grant, Refusal> {
        self.started().await?;
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Add { key, pod, reply }, answer).await?
    }

    /// Takes a pod's address back.
    pub async fn del(&self, key: PodKey) -> Result<Grant, Refusal> {
        self.started().await?;
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Del { key, reply }, answer).await?
    }

    /// Takes back what every sandbox of a network holds that is not in `valid` (sandbox id and interface name).
    pub async fn collect(
        &self,
        network: String,
        valid: BTreeSet<(String, String)>,
    ) -> Result<Vec<Lease>, Refusal> {
        self.started().await?;
        let (reply, answer) = oneshot::channel();
        let request = Request::Collect {
            network,
            valid,
            reply,
        };
        self.ask(request, answer).await
    }

    /// Everything that is to be seen. Of a daemon that starts or ends: what it waits for, and an empty pool.
    pub async fn view(&self) -> View {
        let status = match self.status() {
            Status::Ready => "ready".to_owned(),
            Status::Starting { doing } => format!("starting: {doing}"),
            Status::NotReady { why } => format!("not ready: {why}"),
        };
        let pool = match self.starting() {
            Some(_) => None,
            None => {
                let (reply, answer) = oneshot::channel();
                self.ask(Request::View { reply }, answer).await.ok()
            }
        };
        View {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.config.node_name.clone(),
            status,
            ..pool.map(|pool| *pool).unwrap_or_default()
        }
    }

    /// Waits until a call to EC2 that can wait may be made, and notes it.
    pub(crate) async fn permit(&self, budget: Budget) {
        loop {
            let (reply, answer) = oneshot::channel();
            let asked = self.ask(Request::Permit { budget, reply }, answer).await;
            match asked {
                Ok(Duration::ZERO) => return,
                Ok(pause) => tokio::time::sleep(pause.max(PERMIT)).await,
                // Starting, busy or ending: pods come first.
                Err(_) => tokio::time::sleep(BUSY).await,
            }
        }
    }

    /// Notes how a call ended that [`Handle::permit`] allowed.
    pub(crate) async fn told<T>(&self, budget: Budget, answer: &Result<T, CloudError>) {
        let throttled = match answer {
            Ok(_) => false,
            Err(error) => error.kind == CloudErrorKind::Throttled,
        };
        // A keeper that has gone needs no numbers.
        let _ = self
            .requests
            .send(Request::Told { budget, throttled })
            .await;
    }

    /// Whether addresses can be given.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// What is known of the node; `None` while the daemon starts.
    pub fn facts(&self) -> Option<NodeFacts> {
        self.facts.borrow().clone()
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    fn starting(&self) -> Option<String> {
        match &*self.status.borrow() {
            Status::Starting { doing } => Some(doing.clone()),
            Status::Ready | Status::NotReady { .. } => None,
        }
    }

    /// Waits for the end of the start, as long as an ADD waits for an address.
    async fn started(&self) -> Result<(), Refusal> {
        let mut status = self.status.clone();
        let over = status.wait_for(|status| match status {
            Status::Starting { .. } => false,
            Status::Ready | Status::NotReady { .. } => true,
        });
        match tokio::time::timeout(self.config.add_wait, over).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Refusal::Stopping),
            Err(_) => Err(Refusal::Starting(self.starting().unwrap_or_default())),
        }
    }

    async fn ask<T>(&self, request: Request, answer: oneshot::Receiver<T>) -> Result<T, Refusal> {
        let within = self.config.add_wait + ANSWER;
        let asked = async {
            self.requests
                .send(request)
                .await
                .map_err(|_| Refusal::Stopping)?;
            answer.await.map_err(|_| Refusal::Stopping)
        };
        tokio::time::timeout(within, asked)
            .await
            .unwrap_or(Err(Refusal::Busy(within)))
    }
}
