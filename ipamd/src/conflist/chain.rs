//! Asks a plugin which versions of CNI it speaks.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tracing::debug;

/// A plugin answers this without doing anything.
const DEADLINE: Duration = Duration::from_secs(2);

/// `None` if it cannot be asked: it is not there, does not run in this container, or says nothing that is understood.
pub async fn versions_of(plugin: &Path) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        supported_versions: Vec<String>,
    }
    let ask = async {
        let mut child = Command::new(plugin)
            .env_clear()
            .env("CNI_COMMAND", "VERSION")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that reads nothing answers all the same.
            let _ = stdin.write_all(br#"{"cniVersion":"1.1.0"}"#).await;
        }
        child.wait_with_output().await
    };
    let answered = match tokio::time::timeout(DEADLINE, ask).await {
        Ok(Ok(output)) => serde_json::from_slice(&output.stdout).map_err(|e| e.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {DEADLINE:?}")),
    };
    answered
        .map(|answer: Answer| answer.supported_versions)
        .inspect_err(|error| debug!(plugin = %plugin.display(), error, "versions not known"))
        .ok()
}
