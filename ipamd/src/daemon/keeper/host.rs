//! The host's network: looked at by time and when somebody has disturbed it, and put right.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use selvage_ipamd_core::cloud::Cloud;
use selvage_ipamd_core::ids::EniId;
use selvage_ipamd_core::pool::Block;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::{Done, Keeper};
use crate::cluster::Cluster;
use crate::daemon::{node_net, pod_nets};
use crate::hostnet::{Disturbed, EniNet, Host, HostError, Looked, Obstacle};

/// From the first sign of a disturbance to the look: whoever makes it has some more to do.
const SETTLE: Duration = Duration::from_millis(200);
/// Between two looks that disturbances ask for: somebody who undoes what we do is not fought at full speed.
const REST: Duration = Duration::from_secs(1);

/// The plugin is still about its work on a pod that has its lease for no longer: what is missing is not to be repaired,
/// and looked at again then.
const YOUNG: Duration = Duration::from_secs(5);

/// How much of the host is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Rules, routes, links and addresses: milliseconds.
    Routing,
    /// The tables of iptables and nft too: a dozen processes.
    All,
}

/// Why the host is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The daemon has started: what is made was not there before.
    Start,
    /// We want something else than before.
    Asked,
    /// Time has passed, or somebody has disturbed it: what is made again is a repair.
    Time,
}

/// What came of a look.
pub(super) struct Look {
    why: Why,
    looked: Looked,
    /// `None` if nobody looked for any.
    obstacles: Option<Vec<Obstacle>>,
}

impl<C: Cloud, H: Host, K: Cluster> Keeper<C, H, K> {
    /// Makes the host's network as it should be: the node's part, each serving interface's, each pod's.
    pub(super) fn look_at_host(&mut self, scope: Scope, why: Why) {
        let enis: Vec<EniNet> = self
            .pool
            .enis()
            .filter(|eni| eni.stage().is_ready())
            .filter_map(|eni| self.eni_net(eni.id()))
            .collect();
        let mut leases = self.pool.leases();
        if why == Why::Time {
            let now = self.now();
            let all = leases.len();
            // A lease of the future is one from before the clock was set back.
            leases.retain(|lease| lease.since > now || now.since(lease.since) >= YOUNG);
            if leases.len() < all {
                self.timers.young.get_or_insert(Instant::now() + YOUNG);
            }
        }
        let pods = pod_nets(leases);
        let node = node_net(&self.shared.config, &self.instance, &self.vpc);
        let shared = self.shared.clone();
        self.timers.refreshing += 1;
        self.timers.looked = Instant::now();
        self.work.spawn(async move {
            let host = &shared.host;
            let mut looked = host.ensure_routing(&node, &enis, &pods).await;
            let mut obstacles = None;
            if scope == Scope::All {
                match host.ensure_node(&node).await {
                    Ok(changed) => looked.changed.extend(changed),
                    Err(error) => looked.failed.push(error),
                }
                match host.obstacles(&node).await {
                    Ok(found) => obstacles = Some(found),
                    Err(error) => looked.failed.push(error),
                }
            }
            Done::Host(Look {
                why,
                looked,
                obstacles,
            })
        });
    }

    pub(super) fn take_host(&mut self, look: Look) {
        self.timers.refreshing -= 1;
        self.timers.looked = Instant::now();
        let Looked {
            changed,
            pods,
            failed,
        } = look.looked;
        if !changed.is_empty() {
            let words: Vec<String> = changed.iter().map(ToString::to_string).collect();
            match look.why {
                Why::Time => warn!(changed = ?words, "host network repaired"),
                Why::Start | Why::Asked => debug!(changed = ?words, "host network"),
            }
        }
        if look.why == Why::Time {
            for change in &changed {
                self.shared.metrics.count_repair(change.part);
            }
        }
        // Whoever let go of an address while we looked has removed what we made again, or will find it gone.
        let leased = pod_nets(self.pool.leases());
        let leased: BTreeSet<IpAddr> = leased.iter().map(|pod| pod.address).collect();
        for address in pods.iter().filter(|address| !leased.contains(address)) {
            self.forget(*address);
        }
        for error in failed {
            match error {
                // Detached by somebody else: the next survey tells, and counts it.
                HostError::NoLink { mac } => debug!(%mac, "link has gone"),
                HostError::Netlink(_)
                | HostError::Iptables { .. }
                | HostError::IptablesTimeout { .. }
                | HostError::NoExemptBlocks
                | HostError::Thread(_) => {
                    error!(%error, "host network");
                    self.trouble("HostNetworkFailed", "Repair".into(), error.to_string());
                }
            }
        }
        if let Some(obstacles) = look.obstacles.filter(|found| *found != self.obstacles) {
            for obstacle in &obstacles {
                warn!(%obstacle, "pods' traffic may not pass");
                self.trouble("PodTrafficBlocked", "Look".into(), obstacle.to_string());
            }
            self.obstacles = obstacles;
        }
    }

    /// Somebody may have changed what is ours.
    pub(super) fn disturbed(&mut self, what: Disturbed) {
        let settled = Instant::now() + SETTLE;
        self.timers.disturbed = Some((settled.max(self.timers.looked + REST), what));
    }

    /// Looks because of a disturbance, or at pods that were too young.
    pub(super) fn look_again(&mut self) {
        let now = Instant::now();
        let disturbed = self.timers.disturbed.take();
        let what = disturbed.map_or(Disturbed::Routing, |(_, what)| what);
        if self.timers.refreshing > 0 {
            // One that is under way may have seen it, or not.
            self.timers.disturbed = Some((now + REST, what));
            self.timers.young = self.timers.young.map(|due| due.max(now + REST));
            return;
        }
        self.timers.young = self.timers.young.filter(|due| *due > now);
        let scope = match what {
            Disturbed::Routing => Scope::Routing,
            Disturbed::Tables => Scope::All,
        };
        self.look_at_host(scope, Why::Time);
    }

    /// Removes route and rules of an address that nobody has.
    pub(super) fn forget(&mut self, address: IpAddr) {
        let shared = self.shared.clone();
        self.work
            .spawn(async move { Done::Forgot(shared.host.forget_pod(address).await) });
    }

    pub(super) fn eni_net(&self, eni: &EniId) -> Option<EniNet> {
        let eni = self.pool.eni(eni)?;
        Some(EniNet {
            mac: eni.mac(),
            device_index: eni.device_index()?,
            address: eni.primary_address().into(),
            subnet: eni.subnet().into(),
            mtu: self.shared.config.eni_mtu,
            for_pods: eni.blocks().map(Block::net).collect(),
        })
    }
}
