//! Probes by exec: the daemon answers questions on a unix socket, `selvage-policy health` asks them.
//!
//! One line asks (`ready`, `live`, `status`; `metrics`, `log`, `wanted` for a bug report), one line
//! of JSON answers. Probes are answered from
//! what the loop last said, so that they get an answer when it stands still; `status` asks the loop
//! for what is enforced.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::metrics::Metrics;
use crate::questions::Asker;
use crate::recent;
use crate::status::enforced::{Enforced, rulesets};
use crate::status::{Report, Status, Surroundings, Verdict};
use crate::support::ruleset;

/// How long either side waits for the other. The loop has one second of it.
const DEADLINE: Duration = Duration::from_secs(2);

/// Longest question.
const QUESTION_MAX: u64 = 64;

/// The socket cannot be made, or asked.
#[derive(Debug, Error)]
pub enum HealthError {
    /// Folder or socket cannot be made.
    #[error("listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody answers.
    #[error("ask the daemon on {}", path.display())]
    Ask {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Where answers come from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The node's name.
    pub node: String,
    /// The families that are enforced.
    pub families: Vec<String>,
    /// What the loop last said about itself.
    pub status: watch::Receiver<Status>,
    /// What it counts, and how old what it knows is.
    pub metrics: Arc<Metrics>,
    /// The loop.
    pub asker: Asker,
}

/// A bound socket; its file goes when dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It may be gone already; a leftover is replaced at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

impl Listener {
    /// Binds the socket, in place of what a crash left there. Makes the folder. *Needs* a runtime.
    ///
    /// *Errors*: [`HealthError::Listen`]; also when something that is no socket has the name, or a
    /// living daemon answers on it.
    pub fn bind(path: &Path) -> Result<Self, HealthError> {
        let failed = |source| HealthError::Listen {
            path: path.to_owned(),
            source,
        };
        if let Some(folder) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(failed)?;
        }
        if let Ok(found) = fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                return Err(failed(io::Error::other("in the way, and no socket")));
            }
            if BlockingStream::connect(path).is_ok() {
                return Err(failed(io::Error::other("another daemon answers there")));
            }
            fs::remove_file(path).map_err(failed)?;
        }
        Ok(Self {
            listener: UnixListener::bind(path).map_err(failed)?,
            path: path.to_owned(),
        })
    }

    /// Answers until told to stop, one question at a time.
    pub async fn serve(self, sources: Sources, stop: CancellationToken) {
        loop {
            let stream = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of descriptors, most likely: give others time to close some.
                        debug!(%error, "accept on the health socket");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            match timeout(DEADLINE, answer(stream, &sources)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "answer on the health socket"),
                Err(_) => debug!("who asked on the health socket went silent"),
            }
        }
    }
}

async fn answer(stream: UnixStream, sources: &Sources) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut question = String::new();
    let mut read = tokio::io::BufReader::new(tokio::io::AsyncReadExt::take(read, QUESTION_MAX));
    read.read_line(&mut question).await?;
    let status = || sources.status.borrow().clone();
    let mut line = match question.trim_end() {
        "ready" => serde_json::to_vec(&status().ready())?,
        "live" => serde_json::to_vec(&status().live(Instant::now()))?,
        "status" => serde_json::to_vec(&report(sources).await)?,
        "metrics" => serde_json::to_vec(&sources.metrics.render())?,
        "log" => serde_json::to_vec(&recent::lines())?,
        "wanted" => serde_json::to_vec(&wanted(sources).await)?,
        other => serde_json::to_vec(&Verdict {
            ok: false,
            reason: format!("unknown question {other:?}"),
        })?,
    };
    line.push(b'\n');
    write.write_all(&line).await?;
    write.shutdown().await
}

async fn report(sources: &Sources) -> Report {
    let enforced = sources.asker.ask(Enforced::of).await.ok();
    let now = Instant::now();
    let around = Surroundings {
        node: sources.node.clone(),
        families: sources.families.clone(),
        watches: sources.metrics.watches().report(now),
        enforced,
    };
    sources.status.borrow().report(around, now)
}

