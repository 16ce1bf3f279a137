//! Events straight from the API server: one watch for each resource, merged into one stream.
//!
//! A watch that breaks starts again with growing pauses; what it says meanwhile is that it is in
//! trouble, once for each change of reason. Nothing that one object holds can stop a watch.

mod client;
mod follow;
mod object;
mod page;
mod pauses;
mod salvage;
mod second;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures::StreamExt;
use kube::Client;
use kube::runtime::watcher;
use selvage_policy_core::api;
use selvage_policy_core::convert::{self, ProblemKind};
use selvage_policy_core::index::{self, Event};
use selvage_policy_core::model::{NamespaceName, PodKey, PodUid, Policy, PolicyKey, Pool};
use tokio::sync::mpsc::{Sender, error::SendError};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use client::{ClientError, client};

use crate::events::{self, Reporter};
use crate::metrics::Metrics;
use crate::source::{Doubts, Notice, Problem, Source};
use crate::status::Resource;
use follow::{Told, follow};
use object::{Object, Watched};
use pauses::Pauses;
use second::{Found, Second};

/// Objects asked for at once in a list. 250 pods are about 2.5 MB of JSON; one page is read while the next
/// one comes: the peak of our memory.
const PAGE: u32 = 250;

/// The API server, by watches of our own.
pub struct Direct {
    client: Client,
    node: String,
    reporter: Reporter,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").finish_non_exhaustive()
    }
}

impl Direct {
    /// Watches through this client, in the name of a node; what is wrong with a policy is told to
    /// `reporter`.
    #[must_use]
    pub fn new(client: Client, node: String, reporter: Reporter, metrics: Arc<Metrics>) -> Self {
        Self {
            client,
            node,
            reporter,
            metrics,
        }
    }
}

/// Never: an API server that is away, or that refuses, is asked again.
#[derive(Debug, thiserror::Error)]
pub enum DirectError {}

impl Source for Direct {
    type Error = DirectError;

    async fn run(
        self,
        notices: Sender<Notice>,
        doubts: Doubts,
        stop: CancellationToken,
    ) -> Result<(), DirectError> {
        let ours = format!("spec.nodeName={}", self.node);
        let pods = Pods {
            node: self.node,
            pool: Pool::default(),
        };
        let second = Second::new(self.client.clone(), ours, doubts);
        let policies = Policies {
            reporter: self.reporter,
            pool: Pool::default(),
            reported: BTreeMap::new(),
        };
        let watches = async {
            tokio::join!(
                watch(&self.client, &self.metrics, &notices, Namespaces, None),
                watch(&self.client, &self.metrics, &notices, pods, Some(second)),
                watch(&self.client, &self.metrics, &notices, policies, None),
            )
        };
        tokio::select! {
            () = stop.cancelled() => {}
            // All ended: nobody listens any more.
            _ = watches => {}
        }
        Ok(())
    }
}

/// What a resource's objects become.
trait Convert: Send {
    type Object: Watched;

    /// An object that exists.
    fn applied(&mut self, object: Object<Self::Object>) -> Option<Notice>;

    /// An object that is gone.
    fn deleted(&mut self, object: Object<Self::Object>) -> Event;

    /// Every object that exists will be applied from here.
    fn relist_started(&mut self) {}

    /// Every object that exists has been applied.
    fn relist_done(&mut self) {}

    /// The index's name of the resource.
    fn resource(&self) -> index::Resource;

    /// Whether an object that exists is this node's alone.
    fn is_ours(&self, _object: &Object<Self::Object>) -> bool {
        false
    }
}

struct Namespaces;

impl Convert for Namespaces {
    type Object = api::Namespace;

    fn applied(&mut self, object: Object<api::Namespace>) -> Option<Notice> {
        let namespace = convert::namespace(readable(object)?);
        Some(Event::NamespaceApplied(namespace).into())
    }

