//! The kernel of this node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use selvage_ipamd_core::ids::Mac;
use selvage_nodenet::rule::{Family, Rule};
use selvage_nodenet::sysctl::{self, Key};
use selvage_nodenet::{Socket, TableId, link, rule};
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::filter::{self, Marking, Table};
use super::iptables::{self, Backend, Iptables};
use super::{
    EniNet, Host, HostError, MARK, NodeNet, PodNet, Snat, eni, forward, nft, pods, priority,
};

/// The kernel, through netlink and the iptables tools.
///
/// *Needs*: `CAP_NET_ADMIN` over the host's network namespace; `CAP_NET_RAW` for the legacy tools.
#[derive(Debug, Default)]
pub struct Kernel {
    last: Mutex<Last>,
}

/// What the last look was about.
#[derive(Debug, Default)]
struct Last {
    backend: Option<Backend>,
    /// The nft script that was carried out, and what the table looked like then.
    nft: Option<(String, String)>,
    sysctls_wrong: BTreeSet<String>,
}

impl Kernel {
    /// The kernel of this node.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Host for Kernel {
    async fn ensure_node(&self, node: &NodeNet) -> Result<Vec<String>, HostError> {
        let mut last = self.last.lock().await;
        let wanted = node.clone();
        let mut changed = blocking(move |socket| ensure_rules(socket, &wanted)).await?;
        let mac = node.primary_mac;
        let wrong = blocking(move |socket| wrong_sysctls(socket, mac)).await?;
        if wrong != last.sysctls_wrong {
            for key in &wrong {
                warn!(
                    sysctl = key,
                    "not as pods need it: run `selvage-ipamd init` in a privileged init container"
                );
            }
            last.sysctls_wrong = wrong;
        }
        let backend = iptables::choose().await?;
        if last.backend != Some(backend) {
            info!(?backend, "iptables tools");
            if let Some(old) = last.backend {
                // Rules in both would translate twice and hide from each other's listings.
                let nothing = NodeNet {
                    snat: Snat::External,
                    ..node.clone()
                };
                let tables = ensure_tables(Iptables::new(old), &nothing, Marking::Here, false);
                changed.extend(tables.await?);
            }
            last.backend = Some(backend);
        }
        let there = iptables::nft_tables().await?;
        let marking = nft::marking(&there);
        // The new marks come before the old ones go: for a moment both are made, and they are the same.
        if let Some(script) = nft::wanted(node, marking)? {
            changed.extend(ensure_nft(&mut last.nft, script, &there).await?);
        }
        let tables = ensure_tables(Iptables::new(backend), node, marking, true);
        changed.extend(tables.await?);
        if nft::wanted(node, marking)?.is_none() && nft::is_there(&there) {
            iptables::nft_apply(nft::REMOVE).await?;
            last.nft = None;
            changed.push("nft table removed".into());
        }
        Ok(changed)
    }

    async fn ensure_eni(&self, eni: &EniNet) -> Result<Vec<String>, HostError> {
        let eni = eni.clone();
        blocking(move |socket| eni::ensure(socket, &eni)).await
    }

    async fn remove_eni(&self, eni: &EniNet) -> Result<(), HostError> {
        let eni = eni.clone();
        blocking(move |socket| eni::remove(socket, &eni)).await
    }

    async fn links(&self) -> Result<BTreeSet<String>, HostError> {
        blocking(|socket| Ok(link::list(socket)?.into_iter().map(|l| l.name).collect())).await
    }

    async fn ensure_pods(&self, pods: &[PodNet]) -> Result<(), HostError> {
        let pods = pods.to_vec();
        blocking(move |socket| {
            let mut first = Ok(());
            for pod in &pods {
                if let Err(error) = pods::ensure(socket, pod) {
                    warn!(veth = pod.veth, address = %pod.address, %error, "pod's routes and rules");
                    first = first.and(Err(error));
                }
            }
            first
        })
        .await
    }

    async fn forget_pod(&self, address: IpAddr) -> Result<(), HostError> {
        blocking(move |socket| pods::forget(socket, address)).await
    }
}

