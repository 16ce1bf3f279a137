//! A pod's address in its annotation `vpc.amazonaws.com/pod-ips`, which Calico reads earlier than the pod's status.
//!
//! ```text
//!  ADD ── write ──> one task ──> API server
//!        └ answered after a second at the latest; what failed is tried again, the newest word for each pod
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use selvage_ipamd::chain::chain;
use selvage_ipamd_core::ids::PodName;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

use crate::client::REQUEST;

/// AWS's key.
pub const ANNOTATION: &str = "vpc.amazonaws.com/pod-ips";
/// How long an ADD waits.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries of what failed.
const AGAIN: Duration = Duration::from_secs(5);
/// Tries of one annotation; then the pod has other troubles.
const TRIES: u32 = 60;
/// Words that wait to be read.
const QUEUE: usize = 256;
/// Pods whose annotation could not be written; a node has a few hundred.
const LATE: usize = 1024;

/// What an annotation should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// This address.
    Write(IpAddr),
    /// Nothing, if it is this address.
    Clear(IpAddr),
}

struct Order {
    pod: PodName,
    word: Word,
    done: Option<oneshot::Sender<()>>,
}

/// Where annotations are ordered. Cheap to clone; the task ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Annotations {
    orders: mpsc::Sender<Order>,
}

impl Annotations {
    /// Starts the task that writes them.
    pub fn start(client: Client) -> Self {
        let (orders, inbox) = mpsc::channel(QUEUE);
        tokio::spawn(Writer::new(client).run(inbox));
        Self { orders }
    }

    /// Writes an address. Comes back when it is written, and after a second anyway.
    pub async fn write(&self, pod: &PodName, address: IpAddr) {
        let (done, written) = oneshot::channel();
        self.order(pod, Word::Write(address), Some(done));
        if timeout(PATIENCE, written).await.is_err() {
            debug!(%pod, %address, "not annotated yet");
        }
    }

    /// Empties the annotation if it holds `address`.
    pub fn clear(&self, pod: &PodName, address: IpAddr) {
        self.order(pod, Word::Clear(address), None);
    }

    fn order(&self, pod: &PodName, word: Word, done: Option<oneshot::Sender<()>>) {
        if pod.name.is_empty() {
            return;
        }
        let pod = pod.clone();
        if let Err(error) = self.orders.try_send(Order { pod, word, done }) {
            warn!(%error, "annotation dropped");
        }
    }
}

/// What could not be written.
struct Late {
    word: Word,
    tries: u32,
}

struct Writer {
    client: Client,
    late: BTreeMap<PodName, Late>,
    next: Instant,
}

impl Writer {
    fn new(client: Client) -> Self {
        Self {
            client,
            late: BTreeMap::new(),
            next: Instant::now(),
        }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Order>) {
        loop {
            tokio::select! {
                order = inbox.recv() => match order {
                    Some(order) => self.take(order).await,
                    None => return,
                },
                () = sleep_until(self.next), if !self.late.is_empty() => self.again().await,
            }
        }
    }

    async fn take(&mut self, Order { pod, word, done }: Order) {
        let late = Late { word, tries: 0 };
        if self.late.is_empty() {
            self.attempt(pod, late).await;
        } else {
            // The server does not work; and the newest word holds, whatever was before.
            self.late.insert(pod, late);
        }
        if let Some(done) = done {
            // Whoever waited may have gone on.
            let _ = done.send(());
        }
    }

    /// One of those that are late, at once after the one before unless that failed too.
    async fn again(&mut self) {
        if let Some((pod, late)) = self.late.pop_first() {
            self.attempt(pod, late).await;
        }
    }

    async fn attempt(&mut self, pod: PodName, late: Late) {
        let Err(error) = self.patch(&pod, late.word).await else {
            return;
        };
        let tries = late.tries + 1;
        if tries == 1 || tries == TRIES {
            warn!(%pod, annotation = ?late.word, error, tries, "pod not annotated");
        }
        if tries < TRIES && self.late.len() < LATE {
            self.next = Instant::now() + AGAIN;
            let word = late.word;
            self.late.insert(pod, Late { word, tries });
        }
    }

    async fn patch(&self, pod: &PodName, word: Word) -> Result<(), String> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        let params = PatchParams::default();
        let answer = match word {
            Word::Write(address) => {
                let text = address.to_string();
                let patch = json!({"metadata": {"annotations": {ANNOTATION: text}}});
                let patch = Patch::Merge(patch);
                timeout(REQUEST, api.patch_metadata(&pod.name, &params, &patch)).await
            }
            Word::Clear(address) => {
                let path = format!("/metadata/annotations/{}", ANNOTATION.replace('/', "~1"));
                let steps = json!([
                    {"op": "test", "path": path, "value": address.to_string()},
                    {"op": "replace", "path": path, "value": ""},
                ]);
                let steps = serde_json::from_value(steps).map_err(|e| e.to_string())?;
                let patch = Patch::<()>::Json(steps);
                timeout(REQUEST, api.patch_metadata(&pod.name, &params, &patch)).await
            }
        };
        match answer {
            Ok(Ok(_)) => Ok(()),
            // The pod has gone; or its annotation is another pod's of the same name by now.
            Ok(Err(kube::Error::Api(status))) if [404, 422].contains(&status.code) => Ok(()),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("no answer within {REQUEST:?}")),
        }
    }
}

#[cfg(test)]
mod tests;
