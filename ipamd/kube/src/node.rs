//! What the node's object says, and the ENIConfig that it names.
//!
//! ```text
//!  Node  taint unschedulable:NoSchedule, capacity.pods
//!        label vpc.amazonaws.com/externalEniConfig ┐
//!        annotation k8s.amazonaws.com/eniConfig    ├─ the first that is there ─> ENIConfig: subnet, groups
//!        label k8s.amazonaws.com/eniConfig         │
//!        the name "default"                        ┘
//! ```

use std::collections::BTreeMap;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use kube::Client;
use kube::api::{ApiResource, GroupVersionKind, ObjectMeta};
use selvage_ipamd::cluster::{EniConfigView, NodeView};
use selvage_ipamd::config::{Config, CustomNetworking};
use selvage_ipamd_core::ids::{SecurityGroupId, SubnetId};
use selvage_ipamd_core::pool::EniConfig;
use serde::Deserialize;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::client::{Slim, follow};

/// Names an ENIConfig before everything else; set by AWS's own controllers.
const EXTERNAL_LABEL: &str = "vpc.amazonaws.com/externalEniConfig";
/// The ENIConfig of a node that names none.
const DEFAULT_NAME: &str = "default";
/// What `kubectl cordon` taints a node with.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

#[derive(Debug, Clone, Deserialize)]
struct Node {
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct NodeSpec {
    #[serde(default)]
    taints: Vec<Taint>,
}

#[derive(Debug, Clone, Deserialize)]
struct Taint {
    key: String,
    effect: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    capacity: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
struct EniConfigObject {
    #[serde(default)]
    spec: EniConfigSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EniConfigSpec {
    #[serde(default)]
    subnet: String,
    #[serde(default)]
    security_groups: Vec<String>,
}

type Watch<T> = BoxStream<'static, Result<Option<Slim<T>>, String>>;

/// Watches the node named by the settings, if they need it. What is known ends with the last receiver.
pub(crate) fn start(client: Client, config: &Config) -> watch::Receiver<NodeView> {
    let custom = config.custom_networking.clone();
    let view = NodeView {
        eni_config: match &custom {
            Some(_) if config.node_name.is_empty() => {
                EniConfigView::Missing("the node's name is not known: set MY_NODE_NAME".to_owned())
            }
            Some(_) => EniConfigView::Missing(
                "the API server has not told the node's ENIConfig yet".to_owned(),
            ),
            None => EniConfigView::Unused,
        },
        ..NodeView::default()
    };
    let (sender, receiver) = watch::channel(view);
    if config.needs_node() && !config.node_name.is_empty() {
        let follower = Follower {
            client,
            name: config.node_name.clone(),
            custom,
            view: sender,
        };
        tokio::spawn(follower.run());
    }
    receiver
}

struct Follower {
    client: Client,
    name: String,
    custom: Option<CustomNetworking>,
    view: watch::Sender<NodeView>,
}

impl Follower {
    async fn run(self) {
        let nodes = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Node"));
        let mut node = std::pin::pin!(follow::<Node>(self.client.clone(), &nodes, &self.name));
        let mut chosen: Option<(Choice, Watch<EniConfigObject>)> = None;
        let mut trouble = None;
        loop {
            tokio::select! {
                () = self.view.closed() => return,
                Some(news) = node.next() => match heard("node", news, &mut trouble) {
                    Ok(found) => {
                        self.take_node(found.as_ref());
                        self.choose(found.as_ref(), &mut chosen);
                    }
                    Err(words) => self.miss(&words, &mut chosen),
                },
                Some(news) = next(&mut chosen) => {
                    let Some((choice, _)) = &chosen else { continue };
                    let view = match heard("ENIConfig", news, &mut trouble) {
                        Ok(found) => read(choice, found),
                        // What was last known holds.
                        Err(_) if self.is_found() => continue,
                        Err(words) => EniConfigView::Missing(format!("{choice} cannot be read: {words}")),
                    };
                    self.set(view);
                }
            }
        }
    }

    fn is_found(&self) -> bool {
        match &self.view.borrow().eni_config {
            EniConfigView::Found(_) => true,
            EniConfigView::Unused | EniConfigView::Missing(_) => false,
        }
    }

