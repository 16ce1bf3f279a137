//! Where events come from.

use std::error::Error;
use std::future::Future;

use selvage_policy_core::index::Event;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Something that happened in the cluster or on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What happened.
    pub event: Event,
    /// What in it was not understood, for people; what it would have allowed is denied by the
    /// event already. Only with [`Event::PolicyApplied`].
    pub problems: Vec<String>,
    /// When it was read off the wire.
    pub received: Instant,
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

/// A stream of what happens in the cluster, from whomever it is heard.
///
/// It begins with a relist of every resource and says so: until each has ended for the first time
/// ([`Event::RelistDone`]) the kernel is not touched. Whoever loses events relists.
pub trait Source: Send + 'static {
    /// Why it cannot go on.
    type Error: Error + Send + Sync + 'static;

    /// Sends notices until told to stop, or until nobody listens any more. What passes by itself
    /// (an API server that is away) is waited out inside.
    ///
    /// *Errors*: only what a person must mend.
    fn run(
        self,
        notices: Sender<Notice>,
        stop: CancellationToken,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}
