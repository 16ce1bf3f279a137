//! Network namespaces: being in the right one, and running code in another.

use std::env;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Fails unless the process is alone in a namespace made for this test.
///
/// *Errors*: in the machine's own namespace (the runner says which that is), or when several tests
/// share a process, as they do under plain `cargo test`.
pub fn assert_isolated() -> Result<()> {
    let here = fs::read_link("/proc/self/ns/net").context("which network namespace is this")?;
    let host = env::var_os("SELVAGE_HOST_NETNS")
        .context("not started by tests/netns-runner: this test would change the machine")?;
    ensure!(
        here.as_os_str() != host,
        "in the machine's own network namespace {}",
        here.display()
    );
    ensure!(
        env::var("NEXTEST_EXECUTION_MODE").as_deref() == Ok("process-per-test"),
        "run by something else than cargo nextest: tests of one process share its namespaces"
    );
    Ok(())
}

/// Something that is in a network namespace: a node or a pod.
pub trait Place {
    /// Where it is.
    fn netns(&self) -> &Netns;
}

/// A network namespace, held open.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// Opens a namespace by the path of its file.
    ///
    /// *Errors*: no such file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        File::open(path)
            .map(Self)
            .with_context(|| format!("open namespace {}", path.display()))
    }

    /// Opens the namespace of the calling thread.
    ///
    /// *Errors*: /proc is not mounted.
    pub fn current() -> Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Moves the calling thread here; sockets it opens from now on belong here.
    ///
    /// *Errors*: not permitted.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .context("enter network namespace")
    }

    /// Runs `body` here, on a thread made for it, so that no other code is moved.
    ///
    /// *Errors*: the namespace cannot be entered.
    ///
    /// *Panics*: when `body` does.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| self.enter().map(|()| body()))
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Another handle on the same namespace.
    ///
    /// *Errors*: no descriptor left.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl Place for Netns {
    fn netns(&self) -> &Netns {
        self
    }
}
