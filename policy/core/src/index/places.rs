//! Where the pods of this node are: their interfaces, and the addresses that the kernel routes to
//! those.
//!
//! A pod's addresses come from the first that has any, in each family by itself: the routes to its
//! interface, the annotation, the status. Routes are there when the pod can first send; the status
//! comes once its containers run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::{Addresses, NamespaceName, NodeName, Pod, PodKey};
use crate::ruleset::{Family, Interface, VethPrefix};

/// A pod with the addresses that it has on the way.
#[derive(Debug, Clone)]
pub(super) struct Placed<'a> {
    pub(super) pod: &'a Pod,
    pub(super) addresses: Addresses,
}

/// The host ends of a pod's interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Veths {
    /// The veth that every pod has.
    pub(crate) main: Interface,
    /// The same pod's in strict mode of security groups, when it may have one.
    pub(crate) branch: Option<Interface>,
    /// Those of further network cards.
    pub(crate) cards: Vec<Interface>,
}

impl Veths {
    fn of(pod: &Pod, prefix: &VethPrefix) -> Self {
        let (namespace, name) = (pod.key.namespace.as_str(), pod.key.name.as_str());
        Self {
            main: prefix.veth(namespace, name),
            branch: pod
                .interfaces
                .branch_eni
                .then(|| VethPrefix::branch().veth(namespace, name)),
            cards: if pod.interfaces.more_cards {
                prefix.card_veths(namespace, name).collect()
            } else {
                Vec::new()
            },
        }
    }

    fn all(&self) -> impl Iterator<Item = &Interface> {
        [&self.main]
            .into_iter()
            .chain(&self.branch)
            .chain(&self.cards)
    }
}

/// The pods that this node enforces for, their interfaces, and every route that was told of.
#[derive(Debug)]
pub(super) struct Places {
    node: NodeName,
    prefix: VethPrefix,
    local: BTreeMap<PodKey, Veths>,
    /// Names are short hashes, so two pods may be made to share one.
    by_interface: BTreeMap<String, BTreeSet<PodKey>>,
    routes: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Which local pods have an address.
    owners: BTreeMap<IpAddr, BTreeSet<PodKey>>,
}

impl Places {
    pub(super) fn new(node: NodeName, prefix: VethPrefix) -> Self {
        Self {
            node,
            prefix,
            local: BTreeMap::new(),
            by_interface: BTreeMap::new(),
            routes: BTreeMap::new(),
            owners: BTreeMap::new(),
        }
    }

    pub(super) fn is_local(&self, pod: &Pod) -> bool {
        pod.is_enforced_on(&self.node)
    }

    /// The local pods, in order.
    pub(super) fn local(&self) -> &BTreeMap<PodKey, Veths> {
        &self.local
    }

    /// The local pods of a namespace.
    pub(super) fn local_in(&self, namespace: &NamespaceName) -> impl Iterator<Item = &PodKey> {
        let first = PodKey {
            namespace: namespace.clone(),
            name: String::new(),
        };
        self.local
            .range(first..)
            .map(|(key, _)| key)
            .take_while(move |key| key.namespace == *namespace)
    }

    /// The interfaces that have routes.
    pub(super) fn routed(&self) -> impl Iterator<Item = &String> {
        self.routes.keys()
    }

    /// The local pods that have an address.
    pub(super) fn owners(&self) -> &BTreeMap<IpAddr, BTreeSet<PodKey>> {
        &self.owners
    }

    /// The local pods whose interface it is: one, unless two names have the same hash.
    pub(super) fn pods_at(&self, interface: &str) -> BTreeSet<PodKey> {
        self.by_interface
            .get(interface)
            .cloned()
            .unwrap_or_default()
    }

    /// The pod with its addresses.
    pub(super) fn place<'a>(&self, pod: &'a Pod) -> Placed<'a> {
        if self.is_local(pod) && !self.routes.is_empty() {
            self.place_at(pod, &Veths::of(pod, &self.prefix))
        } else {
            let addresses = pod.addresses.clone();
            Placed { pod, addresses }
        }
    }

    /// The same for a pod of this node, by its interfaces: their names are hashes, and dearer to
    /// make than to look up.
    pub(super) fn place_at<'a>(&self, pod: &'a Pod, veths: &Veths) -> Placed<'a> {
        let routes = |interface: &Interface| self.routes.get(&interface.to_string());
        let main: BTreeSet<IpAddr> = [&veths.main]
            .into_iter()
            .chain(&veths.branch)
            .filter_map(routes)
            .flatten()
            .copied()
            .collect();
        let is_routed = |family| main.iter().any(|it| Family::of_address(*it) == family);
        let told = pod.addresses.iter();
        let told = told.filter(|address| !is_routed(Family::of_address(*address)));
        let cards = veths.cards.iter().filter_map(routes).flatten().copied();
        let addresses = told.chain(main.iter().copied()).chain(cards).collect();
        Placed { pod, addresses }
    }

    /// Takes in what the kernel routes to an interface.
    pub(super) fn set_routes(&mut self, interface: String, addresses: BTreeSet<IpAddr>) {
        if addresses.is_empty() {
            self.routes.remove(&interface);
        } else {
            self.routes.insert(interface, addresses);
        }
    }

    /// Notes what a pod's change does to this node, and which addresses left its pods.
    pub(super) fn note(
        &mut self,
        before: Option<&Placed<'_>>,
        after: Option<&Placed<'_>>,
        left: &mut BTreeSet<IpAddr>,
    ) {
        let before = before.filter(|placed| self.is_local(placed.pod));
        let after = after.filter(|placed| self.is_local(placed.pod));
        if let Some(placed) = before {
            let key = &placed.pod.key;
            if let Some(veths) = self.local.remove(key) {
                for interface in veths.all() {
                    let name = interface.to_string();
                    if let Some(pods) = self.by_interface.get_mut(&name) {
                        pods.remove(key);
                        if pods.is_empty() {
                            self.by_interface.remove(&name);
                        }
                    }
                }
            }
            for address in placed.addresses.iter() {
                if let Some(owners) = self.owners.get_mut(&address) {
                    owners.remove(key);
                    if owners.is_empty() {
                        self.owners.remove(&address);
                    }
                }
            }
        }
        if let Some(placed) = after {
            let key = &placed.pod.key;
            let veths = Veths::of(placed.pod, &self.prefix);
            for interface in veths.all() {
                self.by_interface
                    .entry(interface.to_string())
                    .or_default()
                    .insert(key.clone());
            }
            self.local.insert(key.clone(), veths);
            for address in placed.addresses.iter() {
                self.owners.entry(address).or_default().insert(key.clone());
                left.remove(&address);
            }
        }
        for address in before.iter().flat_map(|placed| placed.addresses.iter()) {
            if !self.owners.contains_key(&address) {
                left.insert(address);
            }
        }
    }
}
