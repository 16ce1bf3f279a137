//! How many nodes start: by the status of the DaemonSet that runs the daemon on each, one small read of the API server's
//! cache.

use kube::api::{ApiResource, GetParams, GroupVersionKind};
use kube::{Api, Client};
use selvage_ipamd::chain::chain;
use serde::Deserialize;
use tokio::time::timeout;

use crate::client::{REQUEST, Slim};

/// The DaemonSet's name, as in `manifests/cni`.
pub const DAEMON_SET: &str = "selvage-ipamd";

#[derive(Debug, Clone, Deserialize)]
struct DaemonSet {
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    desired_number_scheduled: u32,
    #[serde(default)]
    number_ready: u32,
}

/// Nodes whose daemon is not ready.
///
/// # Errors
/// When the API server does not say.
pub(crate) async fn starting(client: &Client, namespace: &str) -> Result<u32, String> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", "DaemonSet"));
    let api = Api::<Slim<DaemonSet>>::namespaced_with(client.clone(), namespace, &kind);
    // What the server has in memory will do, and costs it nothing.
    match timeout(REQUEST, api.get_with(DAEMON_SET, &GetParams::any())).await {
        Ok(Ok(found)) => {
            let status = found.content.status;
            Ok(status
                .desired_number_scheduled
                .saturating_sub(status.number_ready))
        }
        Ok(Err(error)) => Err(format!("read DaemonSet {DAEMON_SET}: {}", chain(&error))),
        Err(_) => Err(format!(
            "read DaemonSet {DAEMON_SET}: no answer within {REQUEST:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::server::Server;

    const PATH: &str = "/apis/apps/v1/namespaces/selvage-system/daemonsets/selvage-ipamd";

    #[tokio::test(start_paused = true)]
    async fn nodes_start_whose_daemon_is_not_ready() {
        let server = Server::default();
        let starting = async || starting(&server.client(), "selvage-system").await;
        for (status, count) in [
            (
                json!({"desiredNumberScheduled": 5000, "numberReady": 120}),
                4880,
            ),
            (json!({"desiredNumberScheduled": 3}), 3),
            // A node has gone, and the count of those that are ready has not followed.
            (json!({"desiredNumberScheduled": 3, "numberReady": 4}), 0),
        ] {
            server.set(PATH, json!({"metadata": {}, "status": status.clone()}));
            assert_eq!(starting().await, Ok(count), "{status}");
        }
        server.set(PATH, json!({"metadata": {}}));
        assert_eq!(starting().await, Ok(0), "its controller has not looked yet");
        let requests = server.requests();
        let cached =
            |r: &String| r.starts_with(&format!("GET {PATH}?")) && r.ends_with("resourceVersion=0");
        assert!(requests.iter().all(cached), "{requests:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_may_not_read_it_or_gets_no_answer_is_told_so() {
        let server = Server::default();
        let starting = async || starting(&server.client(), "selvage-system").await;
        let error = starting().await.unwrap_err();
        assert!(error.contains("404"), "{error}");
        server.refuse(Some(403));
        let error = starting().await.unwrap_err();
        assert!(error.contains("refused with 403"), "{error}");
        server.silence(true);
        let error = starting().await.unwrap_err();
        assert!(error.contains("no answer within 5s"), "{error}");
    }
}