    fn deleted(&mut self, object: Object<api::Namespace>) -> Event {
        Event::NamespaceDeleted(NamespaceName::new(object.name()))
    }

    fn resource(&self) -> index::Resource {
        index::Resource::Namespaces
    }
}

struct Pods {
    node: String,
    /// What the pods of the cluster have alike.
    pool: Pool,
}

impl Convert for Pods {
    type Object = api::Pod;

    fn applied(&mut self, object: Object<api::Pod>) -> Option<Notice> {
        let pod = self.pool.share(convert::pod(readable(object)?));
        Some(Event::PodApplied(pod).into())
    }

    fn deleted(&mut self, object: Object<api::Pod>) -> Event {
        let key = PodKey {
            namespace: NamespaceName::new(object.namespace()),
            name: object.name().to_owned(),
        };
        Event::PodDeleted(key, PodUid::new(object.uid()))
    }

    fn resource(&self) -> index::Resource {
        index::Resource::Pods
    }

    fn is_ours(&self, object: &Object<api::Pod>) -> bool {
        let bound = |pod: &api::Pod| pod.spec.node_name.as_deref() == Some(&self.node);
        object.content.as_ref().is_ok_and(bound)
    }
}

struct Policies {
    reporter: Reporter,
    /// What the policies of the cluster have alike.
    pool: Pool,
    /// What was last said on each policy in trouble.
    reported: BTreeMap<PolicyKey, Said>,
}

/// What was said on a policy.
struct Said {
    report: events::Report,
    /// Whether the relist under way has shown it again.
    seen: bool,
}

impl Policies {
    /// Says what is wrong with a policy, or that nothing is any more; the same only once.
    fn say(&mut self, key: &PolicyKey, report: events::Report) {
        if report.problems.is_empty() {
            if self.reported.remove(key).is_some() {
                self.reporter.report(report);
            }
            return;
        }
        match self.reported.get(key) {
            Some(said) if said.report == report => {}
            Some(said) if said.report.subject != report.subject => {
                // Another policy of the same name.
                self.reporter.report(events::Report {
                    subject: said.report.subject.clone(),
                    problems: Vec::new(),
                });
                self.reporter.report(report.clone());
            }
            Some(_) | None => self.reporter.report(report.clone()),
        }
        self.reported
            .insert(key.clone(), Said { report, seen: true });
    }
}

/// A policy, as its Events name it.
fn subject(policy: &Object<api::NetworkPolicy>) -> events::Subject {
    events::Subject {
        kind: events::Kind::NetworkPolicy,
        namespace: policy.namespace().to_owned(),
        name: policy.name().to_owned(),
        uid: policy.uid().to_owned(),
    }
}

impl Convert for Policies {
    type Object = api::NetworkPolicy;

    fn applied(&mut self, object: Object<api::NetworkPolicy>) -> Option<Notice> {
        let subject = subject(&object);
        let (policy, problems) = policy(object);
        let report = events::Report {
            subject,
            problems: problems
                .iter()
                .map(|problem| problem.text.clone())
                .collect(),
        };
        self.say(&policy.key, report);
        Some(Notice {
            event: Event::PolicyApplied(self.pool.share_policy(policy)),
            problems,
            received: Instant::now(),
        })
    }

    fn deleted(&mut self, object: Object<api::NetworkPolicy>) -> Event {
        let key = PolicyKey {
            namespace: NamespaceName::new(object.namespace()),
            name: object.name().to_owned(),
        };
        let report = events::Report {
            subject: subject(&object),
            problems: Vec::new(),
        };
        self.say(&key, report);
        Event::PolicyDeleted(key)
    }

    fn relist_started(&mut self) {
        for said in self.reported.values_mut() {
            said.seen = false;
        }
    }

    fn relist_done(&mut self) {
        let gone = self.reported.extract_if(.., |_, said| !said.seen);
        for (_, Said { report, .. }) in gone {
            let subject = report.subject;
            self.reporter.report(events::Report {
                subject,
                problems: Vec::new(),
            });
        }
    }

