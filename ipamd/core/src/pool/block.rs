//! A block of addresses on an interface: one address, a `/28` or a `/80`, and what its addresses are doing.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::restore::Entry;
use crate::ids::Timestamp;

/// What an address is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// Can be given to a pod.
    Free {
        /// When its last pod let it go; `None` if it had none that matters.
        freed: Option<Timestamp>,
    },
    /// A pod has it.
    Assigned(Arc<Entry>),
    /// Was let go lately: others may still send to it.
    Cooling {
        /// From here on it is free.
        until: Timestamp,
    },
}

impl Slot {
    /// Whether a pod can have it now.
    pub fn is_free(&self, now: Timestamp) -> bool {
        match self {
            Slot::Free { .. } => true,
            Slot::Cooling { until } => *until <= now,
            Slot::Assigned(_) => false,
        }
    }

    /// Whether it rests after a pod.
    pub fn is_cooling(&self, now: Timestamp) -> bool {
        match self {
            Slot::Cooling { until } => now < *until,
            Slot::Free { .. } | Slot::Assigned(_) => false,
        }
    }

    /// Whether a pod has it.
    pub fn is_assigned(&self) -> bool {
        match self {
            Slot::Assigned(_) => true,
            Slot::Free { .. } | Slot::Cooling { .. } => false,
        }
    }
}

/// A block is being given back to the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// EC2 is being asked, or was asked in vain.
    Asked,
    /// A reply was lost: it may be gone already, so it can never be taken back.
    Doubtful,
}

/// What the descriptions say of a block. A new one may not be shown yet; one that was shown and no longer is has
/// probably gone, though a description may also be older than the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Sight {
    #[default]
    NotYet,
    Shown,
    Missing,
}

/// A block of addresses that an interface has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    net: IpNet,
    /// What is known of single addresses; all others are free and were no pod's. A `/80` is never spelled out.
    slots: BTreeMap<IpAddr, Slot>,
    /// When we learned that it is ours.
    pub(crate) acquired: Timestamp,
    pub(crate) leaving: Option<Leaving>,
    sight: Sight,
}

impl Block {
    pub(crate) fn new(net: IpNet, acquired: Timestamp) -> Self {
        Self {
            net: net.trunc(),
            slots: BTreeMap::new(),
            acquired,
            leaving: None,
            sight: Sight::NotYet,
        }
    }

    /// The block.
    pub fn net(&self) -> IpNet {
        self.net
    }

    /// Whether it is more than a single address.
    pub fn is_prefix(&self) -> bool {
        self.net.prefix_len() < self.net.max_prefix_len()
    }

    /// Whether it is being given back.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Whether it was shown on its interface and no longer is: no pod is given an address of it until it is again.
    pub fn is_missing(&self) -> bool {
        self.sight == Sight::Missing
    }

    /// Whether its addresses can be given to pods, or back: it is there, and stays.
    fn is_usable(&self) -> bool {
        !self.is_leaving() && !self.is_missing()
    }

    /// Whether a description that does not show it says something new.
    pub(crate) fn is_shown(&self) -> bool {
        self.sight == Sight::Shown
    }

    /// Notes whether a description shows it, on an interface that is attached.
    pub(crate) fn sighted(&mut self, shown: bool) {
        self.sight = match (self.sight, shown) {
            (_, true) => Sight::Shown,
            (Sight::NotYet, false) => Sight::NotYet,
            (Sight::Shown | Sight::Missing, false) => Sight::Missing,
        };
    }

    /// It was missing, was asked for without a name, and the cloud gave the same one again.
    pub(crate) fn given_again(&mut self, now: Timestamp) {
        self.acquired = now;
        self.sight = Sight::NotYet;
    }

    /// Addresses in it; as many as can be counted for a `/80`.
    pub fn size(&self) -> u32 {
        let bits = self.net.max_prefix_len() - self.net.prefix_len();
        1u32.checked_shl(u32::from(bits)).unwrap_or(u32::MAX)
    }

    /// The addresses of which something is known, in order; all others are free.
    pub fn slots(&self) -> impl Iterator<Item = (IpAddr, &Slot)> {
        self.slots.iter().map(|(address, slot)| (*address, slot))
    }

    /// What an address is doing; `None` if it is not in the block.
    pub fn slot(&self, address: IpAddr) -> Option<Slot> {
        self.net.contains(&address).then(|| {
            self.slots
                .get(&address)
                .cloned()
                .unwrap_or(Slot::Free { freed: None })
        })
    }

    /// Addresses that pods have.
    pub fn assigned(&self) -> u32 {
        count(self.slots.values().filter(|slot| slot.is_assigned()))
    }

    /// Addresses that rest.
    pub fn cooling(&self, now: Timestamp) -> u32 {
        count(self.slots.values().filter(|slot| slot.is_cooling(now)))
    }

    /// Addresses that a pod can have now; none of a block that is being given back, or missing.
    pub fn free(&self, now: Timestamp) -> u32 {
        if !self.is_usable() {
            return 0;
        }
        let taken = self.slots.values().filter(|slot| !slot.is_free(now));
        self.size().saturating_sub(count(taken))
    }

