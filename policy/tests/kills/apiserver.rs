//! An API server for one agent: lists, watches and events over plain HTTP, and outages.
//!
//! Knows nothing but three resources and how a list and a watch look; objects are the test's own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// How long anything blocks without looking whether to stop.
const TICK: Duration = Duration::from_millis(20);

/// Where a kind's objects are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    Pod,
    NetworkPolicy,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Namespace, Self::Pod, Self::NetworkPolicy];

    fn path(self) -> &'static str {
        match self {
            Self::Namespace => "/api/v1/namespaces",
            Self::Pod => "/api/v1/pods",
            Self::NetworkPolicy => "/apis/networking.k8s.io/v1/networkpolicies",
        }
    }
}

/// Serves until dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    serving: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<(Kind, String), Value>,
    /// Every event since the beginning: version, kind, type and object.
    log: Vec<(u64, Kind, &'static str, Value)>,
    connections: Vec<TcpStream>,
    away: bool,
    silent: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a connection, to close it when going away; not when gone already.
    fn keep(&self, stream: &TcpStream) -> bool {
        let mut state = self.state();
        let copy = stream.try_clone();
        let kept = !state.away && copy.is_ok();
        state.connections.extend(copy);
        kept
    }
}

impl State {
    fn record(&mut self, kind: Kind, what: &'static str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.log.push((self.version, kind, what, object.clone()));
        object
    }
}

fn key(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

impl ApiServer {
    /// Listens on a port of loopback.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let serving = Some(serve(listener, Arc::clone(&shared))?);
        Ok(Self {
            shared,
            address,
            serving,
        })
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "here", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
        });
        fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// Makes the objects of a kind exactly these; what is the same already causes no event.
    pub fn set_all(&self, kind: Kind, objects: Vec<Value>) {
        let mut state = self.shared.state();
        let names: Vec<String> = objects.iter().map(key).collect();
        let gone: Vec<(Kind, String)> = state
            .objects
            .keys()
            .filter(|(of, name)| *of == kind && !names.contains(name))
            .cloned()
            .collect();
        for key in gone {
            if let Some(object) = state.objects.remove(&key) {
                state.record(kind, "DELETED", object);
            }
        }
        for object in objects {
            let key = (kind, key(&object));
            let mut known = state.objects.get(&key).cloned();
            if let Some(known) = &mut known
                && let Some(metadata) = known["metadata"].as_object_mut()
            {
                metadata.remove("resourceVersion");
            }
            if known.as_ref() == Some(&object) {
                continue;
            }
            let what = if known.is_some() { "MODIFIED" } else { "ADDED" };
            let object = state.record(kind, what, object);
            state.objects.insert(key, object);
        }
        self.shared.changed.notify_all();
    }

    /// Watches stay open and say nothing any more; lists are answered as ever.
    pub fn fall_silent(&self) {
        self.shared.state().silent = true;
    }

    /// Closes every connection and the door.
    pub fn go_away(&mut self) -> Result<()> {
        {
            let mut state = self.shared.state();
            state.away = true;
            for connection in state.connections.drain(..) {
                // It may be closed already.
                let _ = connection.shutdown(Shutdown::Both);
            }
            self.shared.changed.notify_all();
        }
        match self.serving.take().map(JoinHandle::join) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(_)) => anyhow::bail!("the API server panicked"),
        }
    }

    /// Opens the door again, with all that happened meanwhile.
    pub fn come_back(&mut self) -> Result<()> {
        self.shared.state().away = false;
        let listener = TcpListener::bind(self.address).context("bind again")?;
        self.serving = Some(serve(listener, Arc::clone(&self.shared))?);
        Ok(())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Err(error) = self.go_away() {
            eprintln!("{error:#}");
        }
    }
}

fn serve(listener: TcpListener, shared: Arc<Shared>) -> Result<JoinHandle<()>> {
    listener.set_nonblocking(false)?;
    rustix::net::sockopt::set_socket_timeout(
        &listener,
        rustix::net::sockopt::Timeout::Recv,
        Some(TICK),
    )?;
    Ok(thread::spawn(move || {
        thread::scope(|scope| {
            while !shared.state().away {
                let Ok((stream, _)) = listener.accept() else {
                    continue;
                };
                let shared = &shared;
                scope.spawn(move || {
                    // The listener's is handed down.
                    let _ = stream.set_read_timeout(None);
                    if !shared.keep(&stream) {
                        return;
                    }
                    match converse(&stream, shared) {
                        Ok(()) => {}
                        // The agent was killed, or we are going away.
                        Err(error) if error.kind() != ErrorKind::InvalidData => {}
                        Err(error) => eprintln!("API server: {error}"),
                    }
                    // A copy of it is kept.
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
    }))
}

/// Requests of one connection, one after the other.
fn converse(stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(invalid)?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        answer(stream, shared, &request, &body)?;
    }
}

fn invalid(error: impl std::fmt::Display) -> std::io::Error {
    std::io::Error::new(ErrorKind::InvalidData, error.to_string())
}

fn answer(stream: &TcpStream, shared: &Shared, request: &str, body: &[u8]) -> std::io::Result<()> {
    let mut words = request.split_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameter = |name: &str| {
        query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key == name).then(|| value.replace("%3D", "="))
        })
    };
    let kind = Kind::ALL.into_iter().find(|kind| kind.path() == path);
    match (method, kind) {
        ("GET", Some(kind)) if parameter("watch").is_some() => {
            let since = parameter("resourceVersion").unwrap_or_default();
            watch(stream, shared, kind, since.parse().map_err(invalid)?)
        }
        ("GET", Some(kind)) => {
            let node = parameter("fieldSelector")
                .and_then(|text| text.strip_prefix("spec.nodeName=").map(ToOwned::to_owned));
            let state = shared.state();
            let items: Vec<&Value> = state
                .objects
                .iter()
                .filter(|((of, _), _)| *of == kind)
                .map(|(_, object)| object)
                .filter(|object| {
                    node.as_ref()
                        .is_none_or(|node| object["spec"]["nodeName"] == json!(node))
                })
                .collect();
            let list = json!({
                "kind": "List", "apiVersion": "v1", "items": items,
                "metadata": {"resourceVersion": state.version.to_string()},
            });
            drop(state);
            reply(stream, "200 OK", &list.to_string())
        }
        ("POST", None) => reply(stream, "201 Created", &String::from_utf8_lossy(body)),
        _ => {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
                "message": format!("{method} {path} is not known here"), "reason": "NotFound", "code": 404,
            });
            reply(stream, "404 Not Found", &status.to_string())
        }
    }
}

fn reply(mut stream: &TcpStream, status: &str, body: &str) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())
}

/// Says what happens until the connection ends.
fn watch(mut stream: &TcpStream, shared: &Shared, kind: Kind, since: u64) -> std::io::Result<()> {
    stream.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    let mut said = since;
    loop {
        let mut state = shared.state();
        while (state.version <= said || state.silent) && !state.away {
            state = shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.away {
            return Ok(());
        }
        let lines: Vec<String> = state
            .log
            .iter()
            .filter(|(version, of, ..)| *version > said && *of == kind)
            // In the order in which an API server writes it: a client may read the type first.
            .map(|(.., what, object)| format!("{{\"type\":\"{what}\",\"object\":{object}}}\n"))
            .collect();
        said = state.version;
        drop(state);
        for line in lines {
            stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes())?;
        }
    }
}
