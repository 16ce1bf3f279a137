//! The search for interfaces that dead nodes left behind: one node of all does it, an hour apart.
//!
//! ```text
//!  asked every ten minutes: do we lead? ── yes, and an hour has passed ─> nodes that live, loose interfaces
//!                                                                          └> delete the old ones, date the undated
//! ```
//!
//! Every call waits until the token bucket is calm: the pods of this node come first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use selvage_ipamd_core::cloud::{Budget, Cloud, CloudErrorKind, Operation, TAG_CREATED};
use selvage_ipamd_core::ids::EniId;
use selvage_ipamd_core::retry::Jitter;
use selvage_ipamd_core::sweep::find_leaked;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::cluster::Cluster;
use crate::daemon::{Handle, Shared, call};
use crate::hostnet::Host;

/// Before the first look, so that nodes that start together do not ask together.
const FIRST: Duration = Duration::from_secs(60);
/// Between two looks whether we lead; a leader that is not heard of for three is replaced.
const LOOK: Duration = Duration::from_secs(600);
/// Between two searches.
const SEARCH: Duration = Duration::from_secs(3600);
/// Interfaces of one search; the rest is found by the next.
const MOST: usize = 200;

/// Looks until `shutdown`.
pub(crate) async fn run<C: Cloud, H: Host, K: Cluster>(
    shared: Arc<Shared<C, H, K>>,
    handle: Handle,
    shutdown: CancellationToken,
) {
    if !shared.config.leak_cleanup {
        return;
    }
    let work = async {
        let mut jitter = Jitter::new(shared.clock.now().unix_nanos());
        let mut next = Instant::now();
        sleep(FIRST.mul_f64(jitter.unit())).await;
        loop {
            match shared.cluster.lead().await {
                Ok(true) if next <= Instant::now() => {
                    next = Instant::now() + SEARCH;
                    if let Err(words) = search(&shared, &handle).await {
                        warn!(error = words, "search for leaked interfaces");
                        shared.metrics.count_error("sweep");
                    }
                }
                Ok(_) => {}
                Err(error) => debug!(error, "whether this node leads is not known"),
            }
            sleep(jitter.spread(LOOK)).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}

async fn search<C: Cloud, H: Host, K: Cluster>(
    shared: &Shared<C, H, K>,
    handle: &Handle,
) -> Result<(), String> {
    let cluster = &shared.config.cluster;
    handle.permit(Budget::Read).await;
    let found = shared.cloud.find_loose_enis(cluster);
    let loose = call(shared, Operation::FindLooseEnis, found).await;
    handle.told(Budget::Read, &loose).await;
    let loose = loose.map_err(|e| e.to_string())?;
    // Asked after EC2: a node that came in between counts as one that lives.
    let alive = shared.cluster.instances().await?;
    let now = shared.clock.now();
    let sweep = find_leaked(&loose, &alive, now);
    info!(
        loose = loose.len(),
        leaked = sweep.delete.len(),
        undated = sweep.tag.len(),
        "searched for leaked interfaces"
    );
    for eni in sweep.delete.iter().take(MOST) {
        delete(shared, handle, eni).await;
    }
    let created = BTreeMap::from([(TAG_CREATED.to_owned(), now.rfc3339())]);
    for eni in sweep.tag.iter().take(MOST) {
        handle.permit(Budget::Change).await;
        let tagged = call(
            shared,
            Operation::TagEni,
            shared.cloud.tag_eni(eni, &created),
        )
        .await;
        handle.told(Budget::Change, &tagged).await;
        if let Err(error) = tagged {
            warn!(%eni, %error, "date an interface");
        }
    }
    Ok(())
}

async fn delete<C: Cloud, H: Host, K: Cluster>(
    shared: &Shared<C, H, K>,
    handle: &Handle,
    eni: &EniId,
) {
    handle.permit(Budget::Change).await;
    let deleted = call(shared, Operation::DeleteEni, shared.cloud.delete_eni(eni)).await;
    handle.told(Budget::Change, &deleted).await;
    match deleted {
        Ok(()) => {
            info!(%eni, "leaked interface deleted");
            shared.metrics.count_leaked();
        }
        // Somebody else was faster.
        Err(error) if error.kind == CloudErrorKind::NotFound => {}
        // In use again, or not to be had now: the next search looks again.
        Err(error) => warn!(%eni, %error, "delete a leaked interface"),
    }
}
