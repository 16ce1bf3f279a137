//! One node of all for the work of the cluster, by a Lease.
//!
//! Nobody's clock is believed: a candidate takes over when it has seen the same Lease unchanged for a whole duration
//! by its own clock.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use selvage_ipamd::chain::chain;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::info;

use crate::client::REQUEST;

/// The Lease's name.
pub const LEASE: &str = "selvage-ipamd";
/// How long a leader is believed to live without a word.
pub const DURATION: Duration = Duration::from_secs(30 * 60);

/// A candidate. Cheap to clone; clones are one candidate.
#[derive(Clone)]
pub struct Election {
    client: Client,
    api: Api<Lease>,
    identity: String,
    seen: Arc<Mutex<Option<Seen>>>,
}

/// Somebody else's Lease, as it was when it last changed.
struct Seen {
    version: Option<String>,
    since: Instant,
}

impl Election {
    /// The candidate `identity`, for the Lease in `namespace`.
    pub fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            client,
            identity,
            seen: Arc::default(),
        }
    }

    /// The client, for the work of who leads.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Whether we lead. To be asked more often than [`DURATION`]: the answer holds until then.
    ///
    /// # Errors
    /// When the API server does not say.
    pub async fn lead(&self) -> Result<bool, String> {
        let lead = async {
            match self.api.get_opt(LEASE).await {
                Ok(Some(lease)) => self.contend(lease).await,
                Ok(None) => self.create().await,
                Err(error) => Err(error),
            }
        };
        match timeout(REQUEST, lead).await {
            Ok(Ok(leads)) => Ok(leads),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("no answer within {REQUEST:?}")),
        }
    }

    async fn create(&self) -> kube::Result<bool> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(self.spec(0)),
        };
        let made = self.api.create(&PostParams::default(), &lease).await;
        self.won(made)
    }

    async fn contend(&self, mut lease: Lease) -> kube::Result<bool> {
        let spec = lease.spec.take().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        let ours = holder == self.identity;
        if !ours && !holder.is_empty() && !self.is_silent(&lease.metadata).await {
            return Ok(false);
        }
        let transitions = spec.lease_transitions.unwrap_or(0);
        let mut renewed = self.spec(transitions + i32::from(!ours));
        renewed.acquire_time = spec.acquire_time.filter(|_| ours).or(renewed.acquire_time);
        lease.spec = Some(renewed);
        let params = PostParams::default();
        // Carries the version that we have read: of two who take over, one is refused.
        let replaced = self.api.replace(LEASE, &params, &lease).await;
        if !ours && replaced.is_ok() {
            info!(previous = holder, "leads for the cluster");
        }
        self.won(replaced)
    }

    fn won(&self, answer: kube::Result<Lease>) -> kube::Result<bool> {
        match answer {
            Ok(_) => Ok(true),
            // Somebody was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the holder has said nothing for as long as it may.
    async fn is_silent(&self, lease: &ObjectMeta) -> bool {
        let now = Instant::now();
        let mut seen = self.seen.lock().await;
        match &*seen {
            Some(seen) if seen.version == lease.resource_version => now - seen.since >= DURATION,
            Some(_) | None => {
                *seen = Some(Seen {
                    version: lease.resource_version.clone(),
                    since: now,
                });
                false
            }
        }
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: now.clone(),
            renew_time: now,
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}

#[cfg(test)]
mod tests;
