//! Events from the node's own kernel: which addresses it routes to which pod's interface.
//!
//! Beside another source, and before it: the index knows the routes there are before anybody else
//! says that a pod is there.

use std::time::{Duration, Instant};

use selvage_netfilter::routes::{RouteChange, RouteWatch};
use selvage_policy_core::index::{Event, Resource};
use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::source::{Doubts, Notice, Source};

/// Bounds each exchange with the kernel.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the watch waits without looking whether to stop.
const TICK: Duration = Duration::from_millis(500);

/// Between two tries to open the watch.
const PAUSE: Duration = Duration::from_secs(5);

/// How long the other source waits for the first whole state. Without it, addresses come from
/// annotation and status.
const FIRST: Duration = Duration::from_secs(15);

/// A source, and the kernel's routes beside it.
#[derive(Debug)]
pub struct WithRoutes<S> {
    source: S,
    prefixes: Vec<String>,
}

impl<S> WithRoutes<S> {
    /// `prefixes`: what the names of pods' interfaces begin with.
    #[must_use]
    pub fn new(source: S, prefixes: Vec<String>) -> Self {
        Self { source, prefixes }
    }
}

impl<S: Source> Source for WithRoutes<S> {
    type Error = S::Error;

    async fn run(
        self,
        notices: Sender<Notice>,
        doubts: Doubts,
        stop: CancellationToken,
    ) -> Result<(), S::Error> {
        let (first, told) = oneshot::channel();
        let routes = Routes {
            prefixes: self.prefixes,
            notices: notices.clone(),
            stop: stop.clone(),
        };
        let watching = spawn_blocking(move || routes.run(first));
        // An error is the watch's end, which it has told.
        if !matches!(timeout(FIRST, told).await, Ok(Ok(()))) {
            warn!("the node's routes are not known yet");
        }
        let ended = self.source.run(notices, doubts, stop.clone()).await;
        stop.cancel();
        if watching.await.is_err() {
            warn!("the watch on routes panicked");
        }
        ended
    }
}

struct Routes {
    prefixes: Vec<String>,
    notices: Sender<Notice>,
    stop: CancellationToken,
}

/// Nobody listens any more.
struct Over;

impl Routes {
    /// Watches until told to stop. Blocks.
    fn run(self, first: oneshot::Sender<()>) {
        let mut first = Some(first);
        while !self.stop.is_cancelled() {
            match self.watch(&mut first) {
                Ok(Over) => return,
                Err(error) => {
                    let error = crate::error_chain(&error);
                    warn!(error, again_in = ?PAUSE, "watch on the node's routes is in trouble");
                }
            }
            let until = Instant::now() + PAUSE;
            while Instant::now() < until && !self.stop.is_cancelled() {
                std::thread::park_timeout(TICK);
            }
        }
    }

    fn watch(
        &self,
        first: &mut Option<oneshot::Sender<()>>,
    ) -> Result<Over, selvage_netfilter::Error> {
        let prefixes: Vec<&str> = self.prefixes.iter().map(String::as_str).collect();
        let (mut watch, all) = RouteWatch::open(&prefixes, PATIENCE)?;
        info!(interfaces = all.len(), "routes are watched");
        let whole = std::iter::once(Event::RelistStarted(Resource::Routes))
            .chain(all.into_iter().map(event))
            .chain([Event::RelistDone(Resource::Routes)]);
        if !self.tell(whole) {
            return Ok(Over);
        }
        if let Some(first) = first.take() {
            // Who waited for it may have given up.
            let _ = first.send(());
        }
        while !self.stop.is_cancelled() {
            let changes = watch.changes(Instant::now() + TICK)?;
            if !self.tell(changes.into_iter().map(event)) {
                return Ok(Over);
            }
        }
        Ok(Over)
    }

    fn tell(&self, events: impl Iterator<Item = Event>) -> bool {
        let mut heard = events.map(|event| self.notices.blocking_send(event.into()).is_ok());
        heard.all(|heard| heard) && !self.notices.is_closed()
    }
}

fn event(change: RouteChange) -> Event {
    Event::Routes {
        interface: change.interface,
        addresses: change.addresses,
    }
}
