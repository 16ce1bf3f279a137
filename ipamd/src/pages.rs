//! What can be read from the daemon: metrics for scrapers, the pool for people and for AWS's own support scripts.

use serde_json::{Value, json};

use crate::config::Config;
use crate::daemon::Handle;
use crate::http::Page;
use crate::view::enis_page;

/// The page that `selvage-ipamd status` reads.
pub(crate) const STATUS: &str = "/v1/selvage/status";
/// AWS's pages, and ours.
const PATHS: [&str; 5] = [
    "/v1/enis",
    "/v1/eni-configs",
    "/v1/networkutils-env-settings",
    "/v1/ipamd-env-settings",
    STATUS,
];

/// `/metrics`.
pub(crate) async fn metrics(handle: Handle, path: String) -> Page {
    if path != "/metrics" {
        return Page::text(404, "see /metrics\n");
    }
    Page {
        status: 200,
        content_type: "text/plain; version=0.0.4; charset=utf-8",
        body: handle.metrics().render(&handle.view().await),
    }
}

/// AWS's introspection, and the whole view.
pub(crate) async fn introspection(handle: Handle, path: String) -> Page {
    let (status, page) = match path.as_str() {
        "/v1/enis" => (200, enis_page(&handle.view().await)),
        STATUS => (200, json!(handle.view().await)),
        "/v1/eni-configs" => {
            let view = handle.view().await;
            (200, json!({"ENIConfig": view.eni_config}))
        }
        "/v1/networkutils-env-settings" => (200, network_settings(handle.config())),
        "/v1/ipamd-env-settings" => (200, pool_settings(handle.config())),
        // As AWS's daemon: what there is.
        "/" => (200, json!({"AvailableCommands": PATHS})),
        _ => (404, json!({"AvailableCommands": PATHS})),
    };
    Page::json(status, format!("{page:#}\n"))
}

/// Under the names of their variables, as AWS's daemon shows its own.
fn network_settings(config: &Config) -> Value {
    json!({
        "AWS_VPC_K8S_CNI_EXTERNALSNAT": config.external_snat,
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": config.exclude_snat_cidrs,
        "AWS_EXTERNAL_SERVICE_CIDRS": config.external_service_cidrs,
        "AWS_VPC_CNI_NODE_PORT_SUPPORT": config.node_port,
        "AWS_VPC_K8S_CNI_CONNMARK": config.connmark,
        "AWS_VPC_K8S_CNI_RANDOMIZESNAT": config.randomize_snat.to_string(),
        "AWS_VPC_K8S_CNI_VETHPREFIX": config.veth_prefix,
        "AWS_VPC_ENI_MTU": config.eni_mtu,
        "POD_MTU": config.pod_mtu,
    })
}

fn pool_settings(config: &Config) -> Value {
    json!({
        "WARM_ENI_TARGET": config.targets.warm_enis,
        "WARM_IP_TARGET": config.targets.warm_ips,
        "MINIMUM_IP_TARGET": config.targets.minimum_ips,
        "WARM_PREFIX_TARGET": config.targets.warm_prefixes,
        "MAX_ENI": config.targets.max_enis,
        "MAX_PODS": config.targets.max_pods,
        "ENABLE_PREFIX_DELEGATION": config.prefix_delegation,
        "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": config.custom_networking.is_some(),
        "ENABLE_SUBNET_DISCOVERY": config.subnet_discovery,
        "IP_COOLDOWN_PERIOD": config.cooldown.as_secs(),
    })
}
