//! All objects of one resource: listed page by page, then watched; from the beginning again when the
//! server has forgotten where we were.
//!
//! ```text
//!            ┌─ the next page is asked for ─┐
//!   page ────┴─> its objects are read ──────┴─> page ... ─> watch ─> events
//!    ▲                                                        │ 410
//!    └────────────────────────────────────────────────────────┘
//! ```
//!
//! kube's own watcher does the same, one thing after the other, and copies a page three times.

use std::time::Duration;

use futures::stream::BoxStream;
use futures::{AsyncBufReadExt, StreamExt};
use kube::Client;
use kube::api::{ListParams, Request, WatchEvent, WatchParams};
use kube::runtime::watcher::Error;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::client::WATCH_SECONDS;
use super::object::{Object, Watched};
use super::page::{Page, Place};

/// How much later than it was asked to a watch may end before its connection counts as dead.
const OVERDUE: Duration = Duration::from_secs(5);

/// What is told of a resource.
pub(super) enum Told<T> {
    /// All objects that exist follow.
    Begin,
    /// Some of them.
    Page(Page),
    /// Those were all.
    Done,
    /// An object that is new or has changed.
    Applied(Object<T>),
    /// An object that is gone.
    Deleted(Object<T>),
}

type Asked = AbortOnDropHandle<kube::Result<Page>>;
type Events<T> = BoxStream<'static, kube::Result<WatchEvent<Object<T>>>>;

enum State<T> {
    Begin,
    /// A page is on its way.
    Asked(Asked),
    /// All pages were told.
    Listed(String),
    /// A watch is to begin behind this version.
    Known(String),
    Watching(String, Events<T>),
}

/// Follows a resource, without end. After an error it goes on where it makes sense to.
pub(super) fn follow<T: Watched>(
    client: Client,
    page_size: u32,
) -> BoxStream<'static, Result<Told<T>, Error>> {
    let follower = Follower { client, page_size };
    futures::stream::unfold(
        (follower, State::Begin),
        |(follower, mut state)| async move {
            loop {
                let (told, next) = follower.step(state).await;
                if let Some(told) = told {
                    return Some((told, (follower, next)));
                }
                state = next;
            }
        },
    )
    .boxed()
}

/// One page of a list.
///
/// *Errors*: the server's, and those of reaching it.
pub(super) async fn list<T: Watched>(client: &Client, params: &ListParams) -> kube::Result<Page> {
    let request = Request::new(T::PATH).list(params);
    let request = request.map_err(kube::Error::BuildRequest)?;
    let mut body = client.request_stream(request).await?;
    let mut bytes = Vec::new();
    loop {
        let piece = body.fill_buf().await.map_err(kube::Error::ReadEvents)?;
        if piece.is_empty() {
            return Page::new(bytes).map_err(kube::Error::SerdeError);
        }
        bytes.extend_from_slice(piece);
        let length = piece.len();
        body.consume_unpin(length);
    }
}

struct Follower {
    client: Client,
    page_size: u32,
}

type Step<T> = (Option<Result<Told<T>, Error>>, State<T>);

impl Follower {
    async fn step<T: Watched>(&self, state: State<T>) -> Step<T> {
        match state {
            State::Begin => (Some(Ok(Told::Begin)), State::Asked(self.ask::<T>(None))),
            State::Asked(asked) => match joined(asked).await {
                Ok(page) => {
                    let next = match page.place() {
                        Place::More(token) => State::Asked(self.ask::<T>(Some(token.clone()))),
                        Place::Last(version) => State::Listed(version.clone()),
                        Place::Nowhere => {
                            return (Some(Err(Error::NoResourceVersion)), State::Begin);
                        }
                    };
                    (Some(Ok(Told::Page(page))), next)
                }
                Err(error) => (Some(Err(Error::InitialListFailed(error))), State::Begin),
            },
            State::Listed(version) => (Some(Ok(Told::Done)), State::Known(version)),
            State::Known(version) => match self.watch(&version).await {
                Ok(events) => (None, State::Watching(version, events)),
                Err(error) => (
                    Some(Err(Error::WatchStartFailed(error))),
                    State::Known(version),
                ),
            },
            State::Watching(version, events) => watched(version, events).await,
        }
    }

    /// Asks for a page, beside whatever else is done.
    fn ask<T: Watched>(&self, after: Option<String>) -> Asked {
        let client = self.client.clone();
        let params = ListParams {
            limit: Some(self.page_size),
            continue_token: after,
            ..ListParams::default()
        };
        AbortOnDropHandle::new(tokio::spawn(
            async move { list::<T>(&client, &params).await },
        ))
    }