    fn resource(&self) -> index::Resource {
        index::Resource::Policies
    }
}

/// The policy, as far as it can be read, and what is wrong with it.
fn policy(object: Object<api::NetworkPolicy>) -> (Policy, Vec<Problem>) {
    match object.content {
        Ok(policy) => {
            let (policy, problems) = convert::policy(&policy);
            (policy, problems.iter().map(Problem::from).collect())
        }
        Err(unreadable) => {
            let (salvaged, problem) = salvage::policy(&unreadable);
            let (policy, problems) = convert::policy(&salvaged);
            let unreadable = Problem {
                kind: ProblemKind::Unreadable,
                text: problem,
            };
            let others = problems.iter().map(Problem::from);
            (policy, std::iter::once(unreadable).chain(others).collect())
        }
    }
}

/// Bytes, read as an object of each kind as a watch does it: what `fuzz/` feeds.
///
/// *Panics*: when one object could stop a watch, or a policy that is not understood isolates nobody.
#[cfg(feature = "fuzzing")]
pub fn read_any(bytes: &[u8]) {
    use serde_json::value::RawValue;
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let is_json = serde_json::from_str::<&RawValue>(text).is_ok();
    let pod = serde_json::from_str::<Object<api::Pod>>(text);
    let namespace = serde_json::from_str::<Object<api::Namespace>>(text);
    let read = serde_json::from_str::<Object<api::NetworkPolicy>>(text);
    assert_eq!(is_json, pod.is_ok(), "a pod stops the watch");
    assert_eq!(is_json, namespace.is_ok(), "a namespace stops the watch");
    assert_eq!(is_json, read.is_ok(), "a policy stops the watch");
    let Ok(object) = read else { return };
    let unreadable = object.content.is_err();
    let name = object.name().to_owned();
    let (policy, problems) = policy(object);
    assert_eq!(policy.key.name, name);
    if unreadable {
        assert!(!problems.is_empty(), "nobody is told");
        assert!(
            policy.ingress.is_some() || policy.egress.is_some(),
            "what cannot be read isolates nobody"
        );
    }
}

/// The object, or nothing when its fields are not what the API says they are. A pod that is left
/// out stays closed: its interface is unknown, and it is nobody's peer.
fn readable<T: Watched>(object: Object<T>) -> Option<T> {
    match object.content {
        Ok(content) => Some(content),
        Err(unreadable) => {
            let head = &unreadable.head;
            warn!(
                kind = T::KIND,
                namespace = head.namespace.as_deref().unwrap_or_default(),
                name = head.name.as_deref().unwrap_or_default(),
                error = unreadable.error,
                "object left out"
            );
            None
        }
    }
}

