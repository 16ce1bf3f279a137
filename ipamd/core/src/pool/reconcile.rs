//! What the cloud says against what we hold.
//!
//! A description may be older than our last change: what changed within [`READS_MAY_LAG`] is not undone by it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::{Eni, Held, Lease, Place, Pool, READS_MAY_LAG, Slot, Stage};
use crate::cloud::{EniFacts, TAG_INSTANCE};
use crate::ids::{EniId, Timestamp};
use crate::retry::Retry;

/// What a description of everything changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Interfaces that were not known.
    pub adopted: Vec<EniId>,
    /// Interfaces that vanished under us.
    pub lost_enis: Vec<EniId>,
    /// Addresses that were not known, on interfaces that were.
    pub new_addresses: Vec<Ipv4Addr>,
    /// Addresses that vanished under us.
    pub lost_addresses: Vec<Ipv4Addr>,
    /// Pods that had one of them: their lease is kept aside, without an interface.
    pub orphaned: Vec<Lease>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Pool {
    /// Takes in a description of every interface of this instance, attached or made for it.
    ///
    /// *Cost*: linear in interfaces and addresses.
    pub fn reconcile(&mut self, facts: &[EniFacts], now: Timestamp) -> Changes {
        self.forget_old(now);
        let mut changes = Changes::default();
        let shown: BTreeSet<&EniId> = facts.iter().map(|f| &f.id).collect();
        let missing: Vec<EniId> = self
            .enis
            .keys()
            .filter(|id| !shown.contains(id))
            .cloned()
            .collect();
        for id in missing {
            self.not_shown(&id, now, &mut changes);
        }
        self.foreign.clear();
        for eni in facts {
            if !eni.is_usable() && eni.id != self.primary_eni {
                if let Some(attachment) = eni.attachment.as_ref().filter(|a| a.card == 0) {
                    self.foreign.insert(eni.id.clone(), attachment.device_index);
                }
                // Forbidden by its owner while we used it: its pods keep what they have until they go.
                if self.enis.contains_key(&eni.id) {
                    self.lose_eni(&eni.id, &mut changes);
                }
            } else if self.enis.contains_key(&eni.id) {
                self.sync(eni, now, &mut changes);
            } else if !self.gone.contains_key(&eni.id) {
                self.adopt(eni, now);
                changes.adopted.push(eni.id.clone());
            }
        }
        changes
    }

    /// Takes in the description of one interface that was in doubt.
    pub(crate) fn described(
        &mut self,
        id: &EniId,
        facts: Option<EniFacts>,
        now: Timestamp,
    ) -> Changes {
        self.forget_old(now);
        let mut changes = Changes::default();
        match facts {
            Some(facts) => {
                self.sync(&facts, now, &mut changes);
                if let Some(eni) = self.enis.get_mut(id) {
                    eni.unsure = false;
                }
            }
            None => self.not_shown(id, now, &mut changes),
        }
        changes
    }

    /// Takes an interface into the pool.
    pub(crate) fn adopt(&mut self, facts: &EniFacts, now: Timestamp) {
        let ours = facts
            .tags
            .get(TAG_INSTANCE)
            .is_some_and(|v| v == self.instance_id.as_str());
        let eni = Eni {
            id: facts.id.clone(),
            mac: facts.mac,
            subnet_id: facts.subnet_id.clone(),
            subnet: facts.subnet,
            primary_address: facts.primary_address,
            primary: facts.id == self.primary_eni,
            ours,
            stage: first_stage(facts, ours),
            slots: BTreeMap::new(),
            in_flight: None,
            retry: Retry::default(),
            unsure: false,
            since: now,
            moved: now,
        };
        self.enis.insert(facts.id.clone(), eni);
        for address in &facts.secondary_addresses {
            if !self.released.contains_key(address) && !self.holds(*address) {
                self.add_address(&facts.id, *address, now);
            }
        }
    }

    fn sync(&mut self, facts: &EniFacts, now: Timestamp, changes: &mut Changes) {
        self.sync_place(facts, now);
        let Some(eni) = self.enis.get(&facts.id) else {
            return;
        };
        if eni.in_flight.is_some() {
            return;
        }
        let lost: Vec<Ipv4Addr> = eni
            .slots
            .iter()
            .filter(|(address, held)| {
                let lagging = now.since(held.acquired) <= READS_MAY_LAG && !held.slot.is_leaving();
                !facts.secondary_addresses.contains(address) && !lagging
            })
            .map(|(address, _)| *address)
            .collect();
        for address in lost {
            self.lose_address(&facts.id, address, now, changes);
        }
        for address in &facts.secondary_addresses {
            // One that moved to another interface may still be shown on this one.
            if !self.holds(*address) && !self.released.contains_key(address) {
                self.add_address(&facts.id, *address, now);
                changes.new_addresses.push(*address);
            }
        }
    }

    /// Attached, detached or kept behind our back, or in a call whose reply was lost.
    fn sync_place(&mut self, facts: &EniFacts, now: Timestamp) {
        let Some(eni) = self.enis.get_mut(&facts.id) else {
            return;
        };
        if eni.in_flight.is_some() {
            return;
        }
        let settled = now.since(eni.moved) > READS_MAY_LAG;
        let before = std::mem::replace(&mut eni.stage, Stage::Discarded);
        let was_attached = before.place().is_some();
        eni.stage = match (before, &facts.attachment) {
            (Stage::Detached, Some(_)) => first_stage(facts, eni.ours),
            (Stage::Attached(place), Some(shown)) if shown.delete_on_termination => {
                Stage::Kept(place)
            }
            (Stage::Attached(_) | Stage::Kept(_) | Stage::Ready(_) | Stage::Leaving(_), None)
                if settled =>
            {
                Stage::Detached
            }
            (Stage::Down(_), None) if settled => Stage::Discarded,
            // Detached only in somebody's words.
            (Stage::Discarded, Some(shown)) if settled => Stage::Down(Place {
                attachment: shown.id.clone(),
                device_index: shown.device_index,
            }),
            (stage, _) => stage,
        };
        if was_attached != eni.stage.place().is_some() {
            eni.moved = now;
        }
    }

    fn not_shown(&mut self, id: &EniId, now: Timestamp, changes: &mut Changes) {
        let Some(eni) = self.enis.get_mut(id) else {
            return;
        };
        if eni.in_flight.is_some() {
            return;
        }
        // Just made or just attached: the description may be older than it.
        if now.since(eni.since) <= READS_MAY_LAG || now.since(eni.moved) <= READS_MAY_LAG {
            eni.unsure = false;
            return;
        }
        match eni.stage {
            Stage::Discarded | Stage::Down(_) => self.remove_eni(id, changes),
            Stage::Detached
            | Stage::Attached(_)
            | Stage::Kept(_)
            | Stage::Ready(_)
            | Stage::Leaving(_) => self.lose_eni(id, changes),
        }
    }

    fn remove_eni(&mut self, id: &EniId, changes: &mut Changes) {
        let Some(eni) = self.enis.get(id) else {
            return;
        };
        let addresses: Vec<Ipv4Addr> = eni.slots.keys().copied().collect();
        for address in addresses {
            self.orphan(id, address, changes);
        }
        self.enis.remove(id);
    }

    fn lose_eni(&mut self, id: &EniId, changes: &mut Changes) {
        self.remove_eni(id, changes);
        self.lost_enis += 1;
        changes.lost_enis.push(id.clone());
    }

    fn lose_address(
        &mut self,
        id: &EniId,
        address: Ipv4Addr,
        now: Timestamp,
        changes: &mut Changes,
    ) {
        let leaving = self
            .enis
            .get(id)
            .and_then(|e| e.slots.get(&address))
            .is_some_and(|held| held.slot.is_leaving());
        if leaving {
            // We wanted it to go; its reply was lost.
            if let Some(eni) = self.enis.get_mut(id) {
                eni.slots.remove(&address);
            }
            self.released.insert(address, now);
            return;
        }
        self.orphan(id, address, changes);
        self.lost_addresses += 1;
        changes.lost_addresses.push(address);
    }

    fn holds(&self, address: Ipv4Addr) -> bool {
        self.enis.values().any(|e| e.slots.contains_key(&address))
    }

    pub(crate) fn orphan(&mut self, id: &EniId, address: Ipv4Addr, changes: &mut Changes) {
        let Some(Held { slot, .. }) = self
            .enis
            .get_mut(id)
            .and_then(|eni| eni.slots.remove(&address))
        else {
            return;
        };
        match slot {
            Slot::Assigned { key, pod, since } => {
                self.leases.remove(&key);
                let lease = Lease {
                    key: key.clone(),
                    pod,
                    address,
                    device_index: None,
                    since,
                };
                changes.orphaned.push(lease.clone());
                self.orphans.insert(key, lease);
            }
            Slot::Cooling { until } => {
                self.resting.insert(address, until);
            }
            Slot::Free { .. } | Slot::Leaving { .. } => {}
        }
    }
}

/// Where an interface stands that we know only from a description. One that somebody else attached keeps its owner's
/// wish about the instance's end.
fn first_stage(facts: &EniFacts, ours: bool) -> Stage {
    match &facts.attachment {
        None => Stage::Detached,
        Some(attachment) => {
            let place = Place {
                attachment: attachment.id.clone(),
                device_index: attachment.device_index,
            };
            if ours && !attachment.delete_on_termination {
                Stage::Attached(place)
            } else {
                Stage::Kept(place)
            }
        }
    }
}
