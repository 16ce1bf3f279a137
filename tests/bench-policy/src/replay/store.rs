//! The objects, what happened to them, and who was told when.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::sync::watch;

/// Changes of one kind that a watch can still begin from; older ones answer 410.
const HISTORY_MAX: usize = 200_000;

/// Moments that nobody has asked for yet.
const MOMENTS_MAX: usize = 100_000;

/// What is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `/api/v1/pods`.
    Pods,
    /// `/api/v1/namespaces`.
    Namespaces,
    /// `/apis/networking.k8s.io/v1/networkpolicies`.
    Policies,
}

impl Kind {
    /// The kind that a path's last word names.
    pub(super) fn of(plural: &str) -> Option<Self> {
        Some(match plural {
            "pods" => Self::Pods,
            "namespaces" => Self::Namespaces,
            "networkpolicies" => Self::Policies,
            _ => return None,
        })
    }

    /// Group and version, and the kind of a list.
    pub(super) fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Pods => ("v1", "Pod"),
            Self::Namespaces => ("v1", "Namespace"),
            Self::Policies => ("networking.k8s.io/v1", "NetworkPolicy"),
        }
    }
}

/// An object as JSON.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its namespace; empty for a namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node that a pod is bound to, for field selectors.
    pub node: Option<String>,
    /// All of it. `"resourceVersion":"@"` gets the version when it is stored.
    pub json: String,
}

/// A change that was made.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    version: u64,
    watchers: usize,
}

/// Namespace and name.
type Key = (String, String);

#[derive(Debug, Clone)]
pub(super) struct Stored {
    node: Option<Arc<str>>,
    json: Arc<str>,
}

/// One event of a watch.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) version: u64,
    node: Option<Arc<str>>,
    /// The whole line, its end included.
    pub(super) line: Arc<str>,
    /// Whether somebody waits to hear when it was written.
    pub(super) stamped: bool,
}

#[derive(Debug, Default)]
struct Shelf {
    objects: BTreeMap<Key, Stored>,
    history: VecDeque<Change>,
    /// Versions up to this one are forgotten.
    forgotten: u64,
    /// Watches that count, by the node they are for.
    watches: BTreeMap<u64, Option<String>>,
}

impl Shelf {
    fn watchers(&self, node: Option<&str>) -> usize {
        self.watches
            .values()
            .filter(|wanted| matches(wanted.as_deref(), node))
            .count()
    }
}

#[derive(Debug, Default)]
struct Inner {
    version: u64,
    watch: u64,
    shelves: [Shelf; 3],
}

/// Objects of all kinds.
#[derive(Debug)]
pub struct Store {
    inner: Mutex<Inner>,
    newest: watch::Sender<u64>,
    moments: Arc<Moments>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            newest: watch::Sender::new(0),
            moments: Arc::default(),
        }
    }
}

/// When which version was written, by each watch that has it.
#[derive(Debug, Default)]
pub(super) struct Moments {
    written: Mutex<BTreeMap<u64, Vec<Instant>>>,
    more: Condvar,
}

impl Moments {
    pub(super) fn wrote(&self, version: u64, when: Instant) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.entry(version).or_default().push(when);
        if written.len() > MOMENTS_MAX {
            written.pop_first();
        }
        drop(written);
        self.more.notify_all();
    }
}

fn matches(wanted: Option<&str>, node: Option<&str>) -> bool {
    wanted.is_none() || wanted == node
}

/// One page of a list.
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) items: Vec<Arc<str>>,
    pub(super) next: Option<Key>,
}

impl Store {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts many objects in before anybody watches.
    pub fn fill(&self, objects: impl Iterator<Item = (Kind, Object)>) {
        let mut inner = self.inner();
        for (kind, object) in objects {
            inner.version += 1;
            let (key, stored) = store(object, inner.version);
            inner.shelves[kind as usize].objects.insert(key, stored);
        }
        let version = inner.version;
        for shelf in &mut inner.shelves {
            shelf.forgotten = version.saturating_sub(1);
        }
        drop(inner);
        self.newest.send_replace(version);
    }

    /// Creates or changes an object.
    pub fn put(&self, kind: Kind, object: Object) -> Ticket {
        self.change(kind, object, true)
    }

    /// [`Store::put`], and nobody will ask when it was written.
    pub fn put_unstamped(&self, kind: Kind, object: Object) -> Ticket {
        self.change(kind, object, false)
    }

    fn change(&self, kind: Kind, object: Object, stamped: bool) -> Ticket {
        let mut inner = self.inner();
        inner.version += 1;
        let version = inner.version;
        let (key, stored) = store(object, version);
        let shelf = &mut inner.shelves[kind as usize];
        let event = if shelf.objects.insert(key, stored.clone()).is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        self.tell(inner, kind, event, stored, stamped)
    }

