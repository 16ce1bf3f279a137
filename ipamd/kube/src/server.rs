//! An API server in memory, for tests: objects by path, versions that grow, watches, one switch that turns it off.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use futures::channel::mpsc;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tower::service_fn;

type Answer = hyper::Response<UnsyncBoxBody<Bytes, Infallible>>;

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    requests: Vec<String>,
    refuse: Option<u16>,
    silent: bool,
    watches: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
}

/// The server. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Server(Arc<Mutex<State>>);

impl Server {
    pub(crate) fn client(&self) -> Client {
        let server = self.clone();
        let service = service_fn(move |request: hyper::Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// Makes or changes an object, `/api/v1/nodes/node-1`.
    pub(crate) fn set(&self, path: &str, object: Value) {
        self.0.lock().unwrap().set(path, object);
    }

    pub(crate) fn remove(&self, path: &str) {
        let mut state = self.0.lock().unwrap();
        if let Some(object) = state.objects.remove(path) {
            state.tell(path, "DELETED", &object);
        }
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().unwrap().objects.get(path).cloned()
    }

    /// Every request is refused with this code, and every watch ends.
    pub(crate) fn refuse(&self, code: Option<u16>) {
        let mut state = self.0.lock().unwrap();
        state.refuse = code;
        state.watches.clear();
    }

    /// No request is answered.
    pub(crate) fn silence(&self, silent: bool) {
        self.0.lock().unwrap().silent = silent;
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.0.lock().unwrap().requests.clone()
    }

    async fn answer(&self, request: hyper::Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let silent = {
            let mut state = self.0.lock().unwrap();
            state
                .requests
                .push(format!("{} {}", parts.method, parts.uri));
            state.silent
        };
        if silent {
            std::future::pending::<()>().await;
        }
        let mut state = self.0.lock().unwrap();
        let query = parts.uri.query().unwrap_or_default();
        let path = parts.uri.path().to_owned();
        if let Some(code) = state.refuse {
            return refusal(code);
        }
        match parts.method.as_str() {
            "GET" if query.contains("watch=true") => state.watch(&path, query),
            "GET" if query.contains("fieldSelector") => state.list(&path, query),
            "GET" if query.contains("limit=") => state.pages(&path, query),
            "GET" => match state.objects.get(&path) {
                Some(object) => whole(200, object),
                None => refusal(404),
            },
            "POST" => {
                let object: Value = serde_json::from_slice(&body).unwrap();
                let path = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
                match state.objects.contains_key(&path) {
                    true => refusal(409),
                    false => whole(201, &state.set(&path, object)),
                }
            }
            "PUT" => {
                let object: Value = serde_json::from_slice(&body).unwrap();
                match state.objects.get(&path) {
                    None => refusal(404),
                    Some(there) if version(there) != version(&object) => refusal(409),
                    Some(_) => whole(200, &state.set(&path, object)),
                }
            }
            "PATCH" => {
                let Some(there) = state.objects.get(&path).cloned() else {
                    return refusal(404);
                };
                match patched(there, &serde_json::from_slice(&body).unwrap()) {
                    Some(object) => whole(200, &state.set(&path, object)),
                    None => refusal(422),
                }
            }
            other => panic!("{other} {path}"),
        }
    }
}

impl State {
    fn set(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        let known = self.objects.contains_key(path);
        let name = path.rsplit('/').next().unwrap();
        object["metadata"]["name"] = json!(name);
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        self.tell(path, if known { "MODIFIED" } else { "ADDED" }, &object);
        object
    }

    fn tell(&mut self, path: &str, kind: &str, object: &Value) {
        let line = event(kind, object);
        let told = self.watches.iter().filter(|(of, _)| of == path);
        for (_, watch) in told {
            let _ = watch.unbounded_send(line.clone());
        }
    }

    fn list(&self, path: &str, query: &str) -> Answer {
        let items: Vec<&Value> = self
            .objects
            .get(&selected(path, query))
            .into_iter()
            .collect();
        let version = self.version.to_string();
        let list = json!({
            "apiVersion": "v1", "kind": "List",
            "metadata": {"resourceVersion": version}, "items": items,
        });
        whole(200, &list)
    }

    /// All objects of a kind, three on a page.
    fn pages(&self, path: &str, query: &str) -> Answer {
        let start = match query.split_once("continue=") {
            Some((_, rest)) => rest.split('&').next().unwrap().parse().unwrap(),
            None => 0,
        };
        let inside = format!("{path}/");
        let all = self.objects.iter().filter(|(p, _)| p.starts_with(&inside));
        let items: Vec<&Value> = all.map(|(_, object)| object).collect();
        let end = items.len().min(start + 3);
        let next = if end < items.len() {
            end.to_string()
        } else {
            String::new()
        };
        let list = json!({
            "apiVersion": "v1", "kind": "List",
            "metadata": {"resourceVersion": "1", "continue": next}, "items": items[start..end],
        });
        whole(200, &list)
    }

    fn watch(&mut self, path: &str, query: &str) -> Answer {
        let (sender, lines) = mpsc::unbounded();
        let path = selected(path, query);
        // What has changed since the client last heard of it comes first.
        let (_, heard) = query.split_once("resourceVersion=").unwrap();
        let heard: u64 = heard.split('&').next().unwrap().parse().unwrap();
        let news = self
            .objects
            .get(&path)
            .filter(|object| version(object) > heard);
        if let Some(object) = news {
            let _ = sender.unbounded_send(event("MODIFIED", object));
        }
        self.watches.push((path, sender));
        let frames = lines.map(|line| Ok(Frame::data(line)));
        hyper::Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

fn event(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": kind, "object": object})))
}

fn version(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str().unwrap();
    text.parse().unwrap()
}

/// The one object that a field selector names.
fn selected(path: &str, query: &str) -> String {
    let (_, rest) = query.split_once("metadata.name%3D").unwrap();
    let name = rest.split('&').next().unwrap();
    format!("{path}/{name}")
}

/// A merge patch or a JSON patch of `test` and `replace`, as far as annotations need them.
fn patched(mut object: Value, patch: &Value) -> Option<Value> {
    let Some(steps) = patch.as_array() else {
        let new = patch["metadata"]["annotations"].as_object().unwrap();
        for (key, value) in new {
            object["metadata"]["annotations"][key] = value.clone();
        }
        return Some(object);
    };
    for step in steps {
        let place = object.pointer_mut(step["path"].as_str().unwrap())?;
        match step["op"].as_str().unwrap() {
            "test" if *place == step["value"] => {}
            "test" => return None,
            "replace" => *place = step["value"].clone(),
            other => panic!("{other}"),
        }
    }
    Some(object)
}

fn whole(code: u16, body: &Value) -> Answer {
    let bytes = Bytes::from(body.to_string());
    let frames = stream::iter([Ok(Frame::data(bytes))]);
    let mut answer = hyper::Response::new(StreamBody::new(frames).boxed_unsync());
    *answer.status_mut() = hyper::StatusCode::from_u16(code).unwrap();
    answer
}

fn refusal(code: u16) -> Answer {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "Refused",
    };
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure",
        "code": code, "reason": reason, "message": format!("refused with {code}"),
    });
    whole(code, &status)
}
