//! The other end of the health check: `selvage-ipamd health`, what the probes run.

use std::path::Path;
use std::time::Duration;

use selvage_ipamd_rpc::client::{CallError, Deadlines, call, request};
use selvage_ipamd_rpc::health::HealthCheckRequest;
use selvage_ipamd_rpc::health::health_check_response::ServingStatus;
use selvage_ipamd_rpc::health::health_client::HealthClient;
use thiserror::Error;

/// Probes have their own deadline; this one is shorter, so that its words are seen.
const DEADLINES: Deadlines = Deadlines {
    connect: Duration::from_secs(2),
    reply: Duration::from_secs(3),
};

/// The daemon is not well.
#[derive(Debug, Error)]
pub enum Unhealthy {
    /// Nobody listens, or there is no answer.
    #[error("ipamd does not answer: {0}")]
    NoAnswer(#[from] CallError),
    /// It answers, but cannot give addresses.
    #[error("ipamd runs and cannot give addresses (its log and the node's events say why)")]
    NotServing,
}

/// Asks the daemon at `socket`. With `live`, an answer is enough: a daemon that waits for the cloud is alive.
///
/// # Errors
/// When it is not well.
pub async fn health(socket: &Path, live: bool) -> Result<(), Unhealthy> {
    let reply = call(socket, DEADLINES, async |ipamd| {
        HealthClient::new(ipamd)
            .check(request(HealthCheckRequest::default(), DEADLINES))
            .await
    })
    .await?;
    match reply.status() {
        ServingStatus::Serving => Ok(()),
        ServingStatus::NotServing | ServingStatus::Unknown | ServingStatus::ServiceUnknown => {
            if live {
                Ok(())
            } else {
                Err(Unhealthy::NotServing)
            }
        }
    }
}
