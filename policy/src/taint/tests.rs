//! Against an API server in memory that obeys the rules of JSON patches, with a paused clock.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, Response, StatusCode};
use kube::client::Body;
use serde_json::Value;
use tokio::time::Instant;

use super::*;

/// What happens to the node between our look and our write.
type Meanwhile = fn(&mut Vec<Value>);

/// One node, and what the server does instead of answering.
#[derive(Default)]
struct Server {
    /// `None`: the node is not registered.
    taints: Option<Vec<Value>>,
    /// Statuses of the next answers, before any is right.
    failures: VecDeque<u16>,
    /// For each write, before it is judged.
    meanwhile: VecDeque<Meanwhile>,
    /// Whether the next request gets no answer.
    silent: bool,
    /// Method and path, in order.
    requests: Vec<String>,
}

impl Server {
    fn with(taints: &[Value]) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            taints: Some(taints.to_vec()),
            ..Self::default()
        }))
    }

    fn answer(&mut self, method: &Method, body: &[u8]) -> (StatusCode, Value) {
        let failed = |code: u16, message: &str| {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                "message": message, "reason": "Test",
            });
            (StatusCode::from_u16(code).unwrap(), status)
        };
        if let Some(code) = self.failures.pop_front() {
            return failed(code, "as the test wants it");
        }
        let Some(taints) = &mut self.taints else {
            return failed(404, "nodes \"node-1\" not found");
        };
        if method == Method::PATCH {
            if let Some(change) = self.meanwhile.pop_front() {
                change(taints);
            }
            let steps: Vec<Value> = serde_json::from_slice(body).unwrap();
            match apply(taints.clone(), &steps) {
                Some(changed) => *taints = changed,
                None => return failed(422, "testing value failed"),
            }
        }
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
            "spec": {"taints": taints},
        });
        (StatusCode::OK, node)
    }
}

/// All steps or none.
fn apply(mut taints: Vec<Value>, steps: &[Value]) -> Option<Vec<Value>> {
    for step in steps {
        let path = step["path"].as_str()?.strip_prefix("/spec/taints/")?;
        match step["op"].as_str()? {
            "test" => {
                let place: usize = path.strip_suffix("/key")?.parse().ok()?;
                if taints.get(place)?["key"] != step["value"] {
                    return None;
                }
            }
            "remove" => {
                let place: usize = path.parse().ok()?;
                taints.get(place)?;
                taints.remove(place);
            }
            other => panic!("{other}"),
        }
    }
    Some(taints)
}

fn client(server: &Arc<Mutex<Server>>) -> Client {
    let server = Arc::clone(server);
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = Arc::clone(&server);
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let silent = {
                let mut server = server.lock().unwrap();
                let path = parts.uri.path();
                server.requests.push(format!("{} {path}", parts.method));
                std::mem::take(&mut server.silent)
            };
            if silent {
                std::future::pending::<()>().await;
            }
            let (code, answer) = server.lock().unwrap().answer(&parts.method, &body);
            let body = Full::new(Bytes::from(answer.to_string()));
            let response = Response::builder().status(code).body(body).unwrap();
            Ok::<_, Infallible>(response)
        }
    });
    Client::new(service, "default")
}

fn taint(key: &str, effect: &str) -> Value {
    json!({"key": key, "effect": effect})
}

/// Runs it against a server; tells how it ended and how long it took, by the paused clock.
async fn run(server: &Arc<Mutex<Server>>) -> (Removal, Duration) {
    let start = Instant::now();
    let removing = remove(client(server), "node-1", CancellationToken::new());
    let ended = timeout(Duration::from_secs(3600), removing).await;
    (ended.expect("it ends within the hour"), start.elapsed())
}

fn left(server: &Arc<Mutex<Server>>) -> Vec<Value> {
    server.lock().unwrap().taints.clone().unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_taint_goes_whatever_its_effect_and_every_other_stays() {
    let others = [
        taint("node.kubernetes.io/not-ready", "NoExecute"),
        taint("dedicated", "NoSchedule"),
    ];
    let all = [
        taint(TAINT, "NoSchedule"),
        others[0].clone(),
        taint(TAINT, "NoExecute"),
        others[1].clone(),
    ];
    let server = Server::with(&all);
    assert_eq!(run(&server).await, (Removal::Removed, Duration::ZERO));
    assert_eq!(left(&server), others);
    let requests = server.lock().unwrap().requests.clone();
    assert_eq!(
        requests,
        ["GET /api/v1/nodes/node-1", "PATCH /api/v1/nodes/node-1"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_without_the_taint_is_not_written_to() {
    for taints in [vec![], vec![taint("dedicated", "NoSchedule")]] {
        let server = Server::with(&taints);
        assert_eq!(run(&server).await.0, Removal::Absent);
        assert_eq!(left(&server), taints);
        assert_eq!(server.lock().unwrap().requests.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_taint_that_comes_or_goes_between_look_and_write_is_not_lost_with_ours() {
    let server = Server::with(&[taint("first", "NoSchedule"), taint(TAINT, "NoSchedule")]);
    server.lock().unwrap().meanwhile = VecDeque::from([
        // Ours moves to another's place, and another comes to ours.
        (|taints: &mut Vec<Value>| taints.insert(0, taint("new", "NoSchedule"))) as Meanwhile,
        |taints| {
            taints.remove(0);
        },
    ]);
    let (ended, _) = run(&server).await;
    assert_eq!(ended, Removal::Removed);
    assert_eq!(left(&server), [taint("first", "NoSchedule")]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_or_is_silent_is_asked_again_after_growing_pauses() {
    let server = Server::with(&[taint(TAINT, "NoSchedule")]);
    server.lock().unwrap().failures = [403, 500, 429, 503, 403, 403, 403, 403].into();
    server.lock().unwrap().silent = true;
    let (ended, took) = run(&server).await;
    assert_eq!(ended, Removal::Removed);
    let pauses: u64 = [1, 2, 4, 8, 16, 32, 60, 60, 60].iter().sum();
    assert_eq!(took.as_secs(), DEADLINE.as_secs() + pauses, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_not_registered_yet_is_waited_for() {
    let server = Arc::new(Mutex::new(Server::default()));
    let running = tokio::spawn({
        let server = Arc::clone(&server);
        async move { run(&server).await }
    });
    tokio::time::sleep(Duration::from_secs(100)).await;
    server.lock().unwrap().taints = Some(vec![taint(TAINT, "NoSchedule")]);
    assert_eq!(running.await.unwrap().0, Removal::Removed);
    assert!(left(&server).is_empty());
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_it_is_told_to_whatever_it_waits_for() {
    for silent in [true, false] {
        let server = Arc::new(Mutex::new(Server {
            silent,
            ..Server::default()
        }));
        let stop = CancellationToken::new();
        let running = tokio::spawn(remove(client(&server), "node-1", stop.clone()));
        tokio::time::sleep(Duration::from_millis(500)).await;
        stop.cancel();
        let stopped = Instant::now();
        assert_eq!(running.await.unwrap(), Removal::Stopped, "{silent}");
        assert_eq!(stopped.elapsed(), Duration::ZERO, "{silent}");
    }
}
