//! The pool: interfaces, the addresses on them, and who has which.
//!
//! ```text
//!   requests  assign, release ─┐                       ┌─> plan(&pool, …) -> actions
//!   outcomes  apply ───────────┼──> Pool (owned by one)┤
//!   surveys   reconcile ───────┘                       └─> leases, for the checkpoint
//! ```
//!
//! The pool believes what a changing call has answered over what a reading call says within a minute after it: reads
//! lag. What it cannot know (a lost reply) it marks as in doubt and has looked up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::cloud::{
    CreateEni, InstanceFacts, OWNER, SeenEni, TAG_CLUSTER, TAG_CREATED, TAG_INSTANCE, TAG_OWNER,
};
use crate::ids::{
    ClientToken, EniId, InstanceId, PodKey, PodName, SecurityGroupId, SubnetId, Timestamp,
};
use crate::retry::{Jitter, Retry};

mod apply;
mod eni;
mod lease;
mod reconcile;
mod restore;

pub use eni::{Eni, Held, Place, Slot, Stage};
pub use lease::{Assignment, Empty, Lease, Released};
pub use reconcile::Changes;
pub use restore::{Entry, RestoreError};

/// For so long after a change a reading call may still tell the state before it.
pub const READS_MAY_LAG: Duration = Duration::from_secs(60);

/// What does not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long an address rests between two pods.
    pub cooldown: Duration,
    /// Name of the cluster, for tags; empty if unknown.
    pub cluster: String,
    /// Tags for interfaces, beside our own.
    pub tags: BTreeMap<String, String>,
    /// Seed of pauses and of client tokens; different for every start of the daemon.
    pub seed: u64,
}

/// Numbers for metrics, all of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Interfaces that are attached and managed.
    pub enis: u32,
    /// Addresses held, except those being given back, alone or with their interface.
    pub total: u32,
    /// Addresses that pods have.
    pub assigned: u32,
    /// Addresses on serving interfaces that a pod can have now.
    pub available: u32,
    /// Addresses that rest.
    pub cooling: u32,
    /// Interfaces that vanished under us since the start.
    pub lost_enis: u64,
    /// Addresses that vanished under us since the start.
    pub lost_addresses: u64,
}

/// A create that is not finished: repeated unchanged until its fate is known.
#[derive(Debug, Clone)]
pub(crate) struct Creating {
    pub(crate) request: CreateEni,
    pub(crate) in_flight: bool,
}

/// What we know of a subnet's room.
#[derive(Debug, Clone, Default)]
pub(crate) struct Room {
    /// Not asked before this.
    pub(crate) paused_until: Option<Timestamp>,
    /// After a refusal: ask for no more than this at once; grows with success.
    pub(crate) ask: Option<u32>,
}

/// The pool.
#[derive(Debug, Clone)]
pub struct Pool {
    pub(crate) instance_id: InstanceId,
    pub(crate) primary_eni: EniId,
    pub(crate) subnet_id: SubnetId,
    pub(crate) security_groups: Vec<SecurityGroupId>,
    pub(crate) settings: Settings,
    pub(crate) enis: BTreeMap<EniId, Eni>,
    /// Attached interfaces that are not ours to use, with their device index: they take room.
    pub(crate) foreign: BTreeMap<EniId, u16>,
    /// Where each lease is; the slot has the rest.
    pub(crate) leases: BTreeMap<PodKey, (EniId, Ipv4Addr)>,
    /// Leases whose address the cloud does not show (any more): kept until the pod goes.
    pub(crate) orphans: BTreeMap<PodKey, Lease>,
    pub(crate) creating: Option<Creating>,
    /// Addresses that rest after a pod, but that no interface of ours holds: they rest on if they come back.
    pub(crate) resting: BTreeMap<Ipv4Addr, Timestamp>,
    /// Addresses given back lately.
    pub(crate) released: BTreeMap<Ipv4Addr, Timestamp>,
    /// Interfaces deleted lately.
    pub(crate) gone: BTreeMap<EniId, Timestamp>,
    pub(crate) rooms: BTreeMap<SubnetId, Room>,
    /// All calls rest.
    pub(crate) throttle: Retry,
    /// Creating rests.
    pub(crate) growth: Retry,
    /// The instance takes no more interfaces, whatever its limits say.
    pub(crate) eni_limit_until: Option<Timestamp>,
    pub(crate) last_decrease: Option<Timestamp>,
    /// The words of the last failure that nothing has made good since.
    pub(crate) last_failure: Option<String>,
    pub(crate) survey_wanted: bool,
    pub(crate) jitter: Jitter,
    pub(crate) serial: u64,
    pub(crate) lost_enis: u64,
    pub(crate) lost_addresses: u64,
}

impl Pool {
    /// An empty pool; [`Pool::reconcile`] with a full description fills it.
    pub fn new(facts: &InstanceFacts, settings: Settings) -> Self {
        let jitter = Jitter::new(settings.seed);
        Self {
            instance_id: facts.instance_id.clone(),
            primary_eni: facts.primary_eni.clone(),
            subnet_id: facts.subnet_id.clone(),
            security_groups: facts.security_groups.clone(),
            settings,
            enis: BTreeMap::new(),
            foreign: BTreeMap::new(),
            leases: BTreeMap::new(),
            orphans: BTreeMap::new(),
            creating: None,
            resting: BTreeMap::new(),
            released: BTreeMap::new(),
            gone: BTreeMap::new(),
            rooms: BTreeMap::new(),
            throttle: Retry::default(),
            growth: Retry::default(),
            eni_limit_until: None,
            last_decrease: None,
            last_failure: None,
            survey_wanted: false,
            jitter,
            serial: 0,
            lost_enis: 0,
            lost_addresses: 0,
        }
    }

