//! What most rows begin with: a server with the loaded cluster, the daemon on it, rules in force.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use tempfile::TempDir;

use crate::agent::{Agent, Launch};
use crate::cluster::{Cluster, Size};
use crate::process;
use crate::replay::Server;
use crate::rules::Backend;

/// The seed of every cluster.
pub const SEED: u64 = 1;

/// Longer than the largest cluster takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A server and a folder; the daemon is started on them.
pub struct Lab {
    /// The objects.
    pub cluster: Cluster,
    /// Who serves them.
    pub server: Server,
    /// Which iptables.
    pub backend: Backend,
    program: PathBuf,
    folder: TempDir,
}

/// When things happened while the daemon came up.
pub struct Up {
    /// The daemon.
    pub agent: Agent,
    /// When it had read the whole cluster.
    pub synced: Instant,
    /// When it said that its rules were in force.
    pub in_force: Instant,
    /// `changed` or `unchanged`.
    pub outcome: String,
}

impl Lab {
    /// Serves a cluster of that size.
    ///
    /// *Errors*: no port, no folder.
    pub fn new(program: &Path, backend: Backend, size: Size) -> Result<Self> {
        let cluster = Cluster::generate(size, SEED);
        let server = Server::start()?;
        server.store().fill(cluster.objects());
        Ok(Self {
            cluster,
            server,
            backend,
            program: program.to_owned(),
            folder: tempfile::tempdir()?,
        })
    }

    /// Where the kubeconfig is.
    ///
    /// *Errors*: it cannot be written.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        self.server.kubeconfig(self.folder.path())
    }

    /// How the daemon would be started.
    ///
    /// *Errors*: as [`Lab::kubeconfig`].
    pub fn launch(&self) -> Result<Launch> {
        let kubeconfig = self.kubeconfig()?;
        Ok(Launch::new(
            &self.program,
            kubeconfig,
            self.backend,
            self.folder.path(),
        ))
    }

    /// Takes everything of the daemon's off the node.
    ///
    /// *Errors*: as `selvage-policy cleanup`.
    pub fn cleanup(&self) -> Result<()> {
        let mut command = process::command(&self.program);
        command
            .arg("cleanup")
            .arg("--run-dir")
            .arg(self.folder.path());
        process::timed(&mut command, "").map(drop)
    }

    /// Starts the daemon and waits until its rules are in force.
    ///
    /// *Errors*: they are not, in time.
    pub fn up(&self) -> Result<Up> {
        let mut agent = self.launch()?.start()?;
        let (synced, line) = agent.in_force(PATIENCE)?;
        Ok(Up {
            agent,
            synced,
            in_force: line.when,
            outcome: line.fields["outcome"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        })
    }
}
