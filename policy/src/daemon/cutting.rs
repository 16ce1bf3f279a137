//! Flows that a change may have forbidden, on their way to being cut: beside the hot path.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use selvage_policy_core::index::Index;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::pace::Pace;
use super::pending::growing;
use super::{DaemonError, STOP_DEADLINE};
use crate::flows::{Cut, Flows, Scope};
use crate::metrics::Metrics;

/// After a look at flows there is none for so many times as long as it used a processor, a quarter of a
/// core: what is forbidden shall end; where all that happened is that pods went elsewhere, whose flows end with
/// them, a hundredth. Not as long as it took: where others take the processor, flows would wait for us, too.
const REST: u32 = 3;
const REST_OF_GONE: u32 = 99;

/// Looks that cost so much together do not rest: what changes now and then is looked at at once.
const FREE: Duration = Duration::from_millis(300);
const FREE_OF_GONE: Duration = Duration::from_millis(30);

/// The pauses after an error.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Cuts on a thread of its own, one look at a time; what comes meanwhile shares the next one.
pub(super) struct Cutting<F> {
    hands: Hands<F>,
    metrics: Arc<Metrics>,
    waiting: Scope,
    pace: Pace,
    /// Of peers whose pods are gone.
    waiting_of_gone: Scope,
    pace_of_gone: Pace,
    /// Whether the look under way is about more than these.
    urgent: bool,
    /// After an error.
    not_before: Option<Instant>,
    failures: u32,
}

enum Hands<F> {
    Idle(F),
    Busy(JoinHandle<(F, Scope, Result<Cut, String>)>),
    /// Lost in a panic.
    Lost,
}

impl<F: Flows> Cutting<F> {
    pub(super) fn new(flows: F, metrics: Arc<Metrics>) -> Self {
        Self {
            hands: Hands::Idle(flows),
            metrics,
            waiting: Scope::default(),
            pace: Pace::new(FREE * REST),
            waiting_of_gone: Scope::default(),
            pace_of_gone: Pace::new(FREE_OF_GONE * REST_OF_GONE),
            urgent: false,
            not_before: None,
            failures: 0,
        }
    }

    /// Something that is in force now may have forbidden flows.
    pub(super) fn add(&mut self, scope: Scope) {
        self.waiting.extend(scope);
    }

    /// So may these peers, whose pods are gone.
    pub(super) fn add_of_gone(&mut self, addresses: BTreeSet<IpAddr>) {
        self.waiting_of_gone.addresses.extend(addresses);
    }

    /// When to begin, if there is anything to begin with.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        if !matches!(self.hands, Hands::Idle(_)) {
            return None;
        }
        let when = |scope: &Scope, pace: &Pace| {
            (!scope.is_empty()).then(|| pace.not_before().max(self.not_before).unwrap_or(now))
        };
        let all = [
            when(&self.waiting, &self.pace),
            when(&self.waiting_of_gone, &self.pace_of_gone),
        ];
        all.into_iter().flatten().min().map(|it| it.max(now))
    }

    /// Begins with all that waits. The index may be ahead of the kernel: what only it forbids comes
    /// again once that is in force.
    pub(super) fn begin(&mut self, index: &mut Index) {
        self.hands = match std::mem::replace(&mut self.hands, Hands::Lost) {
            Hands::Idle(mut flows) => {
                self.urgent = !self.waiting.is_empty();
                let mut scope = std::mem::take(&mut self.waiting);
                scope.extend(std::mem::take(&mut self.waiting_of_gone));
                let judge = index.judge();
                Hands::Busy(spawn_blocking(move || {
                    let result = flows.cut(&judge, &scope);
                    let result = result.map_err(|error| crate::error_chain(&error));
                    (flows, scope, result)
                }))
            }
            other @ (Hands::Busy(_) | Hands::Lost) => other,
        };
    }

    /// Waits for the look under way; for ever if there is none.
    pub(super) async fn finished(&mut self) -> Result<(), DaemonError> {
        let Hands::Busy(working) = &mut self.hands else {
            return std::future::pending().await;
        };
        let done = working.await;
        self.hands = Hands::Lost;
        let (flows, scope, result) = done.map_err(|_| DaemonError::Task("cutting flows"))?;
        self.hands = Hands::Idle(flows);
        let now = Instant::now();
        match result {
            Ok(cut) => {
                self.failures = 0;
                self.not_before = None;
                if self.urgent {
                    self.pace.owe(now, cut.used * REST);
                } else {
                    self.pace_of_gone.owe(now, cut.used * REST_OF_GONE);
                }
                self.metrics.cut(&cut);
                self.tell(&cut);
                if cut.unfinished > 0 {
                    self.waiting.extend(scope);
                }
            }
            Err(error) => {
                let pause = growing(PAUSE_FIRST, self.failures, PAUSE_MAX);
                self.failures = self.failures.saturating_add(1);
                self.not_before = Some(now + pause);
                self.waiting.extend(scope);
                warn!(error, again_in = ?pause, "flows that are forbidden now may go on");
            }
        }
        Ok(())
    }

    fn tell(&self, cut: &Cut) {
        let Cut {
            forbidden,
            left,
            unfinished,
            took,
            used: _,
        } = *cut;
        if forbidden + left > 0 {
            info!(forbidden, left, unfinished, ?took, "flows cut");
        } else {
            debug!(?took, "no flow to cut");
        }
    }

    /// Waits for the look under way, so that the lock is not another's while we cut.
    pub(super) async fn stop(&mut self) -> Result<(), DaemonError> {
        if matches!(self.hands, Hands::Busy(_)) {
            timeout(STOP_DEADLINE, self.finished())
                .await
                .map_err(|_| DaemonError::Slow(STOP_DEADLINE))??;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use selvage_policy_core::verdict::Judge;

    use super::*;

    struct Nobody;

    impl Flows for Nobody {
        type Error = Infallible;

        fn cut(&mut self, _: &Judge, _: &Scope) -> Result<Cut, Infallible> {
            Ok(Cut::default())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_go_without_end_hold_up_nothing_that_a_change_forbids() {
        let mut cutting = Cutting::new(Nobody, Arc::new(Metrics::new()));
        let now = Instant::now();
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(cutting.due(now), None);
        cutting.add_of_gone([address].into());
        assert_eq!(cutting.due(now), Some(now), "a lone one does not wait");
        // Many looks for those that went: a second of a processor.
        cutting
            .pace_of_gone
            .owe(now, Duration::from_secs(1) * REST_OF_GONE);
        assert!(cutting.due(now) > Some(now + Duration::from_secs(60)));
        let forbidden = Scope {
            addresses: [address].into(),
            ..Scope::default()
        };
        cutting.add(forbidden);
        assert_eq!(cutting.due(now), Some(now));
        // Looks for what changes forbid rest, too, but not as long.
        cutting.pace.owe(now, Duration::from_secs(1) * REST);
        let when = cutting.due(now).unwrap();
        assert!(when > now && when < now + Duration::from_secs(10));
    }
}
