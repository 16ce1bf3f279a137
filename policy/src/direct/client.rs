//! A client of the API server: by kubeconfig, or as the pod that we are.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kube::client::ClientBuilder;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use thiserror::Error;

use crate::watches::{Listening, Watches};

/// How long a watch lasts before it is asked for anew, in seconds. A connection that has died
/// without a word is noticed five seconds after that.
pub(super) const WATCH_SECONDS: u32 = 120;

/// How long an answer may take. Longer than a watch may be silent.
const ANSWER_DEADLINE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);

/// How long connecting may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// There is no way to know where the API server is, or who we are.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {}", path.display())]
    Kubeconfig {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: KubeconfigError,
    },
    /// Not in a pod with a service account, and no kubeconfig was given.
    #[error("no kubeconfig was given (--kubeconfig, env KUBECONFIG), and this is no pod")]
    NoPod(#[source] InClusterError),
    /// Certificates or keys cannot be used.
    #[error("client for {url}")]
    Client {
        /// Of which server.
        url: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
}

/// A client by this kubeconfig, or with the pod's service account. The server's address then comes
/// from `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`, which a manifest may override.
/// Signs of life of lists and watches are noted in `watches`.
///
/// *Errors*: [`ClientError`]. Does not connect.
pub async fn client(
    kubeconfig: Option<&Path>,
    watches: Arc<Watches>,
) -> Result<Client, ClientError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let bad = |source| ClientError::Kubeconfig {
                path: path.to_owned(),
                source,
            };
            let found = Kubeconfig::read_from(path).map_err(bad)?;
            Config::from_custom_kubeconfig(found, &KubeConfigOptions::default())
                .await
                .map_err(bad)?
        }
        None => Config::incluster_env().map_err(ClientError::NoPod)?,
    };
    config.connect_timeout = Some(CONNECT_DEADLINE);
    config.read_timeout = Some(ANSWER_DEADLINE);
    config.reset_reader_on_write = true;
    let url = config.cluster_url.to_string();
    tracing::info!(%url, "API server");
    let stack = ClientBuilder::try_from(config).map_err(|source| ClientError::Client {
        url,
        source: Box::new(source),
    })?;
    Ok(stack.with_layer(&Listening::new(watches)).build())
}