    async fn watch<T: Watched>(&self, version: &str) -> kube::Result<Events<T>> {
        let params = WatchParams::default().timeout(WATCH_SECONDS);
        let request = Request::new(T::PATH).watch(&params, version);
        let request = request.map_err(kube::Error::BuildRequest)?;
        let events = self.client.request_events::<Object<T>>(request).await?;
        Ok(events.boxed())
    }
}

async fn joined(asked: Asked) -> kube::Result<Page> {
    asked.await.unwrap_or_else(|lost| {
        let lost = std::io::Error::other(lost);
        Err(kube::Error::ReadEvents(lost))
    })
}

async fn watched<T: Watched>(version: String, mut events: Events<T>) -> Step<T> {
    let patience = Duration::from_secs(WATCH_SECONDS.into()) + OVERDUE;
    let Ok(event) = timeout(patience, events.next()).await else {
        debug!(resource = %T::RESOURCE, "nothing was heard for longer than a watch lasts");
        return (None, State::Known(version));
    };
    let (told, version) = match event {
        // It has lasted as long as it should, or the connection is closed.
        None => return (None, State::Known(version)),
        Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
            let version = object.version().to_owned();
            (Told::Applied(object), version)
        }
        Some(Ok(WatchEvent::Deleted(object))) => {
            let version = object.version().to_owned();
            (Told::Deleted(object), version)
        }
        Some(Ok(WatchEvent::Bookmark(bookmark))) => {
            let version = bookmark.metadata.resource_version;
            return (None, State::Watching(version, events));
        }
        Some(Ok(WatchEvent::Error(status))) => {
            let next = if status.code == 410 {
                State::Begin
            } else {
                State::Watching(version, events)
            };
            return (Some(Err(Error::WatchError(status.boxed()))), next);
        }
        Some(Err(error)) => {
            let error = Error::WatchFailed(error);
            return (Some(Err(error)), State::Watching(version, events));
        }
    };
    if version.is_empty() {
        return (Some(Err(Error::NoResourceVersion)), State::Begin);
    }
    (Some(Ok(told)), State::Watching(version, events))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use http_body_util::{BodyExt, Full, StreamBody};
    use hyper::body::{Bytes, Frame};
    use hyper::{Request as HttpRequest, Response};
    use kube::client::Body;
    use selvage_policy_core::api;
    use tokio::time::Instant;
    use tower::service_fn;

    use super::*;

    /// Answers in order, and remembers what was asked for. An empty answer never ends.
    #[derive(Clone, Default)]
    struct Server {
        answers: Arc<Mutex<VecDeque<(u16, String)>>>,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        fn answering<const N: usize>(answers: [(u16, String); N]) -> Self {
            let server = Self::default();
            server.answers.lock().unwrap().extend(answers);
            server
        }

        fn client(&self) -> Client {
            let server = self.clone();
            let answer = service_fn(move |request: HttpRequest<Body>| {
                let uri = request.uri().to_string();
                server.asked.lock().unwrap().push(uri);
                let next = server.answers.lock().unwrap().pop_front();
                async move {
                    let Some((status, text)) = next else {
                        return std::future::pending().await;
                    };
                    let body = if text.is_empty() {
                        let nothing =
                            futures::stream::pending::<Result<Frame<Bytes>, Infallible>>();
                        BodyExt::boxed(StreamBody::new(nothing))
                    } else {
                        Full::new(Bytes::from(text)).boxed()
                    };
                    let mut response = Response::new(body);
                    *response.status_mut() = status.try_into().unwrap();
                    Ok::<_, Infallible>(response)
                }
            });
            Client::new(answer, "default")
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap().clone()
        }
    }

    fn object(name: &str, version: u32) -> String {
        format!(r#"{{"metadata": {{"name": "{name}", "resourceVersion": "{version}"}}}}"#)
    }

    fn page(token: &str, names: &[&str]) -> (u16, String) {
        let items: Vec<String> = names.iter().map(|name| object(name, 1)).collect();
        let items = items.join(",");
        let text = format!(
            r#"{{"metadata": {{"resourceVersion": "7", "continue": "{token}"}}, "items": [{items}]}}"#
        );
        (200, text)
    }

    fn event(kind: &str, object: &str) -> (u16, String) {
        (
            200,
            format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"),
        )
    }

    fn status(code: u16) -> String {
        format!(
            r#"{{"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "no", "code": {code}}}"#
        )
    }

    type Following = BoxStream<'static, Result<Told<api::Namespace>, Error>>;

    fn following(server: &Server) -> Following {
        follow(server.client(), 2)
    }

    /// What is told, in words.
    async fn hear(following: &mut Following) -> String {
        match following.next().await.unwrap() {
            Ok(Told::Begin) => "begin".to_owned(),
            Ok(Told::Page(page)) => {
                let mut names = Vec::new();
                page.read(|object: Object<api::Namespace>| names.push(object.name().to_owned()))
                    .unwrap();
                names.join(" ")
            }
            Ok(Told::Done) => "done".to_owned(),
            Ok(Told::Applied(object)) => format!("+{}", object.name()),
            Ok(Told::Deleted(object)) => format!("-{}", object.name()),
            Err(error) => crate::error_chain(&error),
        }
    }

    async fn hear_all<const N: usize>(following: &mut Following, want: [&str; N]) {
        for want in want {
            assert_eq!(hear(following).await, want);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_pages_are_told_and_then_what_happens() {
        let server = Server::answering([
            page("p2", &["a", "b"]),
            page("", &["c"]),
            event("ADDED", &object("d", 8)),
            event("DELETED", &object("a", 9)),
        ]);
        let mut following = following(&server);
        hear_all(&mut following, ["begin", "a b", "c", "done", "+d", "-a"]).await;
        let list = "/api/v1/namespaces?&limit=2";
        let watch = "/api/v1/namespaces?&watch=true&timeoutSeconds=120&allowWatchBookmarks=true&resourceVersion=";
        assert_eq!(
            server.asked(),
            [
                list.to_owned(),
                format!("{list}&continue=p2"),
                format!("{watch}7"),
                // Where the last one ended.
                format!("{watch}8"),
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_page_is_asked_for_before_one_is_read() {
        let server = Server::answering([page("p2", &["a"]), page("", &["b"])]);
        let mut following = following(&server);
        hear_all(&mut following, ["begin"]).await;
        let Some(Ok(Told::Page(page))) = following.next().await else {
            panic!("a page")
        };
        // Nobody listens, and yet it comes.
        while server.asked().len() < 2 {
            tokio::task::yield_now().await;
        }
        drop(page);
        hear_all(&mut following, ["b", "done"]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_server_has_forgotten_is_listed_anew() {
        let server = Server::answering([
            page("", &["a"]),
            event("ERROR", &status(410)),
            page("p2", &["a"]),
            (410, status(410)),
            page("", &["b"]),
        ]);
        let mut following = following(&server);
        hear_all(&mut following, ["begin", "a", "done"]).await;
        let gone = following.next().await.unwrap();
        assert!(matches!(gone, Err(Error::WatchError(status)) if status.code == 410));
        hear_all(&mut following, ["begin", "a"]).await;
        let expired = following.next().await.unwrap();
        assert!(matches!(expired, Err(Error::InitialListFailed(_))));
        hear_all(&mut following, ["begin", "b", "done"]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_fails_goes_on_where_it_was() {
        let server = Server::answering([
            page("", &["a"]),
            (500, status(500)),
            event("ERROR", &status(500)),
            event(
                "BOOKMARK",
                r#"{"kind": "Namespace", "apiVersion": "v1", "metadata": {"resourceVersion": "17"}}"#,
            ),
            event("MODIFIED", &object("a", 18)),
        ]);
        let mut following = following(&server);
        hear_all(&mut following, ["begin", "a", "done"]).await;
        let refused = following.next().await.unwrap();
        assert!(matches!(refused, Err(Error::WatchStartFailed(_))));
        let failed = following.next().await.unwrap();
        assert!(matches!(failed, Err(Error::WatchError(status)) if status.code == 500));
        hear_all(&mut following, ["+a"]).await;
        let asked = server.asked();
        let versions: Vec<_> = asked
            .iter()
            .filter_map(|uri| uri.split_once("resourceVersion="))
            .map(|(_, version)| version)
            .collect();
        assert_eq!(versions, ["7", "7", "7", "17"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_without_a_word_is_begun_again() {
        let silence = (200, String::new());
        let server =
            Server::answering([page("", &["a"]), silence, event("ADDED", &object("b", 8))]);
        let mut following = following(&server);
        hear_all(&mut following, ["begin", "a", "done"]).await;
        let begun = Instant::now();
        hear_all(&mut following, ["+b"]).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(125));
        assert_eq!(server.asked().len(), 3);
    }
}
