//! Where events come from.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;

use selvage_policy_core::convert::{self, ProblemKind};
use selvage_policy_core::index::Event;
use tokio::sync::Notify;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::status::Resource;

/// Something that happened in the cluster or on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What happened.
    pub event: Event,
    /// What in it was not understood, for people; what it would have allowed is denied by the
    /// event already. Only with [`Event::PolicyApplied`].
    pub problems: Vec<Problem>,
    /// When it was read off the wire.
    pub received: Instant,
}

/// Something of a policy that was not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What sort of thing.
    pub kind: ProblemKind,
    /// What, in which policy, and what is denied because of it.
    pub text: String,
}

impl From<&convert::Problem> for Problem {
    fn from(problem: &convert::Problem) -> Self {
        Self {
            kind: problem.kind(),
            text: problem.to_string(),
        }
    }
}

impl Notice {
    /// What it is about; `None`: something of the node's own.
    #[must_use]
    pub fn resource(&self) -> Option<Resource> {
        match &self.event {
            Event::PodApplied(_) | Event::PodDeleted(..) => Some(Resource::Pods),
            Event::NamespaceApplied(_) | Event::NamespaceDeleted(_) => Some(Resource::Namespaces),
            Event::PolicyApplied(_) | Event::PolicyDeleted(_) => Some(Resource::NetworkPolicies),
            Event::Routes { .. } => None,
            Event::RelistStarted(resource) | Event::RelistDone(resource) => Resource::of(*resource),
        }
    }
}

impl From<Event> for Notice {
    fn from(event: Event) -> Self {
        Self {
            event,
            problems: Vec::new(),
            received: Instant::now(),
        }
    }
}

/// Tells a source that something is there of which it should have told: a pod's interface.
#[derive(Debug, Clone, Default)]
pub struct Doubts(Arc<Notify>);

impl Doubts {
    /// Says so. Doubts that nobody has answered yet are one.
    pub fn raise(&self) {
        self.0.notify_one();
    }

    /// Waits for a doubt.
    pub async fn raised(&self) {
        self.0.notified().await;
    }
}

/// A stream of what happens in the cluster, from whomever it is heard.
///
/// It begins with a relist of every resource and says so: until each has ended for the first time
/// ([`Event::RelistDone`]) the kernel is not touched. Whoever loses events relists.
pub trait Source: Send + 'static {
    /// Why it cannot go on.
    type Error: Error + Send + Sync + 'static;

    /// Sends notices until told to stop, or until nobody listens any more. What passes by itself
    /// (an API server that is away) is waited out inside. When a doubt is raised, it asks for the
    /// pods of this node.
    ///
    /// *Errors*: only what a person must mend.
    fn run(
        self,
        notices: Sender<Notice>,
        doubts: Doubts,
        stop: CancellationToken,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}