    /// A node that is not there yet is one that is not tainted.
    fn take_node(&self, node: Option<&Slim<Node>>) {
        let unschedulable = node.is_some_and(|node| {
            let taints = &node.content.spec.taints;
            taints
                .iter()
                .any(|t| t.key == UNSCHEDULABLE && t.effect == "NoSchedule")
        });
        let max_pods = node
            .and_then(|node| node.content.status.capacity.get("pods"))
            .and_then(|pods| pods.parse().ok());
        self.view.send_if_modified(|view| {
            let changed = (view.unschedulable, view.max_pods) != (unschedulable, max_pods);
            (view.unschedulable, view.max_pods) = (unschedulable, max_pods);
            changed
        });
    }

    /// Follows the ENIConfig that the node names now, if it is another one.
    fn choose(
        &self,
        node: Option<&Slim<Node>>,
        chosen: &mut Option<(Choice, Watch<EniConfigObject>)>,
    ) {
        let (Some(custom), Some(node)) = (&self.custom, node) else {
            return;
        };
        let choice = Choice::of(&node.metadata, custom);
        if chosen.as_ref().is_some_and(|(c, _)| *c == choice) {
            return;
        }
        info!(%choice, "custom networking");
        let resource = GroupVersionKind::gvk("crd.k8s.amazonaws.com", "v1alpha1", "ENIConfig");
        let resource = ApiResource::from_gvk_with_plural(&resource, "eniconfigs");
        let watch = follow(self.client.clone(), &resource, &choice.name).boxed();
        *chosen = Some((choice, watch));
    }

    /// The node cannot be read: said only while nothing better is known.
    fn miss(&self, words: &str, chosen: &mut Option<(Choice, Watch<EniConfigObject>)>) {
        if self.custom.is_some() && chosen.is_none() {
            self.set(EniConfigView::Missing(format!(
                "node {} cannot be read, so its ENIConfig is not known: {words}",
                self.name
            )));
        }
    }

    fn set(&self, eni_config: EniConfigView) {
        self.view.send_if_modified(|view| {
            let changed = view.eni_config != eni_config;
            view.eni_config = eni_config;
            changed
        });
    }
}

async fn next<S: Stream + Unpin>(chosen: &mut Option<(Choice, S)>) -> Option<S::Item> {
    match chosen {
        Some((_, watch)) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// Logs a trouble once, and its end.
fn heard<T>(
    what: &'static str,
    news: Result<T, String>,
    trouble: &mut Option<(&'static str, String)>,
) -> Result<T, String> {
    match &news {
        Ok(_) => {
            if trouble.take_if(|(of, _)| *of == what).is_some() {
                info!(what, "the API server tells again");
            }
        }
        Err(error) => {
            let now = (what, error.clone());
            if trouble.as_ref() != Some(&now) {
                warn!(what, %error, "the API server does not tell: what was last known holds");
                *trouble = Some(now);
            }
        }
    }
    news
}

/// Which ENIConfig a node has, and what says so.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Choice {
    name: String,
    by: String,
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ENIConfig {} ({})", self.name, self.by)
    }
}

impl Choice {
    fn of(node: &ObjectMeta, custom: &CustomNetworking) -> Self {
        let find = |map: &Option<BTreeMap<String, String>>, kind: &str, key: &str| {
            let name = map.as_ref()?.get(key).filter(|name| !name.is_empty())?;
            Some(Self {
                name: name.clone(),
                by: format!("by the node's {kind} {key}"),
            })
        };
        find(&node.labels, "label", EXTERNAL_LABEL)
            .or_else(|| find(&node.annotations, "annotation", &custom.annotation))
            .or_else(|| find(&node.labels, "label", &custom.label))
            .unwrap_or_else(|| Self {
                name: DEFAULT_NAME.to_owned(),
                by: format!(
                    "the node has neither annotation {} nor label {}",
                    custom.annotation, custom.label
                ),
            })
    }
}

fn read(choice: &Choice, object: Option<Slim<EniConfigObject>>) -> EniConfigView {
    let Some(object) = object else {
        return EniConfigView::Missing(format!("there is no {choice}"));
    };
    let EniConfigSpec {
        subnet,
        security_groups,
    } = object.content.spec;
    if subnet.trim().is_empty() {
        return EniConfigView::Missing(format!("{choice} names no subnet"));
    }
    EniConfigView::Found(EniConfig {
        name: choice.name.clone(),
        subnet_id: SubnetId::new(subnet.trim()),
        security_groups: security_groups
            .iter()
            .map(|group| SecurityGroupId::new(group.trim()))
            .collect(),
    })
}

#[cfg(test)]
mod tests;
