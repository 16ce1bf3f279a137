//! Giving addresses to pods and taking them back.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;

use super::{Eni, Entry, Pool, Slot};
use crate::ids::{EniId, PodKey, PodName, Timestamp};

/// An address that a pod has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Whose.
    pub key: PodKey,
    /// The pod by name.
    pub pod: PodName,
    /// The address.
    pub address: IpAddr,
    /// Device index of the interface that has the address (0: the primary); `None` if the cloud does not show the
    /// address on any interface of ours.
    pub device_index: Option<u16>,
    /// Since when.
    pub since: Timestamp,
}

impl Lease {
    pub(crate) fn of(entry: &Entry, device_index: Option<u16>) -> Self {
        Lease {
            key: entry.key.clone(),
            pod: entry.pod.clone(),
            address: entry.address,
            device_index,
            since: entry.since,
        }
    }
}

/// What [`Pool::assign`] gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The lease.
    pub lease: Lease,
    /// Made by this call; else the pod had it before.
    pub new: bool,
}

/// What [`Pool::release`] took back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// The lease as it was.
    pub lease: Lease,
}

/// No address is free. [`why_empty`](crate::cause::why_empty) knows why.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no address is free")]
pub struct Empty;

impl Pool {
    /// Gives the pod an address: the one it has if it asks again, else one from the fullest interface that has a free
    /// one (the primary first) and there from the fullest prefix, so that the others drain and can be given back. Of
    /// free addresses that are equal so far the one that has rested longest. Blocks of a kind that the mode does not
    /// ask for are used last; interfaces that must not serve pods (any more) not at all.
    ///
    /// # Errors
    /// When no serving interface has a free address.
    ///
    /// *Cost*: linear in the addresses held.
    pub fn assign(
        &mut self,
        key: &PodKey,
        pod: &PodName,
        now: Timestamp,
    ) -> Result<Assignment, Empty> {
        if let Some(lease) = self.lease(key) {
            return Ok(Assignment { lease, new: false });
        }
        let (eni, address) = self.next_address(now).ok_or(Empty)?;
        // The sandbox asks anew: what it had before is nothing to it.
        self.orphans.remove(key);
        let entry = Entry {
            key: key.clone(),
            pod: pod.clone(),
            address,
            since: now,
        };
        self.occupy(&eni, Arc::new(entry));
        let lease = self.lease(key).ok_or(Empty)?;
        self.demand.taken(self.used(now), now);
        Ok(Assignment { lease, new: true })
    }

    /// The address to give next, and its interface.
    fn next_address(&self, now: Timestamp) -> Option<(EniId, IpAddr)> {
        let mut best = None;
        let enis = self.enis.values();
        for eni in enis.filter(|eni| eni.stage.is_ready() && self.serves(eni)) {
            let standing = (!eni.primary, Reverse(eni.assigned()), eni.device_index());
            for block in eni.blocks.values() {
                let Some((freed, address)) = block.next_free(now) else {
                    continue;
                };
                let fullest = Reverse(block.assigned());
                let rank = (!self.suits(block), standing, fullest, freed, address);
                if best.as_ref().is_none_or(|(first, _)| rank < *first) {
                    best = Some((rank, eni));
                }
            }
        }
        best.map(|((.., address), eni)| (eni.id.clone(), address))
    }

    /// Takes back what `key` has; the address rests before anyone else gets it. `None`: nobody of that key.
    pub fn release(&mut self, key: &PodKey, now: Timestamp) -> Option<Released> {
        let until = now + self.settings.cooldown;
        if let Some(entry) = self.orphans.remove(key) {
            self.resting.insert(entry.address, until);
            let lease = Lease::of(&entry, None);
            return Some(Released { lease });
        }
        let lease = self.vacate(key, Slot::Cooling { until })?;
        self.demand.level(self.used(now), now);
        Some(Released { lease })
    }

    /// Undoes an assignment that no pod ever got to know: the address need not rest.
    pub fn cancel(&mut self, key: &PodKey) {
        self.vacate(key, Slot::Free { freed: None });
    }

    /// The key of a pod that the runtime knows by container only: its network was not recorded when the node was
    /// migrated from an older agent.
    pub fn find_migrated(&self, container_id: &str) -> Option<PodKey> {
        let key = PodKey {
            network_name: "_migrated-from-cri".into(),
            container_id: container_id.into(),
            if_name: "unknown".into(),
        };
        (self.leases.contains_key(&key) || self.orphans.contains_key(&key)).then_some(key)
    }

    /// What `key` has, on an interface of ours.
    pub fn lease(&self, key: &PodKey) -> Option<Lease> {
        let (eni, entry) = self.leases.get(key)?;
        let eni = self.enis.get(eni)?;
        Some(Lease::of(entry, eni.device_index()))
    }

    /// All leases in order of their keys, those without an interface included.
    pub fn leases(&self) -> Vec<Lease> {
        self.entries()
            .into_iter()
            .map(|entry| {
                let eni = self.leases.get(&entry.key);
                let eni = eni.and_then(|(eni, _)| self.enis.get(eni));
                Lease::of(&entry, eni.and_then(Eni::device_index))
            })
            .collect()
    }

    /// The same as the checkpoint holds them. A lease is one entry, shared, for as long as it lasts: what is the same
    /// entry as before need not be looked at again.
    ///
    /// *Cost*: linear in the leases, nothing of them copied.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        let held = self.leases.values().map(|(_, entry)| entry.clone());
        let mut entries: Vec<Arc<Entry>> = held.chain(self.orphans.values().cloned()).collect();
        if !self.orphans.is_empty() {
            entries.sort_by(|a, b| a.key.cmp(&b.key));
        }
        entries
    }

    /// Addresses that rest and until when: what the checkpoint holds beside leases.
    pub fn cooling(&self, now: Timestamp) -> Vec<(IpAddr, Timestamp)> {
        let mut resting: Vec<_> = self
            .enis
            .values()
            .flat_map(|eni| eni.blocks.values())
            .flat_map(|block| block.resting(now))
            .chain(
                self.resting
                    .iter()
                    .map(|(address, until)| (*address, *until)),
            )
            .filter(|(_, until)| now < *until)
            .collect();
        resting.sort_unstable();
        resting
    }

    /// Addresses that pods have or that rest after them.
    fn used(&self, now: Timestamp) -> u32 {
        self.enis
            .values()
            .map(|eni| eni.assigned() + eni.cooling(now))
            .sum()
    }

    /// Marks an address of ours as a pod's.
    pub(crate) fn occupy(&mut self, eni: &EniId, entry: Arc<Entry>) {
        let block = self
            .enis
            .get_mut(eni)
            .and_then(|eni| eni.block_of_mut(entry.address));
        if let Some(block) = block {
            let held = (eni.clone(), entry.clone());
            self.leases.insert(entry.key.clone(), held);
            block.set(entry.address, Slot::Assigned(entry));
        }
    }

    fn vacate(&mut self, key: &PodKey, slot: Slot) -> Option<Lease> {
        let lease = self.lease(key)?;
        let (eni, entry) = self.leases.remove(key)?;
        let block = self
            .enis
            .get_mut(&eni)
            .and_then(|eni| eni.block_of_mut(entry.address));
        if let Some(block) = block {
            block.set(entry.address, slot);
        }
        Some(lease)
    }
}
