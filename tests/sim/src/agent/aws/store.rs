//! The data store (§4.2): interface, CIDR (/32 or /28), address.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use fastrand::Rng;
use ipnet::Ipv4Net;
use selvage_ipamd_core::ids::{EniId, Timestamp};

use super::warm::{Stats, Targets};
use crate::machine::PodId;
use crate::world::COOLDOWN;

/// An interface younger than this is not removed (§4.1).
const MIN_LIFE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Default)]
struct Address {
    pod: Option<PodId>,
    freed: Option<Timestamp>,
}

impl Address {
    fn cooling(&self, now: Timestamp) -> bool {
        self.freed.is_some_and(|freed| now.since(freed) < COOLDOWN)
    }
}

/// An interface in the store.
#[derive(Debug, Clone)]
pub struct StoreEni {
    /// Its name.
    pub id: EniId,
    /// The instance's own.
    pub primary: bool,
    since: Timestamp,
    cidrs: BTreeMap<Ipv4Net, BTreeMap<Ipv4Addr, Address>>,
}

impl StoreEni {
    /// Places of the interface that are taken.
    pub fn places(&self) -> u32 {
        u32::try_from(self.cidrs.len()).unwrap_or(u32::MAX)
    }

    /// What it holds.
    pub fn cidrs(&self) -> impl Iterator<Item = Ipv4Net> {
        self.cidrs.keys().copied()
    }

    fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.cidrs.values().flat_map(BTreeMap::values)
    }

    fn assigned(&self) -> u32 {
        let assigned = self.addresses().filter(|a| a.pod.is_some());
        u32::try_from(assigned.count()).unwrap_or(u32::MAX)
    }

    fn total(&self) -> u32 {
        self.cidrs().map(|net| 1 << (32 - net.prefix_len())).sum()
    }

    fn free_cidrs(&self) -> impl Iterator<Item = Ipv4Net> {
        let free = |addresses: &BTreeMap<Ipv4Addr, Address>| {
            addresses.values().all(|address| address.pod.is_none())
        };
        self.cidrs
            .iter()
            .filter(move |(_, a)| free(a))
            .map(|(net, _)| *net)
    }
}

/// What the agent knows.
#[derive(Debug, Clone, Default)]
pub struct Store {
    enis: Vec<StoreEni>,
}

impl Store {
    /// Takes an interface in, or more CIDRs for one that is known.
    pub fn add(&mut self, id: &EniId, primary: bool, cidrs: &[Ipv4Net], now: Timestamp) {
        if !self.enis.iter().any(|eni| eni.id == *id) {
            self.enis.push(StoreEni {
                id: id.clone(),
                primary,
                since: now,
                cidrs: BTreeMap::new(),
            });
        }
        for eni in self.enis.iter_mut().filter(|eni| eni.id == *id) {
            for cidr in cidrs {
                eni.cidrs.entry(*cidr).or_default();
            }
        }
    }

    /// Forgets an interface.
    pub fn remove(&mut self, id: &EniId) {
        self.enis.retain(|eni| eni.id != *id);
    }

    /// Forgets CIDRs of an interface.
    pub fn remove_cidrs(&mut self, id: &EniId, cidrs: &[Ipv4Net]) {
        for eni in self.enis.iter_mut().filter(|eni| eni.id == *id) {
            eni.cidrs.retain(|cidr, _| !cidrs.contains(cidr));
        }
    }

    /// The interfaces.
    pub fn enis(&self) -> &[StoreEni] {
        &self.enis
    }

    /// What it holds, in numbers.
    pub fn stats(&self) -> Stats {
        let cidrs = || self.enis.iter().flat_map(StoreEni::cidrs);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Stats {
            total: self.enis.iter().map(StoreEni::total).sum(),
            assigned: self.enis.iter().map(StoreEni::assigned).sum(),
            prefixes: count(cidrs().filter(|net| net.prefix_len() < 32).count()),
            free_prefixes: count(
                self.enis
                    .iter()
                    .flat_map(StoreEni::free_cidrs)
                    .filter(|net| net.prefix_len() < 32)
                    .count(),
            ),
        }
    }

