//! The kernel of this node.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use selvage_nodenet::link::Link;
use selvage_nodenet::rule::{self, Family};
use selvage_nodenet::{Monitor, Socket, TableId, link, route};
use tokio::io::unix::AsyncFd;
use tracing::{debug, warn};

use super::eni::{self, View};
use super::pods::{self, There};
use super::tables::Tables;
use super::watch::Watch;
use super::{
    Change, Disturbed, EniNet, Host, HostError, Looked, NodeNet, Obstacle, PodNet, firewall, flows,
    prepare, rules,
};

/// The kernel, through netlink and the iptables tools.
///
/// *Needs*: `CAP_NET_ADMIN` over the host's network namespace; `CAP_NET_RAW` for the legacy tools; a tokio runtime with
/// I/O enabled.
#[derive(Default)]
pub struct Kernel {
    last: tokio::sync::Mutex<Last>,
    watch: Arc<Mutex<Watch>>,
    /// `None` if the kernel does not let us hear: then the slow look sees everything.
    monitor: OnceLock<Option<AsyncFd<Monitor>>>,
    /// The same, of tables.
    tables: OnceLock<Option<AsyncFd<Monitor>>>,
}

/// What the last look was about.
#[derive(Default)]
struct Last {
    tables: Tables,
    sysctls_wrong: BTreeSet<String>,
}

impl Kernel {
    /// The kernel of this node.
    pub fn new() -> Self {
        Self::default()
    }

    /// Of links, addresses, routes and rules: begins to hear at the first call.
    fn monitor(&self) -> Option<&AsyncFd<Monitor>> {
        self.monitor.get_or_init(|| hear(Monitor::open)).as_ref()
    }

    /// Of tables: begins to hear at the first call.
    fn table_monitor(&self) -> Option<&AsyncFd<Monitor>> {
        let open = || hear(Monitor::of_tables);
        self.tables.get_or_init(open).as_ref()
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        lock(&self.watch)
    }

    /// Takes in what has been told until now. True if what is ours may be wrong.
    fn take_in(&self, monitor: Option<&AsyncFd<Monitor>>) -> bool {
        let Some(monitor) = monitor else {
            return false;
        };
        match monitor.get_ref().drain() {
            Ok(events) => {
                let mut watch = self.watch();
                let mut disturbed = false;
                for event in &events {
                    if watch.take(event) {
                        debug!(?event, "disturbed");
                        disturbed = true;
                    }
                }
                disturbed
            }
            Err(error) => {
                warn!(%error, "notifications from the kernel");
                true
            }
        }
    }

    /// Ends when what is told by a monitor may be about what is ours.
    async fn disturbed_by(&self, monitor: Option<&AsyncFd<Monitor>>) {
        let Some(readable) = monitor else {
            return std::future::pending().await;
        };
        loop {
            let Ok(mut ready) = readable.readable().await else {
                // The runtime is ending.
                return std::future::pending().await;
            };
            let disturbed = self.take_in(monitor);
            ready.clear_ready();
            if disturbed {
                return;
            }
        }
    }
}

/// Begins to hear.
#[expect(
    deprecated,
    reason = "the newer form is unsafe, for descriptors that are closed elsewhere: a monitor owns its own"
)]
fn hear(open: fn() -> Result<Monitor, selvage_nodenet::Error>) -> Option<AsyncFd<Monitor>> {
    let monitor = open().map_err(|e| e.to_string());
    match monitor.and_then(|m| AsyncFd::new(m).map_err(|e| e.to_string())) {
        Ok(monitor) => Some(monitor),
        Err(error) => {
            warn!(
                error,
                "no notifications from the kernel: repairs take longer"
            );
            None
        }
    }
}

