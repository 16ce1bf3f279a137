//! A second look at this node's objects, beside the watch: when something is there that the watch
//! has not told of.
//!
//! ```text
//!   doubt ─> list of this node's objects ─> those that are new are told at once
//!                                           └─ and the watch owes them: late ─> it is wedged
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kube::Client;
use kube::api::ListParams;
use tokio::time::{Instant, sleep_until, timeout};

use super::follow;
use super::object::{Object, Watched};
use crate::source::Doubts;

/// How long the list may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Between two lists.
const GAP: Duration = Duration::from_secs(1);

/// How late the watch may be with what the list had.
const LATE: Duration = Duration::from_secs(5);

/// What comes of a second look.
pub(super) enum Found<T> {
    /// Objects that the watch has not told of.
    New(Vec<Object<T>>),
    /// The list failed: the watch is in trouble as well, or will be.
    Nothing(String),
    /// The watch still owes what the list had.
    Wedged,
}

/// Which object, and which of that name.
type Known = (String, String, String);

fn known<T: Watched>(object: &Object<T>) -> Known {
    let text = |text: &str| text.to_owned();
    (
        text(object.namespace()),
        text(object.name()),
        text(object.uid()),
    )
}

type Answer<T> = Result<Vec<Object<T>>, String>;

/// The state of second looks for one watch.
pub(super) struct Second<T: Watched> {
    client: Client,
    fields: String,
    doubts: Doubts,
    asking: Option<BoxFuture<'static, Answer<T>>>,
    not_before: Instant,
    /// This node's objects that the watch has told of.
    told: BTreeSet<Known>,
    /// What the watch said since the list was asked for: the list may be older.
    meanwhile: BTreeSet<Known>,
    owed: BTreeSet<Known>,
    owed_until: Instant,
}

impl<T: Watched> Second<T> {
    pub(super) fn new(client: Client, fields: String, doubts: Doubts) -> Self {
        let now = Instant::now();
        Self {
            client,
            fields,
            doubts,
            asking: None,
            not_before: now,
            told: BTreeSet::new(),
            meanwhile: BTreeSet::new(),
            owed: BTreeSet::new(),
            owed_until: now,
        }
    }

    /// The watch begins anew, and will tell everything.
    pub(super) fn relists(&mut self) {
        self.told.clear();
        self.owed.clear();
    }

    /// The watch told of an object; `is_ours`: it is there, and this node's.
    pub(super) fn told(&mut self, object: &Object<T>, is_ours: bool) {
        let object = known(object);
        self.owed.remove(&object);
        if self.asking.is_some() {
            self.meanwhile.insert(object.clone());
        }
        if is_ours {
            self.told.insert(object);
        } else {
            self.told.remove(&object);
        }
    }

    /// Waits for a doubt, its answer, or the end of patience. May be dropped and called again.
    pub(super) async fn found(&mut self) -> Found<T> {
        loop {
            let owed_until = self.owed_until;
            let is_owed = !self.owed.is_empty();
            let is_asking = self.asking.is_some();
            let not_before = self.not_before;
            tokio::select! {
                answer = answered(&mut self.asking) => {
                    self.asking = None;
                    return match answer {
                        Ok(list) => Found::New(self.news(list)),
                        Err(error) => Found::Nothing(error),
                    };
                }
                () = sleep_until(owed_until), if is_owed => {
                    self.owed.clear();
                    return Found::Wedged;
                }
                () = doubted(&self.doubts, not_before), if !is_asking => self.ask(),
            }
        }
    }

    fn ask(&mut self) {
        self.meanwhile.clear();
        self.not_before = Instant::now() + GAP;
        let client = self.client.clone();
        let fields = ListParams::default().fields(&self.fields);
        let asking = async move {
            let page = match timeout(DEADLINE, follow::list::<T>(&client, &fields)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) => return Err(crate::error_chain(&error)),
                Err(_) => return Err(format!("no answer within {DEADLINE:?}")),
            };
            let mut objects = Vec::new();
            let read = page.read(|object| objects.push(object));
            read.map_err(|error| error.to_string()).map(|()| objects)
        };
        self.asking = Some(asking.boxed());
    }

    fn news(&mut self, list: Vec<Object<T>>) -> Vec<Object<T>> {
        let new: Vec<Object<T>> = list
            .into_iter()
            .filter(|object| {
                let object = known(object);
                !self.told.contains(&object) && !self.meanwhile.contains(&object)
            })
            .collect();
        if !new.is_empty() {
            self.owed.extend(new.iter().map(known));
            self.owed_until = Instant::now() + LATE;
        }
        new
    }
}

/// The answer to a list under way; for ever if there is none.
async fn answered<T>(asking: &mut Option<BoxFuture<'static, Answer<T>>>) -> Answer<T>
where
    T: Watched,
{
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

/// A doubt, once another list may be asked for. One that is raised while that is waited for is not
/// lost: it is taken up afterwards.
async fn doubted(doubts: &Doubts, not_before: Instant) {
    sleep_until(not_before).await;
    doubts.raised().await;
}
