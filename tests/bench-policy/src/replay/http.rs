//! The few requests that an agent makes.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::BARE;
use super::store::{Change, Kind, Moments, Store};
use super::wire::Wire;

/// How long a watch lasts when the client does not say.
const WATCH: Duration = Duration::from_secs(300);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Answers one request.
pub(super) async fn answer(
    store: &Arc<Store>,
    wire: &Arc<Wire>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().trim_matches('/').to_owned();
    let query = query(request.uri().query().unwrap_or_default());
    let bare = request
        .headers()
        .get("user-agent")
        .is_some_and(|agent| agent == BARE);
    let method = request.method().clone();
    // A request's body is read, so that the connection can be used again, and given back: that is
    // what a write answers.
    let given = request.into_body().collect().await;
    if method != Method::GET {
        let bytes = given
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        return Ok(whole(StatusCode::CREATED, bytes));
    }
    let words: Vec<&str> = path.split('/').collect();
    Ok(match resource(&words) {
        Some(Asked::All(kind)) if query.contains_key("watch") => {
            watching(store, wire, kind, &query, bare)
        }
        Some(Asked::All(kind)) => list(store, kind, &query),
        Some(Asked::One(kind, namespace, name)) => match store.get(kind, namespace, name) {
            Some(json) => whole(StatusCode::OK, Bytes::from(json.to_string())),
            None => missing(),
        },
        None => missing(),
    })
}

enum Asked<'a> {
    All(Kind),
    One(Kind, &'a str, &'a str),
}

fn resource<'a>(words: &[&'a str]) -> Option<Asked<'a>> {
    let rest = match words {
        ["api", "v1", rest @ ..] | ["apis", "networking.k8s.io", "v1", rest @ ..] => rest,
        _ => return None,
    };
    match rest {
        [plural] => Kind::of(plural).map(Asked::All),
        ["namespaces", name] => Some(Asked::One(Kind::Namespaces, "", name)),
        ["namespaces", namespace, plural, name] => {
            Kind::of(plural).map(|kind| Asked::One(kind, namespace, name))
        }
        _ => None,
    }
}

fn query(text: &str) -> BTreeMap<String, String> {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), decoded(value).into_owned()))
        .filter(|(name, value)| !(name == "watch" && value != "true" && value != "1"))
        .collect()
}

/// Percent signs undone; what is no byte stays as it is.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

/// The node that a field selector names.
fn node(query: &BTreeMap<String, String>) -> Option<String> {
    let selector = query.get("fieldSelector")?;
    selector.split(',').find_map(|term| {
        let (field, value) = term.split_once('=')?;
        (field == "spec.nodeName").then(|| value.trim_start_matches('=').to_owned())
    })
}

fn whole(status: StatusCode, bytes: Bytes) -> Response<Body> {
    let body = Full::new(bytes).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", json);
    response
}

fn status(code: u16, reason: &str) -> serde_json::Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code})
}

fn missing() -> Response<Body> {
    let text = status(404, "NotFound").to_string();
    whole(StatusCode::NOT_FOUND, text.into())
}

fn list(store: &Store, kind: Kind, query: &BTreeMap<String, String>) -> Response<Body> {
    let number = |name: &str| query.get(name).and_then(|text| text.parse::<usize>().ok());
    let limit = number("limit").filter(|&limit| limit > 0);
    let after = query
        .get("continue")
        .and_then(|token| token.split_once('/'))
        .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    let page = store.page(
        kind,
        node(query).as_deref(),
        after,
        limit.unwrap_or(usize::MAX),
    );
    let (version, name) = kind.words();
    let mut metadata = json!({"resourceVersion": page.version.to_string()});
    if let Some((namespace, name)) = page.next {
        metadata["continue"] = json!(format!("{namespace}/{name}"));
    }
    let mut text = format!(
        "{{\"kind\":\"{name}List\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},\"items\":["
    );
    text.reserve(page.items.iter().map(|item| item.len() + 1).sum());
    for (at, item) in page.items.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(item);
    }
    text.push_str("]}");
    whole(StatusCode::OK, text.into())
}

/// A watch under way.
struct Watching {
    store: Arc<Store>,
    wire: Arc<Wire>,
    moments: Arc<Moments>,
    newest: watch::Receiver<u64>,
    kind: Kind,
    node: Option<String>,
    /// All up to here has been seen.
    version: u64,
    waiting: VecDeque<Change>,
    ends: Instant,
    /// Present when it counts; its place among the open watches.
    number: Option<u64>,
    over: bool,
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.store.watch_ends(self.kind, number);
        }
    }
}

impl Watching {
    /// The next line, or `None` at the end.
    async fn line(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        loop {
            if let Some(change) = self.waiting.pop_front() {
                if self.number.is_some() && change.stamped {
                    self.wire.given(change.version, Arc::clone(&self.moments));
                }
                return Some(Bytes::copy_from_slice(change.line.as_bytes()));
            }
            let newest = *self.newest.borrow_and_update();
            if newest <= self.version {
                match timeout_at(self.ends, self.newest.changed()).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(_)) | Err(_) => return None,
                }
            }
            let Some((version, changes)) =
                self.store
                    .since(self.kind, self.node.as_deref(), self.version)
            else {
                self.over = true;
                let gone = json!({"type": "ERROR", "object": status(410, "Expired")});
                return Some(format!("{gone}\n").into());
            };
            self.version = version;
            self.waiting = changes.into();
        }
    }
}

fn watching(
    store: &Arc<Store>,
    wire: &Arc<Wire>,
    kind: Kind,
    query: &BTreeMap<String, String>,
    bare: bool,
) -> Response<Body> {
    let number = |name: &str| query.get(name).and_then(|text| text.parse::<u64>().ok());
    let node = node(query);
    let watching = Watching {
        wire: Arc::clone(wire),
        moments: store.moments(),
        newest: store.newest(),
        kind,
        version: number("resourceVersion").unwrap_or(0),
        waiting: VecDeque::new(),
        ends: Instant::now() + number("timeoutSeconds").map_or(WATCH, Duration::from_secs),
        number: (!bare).then(|| store.watch_begins(kind, node.clone())),
        node,
        over: false,
        store: Arc::clone(store),
    };
    let lines = stream::unfold(watching, |mut watching| async move {
        let line = watching.line().await?;
        Some((Ok::<_, Infallible>(Frame::data(line)), watching))
    });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_continue_token_and_a_field_selector_survive_the_url() {
        let query =
            query("limit=500&continue=ns-001%2Fpod-1&fieldSelector=spec.nodeName%3Dn1&watch=false");
        assert_eq!(query["continue"], "ns-001/pod-1");
        assert_eq!(node(&query).as_deref(), Some("n1"));
        assert!(!query.contains_key("watch"));
        assert_eq!(decoded("100%"), "100%");
    }
}
