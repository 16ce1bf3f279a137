//! Kubernetes Events on the node, for what a person should see in `kubectl describe node`.
//!
//! ```text
//! daemon -> Events::warn -> bounded queue -> one task -> API server
//! ```
//!
//! Addressing never waits for this: the queue drops what it cannot hold, and an API server that is absent costs a log
//! line.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use selvage_ipamd::chain::chain;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::client::REQUEST;

/// More than this at once is one trouble told many times.
const QUEUE: usize = 32;
/// The same trouble is told again after this long.
const AGAIN: Duration = Duration::from_secs(60);
/// One trouble.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Note {
    /// One word in CamelCase.
    reason: &'static str,
    /// What was being done, `ec2:CreateNetworkInterface`.
    action: String,
    /// What happened, for people.
    note: String,
}

/// Where the daemon leaves what should become an Event. Cheap to clone; the task ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Note>,
}

impl Events {
    /// Starts the task that writes Events about the node `node`.
    pub fn start(client: Client, node: String) -> (Self, JoinHandle<()>) {
        let (queue, notes) = mpsc::channel(QUEUE);
        (Self { queue }, tokio::spawn(write(client, node, notes)))
    }

    /// Takes Events, and writes none.
    pub(crate) fn discard() -> (Self, JoinHandle<()>) {
        let (queue, _) = mpsc::channel(1);
        (Self { queue }, tokio::spawn(async {}))
    }

    /// Takes a trouble, if it can.
    pub(crate) fn warn(&self, reason: &'static str, action: String, note: String) {
        let note = Note {
            reason,
            action,
            note,
        };
        if let Err(error) = self.queue.try_send(note) {
            debug!(%error, "event dropped");
        }
    }
}

async fn write(client: Client, node: String, mut notes: mpsc::Receiver<Note>) {
    let reporter = Reporter {
        controller: "selvage-ipamd".to_owned(),
        instance: Some(node.clone()),
    };
    let recorder = Recorder::new(client, reporter);
    let mut told = Told::default();
    while let Some(note) = notes.recv().await {
        if !told.is_news(&note, Instant::now()) {
            continue;
        }
        let event = Event {
            type_: EventType::Warning,
            reason: note.reason.to_owned(),
            note: Some(note.note.clone()),
            action: note.action.clone(),
            secondary: None,
        };
        let failure = match timeout(REQUEST, recorder.publish(&event, &about(&node))).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("no answer within {REQUEST:?}"),
        };
        warn!(reason = note.reason, error = failure, "event not written");
        told.forget(&note);
    }
}

/// The node as the kubelet refers to it in its own events: by name, in the place of the uid too, which is how
/// `kubectl describe node` finds them.
fn about(node: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        uid: Some(node.to_owned()),
        ..ObjectReference::default()
    }
}

/// What was told, and when: a trouble that lasts is retried for hours. Bounded by the number of reasons and actions.
#[derive(Default)]
struct Told {
    last: BTreeMap<(&'static str, String), (Instant, String)>,
}

impl Told {
    /// Whether it is worth an Event: other words than the last time, or the same a while later.
    fn is_news(&mut self, note: &Note, now: Instant) -> bool {
        let key = (note.reason, note.action.clone());
        if let Some((at, words)) = self.last.get(&key)
            && *words == note.note
            && now.duration_since(*at) < AGAIN
        {
            return false;
        }
        self.last.insert(key, (now, note.note.clone()));
        true
    }

    /// It could not be told: it is news the next time.
    fn forget(&mut self, note: &Note) {
        self.last.remove(&(note.reason, note.action.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_trouble_is_told_once_a_minute_and_a_new_one_at_once() {
        let note = |words: &str| Note {
            reason: "CallRefused",
            action: "ec2:CreateNetworkInterface".to_owned(),
            note: words.to_owned(),
        };
        let start = Instant::now();
        let mut told = Told::default();
        for (after, words, news) in [
            (0, "no permission", true),
            (10, "no permission", false),
            (20, "no free address", true),
            (30, "no free address", false),
            (81, "no free address", true),
        ] {
            let now = start + Duration::from_secs(after);
            assert_eq!(told.is_news(&note(words), now), news, "{after} s: {words}");
        }
        let late = start + Duration::from_secs(82);
        told.forget(&note("no free address"));
        assert!(
            told.is_news(&note("no free address"), late),
            "what could not be written is news again"
        );
    }
}
