//! Nodes that start together: each waits for its turn to call EC2.
//!
//! Who does not hear from the API server how many there are starts as if alone.

use std::time::Duration;

use selvage_ipamd_core::bucket::Bucket;
use selvage_ipamd_core::cloud::{Budget, Cloud};
use selvage_ipamd_core::pool::Provisioning;
use selvage_ipamd_core::retry::Jitter;
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use super::start::Start;
use super::{Shared, Status};
use crate::cluster::Cluster;
use crate::hostnet::Host;

/// Over so long the first calls are spread in any case, and so long the API server may take: who starts alone loses no
/// more.
const SPREAD: Duration = Duration::from_secs(1);

/// How many nodes start; `None` if the API server does not say so at once, or if nothing depends on it.
pub(super) async fn ask<C: Cloud, H: Host, K: Cluster>(shared: &Shared<C, H, K>) -> Option<u32> {
    match shared.config.provisioning {
        Provisioning::Full | Provisioning::AttachedOnly => {}
        Provisioning::MetadataOnly => return None,
    }
    match timeout(SPREAD, shared.cluster.starting()).await {
        Ok(Ok(nodes)) => Some(nodes),
        Ok(Err(error)) => {
            debug!(error, "how many nodes start is not known");
            None
        }
        Err(_) => {
            debug!(after = ?SPREAD, "how many nodes start is not said");
            None
        }
    }
}

impl<C: Cloud, H: Host, K: Cluster> Start<'_, C, H, K> {
    /// Until this node may read from EC2. The bucket then knows when it may change something.
    pub(super) async fn wait_for_turn(&self, bucket: &mut Bucket) {
        let clock = &self.shared.clock;
        let spread = SPREAD.mul_f64(Jitter::new(clock.now().unix_nanos()).unit());
        let (mut nodes, ()) = tokio::join!(ask(self.shared), sleep(spread));
        loop {
            let now = clock.now();
            if let Some(nodes) = nodes {
                bucket.share(nodes, now);
            }
            let pause = bucket.ready_in(Budget::Read, now);
            if pause.is_zero() {
                return;
            }
            info!(
                ?nodes,
                ?pause,
                "waits for its turn among the nodes that start"
            );
            self.status.send_replace(Status::Starting {
                doing: "wait for its turn among the nodes that start".into(),
            });
            sleep(bucket.look_in(now).map_or(pause, |look| look.min(pause))).await;
            nodes = ask(self.shared).await;
        }
    }
}
