//! What the keeper shows of itself.

use std::time::Duration;

use selvage_ipamd_core::cause::why_empty;
use selvage_ipamd_core::cloud::{Budget, Cloud};
use selvage_ipamd_core::ids::Timestamp;
use selvage_ipamd_core::limits::Mode;
use selvage_ipamd_core::plan::plan;
use selvage_ipamd_core::pool::{Block, Eni, Slot, Stage};

use super::Keeper;
use crate::cluster::{Cluster, EniConfigView};
use crate::hostnet::Host;
use crate::view::{self, Calls, Interface, Numbers, PodView, Subnet, View};

impl<C: Cloud, H: Host, K: Cluster> Keeper<C, H, K> {
    pub(super) fn view(&self, now: Timestamp) -> View {
        let mode = self.pool.settings().mode;
        let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        let stats = self.pool.stats(now);
        let enis = self.targets.enis(&self.limits);
        let mut interfaces: Vec<Interface> = self
            .pool
            .enis()
            .map(|eni| interface(eni, self.pool.serves(eni), now))
            .collect();
        interfaces.sort_by_key(|eni| (eni.device.is_none(), eni.device));
        let why = (stats.available == 0)
            .then(|| why_empty(&self.pool, &self.targets, &self.limits, now).to_string());
        let node = self.node.borrow();
        View {
            instance: self.instance.instance_id.to_string(),
            instance_type: self.instance.instance_type.to_string(),
            mode: match mode {
                Mode::Addresses => "addresses",
                Mode::Prefixes => "prefixes",
                Mode::Ipv6 => "ipv6",
            }
            .to_owned(),
            eni_config: eni_config(&node.eni_config),
            unschedulable: node.unschedulable,
            numbers: Numbers {
                eni_max: enis,
                ip_max: enis.saturating_mul(self.limits.pod_addresses_per_eni(mode)),
                max_pods: self.targets.max_pods.unwrap_or(0),
                enis: stats.enis,
                total: stats.total,
                assigned: stats.assigned,
                available: stats.available,
                cooling: stats.cooling,
                prefixes: stats.prefixes,
                lost_enis: stats.lost_enis,
                lost_addresses: stats.lost_addresses,
            },
            interfaces,
            subnets: self.pool.subnets().iter().map(subnet).collect(),
            waiting,
            plan: plan(&self.pool, &self.targets, &self.limits, waiting, now)
                .iter()
                .map(ToString::to_string)
                .collect(),
            why_empty: why,
            last_failure: self.pool.last_failure().map(ToOwned::to_owned),
            calls: [Budget::Read, Budget::Change]
                .map(|budget| self.calls(budget, now))
                .to_vec(),
            ..View::default()
        }
    }

    fn calls(&self, budget: Budget, now: Timestamp) -> Calls {
        let level = self.pool.bucket().level(budget, now);
        Calls {
            budget: match budget {
                Budget::Read => "read",
                Budget::Change => "change",
            }
            .to_owned(),
            at_once: level.calls,
            per_second: level.rate,
            full_per_second: level.full_rate,
            next_in_seconds: rounded(level.next_in),
            throttled: level.throttled,
        }
    }
}

fn rounded(pause: Duration) -> f64 {
    (pause.as_secs_f64() * 10.0).round() / 10.0
}

fn eni_config(view: &EniConfigView) -> Option<String> {
    match view {
        EniConfigView::Unused => None,
        EniConfigView::Missing(why) => Some(why.clone()),
        EniConfigView::Found(found) => {
            let groups: Vec<&str> = found.security_groups.iter().map(|g| g.as_str()).collect();
            let groups = match groups.as_slice() {
                [] => "the primary interface's groups".to_owned(),
                some => some.join(", "),
            };
            Some(format!(
                "ENIConfig {}: {} with {groups}",
                found.name, found.subnet_id
            ))
        }
    }
}

fn subnet(subnet: &selvage_ipamd_core::cloud::SubnetFacts) -> Subnet {
    Subnet {
        id: subnet.id.to_string(),
        available: subnet.available,
    }
}

fn interface(eni: &Eni, serves: bool, now: Timestamp) -> Interface {
    let stage = match eni.stage() {
        Stage::Detached => "detached",
        Stage::Attached(_) => "attached",
        Stage::Kept(_) => "kept",
        Stage::Ready(_) => "ready",
        Stage::Leaving(_) => "leaving",
        Stage::Down(_) => "down",
        Stage::Discarded => "discarded",
    };
    Interface {
        id: eni.id().to_string(),
        device: eni.device_index(),
        primary: eni.is_primary(),
        stage: stage.to_owned(),
        serves,
        subnet: eni.subnet_id().to_string(),
        address: eni.primary_address().into(),
        blocks: eni.blocks().map(|b| block(b, now)).collect(),
    }
}

fn block(block: &Block, now: Timestamp) -> view::Block {
    let pods = block.slots().filter_map(|(address, slot)| match slot {
        Slot::Assigned(entry) => {
            let view = PodView {
                namespace: entry.pod.namespace.clone(),
                name: entry.pod.name.clone(),
                network: entry.key.network_name.clone(),
                since: entry.since.rfc3339(),
            };
            Some((address, view))
        }
        Slot::Free { .. } | Slot::Cooling { .. } => None,
    });
    view::Block {
        block: block.net(),
        leaving: block.is_leaving(),
        missing: block.is_missing(),
        free: block.free(now),
        cooling: block.cooling(now),
        pods: pods.collect(),
    }
}