    /// The interfaces, in order of their names.
    pub fn enis(&self) -> impl Iterator<Item = &Eni> {
        self.enis.values()
    }

    /// One interface.
    pub fn eni(&self, id: &EniId) -> Option<&Eni> {
        self.enis.get(id)
    }

    /// Numbers for metrics.
    pub fn stats(&self, now: Timestamp) -> Stats {
        let mut stats = Stats {
            lost_enis: self.lost_enis,
            lost_addresses: self.lost_addresses,
            ..Stats::default()
        };
        for eni in self.enis.values() {
            stats.enis += u32::from(eni.stage.place().is_some());
            if !eni.stage.is_coming_or_ready() {
                continue;
            }
            stats.total += eni.total();
            stats.assigned += eni.assigned();
            stats.cooling += eni.cooling(now);
            if eni.stage.is_ready() {
                stats.available += eni.free(now);
            }
        }
        stats
    }

    /// Whether it serves at all: an interface is ready and holds an address, free or not.
    pub fn can_serve(&self) -> bool {
        self.enis
            .values()
            .any(|e| e.stage.is_ready() && e.total() > 0)
    }

    /// The next moment at which time alone makes an address free; `None` if none rests.
    pub fn next_cooled(&self, now: Timestamp) -> Option<Timestamp> {
        self.enis
            .values()
            .filter(|e| e.stage.is_ready())
            .flat_map(|e| e.slots.values())
            .filter_map(|held| match held.slot {
                Slot::Cooling { until } if now < until => Some(until),
                Slot::Cooling { .. }
                | Slot::Free { .. }
                | Slot::Assigned { .. }
                | Slot::Leaving { .. } => None,
            })
            .min()
    }

    /// Whether instance metadata shows something else than we hold, beyond what a change under way explains.
    pub fn differs(&self, seen: &[SeenEni], now: Timestamp) -> bool {
        let shown: BTreeMap<&EniId, &BTreeSet<Ipv4Addr>> =
            seen.iter().map(|s| (&s.id, &s.addresses)).collect();
        let unknown = shown.keys().any(|id| {
            !self.enis.contains_key(*id)
                && !self.foreign.contains_key(*id)
                && !self.gone.contains_key(*id)
        });
        let foreign_gone = self.foreign.keys().any(|id| !shown.contains_key(id));
        unknown
            || foreign_gone
            || self.enis.values().any(|eni| {
                let settled = eni.in_flight.is_none() && now.since(eni.moved) > READS_MAY_LAG;
                let attached = eni.stage.place().is_some();
                match shown.get(&eni.id) {
                    None => settled && attached,
                    Some(addresses) => {
                        let new = addresses.iter().any(|a| {
                            *a != eni.primary_address
                                && !eni.slots.contains_key(a)
                                && !self.released.contains_key(a)
                        });
                        let missing = eni.slots.iter().any(|(a, held)| {
                            !addresses.contains(a) && now.since(held.acquired) > READS_MAY_LAG
                        });
                        !attached || new || (settled && missing)
                    }
                }
            })
    }

    /// Whether the cloud should be asked for everything soon; asking clears it.
    pub fn take_survey_wanted(&mut self) -> bool {
        std::mem::take(&mut self.survey_wanted)
    }

    /// The request for a new interface, with a token of its own.
    pub(crate) fn new_request(&self, addresses: u32, now: Timestamp) -> CreateEni {
        let mut tags = self.settings.tags.clone();
        tags.insert(TAG_INSTANCE.into(), self.instance_id.to_string());
        tags.insert(TAG_CREATED.into(), now.rfc3339());
        if !self.settings.cluster.is_empty() {
            tags.insert(TAG_CLUSTER.into(), self.settings.cluster.clone());
            tags.insert(TAG_OWNER.into(), OWNER.into());
        }
        // At most 64 ASCII characters; the instance keeps two nodes apart, the seed two starts of the daemon.
        let token = format!(
            "{}-{:016x}-{}",
            self.instance_id, self.settings.seed, self.serial
        );
        CreateEni {
            token: ClientToken::new(token),
            subnet_id: self.subnet_id.clone(),
            security_groups: self.security_groups.clone(),
            addresses,
            description: format!("aws-K8S-{}", self.instance_id),
            tags,
        }
    }

    /// Name of the pod that has a lease under `key`.
    pub fn pod_of(&self, key: &PodKey) -> Option<&PodName> {
        let (eni, address) = self.leases.get(key)?;
        match &self.enis.get(eni)?.slots.get(address)?.slot {
            Slot::Assigned { pod, .. } => Some(pod),
            Slot::Free { .. } | Slot::Cooling { .. } | Slot::Leaving { .. } => None,
        }
    }

    /// Forgets what was only remembered because reads lag.
    pub(crate) fn forget_old(&mut self, now: Timestamp) {
        self.released
            .retain(|_, at| now.since(*at) <= READS_MAY_LAG);
        self.gone.retain(|_, at| now.since(*at) <= READS_MAY_LAG);
        self.resting.retain(|_, until| now < *until);
    }
}