impl Host for Kernel {
    async fn ensure_node(&self, node: &NodeNet) -> Result<Vec<Change>, HostError> {
        // From here on the links that come are told of, so that it is known what they were born with.
        self.monitor();
        self.take_in(self.table_monitor());
        let mut last = self.last.lock().await;
        let wanted = node.clone();
        let looked = blocking(move |socket| {
            let there = rule::list(socket, wanted.family())?;
            let changed = rules::ensure(socket, &wanted, &there)?;
            let primary = prepare::primary(socket, wanted.primary_mac)?;
            let wrong = prepare::wrong(&primary.name, wanted.family())?;
            Ok((changed, primary, wrong))
        });
        let (mut changed, primary, wrong) = looked.await?;
        if wrong != last.sysctls_wrong {
            for key in &wrong {
                warn!(
                    sysctl = key,
                    "not as pods need it: run `selvage-ipamd init` in a privileged init container"
                );
            }
            last.sysctls_wrong = wrong;
        }
        let tables = last.tables.ensure(node, &primary.name).await?;
        if tables.iter().any(|change| flows::depend_on(change.part)) {
            let node = node.clone();
            changed.extend(blocking(move |_| flows::restart(&node)).await?);
        }
        changed.extend(tables);
        Ok(changed)
    }

    async fn ensure_eni(&self, eni: &EniNet) -> Result<Vec<Change>, HostError> {
        let eni = eni.clone();
        blocking(move |socket| {
            let view = View {
                links: &link::list(socket)?,
                rules: &rule::list(socket, eni::family(eni.address))?,
            };
            eni::ensure(socket, &view, &eni)
        })
        .await
    }

    async fn ensure_routing(&self, node: &NodeNet, enis: &[EniNet], pods: &[PodNet]) -> Looked {
        self.take_in(self.monitor());
        let (node, enis, pods) = (node.clone(), enis.to_vec(), pods.to_vec());
        let watch = self.watch.clone();
        let work = blocking(move |socket| look(socket, &node, &enis, &pods, &watch));
        work.await.unwrap_or_else(|error| Looked {
            failed: vec![error],
            ..Looked::default()
        })
    }

    async fn remove_eni(&self, eni: &EniNet) -> Result<(), HostError> {
        let eni = eni.clone();
        blocking(move |socket| eni::remove(socket, &eni)).await
    }

    async fn links(&self) -> Result<BTreeSet<String>, HostError> {
        blocking(|socket| Ok(link::list(socket)?.into_iter().map(|l| l.name).collect())).await
    }

    async fn forget_pod(&self, address: IpAddr) -> Result<(), HostError> {
        blocking(move |socket| pods::forget(socket, address)).await
    }

    async fn obstacles(&self, node: &NodeNet) -> Result<Vec<Obstacle>, HostError> {
        firewall::obstacles(node).await
    }

    async fn disturbed(&self) -> Disturbed {
        // Tables first: while pods come and go there is always something about routing.
        tokio::select! {
            biased;
            () = self.disturbed_by(self.table_monitor()) => Disturbed::Tables,
            () = self.disturbed_by(self.monitor()) => Disturbed::Routing,
        }
    }
}

fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One look at everything that netlink shows, by listings that are made once.
fn look(
    socket: &mut Socket,
    node: &NodeNet,
    enis: &[EniNet],
    pods: &[PodNet],
    watch: &Mutex<Watch>,
) -> Result<Looked, HostError> {
    let mut looked = Looked::default();
    let mut keep = |done: Result<Vec<Change>, HostError>| match done {
        Ok(changed) => looked.changed.extend(changed),
        Err(error) => looked.failed.push(error),
    };
    let links = link::list(socket)?;
    lock(watch).learn(&links);
    let rules = rule::list(socket, node.family())?;
    keep(rules::ensure(socket, node, &rules));
    let view = View {
        links: &links,
        rules: &rules,
    };
    for eni in enis {
        keep(eni::ensure(socket, &view, eni));
    }
    keep(eni::take_from_host(socket, &links, enis));
    let any: IpAddr = match node.family() {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let main = route::list(socket, TableId::MAIN, any)?;
    let there = There::new(&links, &main, &rules);
    let born = |link: &Link| lock(watch).born(link.index);
    pods::ensure(socket, &there, pods, born, &mut looked);
    Ok(looked)
}

/// Netlink blocks its thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&mut Socket) -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    tokio::task::spawn_blocking(move || work(&mut Socket::open()?))
        .await
        .map_err(|e| HostError::Thread(e.to_string()))?
}
