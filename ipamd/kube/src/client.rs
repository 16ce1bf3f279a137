//! Where the API server is, and one object of it at a time.

use std::borrow::Cow;
use std::fmt::Debug;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use kube::api::{ApiResource, DynamicObject, ObjectMeta};
use kube::core::DynamicResourceScope;
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, watcher::DefaultBackoff};
use kube::{Api, Client, Resource};
use selvage_ipamd::chain::chain;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// One request to the API server.
pub(crate) const REQUEST: Duration = Duration::from_secs(5);
/// How long a watch lasts before it is asked for anew, in seconds.
const WATCH_SECONDS: u32 = 240;
/// A connection that has been silent for longer is dead: a watch that ends says so.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);

/// A client, and the namespace we run in.
pub struct Connection {
    /// The client.
    pub client: Client,
    /// The namespace of our service account, else `default`.
    pub namespace: String,
}

/// A client by KUBECONFIG, else by what the cluster gives a pod (KUBERNETES_SERVICE_HOST and _PORT, which a manifest
/// may override). `endpoint` takes the place of the server's address. Sends nothing.
///
/// # Errors
/// When there is neither, or it cannot be understood.
pub async fn connect(endpoint: Option<&str>) -> Result<Connection, String> {
    let mut config = kube::Config::infer().await.map_err(|e| chain(&e))?;
    if let Some(endpoint) = endpoint {
        config.cluster_url = endpoint
            .parse()
            .map_err(|e| format!("CLUSTER_ENDPOINT={endpoint:?}: {e}"))?;
    }
    config.connect_timeout = Some(REQUEST);
    config.write_timeout = Some(REQUEST);
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    let namespace = config.default_namespace.clone();
    let client = Client::try_from(config).map_err(|e| chain(&e))?;
    Ok(Connection { client, namespace })
}

/// An object of which only `T` is read: the rest of a Node is long.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Slim<T> {
    pub(crate) metadata: ObjectMeta,
    #[serde(flatten)]
    pub(crate) content: T,
}

impl<T> Resource for Slim<T> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::kind(resource)
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::group(resource)
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::version(resource)
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::plural(resource)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// One object by its name: `None` while it is not there. Never ends; an error is followed by another try after a pause
/// that grows.
pub(crate) fn follow<T>(
    client: Client,
    resource: &ApiResource,
    name: &str,
) -> impl Stream<Item = Result<Option<Slim<T>>, String>> + Send + use<T>
where
    T: DeserializeOwned + Clone + Debug + Send + 'static,
{
    let config = watcher::Config::default()
        .fields(&format!("metadata.name={name}"))
        .timeout(WATCH_SECONDS);
    let api = Api::<Slim<T>>::all_with(client, resource);
    let mut listed = false;
    watcher(api, config)
        .backoff(DefaultBackoff::default())
        .map_err(|error| chain(&error))
        .filter_map(move |event| {
            let news = match event {
                Ok(Event::Init) => {
                    listed = false;
                    None
                }
                Ok(Event::InitApply(object)) => {
                    listed = true;
                    Some(Ok(Some(object)))
                }
                Ok(Event::InitDone) => (!listed).then_some(Ok(None)),
                Ok(Event::Apply(object)) => Some(Ok(Some(object))),
                Ok(Event::Delete(_)) => Some(Ok(None)),
                Err(error) => Some(Err(error)),
            };
            std::future::ready(news)
        })
}