async fn watch<C: Convert>(
    client: &Client,
    metrics: &Metrics,
    notices: &Sender<Notice>,
    mut convert: C,
    mut second: Option<Second<C::Object>>,
) -> Result<(), SendError<Notice>> {
    let resource = C::Object::RESOURCE;
    let begin = || follow::<C::Object>(client.clone(), PAGE);
    let mut stream = begin();
    let mut trouble = Trouble {
        resource,
        reason: None,
        metrics,
        pauses: Pauses::default(),
    };
    let mut read = Vec::new();
    loop {
        let next = tokio::select! {
            // What the watch has said counts before it is doubted.
            biased;
            next = stream.next() => next,
            found = found(&mut second) => {
                match found {
                    Found::New(objects) => {
                        let found = objects.len();
                        debug!(%resource, found, "a second look, beside the watch");
                        for notice in objects.into_iter().filter_map(|it| convert.applied(it)) {
                            notices.send(notice).await?;
                        }
                    }
                    Found::Nothing(error) => debug!(%resource, error, "second look"),
                    Found::Wedged => {
                        metrics.watch_error(resource);
                        warn!(%resource, "watch is wedged, though the server answers: beginning anew");
                        stream = begin();
                    }
                }
                continue;
            }
        };
        // The stream has no end.
        let Some(next) = next else { return Ok(()) };
        let told = match next {
            Ok(told) => told,
            Err(error) => {
                trouble.met(&error).await;
                continue;
            }
        };
        let notice = match told {
            Told::Begin => {
                if let Some(second) = &mut second {
                    second.relists();
                }
                convert.relist_started();
                Some(Event::RelistStarted(convert.resource()).into())
            }
            Told::Page(page) => {
                let whole = page.read(|object| {
                    count(metrics, &object);
                    if let Some(second) = &mut second {
                        second.told(&object, convert.is_ours(&object));
                    }
                    read.extend(convert.applied(object));
                });
                // Its memory is as good as the one that is on its way.
                drop(page);
                for notice in read.drain(..) {
                    notices.send(notice).await?;
                }
                match whole {
                    Ok(()) => trouble.ends(),
                    Err(error) => {
                        let error = kube::Error::SerdeError(error);
                        let error = watcher::Error::InitialListFailed(error);
                        trouble.met(&error).await;
                        stream = begin();
                    }
                }
                None
            }
            Told::Done => {
                convert.relist_done();
                trouble.is_over();
                Some(Event::RelistDone(convert.resource()).into())
            }
            Told::Applied(object) => {
                trouble.ends();
                count(metrics, &object);
                if let Some(second) = &mut second {
                    second.told(&object, convert.is_ours(&object));
                }
                convert.applied(object)
            }
            Told::Deleted(object) => {
                trouble.ends();
                metrics.watch_event(resource);
                if let Some(second) = &mut second {
                    second.told(&object, false);
                }
                Some(convert.deleted(object).into())
            }
        };
        if let Some(notice) = notice {
            notices.send(notice).await?;
        }
    }
}

/// What a second look finds; for ever if there is none.
async fn found<T: Watched>(second: &mut Option<Second<T>>) -> Found<T> {
    match second {
        Some(second) => second.found().await,
        None => std::future::pending().await,
    }
}

/// Counts what was heard of an object.
fn count<T: Watched>(metrics: &Metrics, object: &Object<T>) {
    metrics.watch_event(T::RESOURCE);
    if object.content.is_err() {
        metrics.watch_error(T::RESOURCE);
    }
}

/// Whether a watch is in trouble, so that a change of that is logged, and nothing else; and how long it
/// then waits.
struct Trouble<'a> {
    resource: Resource,
    reason: Option<String>,
    metrics: &'a Metrics,
    pauses: Pauses,
}

impl Trouble<'_> {
    /// Tells of an error, and waits before the next try.
    async fn met(&mut self, error: &watcher::Error) {
        self.metrics.watch_error(self.resource);
        if matches!(error, watcher::Error::WatchError(status) if status.code == 410) {
            // The server works, it only forgot what we saw last: a list heals that.
            self.pauses.forget();
        } else {
            self.begins(error);
        }
        sleep(self.pauses.next(Instant::now(), pauses::spread())).await;
    }

    fn begins(&mut self, error: &watcher::Error) {
        let reason = crate::error_chain(error);
        if self.reason.as_ref() == Some(&reason) {
            debug!(resource = %self.resource, %reason, "watch is still in trouble");
        } else {
            warn!(resource = %self.resource, %reason, "watch is in trouble: trying again");
            let watches = self.metrics.watches();
            watches.trouble(self.resource, Some(reason.clone()));
            self.reason = Some(reason);
        }
    }

    /// Something was heard.
    fn ends(&mut self) {
        if self.reason.take().is_some() {
            self.metrics.watches().trouble(self.resource, None);
            info!(resource = %self.resource, "watch works again");
        }
    }

    /// All was heard: the next error is a first one.
    fn is_over(&mut self) {
        self.ends();
        self.pauses.forget();
    }
}
