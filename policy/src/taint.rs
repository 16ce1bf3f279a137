//! Takes the startup taint off this node once its policy holds.
//!
//! A node that is registered with the taint `node.selvage.dev/policy-not-ready` gets no pod but those that
//! tolerate it, ours among them, until the daemon has put the node's rules in force for the first time.
//! Karpenter calls this `startupTaints`, the kubelet `--register-with-taints`.
//!
//! The taint is removed by a JSON patch that names its place in the list and tests, in the same write, that
//! it is still there: whoever adds or removes another taint meanwhile loses nothing, and we look again.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Error};
use serde_json::json;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// The taint's key. Its effect and its value are up to whoever sets it.
pub const TAINT: &str = "node.selvage.dev/policy-not-ready";

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// The first pause after a failure; each further one doubles it.
const PAUSE_FIRST: Duration = Duration::from_secs(1);

/// The longest pause: nodes wait for this, and a thousand of them ask a server that was away.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// The taint is gone, by our hand.
    Removed,
    /// There was none.
    Absent,
    /// Told to stop before it was known.
    Stopped,
}

/// Removes the taint from a node, whatever its effect; other taints stay. Tries again, with growing pauses,
/// until it is gone or `stop` says so; a node that is not registered yet is waited for. Call it when the
/// node's rules are in force.
///
/// *Needs*: get and patch on nodes; a runtime with time.
pub async fn remove(client: Client, node: &str, stop: CancellationToken) -> Removal {
    let nodes = Api::<Node>::all(client);
    let mut pause = PAUSE_FIRST;
    let mut told = String::new();
    loop {
        let reason = tokio::select! {
            () = stop.cancelled() => return Removal::Stopped,
            tried = timeout(DEADLINE, try_remove(&nodes, node)) => match tried {
                Ok(Ok(Removal::Removed)) => {
                    info!(node, taint = TAINT, "startup taint removed");
                    return Removal::Removed;
                }
                Ok(Ok(ended)) => {
                    debug!(node, taint = TAINT, "no startup taint");
                    return ended;
                }
                Ok(Err(error)) => explain(&error),
                Err(_) => format!("no answer within {DEADLINE:?}"),
            },
        };
        if told == reason {
            debug!(node, reason, again_in = ?pause, "startup taint not removed");
        } else {
            warn!(node, taint = TAINT, reason, again_in = ?pause, "startup taint not removed: pods that do not tolerate it stay away");
            told = reason;
        }
        tokio::select! {
            () = stop.cancelled() => return Removal::Stopped,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// One look, and a write if there is something to remove.
async fn try_remove(nodes: &Api<Node>, name: &str) -> Result<Removal, Error> {
    let node = nodes.get(name).await?;
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let Some(patch) = patch(&taints) else {
        return Ok(Removal::Absent);
    };
    nodes.patch(name, &PatchParams::default(), &patch).await?;
    Ok(Removal::Removed)
}

/// What removes our taint from this list, or from any other in which it has the same places; `None` if it
/// is not in it.
fn patch(taints: &[Taint]) -> Option<Patch<()>> {
    // From the end: what is removed moves those behind it.
    let places = taints.iter().enumerate().rev();
    let steps: Vec<_> = places
        .filter(|(_, taint)| taint.key == TAINT)
        .flat_map(|(place, _)| {
            let path = format!("/spec/taints/{place}");
            [
                json!({"op": "test", "path": format!("{path}/key"), "value": TAINT}),
                json!({"op": "remove", "path": path}),
            ]
        })
        .collect();
    if steps.is_empty() {
        return None;
    }
    let patch = serde_json::from_value(json!(steps)).expect("these are steps of a JSON patch");
    Some(Patch::Json(patch))
}

/// What a person can do something about.
fn explain(error: &Error) -> String {
    match error {
        Error::Api(status) if status.code == 403 => format!(
            "the API server forbids it (RBAC: get and patch on nodes): {}",
            status.message
        ),
        Error::Api(status) if status.code == 404 => {
            "the node is not registered, or has another name (--node-name)".to_owned()
        }
        Error::Api(status) if matches!(status.code, 409 | 422) => {
            "the node's taints changed meanwhile".to_owned()
        }
        other => crate::error_chain(other),
    }
}

#[cfg(test)]
mod tests;
