//! When each watch last gave a sign of life, and what is wrong with it.
//!
//! A cluster where nothing happens and a connection that died without a word look alike from the
//! events. They differ in bytes: the API server sends a bookmark each minute on a quiet watch. So a
//! sign of life is any piece of the body of a list or watch, seen below whoever reads it by
//! [`Listening`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use http_body_util::combinators::MapFrame;
use hyper::body::{Body, Frame};
use hyper::{Request, Response};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::status::Resource;

/// What is known of every watch, shared by those who hear and those who ask.
#[derive(Debug)]
pub struct Watches {
    started: Instant,
    states: Mutex<BTreeMap<Resource, State>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    heard: Option<Instant>,
    in_sync: bool,
    trouble: Option<String>,
}

/// One watch at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WatchReport {
    /// What is watched.
    pub resource: Resource,
    /// Whether it has delivered everything once.
    pub in_sync: bool,
    /// Seconds since it last gave a sign of life, or since the start.
    pub age_seconds: f64,
    /// Why the last try failed, while none has succeeded since.
    pub trouble: Option<String>,
}

impl Default for Watches {
    fn default() -> Self {
        let states = Resource::ALL.map(|resource| (resource, State::default()));
        Self {
            started: Instant::now(),
            states: Mutex::new(states.into()),
        }
    }
}

impl Watches {
    /// Notes a sign of life.
    pub fn heard(&self, resource: Resource) {
        self.change(resource, |state| state.heard = Some(Instant::now()));
    }

    /// Notes that it has delivered everything once.
    pub fn synced(&self, resource: Resource) {
        self.change(resource, |state| state.in_sync = true);
    }

    /// Notes what is wrong with it, or that nothing is any more.
    pub fn trouble(&self, resource: Resource, reason: Option<String>) {
        self.change(resource, |state| state.trouble = reason);
    }

    /// Time since the last sign of life, or since the start when there was none.
    #[must_use]
    pub fn age(&self, resource: Resource, now: Instant) -> Duration {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        self.since(states.get(&resource), now)
    }

    fn since(&self, state: Option<&State>, now: Instant) -> Duration {
        let heard = state.and_then(|state| state.heard);
        now.saturating_duration_since(heard.unwrap_or(self.started))
    }

    /// All of them, in order.
    #[must_use]
    pub fn report(&self, now: Instant) -> Vec<WatchReport> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states
            .iter()
            .map(|(resource, state)| WatchReport {
                resource: *resource,
                in_sync: state.in_sync,
                age_seconds: self.since(Some(state), now).as_secs_f64(),
                trouble: state.trouble.clone(),
            })
            .collect()
    }

    fn change(&self, resource: Resource, change: impl FnOnce(&mut State)) {
        // Nothing that holds it can panic halfway.
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        change(states.entry(resource).or_default());
    }
}

/// A layer around an API client's service that notes the signs of life.
#[derive(Debug, Clone)]
pub struct Listening {
    watches: Arc<Watches>,
}

impl Listening {
    /// Notes them here.
    #[must_use]
    pub fn new(watches: Arc<Watches>) -> Self {
        Self { watches }
    }
}

impl<S> Layer<S> for Listening {
    type Service = Listener<S>;

    fn layer(&self, inner: S) -> Listener<S> {
        Listener {
            inner,
            watches: Arc::clone(&self.watches),
        }
    }
}

/// What [`Listening`] makes of a service.
#[derive(Debug, Clone)]
pub struct Listener<S> {
    inner: S,
    watches: Arc<Watches>,
}

/// A body that is listened to.
type Heard<B> = MapFrame<B, Ear<<B as Body>::Data>>;

/// Sees each piece of a body pass.
type Ear<D> = Box<dyn FnMut(Frame<D>) -> Frame<D> + Send>;

impl<S, A, B> Service<Request<A>> for Listener<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: Body,
    B::Data: 'static,
{
    type Response = Response<Heard<B>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let resource = watched(request.uri().path());
        let watches = Arc::clone(&self.watches);
        self.inner
            .call(request)
            .map(move |answer| {
                answer.map(|response| {
                    let heard = response.status().is_success();
                    response.map(|body| {
                        let ear: Ear<B::Data> = Box::new(move |frame| {
                            if let Some(resource) = resource.filter(|_| heard) {
                                watches.heard(resource);
                            }
                            frame
                        });
                        body.map_frame(ear)
                    })
                })
            })
            .boxed()
    }
}

/// Which resource a path of the API lists or watches.
fn watched(path: &str) -> Option<Resource> {
    let last = path.rsplit('/').next()?;
    Resource::ALL
        .into_iter()
        .find(|resource| resource.as_str() == last)
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use hyper::StatusCode;
    use hyper::body::Bytes;
    use tower::service_fn;

    use super::*;

    async fn ask(watches: &Arc<Watches>, path: &str, status: StatusCode) {
        let server = service_fn(move |_: Request<()>| {
            let mut response = Response::new(Full::new(Bytes::from_static(b"{}")));
            *response.status_mut() = status;
            std::future::ready(Ok::<_, std::convert::Infallible>(response))
        });
        let request = Request::builder().uri(path).body(()).unwrap();
        let service = Listening::new(Arc::clone(watches)).layer(server);
        let response = tower::ServiceExt::oneshot(service, request).await.unwrap();
        response.into_body().collect().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_is_as_old_as_the_last_piece_of_its_body() {
        let watches = Arc::new(Watches::default());
        tokio::time::advance(Duration::from_secs(3)).await;
        ask(&watches, "/api/v1/pods?watch=true", StatusCode::OK).await;
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(
            watches.age(Resource::Pods, Instant::now()),
            Duration::from_secs(7)
        );
        let report = watches.report(Instant::now());
        let ages: Vec<_> = report
            .iter()
            .map(|it| (it.resource, it.age_seconds))
            .collect();
        assert_eq!(
            ages,
            [
                (Resource::Namespaces, 10.0),
                (Resource::Pods, 7.0),
                (Resource::NetworkPolicies, 10.0)
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_no_sign_of_life() {
        let watches = Arc::new(Watches::default());
        tokio::time::advance(Duration::from_secs(3)).await;
        ask(&watches, "/api/v1/pods", StatusCode::FORBIDDEN).await;
        ask(
            &watches,
            "/apis/events.k8s.io/v1/namespaces/a/events",
            StatusCode::CREATED,
        )
        .await;
        assert!(
            watches
                .report(Instant::now())
                .iter()
                .all(|watch| watch.age_seconds >= 3.0)
        );
    }
}
