//! The other end of inspection: what `selvage-ipamd status` and `support` ask of the running daemon.

use std::path::Path;
use std::time::Duration;

use selvage_ipamd_rpc::client::{CallError, Deadlines, call, request};
use selvage_ipamd_rpc::inspection::ReadRequest;
use selvage_ipamd_rpc::inspection::inspection_client::InspectionClient;
use thiserror::Error;

use crate::pages;
use crate::view::View;

const DEADLINES: Deadlines = Deadlines {
    connect: Duration::from_secs(2),
    reply: Duration::from_secs(20),
};

/// The daemon cannot be looked at.
#[derive(Debug, Error)]
pub enum InspectError {
    /// Nobody listens, or there is no answer.
    #[error("ipamd does not answer: {0}")]
    NoAnswer(#[from] CallError),
    /// It answers, but not this.
    #[error("{path}: {words}")]
    NoPage {
        /// What was asked for.
        path: String,
        /// What it said.
        words: String,
    },
    /// It answers something that we do not understand.
    #[error("an answer that cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
}

/// A page of the daemon at `socket`: `/metrics`, or one of introspection.
///
/// # Errors
/// When it does not answer, or has no such page.
pub async fn read(socket: &Path, path: &str) -> Result<String, InspectError> {
    let message = ReadRequest { path: path.into() };
    let reply = call(socket, DEADLINES, async |ipamd| {
        InspectionClient::new(ipamd)
            .read(request(message, DEADLINES))
            .await
    })
    .await?;
    match reply.status {
        200 => Ok(reply.body),
        _ => Err(InspectError::NoPage {
            path: path.to_owned(),
            words: reply.body.trim().to_owned(),
        }),
    }
}

/// The pool of the daemon at `socket`, and what it does next.
///
/// # Errors
/// As [`read`].
pub async fn status(socket: &Path) -> Result<View, InspectError> {
    Ok(serde_json::from_str(&read(socket, pages::STATUS).await?)?)
}
