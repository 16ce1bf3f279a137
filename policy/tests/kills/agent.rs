//! The shipped binary as a child process.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use selvage_netfilter::Backend;
use selvage_policy::health::{ask_status, ask_text};
use selvage_policy::status::Report;

/// Longer than anything here takes on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(40);

/// Looks again and again until there is an answer.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        if let Some(found) = look()? {
            return Ok(found);
        }
        pause();
    }
    bail!("{what}: not within {DEADLINE:?}")
}

/// Lets time pass.
pub fn pass(time: Duration) {
    let deadline = Instant::now() + time;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}

/// Between two looks, so that whatever is looked at gets its turn on two cores.
fn pause() {
    std::thread::park_timeout(Duration::from_millis(2));
}

/// Where an agent's files are, and how it reaches the API server.
pub struct Home {
    pub folder: PathBuf,
    pub kubeconfig: PathBuf,
    /// The families that its agents enforce.
    pub families: &'static str,
}

/// A running agent; killed when dropped.
pub struct Agent {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Home {
    /// Starts an agent; `failpoint` is where it shall kill itself.
    #[expect(
        clippy::disallowed_methods,
        reason = "the binary under test is a process of its own"
    )]
    pub fn start(&self, backend: Backend, failpoint: Option<&str>) -> Result<Agent> {
        let (socket, log) = (self.folder.join("policy.sock"), self.folder.join("log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_selvage-policy"));
        command
            .args(["--log-level", "info,selvage_policy=debug", "run"])
            .args(["--node-name", "node-1", "--metrics-address", "none"])
            .args(["--backend", backend.as_str(), "--families", self.families])
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--run-dir")
            .arg(self.folder.join("shared"))
            .arg("--endpoint-status-dir")
            .arg(self.folder.join("endpoint-status"))
            .arg("--socket")
            .arg(&socket)
            .env_remove("SELVAGE_FAILPOINT")
            .stderr(File::create(&log)?);
        if let Some(failpoint) = failpoint {
            command.env("SELVAGE_FAILPOINT", failpoint);
        }
        let child = command.spawn().context("start the agent")?;
        Ok(Agent { child, socket, log })
    }

    pub fn run_dir(&self) -> PathBuf {
        self.folder.join("shared")
    }

    pub fn status_dir(&self) -> PathBuf {
        self.folder.join("endpoint-status")
    }
}

impl Agent {
    /// Waits until the status is as wanted.
    pub fn until(&mut self, what: &str, wanted: impl Fn(&Report) -> bool) -> Result<Report> {
        let (socket, child) = (self.socket.clone(), &mut self.child);
        let found = eventually(what, || {
            if let Some(status) = child.try_wait()? {
                bail!("the agent ended while waiting: {status}");
            }
            Ok(ask_status(&socket).ok().filter(|report| wanted(report)))
        });
        found.with_context(|| tail(&self.log))
    }

    /// Waits until its rules are in force.
    pub fn until_ready(&mut self) -> Result<Report> {
        self.until("ready", |report| report.ready.ok)
    }

    /// Waits until it has killed itself.
    pub fn until_killed(mut self) -> Result<()> {
        let status = eventually("a kill at the failpoint", || Ok(self.child.try_wait()?))
            .with_context(|| tail(&self.log))?;
        killed(status).with_context(|| tail(&self.log))
    }

    /// Kills it from outside.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        killed(self.child.wait()?)
    }

    /// The value of a counter.
    pub fn counted(&self, counter: &str) -> Result<u64> {
        let metrics = ask_text(&self.socket, "metrics")?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(counter));
        let value = value.with_context(|| format!("no {counter} in {metrics}"))?;
        Ok(value.trim().parse()?)
    }

    /// What it has said so far.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// The failpoints that it has passed so far, in order.
    pub fn passed(&self) -> Result<Vec<String>> {
        let log = self.log()?;
        let names = log.lines().filter_map(|line| {
            let name = line.split_once(" failpoint failpoint=\"")?.1;
            Some(name.split('"').next()?.to_owned())
        });
        Ok(names.collect())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn killed(status: ExitStatus) -> Result<()> {
    match status.signal() {
        Some(9) => Ok(()),
        Some(_) | None => bail!("the agent ended otherwise: {status}"),
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.len().saturating_sub(30);
    format!("the agent's last words:\n{}", lines[last..].join("\n"))
}
