//! What the API server says of this node, taken over into the pool.

use selvage_ipamd_core::cloud::Cloud;
use tracing::{info, warn};

use super::Keeper;
use crate::cluster::{Cluster, EniConfigView};
use crate::hostnet::Host;

impl<C: Cloud, H: Host, K: Cluster> Keeper<C, H, K> {
    /// Takes over what has changed. Pods that run are not moved: only new interfaces are made otherwise.
    pub(super) fn take_node(&mut self) {
        let node = self.node.borrow_and_update().clone();
        self.pool.set_unschedulable(node.unschedulable);
        let config = &self.shared.config;
        let mode = self.pool.settings().mode;
        let custom = config.custom_networking.is_some();
        let pods = config.targets.max_pods.or(node.max_pods);
        let pods = pods.unwrap_or_else(|| self.limits.max_pods(mode, custom));
        if self.targets.max_pods != Some(pods) {
            info!(pods, "pods at most");
            self.targets.max_pods = Some(pods);
        }
        match node.eni_config {
            EniConfigView::Unused => {}
            EniConfigView::Missing(why) => {
                warn!(why, "custom networking");
                self.pool.set_eni_config(Err(why.clone()));
                self.trouble("NoEniConfig", "CustomNetworking".into(), why);
            }
            EniConfigView::Found(found) => {
                info!(eni_config = ?found, "custom networking");
                self.pool.set_eni_config(Ok(found));
            }
        }
    }
}
