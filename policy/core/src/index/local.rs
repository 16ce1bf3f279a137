//! What is asked about the pods of this node: by compiling, judging, and whoever reports.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::active::{Entries, Feeds};
use super::{Index, Isolation, Members, Veths};
use crate::model::{Pod, PodKey};
use crate::ruleset::{Chain, ChainName, Family, Interface, Set, SetName};

/// A pod that this node enforces for.
#[derive(Debug, Clone)]
pub struct LocalPod<'a> {
    /// As the API server has it.
    pub pod: &'a Pod,
    /// The host end of its veth.
    pub interface: &'a Interface,
    /// Its addresses: of routes, annotation and status the first in each family.
    pub addresses: Cow<'a, BTreeSet<IpAddr>>,
}

/// What of a pod is not enforced. Its text is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unenforced {
    /// Interfaces that another plugin makes, under names that nobody can foresee.
    OtherInterfaces,
}

impl std::fmt::Display for Unenforced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::OtherInterfaces => {
                "network policy holds on the pod's own interface alone, not on those that \
                 annotation k8s.v1.cni.cncf.io/networks asks for"
            }
        })
    }
}

impl Index {
    /// The pods that this node enforces for, in order.
    pub fn enforced_pods(&self) -> impl Iterator<Item = LocalPod<'_>> {
        self.places.local().iter().filter_map(|(key, veths)| {
            let pod = self.pods.get(key)?;
            Some(LocalPod {
                pod,
                interface: &veths.main,
                addresses: Cow::Owned(self.places.place_at(pod, veths).addresses.iter().collect()),
            })
        })
    }

    /// Whether an interface is that of a pod that this node enforces for.
    #[must_use]
    pub fn knows(&self, interface: &str) -> bool {
        !self.places.pods_at(interface).is_empty()
    }

    /// The pods that have these addresses, of the whole cluster; of two with the same, one of this
    /// node's, else the first in order.
    ///
    /// *Cost*: linear in the pods of the cluster, 50 ns each.
    #[must_use]
    pub fn pods_at(&self, addresses: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, PodKey> {
        let mut found = BTreeMap::new();
        for address in addresses {
            let local = self.places.owners().get(address);
            if let Some(pod) = local.and_then(|pods| pods.first()) {
                found.insert(*address, pod.clone());
            }
        }
        for pod in self.pods.iter().filter(|pod| pod.is_selectable()) {
            for address in pod
                .addresses
                .iter()
                .filter(|address| addresses.contains(address))
            {
                found.entry(address).or_insert_with(|| pod.key.clone());
            }
        }
        found
    }

    /// Isolated pods of this node of which something is open all the same, and what. Settles
    /// first, as compiling does.
    pub fn unenforced(&mut self) -> BTreeMap<PodKey, Unenforced> {
        self.settle();
        let isolated =
            |isolation: &Isolation| isolation.ingress.is_some() || isolation.egress.is_some();
        let pods = self.active.pods().iter();
        pods.filter(|(key, isolation)| {
            isolated(isolation) && self.pods.get(key).is_some_and(|pod| pod.interfaces.others)
        })
        .map(|(key, _)| (key.clone(), Unenforced::OtherInterfaces))
        .collect()
    }

    /// The chains that each pod's packets go to. Settled by the caller.
    pub(crate) fn entries(&self) -> &BTreeMap<PodKey, Entries> {
        self.active.entries()
    }

    /// The chains of all profiles. Settled by the caller.
    pub(crate) fn profile_chains(
        &self,
        family: Family,
    ) -> impl Iterator<Item = &(ChainName, Chain)> {
        self.active.chains(family)
    }

    /// The interfaces of the pods of this node.
    pub(crate) fn veths(&self) -> &BTreeMap<PodKey, Veths> {
        self.places.local()
    }

    /// The pods of this node that have an address.
    pub(crate) fn owners(&self) -> &BTreeMap<IpAddr, BTreeSet<PodKey>> {
        self.places.owners()
    }

    /// What fills the profiles' sets. Settled by the caller.
    pub(crate) fn feeds(&self) -> &Arc<Feeds> {
        self.active.feeds()
    }

    /// What the sources have, by number. Settled by the caller.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Arc<Members>> {
        self.active.members()
    }

    /// The profiles' sets, whole and in order; one without members is there too, if it can have any. Settled by the caller.
    pub(crate) fn sets(&self, family: Family) -> impl Iterator<Item = (SetName, Set)> {
        self.active.sets(family)
    }
}
