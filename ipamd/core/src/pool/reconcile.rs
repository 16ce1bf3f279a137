//! What the cloud says against what we hold.
//!
//! A description may be older than our last change: what changed within [`READS_MAY_LAG`] is not undone by it. What was
//! shown once and no longer is serves no new pod meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::{Block, Eni, Entry, Lease, Place, Pool, Provisioning, READS_MAY_LAG, Slot, Stage};
use crate::cloud::{EniFacts, SeenEni};
use crate::ids::{EniId, Timestamp};
use crate::retry::Retry;

/// What a description of everything changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Interfaces that were not known.
    pub adopted: Vec<EniId>,
    /// Interfaces that vanished under us.
    pub lost_enis: Vec<EniId>,
    /// Blocks that were not known, on interfaces that were; a single address is a block of one.
    pub new_blocks: Vec<IpNet>,
    /// Blocks that vanished under us.
    pub lost_blocks: Vec<IpNet>,
    /// Pods that had an address of theirs: their lease is kept aside, without an interface.
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
        self.undescribed = false;
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
            if !self.may_use(eni) {
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

    /// Takes in what metadata shows, at a start that EC2 gives no answer to: the primary interface, and those that have
    /// addresses of `entries`, for an earlier process has used them. What the others are EC2 alone knows: they are left alone
    /// until [`Pool::reconcile`], which [`Pool::differs`] asks for as long as it has not come.
    ///
    /// *Cost*: interfaces times entries.
    pub fn begin_with(&mut self, seen: &[SeenEni], entries: &[Arc<Entry>], now: Timestamp) {
        self.undescribed = true;
        for eni in seen {
            let blocks = eni.blocks();
            let has = |entry: &Arc<Entry>| blocks.iter().any(|net| net.contains(&entry.address));
            if eni.id == self.primary_eni || entries.iter().any(has) {
                // Nor does metadata know what tags it lacks.
                let facts = EniFacts {
                    tags: self.tags(),
                    ..eni.facts()
                };
                self.adopt(&facts, now);
            } else if eni.card == 0 {
                self.foreign.insert(eni.id.clone(), eni.device_index);
            }
        }
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
        let ours = facts.is_made_for(&self.instance_id);
        let eni = Eni {
            id: facts.id.clone(),
            mac: facts.mac,
            subnet_id: facts.subnet_id.clone(),
            subnet: facts.subnet,
            primary_address: facts.primary_address,
            primary: facts.id == self.primary_eni,
            ours,
            stage: self.first_stage(facts, ours),
            blocks: BTreeMap::new(),
            in_flight: None,
            groups: facts.security_groups.clone(),
            refused_groups: None,
            untagged: self.missing_tags(facts),
            retry: Retry::default(),
            unsure: false,
            since: now,
            moved: now,
        };
        self.enis.insert(facts.id.clone(), eni);
        for net in self.relevant(facts.blocks()) {
            if !self.released.contains_key(&net) && !self.holds(net) {
                self.add_block(&facts.id, net, now);
            }
        }
    }

    fn missing_tags(&self, facts: &EniFacts) -> BTreeMap<String, String> {
        match self.settings.provisioning {
            Provisioning::Full => self
                .tags()
                .into_iter()
                .filter(|(key, _)| !facts.tags.contains_key(key))
                .collect(),
            Provisioning::AttachedOnly | Provisioning::MetadataOnly => BTreeMap::new(),
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
        let ours = facts.is_made_for(&self.instance_id);
        let shown = self.relevant(facts.blocks());
        let Some(eni) = self.enis.get_mut(&facts.id) else {
            return;
        };
        // What metadata told first has neither tags nor description.
        eni.ours |= ours;
        eni.untagged.retain(|key, _| !facts.tags.contains_key(key));
        if facts.security_groups.is_some() {
            eni.groups.clone_from(&facts.security_groups);
        }
        if eni.stage.place().is_some() {
            let attached = facts.attachment.is_some();
            for block in eni.blocks.values_mut() {
                block.sighted(attached && shown.contains(&block.net()));
            }
        }
        let lost: Vec<IpNet> = eni
            .blocks
            .values()
            .filter(|block| {
                let lagging = now.since(block.acquired) <= READS_MAY_LAG && !block.is_leaving();
                !shown.contains(&block.net()) && !lagging
            })
            .map(Block::net)
            .collect();
        for net in lost {
            self.lose_block(&facts.id, net, now, changes);
        }
        for net in shown {
            // One that moved to another interface may still be shown on this one.
            if !self.holds(net) && !self.released.contains_key(&net) {
                self.add_block(&facts.id, net, now);
                changes.new_blocks.push(net);
            }
        }
    }

    /// Attached, detached or kept behind our back, or in a call whose reply was lost.
    fn sync_place(&mut self, facts: &EniFacts, now: Timestamp) {
        let Some(eni) = self.enis.get(&facts.id) else {
            return;
        };
        if eni.in_flight.is_some() {
            return;
        }
        let anew = self.first_stage(facts, eni.ours);
        let Some(eni) = self.enis.get_mut(&facts.id) else {
            return;
        };
        let settled = now.since(eni.moved) > READS_MAY_LAG;
        let before = std::mem::replace(&mut eni.stage, Stage::Discarded);
        let was_attached = before.place().is_some();
        eni.stage = match (before, &facts.attachment) {
            (Stage::Detached, Some(_)) => anew,
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
        // Metadata does not name attachments; an answer of EC2 does.
        if let (Some(place), Some(shown)) = (eni.stage.place_mut(), &facts.attachment)
            && !shown.id.as_str().is_empty()
        {
            place.attachment = shown.id.clone();
        }
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
            for block in eni.blocks.values_mut() {
                block.sighted(false);
            }
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
        let blocks: Vec<IpNet> = eni.blocks.keys().copied().collect();
        for net in blocks {
            self.orphan(id, net, changes);
        }
        self.enis.remove(id);
    }

    fn lose_eni(&mut self, id: &EniId, changes: &mut Changes) {
        self.remove_eni(id, changes);
        self.lost_enis += 1;
        changes.lost_enis.push(id.clone());
    }

    fn lose_block(&mut self, id: &EniId, net: IpNet, now: Timestamp, changes: &mut Changes) {
        let leaving = self
            .enis
            .get(id)
            .and_then(|eni| eni.blocks.get(&net))
            .is_some_and(Block::is_leaving);
        if leaving {
            // We wanted it to go; its reply was lost.
            if let Some(eni) = self.enis.get_mut(id) {
                eni.blocks.remove(&net);
            }
            self.released.insert(net, now);
            return;
        }
        self.orphan(id, net, changes);
        self.count_lost(net);
        changes.lost_blocks.push(net);
    }

    /// Addresses that have gone with a block; of a `/80` one, for nobody counts the others.
    pub(crate) fn count_lost(&mut self, net: IpNet) {
        self.lost_addresses += match net {
            IpNet::V4(_) => u64::from(Block::new(net, Timestamp::default()).size()),
            IpNet::V6(_) => 1,
        };
    }

    fn holds(&self, net: IpNet) -> bool {
        self.enis.values().any(|eni| eni.blocks.contains_key(&net))
    }

    /// Takes a block from an interface; pods that have an address of it keep their lease, aside.
    pub(crate) fn orphan(&mut self, id: &EniId, net: IpNet, changes: &mut Changes) {
        let Some(block) = self
            .enis
            .get_mut(id)
            .and_then(|eni| eni.blocks.remove(&net))
        else {
            return;
        };
        for (address, slot) in block.into_slots() {
            match slot {
                Slot::Assigned(entry) => {
                    self.leases.remove(&entry.key);
                    changes.orphaned.push(Lease::of(&entry, None));
                    self.orphans.insert(entry.key.clone(), entry);
                }
                Slot::Cooling { until } => {
                    self.resting.insert(address, until);
                }
                Slot::Free { .. } => {}
            }
        }
    }

    /// Where an interface stands that we know only from a description. One that somebody else attached keeps its
    /// owner's wish about the instance's end, and so does every one where we may change nothing.
    fn first_stage(&self, facts: &EniFacts, ours: bool) -> Stage {
        let Some(attachment) = &facts.attachment else {
            return Stage::Detached;
        };
        let place = Place {
            attachment: attachment.id.clone(),
            device_index: attachment.device_index,
        };
        let changing = match self.settings.provisioning {
            Provisioning::Full => true,
            Provisioning::AttachedOnly | Provisioning::MetadataOnly => false,
        };
        if changing && ours && !attachment.delete_on_termination {
            Stage::Attached(place)
        } else {
            Stage::Kept(place)
        }
    }
}