/// Every ruleset, as text.
async fn wanted(sources: &Sources) -> String {
    match sources.asker.ask(rulesets).await {
        Ok(rulesets) => rulesets.iter().map(ruleset::text).collect(),
        Err(error) => error.to_string(),
    }
}

fn ask<T: DeserializeOwned>(path: &Path, question: &str) -> Result<T, HealthError> {
    let asked = || -> io::Result<T> {
        let mut stream = BlockingStream::connect(path)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.write_all(format!("{question}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    };
    asked().map_err(|source| HealthError::Ask {
        path: path.to_owned(),
        source,
    })
}

/// Asks the daemon on this socket whether it is ready.
///
/// *Errors*: [`HealthError::Ask`] when nothing answers within two seconds.
pub fn ask_ready(path: &Path) -> Result<Verdict, HealthError> {
    ask(path, "ready")
}

/// Asks the daemon on this socket whether it is alive.
///
/// *Errors*: as [`ask_ready`].
pub fn ask_live(path: &Path) -> Result<Verdict, HealthError> {
    ask(path, "live")
}

/// Asks the daemon on this socket for everything it says about itself.
///
/// *Errors*: as [`ask_ready`].
pub fn ask_status(path: &Path) -> Result<Report, HealthError> {
    ask(path, "status")
}

/// Asks the daemon on this socket for a text: `metrics`, `log` or `wanted`.
///
/// *Errors*: as [`ask_ready`].
pub fn ask_text(path: &Path, what: &str) -> Result<String, HealthError> {
    ask(path, what)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::Receiver;

    use super::*;
    use crate::fixtures;
    use crate::questions::{self, Question};
    use crate::status::Phase;

    async fn asked<T: Send + 'static>(
        path: &Path,
        ask: fn(&Path) -> Result<T, HealthError>,
    ) -> Result<T, HealthError> {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || ask(&path))
            .await
            .unwrap()
    }

    /// A status to tell, where the daemon's answers come from, and the loop's end of it.
    fn sources() -> (watch::Sender<Status>, Sources, Receiver<Question>) {
        let (tell, status) = watch::channel(Status::new(Instant::now()));
        let (asker, questions) = questions::channel();
        let sources = Sources {
            node: "node-1".to_owned(),
            families: vec!["IPv4".to_owned()],
            status,
            metrics: Arc::default(),
            asker,
        };
        (tell, sources, questions)
    }

    #[tokio::test]
    async fn the_status_holds_what_the_loop_says_is_enforced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.sock");
        let (_tell, sources, mut questions) = sources();
        let stop = CancellationToken::new();
        let listener = Listener::bind(&path).unwrap();
        let serving = tokio::spawn(listener.serve(sources, stop.clone()));
        let answering = tokio::spawn(async move {
            let question = questions.recv().await.unwrap();
            question(&mut fixtures::empty());
        });
        let report = asked(&path, ask_status).await.unwrap();
        assert_eq!(report.enforced, Some(Enforced::default()));
        answering.await.unwrap();
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn probes_hear_what_the_daemon_knows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own/policy.sock");
        let (tell, sources, _) = sources();
        let stop = CancellationToken::new();
        let listener = Listener::bind(&path).unwrap();
        let serving = tokio::spawn(listener.serve(sources, stop.clone()));

        assert!(!asked(&path, ask_ready).await.unwrap().ok);
        assert!(asked(&path, ask_live).await.unwrap().ok);
        tell.send_modify(|status| status.phase = Phase::Standby);
        assert!(asked(&path, ask_ready).await.unwrap().ok);
        // Nobody answers questions: what is enforced isn't known, and all else is.
        let report = asked(&path, ask_status).await.unwrap();
        assert_eq!(
            (report.node.as_str(), report.phase, report.enforced),
            ("node-1", Phase::Standby, None)
        );

        stop.cancel();
        serving.await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_probe_without_a_daemon_is_an_error_with_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.sock");
        let error = asked(&path, ask_live).await.unwrap_err();
        assert!(error.to_string().contains("policy.sock"), "{error}");
    }

    #[tokio::test]
    async fn a_socket_left_by_a_crash_is_replaced_but_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let living = Listener::bind(&path).unwrap();
        assert!(Listener::bind(&path).is_err());
        drop(living);
    }
}