    /// Deletes an object.
    ///
    /// *Errors*: there is none.
    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) -> Result<Ticket> {
        self.remove(kind, namespace, name, true)
    }

    /// [`Store::delete`], and nobody will ask when it was written.
    ///
    /// *Errors*: there is none.
    pub fn delete_unstamped(&self, kind: Kind, namespace: &str, name: &str) -> Result<Ticket> {
        self.remove(kind, namespace, name, false)
    }

    fn remove(&self, kind: Kind, namespace: &str, name: &str, stamped: bool) -> Result<Ticket> {
        let mut inner = self.inner();
        let key = (namespace.to_owned(), name.to_owned());
        let stored = inner.shelves[kind as usize]
            .objects
            .remove(&key)
            .with_context(|| format!("delete {kind:?} {namespace}/{name}: there is none"))?;
        inner.version += 1;
        Ok(self.tell(inner, kind, "DELETED", stored, stamped))
    }

    fn tell(
        &self,
        mut inner: MutexGuard<'_, Inner>,
        kind: Kind,
        event: &str,
        stored: Stored,
        stamped: bool,
    ) -> Ticket {
        let version = inner.version;
        let shelf = &mut inner.shelves[kind as usize];
        let watchers = shelf.watchers(stored.node.as_deref());
        let line = format!("{{\"type\":\"{event}\",\"object\":{}}}\n", stored.json);
        shelf.history.push_back(Change {
            version,
            node: stored.node,
            line: line.into(),
            stamped,
        });
        if shelf.history.len() > HISTORY_MAX
            && let Some(old) = shelf.history.pop_front()
        {
            shelf.forgotten = old.version;
        }
        drop(inner);
        self.newest.send_replace(version);
        Ticket { version, watchers }
    }

    /// When the change had been written to the last of the watches that were open for it.
    ///
    /// *Errors*: nobody watched, or it was not written in time.
    pub fn written(&self, ticket: Ticket, patience: Duration) -> Result<Instant> {
        ensure!(ticket.watchers > 0, "nobody watches: nothing to measure");
        let written = self
            .moments
            .written
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (mut written, _) = self
            .moments
            .more
            .wait_timeout_while(written, patience, |written| {
                written.get(&ticket.version).map_or(0, Vec::len) < ticket.watchers
            })
            .unwrap_or_else(PoisonError::into_inner);
        let when = written.remove(&ticket.version).unwrap_or_default();
        ensure!(
            when.len() >= ticket.watchers,
            "version {} was not written within {patience:?}",
            ticket.version
        );
        when.into_iter().max().context("somebody watched")
    }

    pub(super) fn moments(&self) -> Arc<Moments> {
        Arc::clone(&self.moments)
    }

    pub(super) fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    pub(super) fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<str>> {
        let key = (namespace.to_owned(), name.to_owned());
        let inner = self.inner();
        let found = inner.shelves[kind as usize].objects.get(&key)?;
        Some(Arc::clone(&found.json))
    }

    pub(super) fn page(
        &self,
        kind: Kind,
        node: Option<&str>,
        after: Option<Key>,
        limit: usize,
    ) -> Page {
        let inner = self.inner();
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found = inner.shelves[kind as usize]
            .objects
            .range((start, Bound::Unbounded))
            .filter(|(_, stored)| matches(node, stored.node.as_deref()));
        let mut last = None;
        let items: Vec<Arc<str>> = found
            .by_ref()
            .take(limit)
            .map(|(key, stored)| {
                last = Some(key.clone());
                Arc::clone(&stored.json)
            })
            .collect();
        let next = last.filter(|_| found.next().is_some());
        Page {
            version: inner.version,
            items,
            next,
        }
    }

    /// Changes after a version; `None` when that is forgotten.
    pub(super) fn since(
        &self,
        kind: Kind,
        node: Option<&str>,
        version: u64,
    ) -> Option<(u64, Vec<Change>)> {
        let inner = self.inner();
        let shelf = &inner.shelves[kind as usize];
        if version < shelf.forgotten {
            return None;
        }
        let first = shelf
            .history
            .partition_point(|change| change.version <= version);
        let changes = shelf
            .history
            .range(first..)
            .filter(|change| matches(node, change.node.as_deref()))
            .cloned()
            .collect();
        Some((inner.version.max(version), changes))
    }

    pub(super) fn watch_begins(&self, kind: Kind, node: Option<String>) -> u64 {
        let mut inner = self.inner();
        inner.watch += 1;
        let number = inner.watch;
        inner.shelves[kind as usize].watches.insert(number, node);
        number
    }

    pub(super) fn watch_ends(&self, kind: Kind, number: u64) {
        self.inner().shelves[kind as usize].watches.remove(&number);
    }
}

fn store(object: Object, version: u64) -> (Key, Stored) {
    let json = object.json.replacen(
        "\"resourceVersion\":\"@\"",
        &format!("\"resourceVersion\":\"{version}\""),
        1,
    );
    let stored = Stored {
        node: object.node.map(Into::into),
        json: json.into(),
    };
    ((object.namespace, object.name), stored)
}
