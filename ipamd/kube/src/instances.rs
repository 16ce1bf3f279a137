//! The instances of all nodes. Read page by page, and of each node only where it comes from: by the one that works for
//! the cluster, once an hour.

use std::collections::BTreeSet;

use kube::api::{ApiResource, GroupVersionKind, ListParams};
use kube::{Api, Client};
use selvage_ipamd::chain::chain;
use selvage_ipamd_core::ids::InstanceId;
use serde::Deserialize;
use tokio::time::timeout;

use crate::client::{REQUEST, Slim};

/// Nodes on a page.
const PAGE: u32 = 250;

#[derive(Debug, Clone, Deserialize)]
struct Node {
    #[serde(default)]
    spec: NodeSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeSpec {
    #[serde(default, rename = "providerID")]
    provider_id: String,
}

/// All of them; nodes of other clouds are left out.
///
/// # Errors
/// When the API server does not say all of it.
pub(crate) async fn list(client: &Client) -> Result<BTreeSet<InstanceId>, String> {
    let nodes = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Node"));
    let api = Api::<Slim<Node>>::all_with(client.clone(), &nodes);
    let mut found = BTreeSet::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = match timeout(REQUEST, api.list(&params)).await {
            Ok(page) => page.map_err(|e| format!("list nodes: {}", chain(&e)))?,
            Err(_) => return Err(format!("list nodes: no answer within {REQUEST:?}")),
        };
        let ids = page.items.iter().map(|node| &node.content.spec.provider_id);
        found.extend(ids.filter_map(|id| instance(id)));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(found),
        }
    }
}

/// `aws:///us-west-2a/i-0abc`.
fn instance(provider_id: &str) -> Option<InstanceId> {
    let rest = provider_id.strip_prefix("aws://")?;
    let id = rest.rsplit('/').next()?;
    id.starts_with("i-").then(|| InstanceId::new(id))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::server::Server;

    #[tokio::test]
    async fn the_instances_of_all_nodes_are_found_over_all_pages() {
        let server = Server::default();
        for number in 0..7 {
            let id = format!("aws:///us-west-2a/i-{number}");
            let node = json!({"metadata": {}, "spec": {"providerID": id}});
            server.set(&format!("/api/v1/nodes/node-{number}"), node);
        }
        let node = json!({"metadata": {}, "spec": {"providerID": "kind://docker/kind/x"}});
        server.set("/api/v1/nodes/other", node);
        server.set("/api/v1/nodes/young", json!({"metadata": {}}));
        let found = list(&server.client()).await.unwrap();
        let ids: Vec<&str> = found.iter().map(|id| id.as_str()).collect();
        assert_eq!(ids, ["i-0", "i-1", "i-2", "i-3", "i-4", "i-5", "i-6"]);
        assert!(server.requests().len() > 1, "one page is not all");
        server.refuse(Some(403));
        let error = list(&server.client()).await.unwrap_err();
        assert!(error.contains("list nodes"), "{error}");
    }
}
