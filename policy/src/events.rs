//! Kubernetes Events: says on the object itself what is wrong with it, where its owner looks.
//!
//! Every node sees the same policies and would say the same. An Event's name is made from the
//! object and what is wrong with it: the first node's is made, the others find it there. While the
//! trouble lasts it is said again, since the API server forgets Events after an hour; the node that
//! made an Event counts up its series.

mod schedule;
mod unenforced;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::metrics::{Metrics, Reported};
use schedule::{Due, Schedule};

pub use unenforced::watch as watch_unenforced;

/// Reports that wait to be looked at; more are left to the log.
const WAITING_MAX: usize = 256;

/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// The API's limit on an event's note, in bytes.
const NOTE_MAX: usize = 1024;

/// The API's limit on a name, less a dot and 16 hex digits.
const NAME_MAX: usize = 253 - 17;

/// Who reports, as the API wants it.
const CONTROLLER: &str = "selvage.dev/policy";

/// Which object is in trouble.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What tells it from a later one of that name.
    pub uid: String,
}

/// What kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A NetworkPolicy.
    NetworkPolicy,
    /// A pod.
    Pod,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Pod => "Pod",
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::Pod => "v1",
        }
    }

    /// What is wrong with such an object when something is.
    fn reason(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NotUnderstood",
            Self::Pod => "NotEnforced",
        }
    }
}

/// What is wrong with an object, all of it; nothing when all is well again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which object.
    pub subject: Subject,
    /// For people, one line each.
    pub problems: Vec<String>,
}

/// Takes reports; never waits.
#[derive(Debug, Clone)]
pub struct Reporter {
    queue: Sender<Report>,
    metrics: Arc<Metrics>,
}

/// Sends what a [`Reporter`] took.
#[derive(Debug)]
pub struct Reporting {
    queue: Receiver<Report>,
    node: String,
    metrics: Arc<Metrics>,
}

/// Both ends. `node` signs the Events.
#[must_use]
pub fn channel_of(node: String, metrics: Arc<Metrics>) -> (Reporter, Reporting) {
    let (sender, queue) = channel(WAITING_MAX);
    let reporter = Reporter {
        queue: sender,
        metrics: Arc::clone(&metrics),
    };
    let reporting = Reporting {
        queue,
        node,
        metrics,
    };
    (reporter, reporting)
}

impl Reporter {
    /// Reports an object. Saying the same twice changes nothing.
    pub fn report(&self, report: Report) {
        if self.queue.try_send(report).is_err() {
            self.metrics.event(Reported::LeftOut);
            debug!("too many reports are waiting: one is left to the log");
        }
    }
}

impl Reporting {
    /// Sends Events, one at a time, until told to stop or nobody reports any more.
    pub async fn run(mut self, client: Client, stop: CancellationToken) {
        let mut schedule = Schedule::default();
        loop {
            let wake = match schedule.due(Instant::now()) {
                Due::Now(event) => {
                    let outcome = self.send(&client, &event.0, event.1).await;
                    schedule.sent(&event.0, outcome, Instant::now());
                    self.metrics.event(outcome);
                    continue;
                }
                Due::At(when) => Some(when),
                Due::Never => None,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                report = self.queue.recv() => match report {
                    None => return,
                    Some(report) => if !schedule.note(report, Instant::now(), spread()) {
                        self.metrics.event(Reported::LeftOut);
                    }
                },
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
    }

    /// Makes the Event, or counts up the one that this node made before.
    async fn send(&self, client: &Client, report: &Report, said: u32) -> Reported {
        let events = Api::<Event>::namespaced(client.clone(), &report.subject.namespace);
        let now = Timestamp::now();
        let event = event(report, &self.node, now);
        let name = event.metadata.name.clone().unwrap_or_default();
        let sent = async {
            match events.create(&PostParams::default(), &event).await {
                Err(kube::Error::Api(status)) if status.code == 409 && said > 0 => {
                    let series = json!({"series": {
                        "count": said + 1,
                        "lastObservedTime": MicroTime(now),
                    }});
                    let patch = Patch::Merge(&series);
                    events
                        .patch(&name, &PatchParams::default(), &patch)
                        .await
                        .map(|_| Reported::Sent)
                }
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(Reported::Known),
                Err(error) => Err(error),
                Ok(_) => Ok(Reported::Sent),
            }
        };
        match timeout(DEADLINE, sent).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => {
                debug!(name, %error, "event not reported");
                Reported::Failed
            }
            Err(_) => {
                debug!(name, "event not reported in time");
                Reported::Failed
            }
        }
    }
}

/// A number between 0 and 1, another one each time.
fn spread() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    // A hasher is seeded at random; no more is needed here.
    f64::from(RandomState::new().hash_one(0_u8) as u32) / f64::from(u32::MAX)
}

fn event(report: &Report, node: &str, now: Timestamp) -> Event {
    let Report { subject, problems } = report;
    // Stable for a build of ours, which is enough: it only keeps nodes from repeating each other.
    let mut hasher = DefaultHasher::new();
    report.subject.hash(&mut hasher);
    problems.hash(&mut hasher);
    let begins: String = subject.name.chars().take(NAME_MAX).collect();
    let mut note = problems.join("\n");
    note.truncate(note.floor_char_boundary(NOTE_MAX));
    Event {
        action: Some("Deny".to_owned()),
        event_time: Some(MicroTime(now)),
        metadata: ObjectMeta {
            name: Some(format!("{begins}.{:016x}", hasher.finish())),
            namespace: Some(subject.namespace.clone()),
            ..ObjectMeta::default()
        },
        note: Some(note),
        reason: Some(subject.kind.reason().to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(subject.kind.api_version().to_owned()),
            kind: Some(subject.kind.as_str().to_owned()),
            name: Some(subject.name.clone()),
            namespace: Some(subject.namespace.clone()),
            uid: Some(subject.uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(node.to_owned()),
        type_: Some("Warning".to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(uid: &str, problem: &str) -> Report {
        Report {
            subject: Subject {
                kind: Kind::NetworkPolicy,
                namespace: "shop".to_owned(),
                name: "p".repeat(253),
                uid: uid.to_owned(),
            },
            problems: vec![problem.to_owned()],
        }
    }

    #[test]
    fn two_nodes_name_the_same_report_alike() {
        let name = |uid, problem, node| {
            let event = event(&report(uid, problem), node, Timestamp::now());
            event.metadata.name.unwrap()
        };
        assert_eq!(name("u1", "bad", "node-1"), name("u1", "bad", "node-2"));
        assert_ne!(name("u1", "bad", "node-1"), name("u1", "worse", "node-1"));
        assert_ne!(name("u1", "bad", "node-1"), name("u2", "bad", "node-1"));
        assert_eq!(name("u1", "bad", "node-1").len(), 253);
    }

    #[test]
    fn a_long_report_is_cut_to_what_the_api_takes() {
        let event = event(&report("u1", &"ü".repeat(1000)), "node-1", Timestamp::now());
        assert_eq!(event.note.unwrap().len(), NOTE_MAX);
    }
}
