//! An API server for benches: lists and watches of pods, namespaces and policies over TLS, from
//! memory. Whoever changes an object learns when the change had been written to the watches.
//!
//! ```text
//! bench ── put, delete ──> Store ── cursor ──> watch body ──> hyper ──> TLS ──> Wire ──> socket
//!   └──────────── written(ticket) <──────────── moment of the write ───────────────┘
//! ```

mod http;
mod store;
mod wire;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::bare;
pub use store::{Kind, Object, Store, Ticket};
use wire::{Stamped, Wire};

/// What a client calls itself whose watches count for nobody's moment.
pub const BARE: &str = "bare";

/// A server that runs until dropped.
pub struct Server {
    store: Arc<Store>,
    address: SocketAddr,
    certificate: CertificateDer<'static>,
    pem: String,
    // Ends the server's tasks.
    _runtime: Runtime,
}

impl Server {
    /// Listens on loopback in the network namespace of the calling thread.
    ///
    /// *Errors*: no port, no certificate.
    pub fn start() -> Result<Self> {
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])
                .context("make a certificate")?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .context("use the certificate")?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").context("listen")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let store = Arc::new(Store::default());
        let listener = {
            let _context = runtime.enter();
            TcpListener::from_std(listener)?
        };
        runtime.spawn(accept(
            listener,
            TlsAcceptor::from(Arc::new(tls)),
            Arc::clone(&store),
        ));
        Ok(Self {
            store,
            address,
            certificate: cert.der().clone(),
            pem: cert.pem(),
            _runtime: runtime,
        })
    }

    /// The objects, to be changed.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// A client of this server that is no agent.
    ///
    /// *Errors*: as [`bare::Client::new`].
    pub fn bare(&self) -> Result<bare::Client> {
        bare::Client::new(self.address, self.certificate.clone())
    }

    /// Writes a kubeconfig into a folder, with the certificate beside it.
    ///
    /// *Errors*: the folder cannot be written to.
    pub fn kubeconfig(&self, folder: &Path) -> Result<PathBuf> {
        let authority = folder.join("ca.pem");
        std::fs::write(&authority, &self.pem)?;
        let path = folder.join("kubeconfig");
        let text = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
            "clusters": [{"name": "bench", "cluster": {
                "server": format!("https://{}", self.address), "certificate-authority": authority}}],
            "users": [{"name": "bench", "user": {"token": "bench"}}],
        });
        std::fs::write(&path, text.to_string())?;
        Ok(path)
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, store: Arc<Store>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(stream, tls.clone(), Arc::clone(&store)));
    }
}

async fn connection(stream: TcpStream, tls: TlsAcceptor, store: Arc<Store>) {
    // A client that goes away is no matter, at any point.
    let _ = stream.set_nodelay(true);
    let wire = Arc::new(Wire::default());
    let Ok(stream) = tls.accept(Stamped::new(stream, Arc::clone(&wire))).await else {
        return;
    };
    let answer = service_fn(|request| {
        let (store, wire) = (Arc::clone(&store), Arc::clone(&wire));
        async move { http::answer(&store, &wire, request).await }
    });
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}
