//! One interface and the blocks of addresses on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::block::{Block, Slot};
use crate::cloud::{PREFIX_LEN, PREFIX_LEN_V6, Want};
use crate::ids::{AttachmentId, EniId, Mac, SecurityGroupId, SubnetId, Timestamp};
use crate::retry::Retry;

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

    pub(crate) fn place_mut(&mut self) -> Option<&mut Place> {
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

/// What is being done with an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InFlight {
    /// It is asked for more.
    Assign(Want),
    /// It is being attached at a device index.
    Attach(u16),
    /// Anything else.
    Other,
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
    pub(crate) blocks: BTreeMap<IpNet, Block>,
    /// The action that is under way.
    pub(crate) in_flight: Option<InFlight>,
    /// Its security groups, as last described or set; `None` if nobody told.
    pub(crate) groups: Option<BTreeSet<SecurityGroupId>>,
    /// Security groups that EC2 would not give it.
    pub(crate) refused_groups: Option<BTreeSet<SecurityGroupId>>,
    /// Tags of ours that it lacks.
    pub(crate) untagged: BTreeMap<String, String>,
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

    /// Subnet it lives in.
    pub fn subnet_id(&self) -> &SubnetId {
        &self.subnet_id
    }

    /// Whether it was made for this instance, so that it may be removed.
    pub fn is_ours(&self) -> bool {
        self.ours
    }

    /// Its blocks, in order.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.values()
    }

    /// Addresses of which something is known, and what they are doing, in order of block and address.
    pub fn slots(&self) -> impl Iterator<Item = (IpAddr, &Slot)> {
        self.blocks.values().flat_map(Block::slots)
    }

    /// Addresses that a pod can have now, whether or not the interface serves yet.
    pub fn free(&self, now: Timestamp) -> u32 {
        sum(self.blocks.values().map(|block| block.free(now)))
    }

    /// Addresses that pods have.
    pub fn assigned(&self) -> u32 {
        sum(self.blocks.values().map(Block::assigned))
    }

    /// Addresses that rest.
    pub fn cooling(&self, now: Timestamp) -> u32 {
        sum(self.blocks.values().map(|block| block.cooling(now)))
    }

    /// Addresses of blocks that are not being given back.
    pub fn total(&self) -> u32 {
        let staying = self.blocks.values().filter(|block| !block.is_leaving());
        sum(staying.map(Block::size))
    }

    /// Places that are taken, also by what is being given back.
    pub fn places_taken(&self) -> u32 {
        u32::try_from(self.blocks.len()).unwrap_or(u32::MAX)
    }

    /// Whether no pod has an address of it, none rests and none is being given back.
    pub(crate) fn is_wholly_free(&self, now: Timestamp) -> bool {
        self.blocks.values().all(|block| block.is_wholly_free(now))
    }

    /// Whether it can take an action: nothing under way, not resting, not in doubt.
    pub(crate) fn is_idle(&self, now: Timestamp) -> bool {
        self.in_flight.is_none() && !self.retry.pausing(now) && !self.unsure
    }

    /// The block that holds an address.
    pub(crate) fn block_of(&self, address: IpAddr) -> Option<&Block> {
        holders(address)
            .into_iter()
            .find_map(|net| self.blocks.get(&net))
    }

    pub(crate) fn block_of_mut(&mut self, address: IpAddr) -> Option<&mut Block> {
        let net = holders(address)
            .into_iter()
            .find(|net| self.blocks.contains_key(net))?;
        self.blocks.get_mut(&net)
    }
}

/// The blocks that an address can be in: itself alone, or the prefix around it.
pub(super) fn holders(address: IpAddr) -> [IpNet; 2] {
    let around = match address {
        IpAddr::V4(_) => PREFIX_LEN,
        IpAddr::V6(_) => PREFIX_LEN_V6,
    };
    let alone = IpNet::from(address);
    // Both lengths fit their families.
    let prefix = IpNet::new(address, around).map_or(alone, |net| net.trunc());
    [alone, prefix]
}

pub(crate) fn sum(counts: impl Iterator<Item = u32>) -> u32 {
    counts.fold(0, u32::saturating_add)
}