    /// Whether no pod has an address of it and none rests: it can be given back, if it is there.
    pub fn is_wholly_free(&self, now: Timestamp) -> bool {
        self.is_usable() && self.slots.values().all(|slot| slot.is_free(now))
    }

    /// The address to give next, and when it was last let go. IPv4: one that no pod had, else the one that has rested
    /// longest. IPv6: the one that has rested longest first, so that a block of 2^48 does not have to be remembered.
    pub(crate) fn next_free(&self, now: Timestamp) -> Option<(Option<Timestamp>, IpAddr)> {
        if !self.is_usable() {
            return None;
        }
        let rested = self
            .slots
            .iter()
            .filter_map(|(address, slot)| match slot {
                Slot::Free { freed } => Some((*freed, *address)),
                Slot::Cooling { until } if *until <= now => Some((Some(*until), *address)),
                Slot::Cooling { .. } | Slot::Assigned(_) => None,
            })
            .min();
        match self.net {
            IpNet::V4(_) => rested
                .filter(|(freed, _)| freed.is_none())
                .or_else(|| self.untouched().map(|address| (None, address)))
                .or(rested),
            IpNet::V6(_) => rested.or_else(|| self.untouched().map(|address| (None, address))),
        }
    }

    /// The first address of which nothing is known.
    fn untouched(&self) -> Option<IpAddr> {
        let mut next = self.net.network();
        for known in self.slots.keys() {
            if next < *known {
                break;
            }
            next = after(*known)?;
        }
        self.net.contains(&next).then_some(next)
    }

    pub(crate) fn set(&mut self, address: IpAddr, slot: Slot) {
        if self.net.contains(&address) {
            self.slots.insert(address, slot);
        }
    }

    pub(crate) fn into_slots(self) -> BTreeMap<IpAddr, Slot> {
        self.slots
    }

    /// Addresses that rest, and until when.
    pub(crate) fn resting(&self, now: Timestamp) -> impl Iterator<Item = (IpAddr, Timestamp)> {
        self.slots
            .iter()
            .filter_map(move |(address, slot)| match slot {
                Slot::Cooling { until } if now < *until => Some((*address, *until)),
                Slot::Cooling { .. } | Slot::Free { .. } | Slot::Assigned(_) => None,
            })
    }
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address)
            .checked_add(1)
            .map(|next| IpAddr::V4(Ipv4Addr::from(next))),
        IpAddr::V6(address) => u128::from(address)
            .checked_add(1)
            .map(|next| IpAddr::V6(Ipv6Addr::from(next))),
    }
}

fn count<'a>(slots: impl Iterator<Item = &'a Slot>) -> u32 {
    u32::try_from(slots.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ids::{PodKey, PodName};

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix(Duration::from_secs(seconds))
    }

    fn block(net: &str) -> Block {
        Block::new(net.parse().unwrap(), at(0))
    }

    fn assigned(address: IpAddr) -> Slot {
        Slot::Assigned(Arc::new(Entry {
            key: PodKey {
                network_name: "aws-cni".into(),
                container_id: "sandbox".into(),
                if_name: "eth0".into(),
            },
            pod: PodName::default(),
            address,
            since: at(0),
        }))
    }

    fn take(block: &mut Block, now: Timestamp) -> Option<String> {
        let (_, address) = block.next_free(now)?;
        block.set(address, assigned(address));
        Some(address.to_string())
    }

    #[test]
    fn all_sixteen_addresses_of_a_prefix_are_given_before_one_is_given_again() {
        let mut prefix = block("10.0.0.16/28");
        let given: Vec<_> = std::iter::from_fn(|| take(&mut prefix, at(1))).collect();
        assert_eq!(given.len(), 16);
        assert_eq!(
            (given[0].as_str(), given[15].as_str()),
            ("10.0.0.16", "10.0.0.31")
        );
        assert_eq!(prefix.free(at(1)), 0);
        for (address, until) in [("10.0.0.20", 40), ("10.0.0.18", 50)] {
            prefix.set(address.parse().unwrap(), Slot::Cooling { until: at(until) });
        }
        assert_eq!(take(&mut prefix, at(39)), None);
        assert_eq!(take(&mut prefix, at(60)).as_deref(), Some("10.0.0.20"));
    }

    #[test]
    fn an_ipv6_prefix_begins_with_its_first_address_and_gives_rested_ones_first() {
        let mut prefix = block("2001:db8::/80");
        assert_eq!(prefix.size(), u32::MAX);
        assert_eq!(take(&mut prefix, at(1)).as_deref(), Some("2001:db8::"));
        assert_eq!(take(&mut prefix, at(1)).as_deref(), Some("2001:db8::1"));
        prefix.set(
            "2001:db8::".parse().unwrap(),
            Slot::Cooling { until: at(30) },
        );
        assert_eq!(take(&mut prefix, at(29)).as_deref(), Some("2001:db8::2"));
        assert_eq!(take(&mut prefix, at(30)).as_deref(), Some("2001:db8::"));
        assert_eq!(take(&mut prefix, at(30)).as_deref(), Some("2001:db8::3"));
    }

    #[test]
    fn the_last_prefix_of_all_ends_without_going_round() {
        let mut prefix = block("255.255.255.240/28");
        let given = std::iter::from_fn(|| take(&mut prefix, at(1))).count();
        assert_eq!(given, 16);
    }
}