/// Netlink blocks its thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&mut Socket) -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    tokio::task::spawn_blocking(move || work(&mut Socket::open()?))
        .await
        .map_err(|e| HostError::Thread(e.to_string()))?
}

fn ensure_rules(socket: &mut Socket, node: &NodeNet) -> Result<Vec<String>, HostError> {
    let marked = Rule::new(Family::V4, priority::MARKED, TableId::MAIN).mark(MARK, MARK);
    let there = rule::list(socket, Family::V4)?.contains(&marked);
    let wanted = match node.snat {
        Snat::Here { .. } => true,
        Snat::External => false,
    };
    match (there, wanted) {
        (false, true) => {
            socket.run_one(rule::ensure(&marked))?;
            Ok(vec![format!("rule {marked}")])
        }
        (true, false) => {
            socket.run_one(rule::remove(&marked))?;
            Ok(vec![format!("rule {marked} removed")])
        }
        (true, true) | (false, false) => Ok(Vec::new()),
    }
}

/// What `selvage-ipamd init` should have set.
fn wrong_sysctls(socket: &mut Socket, primary: Mac) -> Result<BTreeSet<String>, HostError> {
    let mac = selvage_nodenet::Mac::new(primary.0);
    let link = link::find_by_mac(socket, mac)?.ok_or(HostError::NoLink { mac: primary })?;
    let mut wrong = BTreeSet::new();
    let forward = Key::new("net/ipv4/ip_forward");
    if sysctl::read(&forward)?.as_deref() != Some("1") {
        wrong.insert(forward.as_str().to_owned());
    }
    // Strict (1) drops replies that come in by the primary interface and belong to another one. What counts is the
    // greater of `all` and the link's own, and 2 is loose.
    let own = Key::ipv4_of_link(&link.name, "rp_filter");
    let all = Key::new("net/ipv4/conf/all/rp_filter");
    let strictest = [sysctl::read(&own)?, sysctl::read(&all)?];
    let effective = strictest
        .iter()
        .flatten()
        .filter_map(|value| value.parse::<u8>().ok())
        .max();
    if effective == Some(1) {
        wrong.insert(own.as_str().to_owned());
    }
    Ok(wrong)
}

/// Makes our part of every table as wanted; each table in one transaction.
async fn ensure_tables(
    iptables: Iptables,
    node: &NodeNet,
    marking: Marking,
    with_forward: bool,
) -> Result<Vec<String>, HostError> {
    let mut tables = filter::wanted(node, marking)?;
    let lines = iptables
        .list("filter", "FORWARD")
        .await?
        .unwrap_or_default();
    let lines = if with_forward { lines } else { Vec::new() };
    tables.push(forward::wanted(&node.veth_prefix, &lines));
    let mut changed = Vec::new();
    for table in &tables {
        let listed = list(iptables, table).await?;
        let look = |chain: &str| {
            listed
                .iter()
                .find(|(name, _)| name == chain)
                .and_then(|(_, lines)| lines.as_deref())
        };
        if let Some(text) = filter::transaction(table, &look) {
            iptables.restore(&text).await?;
            changed.push(format!(
                "{} table ({:?} tools)",
                table.name,
                iptables.backend()
            ));
        }
    }
    Ok(changed)
}

/// Makes nft's table as wanted, if it is not what the same script left the last time.
async fn ensure_nft(
    last: &mut Option<(String, String)>,
    script: String,
    there: &[String],
) -> Result<Option<String>, HostError> {
    if let Some((done, left)) = last.as_ref().filter(|_| nft::is_there(there))
        && *done == script
        && *left == iptables::nft_list(nft::TABLE).await?
    {
        return Ok(None);
    }
    iptables::nft_apply(&script).await?;
    *last = Some((script, iptables::nft_list(nft::TABLE).await?));
    Ok(Some("nft table".into()))
}

type Listings = Vec<(String, Option<Vec<String>>)>;

async fn list(iptables: Iptables, table: &Table) -> Result<Listings, HostError> {
    let own = table.chains.iter().map(|c| c.name);
    let others = table.guests.iter().map(|g| g.chain);
    let mut listings = Vec::new();
    for chain in own.chain(others) {
        listings.push((chain.to_owned(), iptables.list(table.name, chain).await?));
    }
    Ok(listings)
}