    /// Addresses that a pod would be given now.
    pub fn ready(&self, now: Timestamp) -> u32 {
        let unready = self
            .enis
            .iter()
            .flat_map(StoreEni::addresses)
            .filter(|a| a.pod.is_some() || a.cooling(now));
        self.stats().total - u32::try_from(unready.count()).unwrap_or(u32::MAX)
    }

    /// Gives an address: any interface, any CIDR; of it the first known one that has cooled down, else the first that
    /// nobody had.
    pub fn assign(&mut self, pod: PodId, rng: &mut Rng, now: Timestamp) -> Option<Ipv4Addr> {
        rng.shuffle(&mut self.enis);
        for eni in &mut self.enis {
            let mut cidrs: Vec<Ipv4Net> = eni.cidrs.keys().copied().collect();
            rng.shuffle(&mut cidrs);
            for cidr in cidrs {
                let Some(addresses) = eni.cidrs.get_mut(&cidr) else {
                    continue;
                };
                let rested = |a: &Address| a.pod.is_none() && !a.cooling(now);
                let known = addresses.iter().find(|(_, a)| rested(a)).map(|(ip, _)| *ip);
                let first = u32::from(cidr.network());
                let last = u32::from(cidr.broadcast());
                let unused = || {
                    (first..=last)
                        .map(Ipv4Addr::from)
                        .find(|ip| !addresses.contains_key(ip))
                };
                if let Some(ip) = known.or_else(unused) {
                    let address = addresses.entry(ip).or_default();
                    address.pod = Some(pod);
                    address.freed = None;
                    return Some(ip);
                }
            }
        }
        None
    }

    /// Takes a pod's address back; it cools.
    pub fn release(&mut self, pod: PodId, now: Timestamp) {
        let all = self.enis.iter_mut().flat_map(|eni| eni.cidrs.values_mut());
        for address in all.flat_map(BTreeMap::values_mut) {
            if address.pod == Some(pod) {
                address.pod = None;
                address.freed = Some(now);
            }
        }
    }

    /// CIDRs to give back, by interface, at most so many. Cooldown does not matter here.
    pub fn surplus(&self, most: u32) -> Vec<(EniId, Vec<Ipv4Net>)> {
        let mut left = usize::try_from(most).unwrap_or(usize::MAX);
        let mut surplus = Vec::new();
        for eni in &self.enis {
            let cidrs: Vec<Ipv4Net> = eni.free_cidrs().take(left).collect();
            if !cidrs.is_empty() {
                left -= cidrs.len();
                surplus.push((eni.id.clone(), cidrs));
            }
        }
        surplus
    }

    /// Whether some interface has no pod.
    pub fn has_free_eni(&self) -> bool {
        self.enis
            .iter()
            .any(|eni| !eni.primary && eni.assigned() == 0)
    }

