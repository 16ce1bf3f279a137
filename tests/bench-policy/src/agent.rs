//! The shipped daemon, started as a process of its own against the replaying server.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cluster::NODE;
use crate::process::{self, Used};
use crate::rules::Backend;

/// Log lines that wait for somebody to look at them; a steady agent says a few a minute.
const LINES_MAX: usize = 100_000;

const END: Duration = Duration::from_secs(10);

/// A line of the agent's log.
#[derive(Debug, Clone)]
pub struct Line {
    /// When it was read.
    pub when: Instant,
    /// The message.
    pub message: String,
    /// Everything else it carries.
    pub fields: Value,
}

/// A running daemon; killed when dropped.
pub struct Agent {
    child: Child,
    /// When it was started.
    pub started: Instant,
    lines: Receiver<Line>,
    reader: Option<JoinHandle<()>>,
    /// What it said, for when it goes wrong.
    said: Vec<String>,
}

/// How to start one.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The binary.
    pub program: PathBuf,
    /// How it reaches the API.
    pub kubeconfig: PathBuf,
    /// Which iptables it is told to use.
    pub backend: Backend,
    /// Where its lock and socket are.
    pub folder: PathBuf,
    /// What it logs.
    pub log: String,
    /// More flags of `run`.
    pub flags: Vec<String>,
    /// Behind which step it shall kill itself, if any.
    pub failpoint: Option<String>,
}

impl Launch {
    /// With the usual log.
    #[must_use]
    pub fn new(program: &Path, kubeconfig: PathBuf, backend: Backend, folder: &Path) -> Self {
        Self {
            program: program.to_owned(),
            kubeconfig,
            backend,
            folder: folder.to_owned(),
            log: "info".to_owned(),
            flags: Vec::new(),
            failpoint: None,
        }
    }

    /// Starts it in the network namespace of the calling thread.
    ///
    /// *Errors*: the binary cannot be started.
    pub fn start(&self) -> Result<Agent> {
        let Self {
            program,
            kubeconfig,
            backend,
            folder,
            log,
            flags,
            failpoint,
        } = self;
        process::is_there(program)?;
        let started = Instant::now();
        let mut child = process::command(program)
            .envs(failpoint.iter().map(|step| ("SELVAGE_FAILPOINT", step)))
            .args(["--log-format", "json", "--log-level", log])
            .args(["run", "--node-name", NODE, "--backend", backend.as_str()])
            .args(["--metrics-address", "127.0.0.1:9095"])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--run-dir")
            .arg(folder)
            .arg("--socket")
            .arg(folder.join("policy.sock"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let (sender, lines) = sync_channel(LINES_MAX);
        let out = child.stdout.take().context("stdout was piped")?;
        let error = child.stderr.take().context("stderr was piped")?;
        let reader = std::thread::spawn(move || read_both(out, error, &sender));
        Ok(Agent {
            child,
            started,
            lines,
            reader: Some(reader),
            said: Vec::new(),
        })
    }
}

fn read_both(out: ChildStdout, error: ChildStderr, sender: &SyncSender<Line>) {
    std::thread::scope(|scope| {
        scope.spawn(|| read(error, sender));
        read(out, sender);
    });
}

fn read(from: impl std::io::Read, sender: &SyncSender<Line>) {
    for text in BufReader::new(from).lines().map_while(Result::ok) {
        let when = Instant::now();
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        let message = value["message"].as_str().unwrap_or(&text).to_owned();
        // Nobody listening any more is the end of the bench.
        let _ = sender.try_send(Line {
            when,
            message,
            fields: value,
        });
    }
}

impl Agent {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has used.
    ///
    /// *Errors*: it is gone.
    pub fn used(&self) -> Result<Used> {
        process::used(self.pid())
    }

    /// The next line that says this.
    ///
    /// *Errors*: it ended, or did not say so in time; what it said instead is in the message.
    pub fn says(&mut self, message: &str, patience: Duration) -> Result<Line> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if line.message == message {
                        return Ok(line);
                    }
                    self.said.push(line.fields.to_string());
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "agent: no {message:?} within {patience:?}; it said:\n{}",
                        self.tail()
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("agent ended before {message:?}; it said:\n{}", self.tail())
                }
            }
        }
    }

    /// Waits until every watch is in sync and the rules are in force: when the former was, and
    /// the line that told of the latter.
    ///
    /// *Errors*: as [`Agent::says`].
    pub fn in_force(&mut self, patience: Duration) -> Result<(Instant, Line)> {
        let mut synced = None;
        for _ in 0..3 {
            synced = Some(self.says("in sync", patience)?.when);
        }
        let line = self.says("in force", patience)?;
        Ok((synced.context("three resources are watched")?, line))
    }

    /// What it has said lately.
    fn tail(&self) -> String {
        let from = self.said.len().saturating_sub(20);
        self.said[from..].join("\n")
    }

    /// Whether it has been killed within that time.
    ///
    /// *Errors*: it ended otherwise; what it said is in the message.
    pub fn ended(&mut self, patience: Duration) -> Result<bool> {
        let child = &mut self.child;
        let Ok(status) = process::wait_for("the end", patience, || Ok(child.try_wait()?)) else {
            return Ok(false);
        };
        if status.signal() == Some(9) {
            return Ok(true);
        }
        self.said
            .extend(self.lines.try_iter().map(|line| line.fields.to_string()));
        bail!("agent: {status}; it said:\n{}", self.tail())
    }

    /// Lets it end by itself.
    ///
    /// *Errors*: it does not.
    pub fn end(mut self) -> Result<()> {
        process::end(&mut self.child, END)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
