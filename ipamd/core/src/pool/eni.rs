//! One interface and the addresses on it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::ids::{AttachmentId, EniId, Mac, PodKey, PodName, SubnetId, Timestamp};
use crate::retry::Retry;

/// What an address is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// Can be given to a pod.
    Free {
        /// When its last pod let it go; `None` if it had none.
        freed: Option<Timestamp>,
    },
    /// A pod has it.
    Assigned {
        /// Whose.
        key: PodKey,
        /// The pod by name.
        pod: PodName,
        /// Since when.
        since: Timestamp,
    },
    /// Was let go lately: others may still send to it.
    Cooling {
        /// From here on it is free.
        until: Timestamp,
    },
    /// Being given back to the cloud.
    Leaving {
        /// A reply was lost: it may be gone already, so it can never be taken back.
        doubtful: bool,
    },
}

impl Slot {
    /// Whether a pod can have it now.
    pub fn is_free(&self, now: Timestamp) -> bool {
        match self {
            Slot::Free { .. } => true,
            Slot::Cooling { until } => *until <= now,
            Slot::Assigned { .. } | Slot::Leaving { .. } => false,
        }
    }

    /// Whether it rests after a pod.
    pub fn is_cooling(&self, now: Timestamp) -> bool {
        match self {
            Slot::Cooling { until } => now < *until,
            Slot::Free { .. } | Slot::Assigned { .. } | Slot::Leaving { .. } => false,
        }
    }

    /// Whether a pod has it.
    pub fn is_assigned(&self) -> bool {
        match self {
            Slot::Assigned { .. } => true,
            Slot::Free { .. } | Slot::Cooling { .. } | Slot::Leaving { .. } => false,
        }
    }

    /// Whether it is being given back.
    pub fn is_leaving(&self) -> bool {
        match self {
            Slot::Leaving { .. } => true,
            Slot::Free { .. } | Slot::Cooling { .. } | Slot::Assigned { .. } => false,
        }
    }
}

/// An address and since when the cloud has given it to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What it is doing.
    pub slot: Slot,
    /// When we learned that it is ours.
    pub acquired: Timestamp,
}

/// Where an interface sits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its attachment.
    pub attachment: AttachmentId,
    /// Its device index on card 0.
    pub device_index: u16,
}

/// How far an interface has come, and where it goes next.
///
/// ```text
/// Detached -> Attached -> Kept -> Ready -> Leaving -> Down -> Discarded -> (gone)
///     \_________________________________________________________^
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Made, not attached.
    Detached,
    /// Attached; would outlive the instance.
    Attached(Place),
    /// Ends with the instance (or its owner decides); the host does not know it yet.
    Kept(Place),
    /// Serves pods.
    Ready(Place),
    /// No longer serves; the host still has its routes.
    Leaving(Place),
    /// The host has let it go; to be detached.
    Down(Place),
    /// Detached or never attached; to be deleted.
    Discarded,
}

impl Stage {
    /// Where it sits, if it is attached.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Stage::Attached(place)
            | Stage::Kept(place)
            | Stage::Ready(place)
            | Stage::Leaving(place)
            | Stage::Down(place) => Some(place),
            Stage::Detached | Stage::Discarded => None,
        }
    }

    /// Whether it is on the way to serve, or serves.
    pub fn is_coming_or_ready(&self) -> bool {
        match self {
            Stage::Detached | Stage::Attached(_) | Stage::Kept(_) | Stage::Ready(_) => true,
            Stage::Leaving(_) | Stage::Down(_) | Stage::Discarded => false,
        }
    }

    /// Whether it serves pods.
    pub fn is_ready(&self) -> bool {
        match self {
            Stage::Ready(_) => true,
            Stage::Detached
            | Stage::Attached(_)
            | Stage::Kept(_)
            | Stage::Leaving(_)
            | Stage::Down(_)
            | Stage::Discarded => false,
        }
    }
}

/// An interface in the pool.
#[derive(Debug, Clone)]
pub struct Eni {
    pub(crate) id: EniId,
    pub(crate) mac: Mac,
    pub(crate) subnet_id: SubnetId,
    pub(crate) subnet: Ipv4Net,
    pub(crate) primary_address: Ipv4Addr,
    /// The instance's primary interface: always there.
    pub(crate) primary: bool,
    /// Made for this instance by us (or by the agent before us): we may remove it.
    pub(crate) ours: bool,
    pub(crate) stage: Stage,
    pub(crate) slots: BTreeMap<Ipv4Addr, Held>,
    /// An action is under way. The number of addresses that an assign asked for, else 0.
    pub(crate) in_flight: Option<u32>,
    pub(crate) retry: Retry,
    /// Our knowledge is in doubt: to be looked up before anything else is done with it.
    pub(crate) unsure: bool,
    /// When we learned of it.
    pub(crate) since: Timestamp,
    /// When it last changed its place; reads may lag behind.
    pub(crate) moved: Timestamp,
}

impl Eni {
    /// The interface.
    pub fn id(&self) -> &EniId {
        &self.id
    }

    /// Its hardware address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Block of its subnet.
    pub fn subnet(&self) -> Ipv4Net {
        self.subnet
    }

    /// Its own address.
    pub fn primary_address(&self) -> Ipv4Addr {
        self.primary_address
    }

    /// Whether it is the instance's primary interface.
    pub fn is_primary(&self) -> bool {
        self.primary
    }

    /// How far it has come.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Its device index, if attached.
    pub fn device_index(&self) -> Option<u16> {
        self.stage.place().map(|p| p.device_index)
    }

    /// Addresses and what they are doing, in order of address.
    pub fn slots(&self) -> impl Iterator<Item = (Ipv4Addr, &Slot)> {
        self.slots.iter().map(|(a, held)| (*a, &held.slot))
    }

    /// Addresses that a pod can have now, whether or not the interface serves yet.
    pub fn free(&self, now: Timestamp) -> u32 {
        count(self.slots.values().filter(|h| h.slot.is_free(now)))
    }

    /// Addresses that pods have.
    pub fn assigned(&self) -> u32 {
        count(self.slots.values().filter(|h| h.slot.is_assigned()))
    }

    /// Addresses that rest.
    pub fn cooling(&self, now: Timestamp) -> u32 {
        count(self.slots.values().filter(|h| h.slot.is_cooling(now)))
    }

    /// Addresses that are not being given back.
    pub fn total(&self) -> u32 {
        count(self.slots.values().filter(|h| !h.slot.is_leaving()))
    }

    /// Whether it can take an action: nothing under way, not resting, not in doubt.
    pub(crate) fn is_idle(&self, now: Timestamp) -> bool {
        self.in_flight.is_none() && !self.retry.pausing(now) && !self.unsure
    }
}

fn count<'a>(held: impl Iterator<Item = &'a Held>) -> u32 {
    u32::try_from(held.count()).unwrap_or(u32::MAX)
}