    /// An interface that may be given back: not the primary, old enough, without pods, without cooling addresses, not
    /// needed by the targets that remain.
    pub fn removable(&self, targets: &Targets, now: Timestamp) -> Option<EniId> {
        let needed = |eni: &StoreEni| {
            let others = self.enis.iter().filter(|other| other.id != eni.id);
            let (mut total, mut free, mut prefixes) = (0, 0, 0);
            for other in others {
                total += other.total();
                free += other.total() - other.assigned();
                prefixes += u32::try_from(other.free_cidrs().count()).unwrap_or(u32::MAX);
            }
            match (targets.by_addresses(), targets.prefixes) {
                (true, _) => free < targets.warm_ips || total < targets.minimum_ips,
                (false, true) => prefixes < targets.warm_prefixes,
                (false, false) => false,
            }
        };
        self.enis
            .iter()
            .find(|eni| {
                !eni.primary
                    && now.since(eni.since) >= MIN_LIFE
                    && eni.addresses().all(|a| a.pod.is_none() && !a.cooling(now))
                    && !needed(eni)
            })
            .map(|eni| eni.id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Timestamp {
        Timestamp::from_unix(Duration::from_secs(1_000_000))
    }

    fn cidrs(list: &[&str]) -> Vec<Ipv4Net> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn store(enis: &[(&str, &[&str])]) -> Store {
        let mut store = Store::default();
        for (at, (id, list)) in enis.iter().enumerate() {
            store.add(&EniId::new(*id), at == 0, &cidrs(list), start());
        }
        store
    }

    #[test]
    fn section_4_2_pods_are_spread_over_interfaces() {
        let mut rng = Rng::with_seed(3);
        let eight: Vec<String> = (0..8).map(|n| format!("10.0.0.{n}/32")).collect();
        let eight: Vec<&str> = eight.iter().map(String::as_str).collect();
        let others: Vec<String> = (0..8).map(|n| format!("10.0.1.{n}/32")).collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        let mut store = store(&[("eni-1", &eight), ("eni-2", &others)]);
        for pod in 0..6 {
            store.assign(PodId(pod), &mut rng, start()).unwrap();
        }
        assert!(
            store.enis().iter().all(|eni| eni.assigned() > 0),
            "nothing is packed"
        );
    }

    #[test]
    fn section_4_2_an_address_that_cools_is_available_and_not_given() {
        let mut rng = Rng::with_seed(4);
        let mut store = store(&[("eni-1", &["10.0.0.1/32"])]);
        store.assign(PodId(1), &mut rng, start()).unwrap();
        store.release(PodId(1), start());
        assert_eq!(store.stats().available(), 1);
        let soon = start() + Duration::from_secs(29);
        assert_eq!(store.assign(PodId(2), &mut rng, soon), None);
        let later = start() + COOLDOWN;
        assert!(store.assign(PodId(2), &mut rng, later).is_some());
    }

    #[test]
    fn section_4_2_of_a_prefix_the_first_known_rested_address_is_given_then_the_next_from_its_base()
    {
        let mut rng = Rng::with_seed(5);
        let mut store = store(&[("eni-1", &["10.0.0.16/28"])]);
        let first = store.assign(PodId(1), &mut rng, start()).unwrap();
        let second = store.assign(PodId(2), &mut rng, start()).unwrap();
        assert_eq!((first.octets()[3], second.octets()[3]), (16, 17));
        store.release(PodId(1), start());
        let third = store.assign(PodId(3), &mut rng, start()).unwrap();
        assert_eq!(third.octets()[3], 18, "the first one cools");
        let fourth = store
            .assign(PodId(4), &mut rng, start() + COOLDOWN)
            .unwrap();
        assert_eq!(fourth, first);
    }

    #[test]
    fn section_4_2_giving_back_ignores_cooldown_where_removing_an_interface_does_not() {
        let mut rng = Rng::with_seed(6);
        let mut store = store(&[("eni-1", &[]), ("eni-2", &["10.0.0.1/32"])]);
        let now = start() + MIN_LIFE;
        store.assign(PodId(1), &mut rng, now).unwrap();
        store.release(PodId(1), now);
        assert_eq!(store.surplus(5).len(), 1);
        assert_eq!(store.removable(&Targets::default(), now), None);
        assert!(
            store
                .removable(&Targets::default(), now + COOLDOWN)
                .is_some()
        );
    }

    #[test]
    fn section_4_5_what_is_removable() {
        let store = store(&[("eni-1", &["10.0.0.1/32"]), ("eni-2", &["10.0.0.2/32"])]);
        let young = start() + Duration::from_secs(59);
        assert_eq!(
            store.removable(&Targets::default(), young),
            None,
            "younger than a minute"
        );
        let old = start() + MIN_LIFE;
        let removable = store.removable(&Targets::default(), old);
        assert_eq!(removable, Some(EniId::new("eni-2")), "never the primary");
        let needs_two = Targets {
            warm_ips: 2,
            ..Targets::default()
        };
        assert_eq!(
            store.removable(&needs_two, old),
            None,
            "the other has one address only"
        );
    }
}
