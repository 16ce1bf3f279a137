//! A client that does nothing with what it reads: what any agent must at least do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::replay::BARE;

/// As many objects a page as the daemon asks for.
const PAGE: usize = 500;

/// What is served, as paths.
const PATHS: [&str; 3] = [
    "/api/v1/namespaces",
    "/apis/networking.k8s.io/v1/networkpolicies",
    "/api/v1/pods",
];

/// A page of a list: the fields that an agent cannot do without.
#[derive(Debug, Deserialize)]
struct Page {
    metadata: PageMetadata,
    items: Vec<Object>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    resource_version: String,
    #[serde(default)]
    r#continue: String,
}

/// Labels, the node, addresses, and the whole of a policy's spec.
#[derive(Debug, Deserialize)]
struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
    uid: String,
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: String,
    pod_selector: serde_json::Value,
    policy_types: Vec<String>,
    ingress: Vec<serde_json::Value>,
    egress: Vec<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    ip: String,
}

impl Object {
    /// Bytes that it came down to: what is summed up cannot be left out by the compiler.
    fn weight(&self) -> usize {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        metadata.name.len()
            + metadata.namespace.len()
            + metadata.uid.len()
            + metadata.labels.len()
            + spec.node_name.len()
            + spec.pod_selector.is_object() as usize
            + spec.policy_types.len()
            + spec.ingress.len()
            + spec.egress.len()
            + status.phase.len()
            + status.pod_ips.iter().map(|pod| pod.ip.len()).sum::<usize>()
    }
}

/// A client of one server.
pub struct Client {
    runtime: Runtime,
    address: SocketAddr,
    tls: TlsConnector,
}

impl Client {
    /// Trusts this certificate; does not connect.
    ///
    /// *Errors*: the certificate is none.
    pub fn new(address: SocketAddr, certificate: CertificateDer<'static>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate)?;
        let tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            runtime: Builder::new_current_thread().enable_all().build()?,
            address,
            tls: TlsConnector::from(Arc::new(tls)),
        })
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let stream = self.tls.connect(name, stream).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Lists and decodes everything: how many objects there were.
    ///
    /// *Errors*: the server's.
    pub fn list(&self) -> Result<usize> {
        self.runtime.block_on(async {
            let mut sender = self.connect().await?;
            let (mut objects, mut weight) = (0, 0);
            for path in PATHS {
                let mut token = String::new();
                loop {
                    let page: Page = {
                        let uri = format!("{path}?limit={PAGE}&continue={token}");
                        let body = get(&mut sender, &uri).await?.into_body();
                        serde_json::from_slice(&body.collect().await?.to_bytes())?
                    };
                    ensure!(
                        !page.metadata.resource_version.is_empty(),
                        "a list has a version"
                    );
                    objects += page.items.len();
                    weight += page.items.iter().map(Object::weight).sum::<usize>();
                    token = page.metadata.r#continue;
                    if token.is_empty() {
                        break;
                    }
                }
            }
            ensure!(weight > 0, "nothing was read");
            Ok(objects)
        })
    }

    /// Watches policies and tells the moment of each event that was read and decoded, until the
    /// receiver hangs up or the watch ends.
    ///
    /// *Errors*: the server's.
    pub fn watch_policies(&self, events: &std::sync::mpsc::SyncSender<Instant>) -> Result<()> {
        self.runtime.block_on(async {
            let mut sender = self.connect().await?;
            let uri = format!("{}?limit=1", PATHS[1]);
            let body = get(&mut sender, &uri).await?.into_body();
            let page: Page = serde_json::from_slice(&body.collect().await?.to_bytes())?;
            let version = page.metadata.resource_version;
            let uri = format!("{}?watch=true&resourceVersion={version}", PATHS[1]);
            let mut body = get(&mut sender, &uri).await?.into_body();
            let mut line = Vec::new();
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame?.into_data() else {
                    continue;
                };
                line.extend_from_slice(&data);
                while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                    let event: Event = serde_json::from_slice(&line[..end])?;
                    line.drain(..=end);
                    ensure!(event.object.weight() > 0, "an event has an object");
                    if events.send(Instant::now()).is_err() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }
}

#[derive(Debug, Deserialize)]
struct Event {
    object: Object,
}

async fn get(sender: &mut SendRequest<Empty<Bytes>>, uri: &str) -> Result<Response<Incoming>> {
    let request = Request::get(uri)
        .header("host", "bench")
        .header("user-agent", BARE)
        .body(Empty::new())?;
    sender.ready().await?;
    let response = sender.send_request(request).await.context("ask")?;
    ensure!(
        response.status().is_success(),
        "{uri}: {}",
        response.status()
    );
    Ok(response)
}
