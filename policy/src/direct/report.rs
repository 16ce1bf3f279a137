//! Says on a policy itself that it was not understood, by an event in its namespace.
//!
//! Every node would say the same. The event's name is made from the policy and the problems, so
//! that the first one makes it and the others find it there.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::timeout;
use tracing::debug;

/// Reports that wait for the API server; more are left to the log.
const WAITING_MAX: usize = 64;

/// How long one report may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// The API's limit on an event's note, in bytes.
const NOTE_MAX: usize = 1024;

/// The API's limit on a name, less a dot and 16 hex digits.
const NAME_MAX: usize = 253 - 17;

/// Takes reports; never waits.
pub(super) struct Reporter {
    queue: Sender<(String, Event)>,
    node: String,
}

/// Sends what a [`Reporter`] took.
pub(super) struct Reporting {
    client: Client,
    queue: Receiver<(String, Event)>,
}

impl Reporter {
    pub(super) fn new(client: Client, node: String) -> (Self, Reporting) {
        let (sender, receiver) = channel(WAITING_MAX);
        let reporting = Reporting {
            client,
            queue: receiver,
        };
        let reporter = Self {
            queue: sender,
            node,
        };
        (reporter, reporting)
    }

    pub(super) fn report(&self, policy: ObjectReference, problems: &[String]) {
        let Some(namespace) = policy.namespace.clone() else {
            return;
        };
        let event = event(policy, problems, &self.node, Timestamp::now());
        if self.queue.try_send((namespace, event)).is_err() {
            debug!("too many reports are waiting: one is left to the log");
        }
    }
}

impl Reporting {
    /// Sends reports one by one until nobody makes any.
    pub(super) async fn run(mut self) {
        while let Some((namespace, event)) = self.queue.recv().await {
            let events = Api::<Event>::namespaced(self.client.clone(), &namespace);
            let name = event.metadata.name.clone().unwrap_or_default();
            match timeout(DEADLINE, events.create(&PostParams::default(), &event)).await {
                Ok(Ok(_)) => {}
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                    debug!(name, "another node reported it");
                }
                Ok(Err(error)) => debug!(name, %error, "event not reported"),
                Err(_) => debug!(name, "event not reported in time"),
            }
        }
    }
}

fn event(policy: ObjectReference, problems: &[String], node: &str, now: Timestamp) -> Event {
    // Stable for a build of ours, which is enough: it only keeps nodes from repeating each other.
    let mut hasher = DefaultHasher::new();
    policy.uid.hash(&mut hasher);
    problems.hash(&mut hasher);
    let policy_name: String = policy
        .name
        .iter()
        .flat_map(|name| name.chars())
        .take(NAME_MAX)
        .collect();
    let mut note = problems.join("\n");
    note.truncate(note.floor_char_boundary(NOTE_MAX));
    Event {
        action: Some("Deny".to_owned()),
        event_time: Some(MicroTime(now)),
        metadata: ObjectMeta {
            name: Some(format!("{policy_name}.{:016x}", hasher.finish())),
            namespace: policy.namespace.clone(),
            ..ObjectMeta::default()
        },
        note: Some(note),
        reason: Some("NotUnderstood".to_owned()),
        regarding: Some(policy),
        reporting_controller: Some("selvage.dev/policy".to_owned()),
        reporting_instance: Some(node.to_owned()),
        type_: Some("Warning".to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(uid: &str) -> ObjectReference {
        ObjectReference {
            name: Some("p".repeat(253)),
            namespace: Some("shop".to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        }
    }

    #[test]
    fn two_nodes_name_the_same_report_alike() {
        let name = |uid, problem: &str, node| {
            let event = event(policy(uid), &[problem.to_owned()], node, Timestamp::now());
            event.metadata.name.unwrap()
        };
        assert_eq!(name("u1", "bad", "node-1"), name("u1", "bad", "node-2"));
        assert_ne!(name("u1", "bad", "node-1"), name("u1", "worse", "node-1"));
        assert_ne!(name("u1", "bad", "node-1"), name("u2", "bad", "node-1"));
        assert_eq!(name("u1", "bad", "node-1").len(), 253);
    }

    #[test]
    fn a_long_report_is_cut_to_what_the_api_takes() {
        let event = event(
            policy("u1"),
            &["ü".repeat(1000)],
            "node-1",
            Timestamp::now(),
        );
        assert_eq!(event.note.unwrap().len(), NOTE_MAX);
    }
}
