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
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::bucket::Bucket;
use crate::cloud::{
    CreateEni, DESCRIPTION, EniFacts, InstanceFacts, OWNER, SeenEni, TAG_CLUSTER, TAG_CREATED,
    TAG_INSTANCE, TAG_NO_MANAGE, TAG_OWNER, Want,
};
use crate::ids::{ClientToken, EniId, InstanceId, PodKey, SecurityGroupId, SubnetId, Timestamp};
use crate::limits::Mode;
use crate::retry::{Jitter, Retry};

mod apply;
mod block;
mod demand;
mod eni;
mod lease;
mod network;
mod reconcile;
mod restore;

pub use block::{Block, Leaving, Slot};
pub(crate) use demand::{Demand, HOLD};
pub use eni::{Eni, Place, Stage};
pub(crate) use eni::{InFlight, sum};
pub use lease::{Assignment, Empty, Lease, Released};
pub use network::EniConfig;
use network::Network;
pub(crate) use network::{EXHAUSTED_PAUSE, Kind, NoSite, Site};
pub use reconcile::Changes;
pub use restore::{Entry, RestoreError};

/// For so long after a change a reading call may still tell the state before it.
pub const READS_MAY_LAG: Duration = Duration::from_secs(60);

/// What may be asked of EC2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Provisioning {
    /// Everything.
    #[default]
    Full,
    /// Nothing that changes anything: what is attached is used (DISABLE_NETWORK_RESOURCE_PROVISIONING).
    AttachedOnly,
    /// Nothing at all: instance metadata tells what is attached (ENABLE_IMDS_ONLY_MODE).
    MetadataOnly,
}

/// What does not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What pods get their addresses from.
    pub mode: Mode,
    /// How long an address rests between two pods.
    pub cooldown: Duration,
    /// Name of the cluster, for tags; empty if unknown.
    pub cluster: String,
    /// Tags for interfaces, beside our own.
    pub tags: BTreeMap<String, String>,
    /// Interfaces of pods are made where the node's ENIConfig says; the primary one serves none.
    pub custom_networking: bool,
    /// Interfaces of pods may be made in all subnets of the zone that are tagged for it, not the primary one's alone.
    pub subnet_discovery: bool,
    /// Attached interfaces that carry no tag of ours are used too.
    pub manage_untagged: bool,
    /// Interfaces come and go also while the node takes no new pods.
    pub manage_unschedulable: bool,
    /// What may be asked of EC2.
    pub provisioning: Provisioning,
    /// Seed of pauses and of client tokens; different for every start of the daemon.
    pub seed: u64,
}

impl Default for Settings {
    /// The defaults of AWS's daemon, and seed 1.
    fn default() -> Self {
        Self {
            mode: Mode::Addresses,
            cooldown: Duration::from_secs(30),
            cluster: String::new(),
            tags: BTreeMap::new(),
            custom_networking: false,
            subnet_discovery: true,
            manage_untagged: true,
            manage_unschedulable: false,
            provisioning: Provisioning::Full,
            seed: 1,
        }
    }
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
    /// Prefixes held, except those being given back.
    pub prefixes: u32,
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
    /// Each lease and the interface that it is on; its slot there shares the entry.
    pub(crate) leases: BTreeMap<PodKey, (EniId, Arc<Entry>)>,
    /// Leases whose address the cloud does not show (any more): kept until the pod goes.
    pub(crate) orphans: BTreeMap<PodKey, Arc<Entry>>,
    /// Creates that are not finished.
    pub(crate) creating: BTreeMap<ClientToken, Creating>,
    /// Addresses that rest after a pod, but that no interface of ours holds: they rest on if they come back.
    pub(crate) resting: BTreeMap<IpAddr, Timestamp>,
    /// Blocks given back lately.
    pub(crate) released: BTreeMap<IpNet, Timestamp>,
    /// Interfaces deleted lately.
    pub(crate) gone: BTreeMap<EniId, Timestamp>,
    pub(crate) network: Network,
    pub(crate) demand: Demand,
    /// The node takes no new pods.
    pub(crate) unschedulable: bool,
    pub(crate) bucket: Bucket,
    /// Creating rests.
    pub(crate) growth: Retry,
    /// The instance takes no more interfaces, whatever its limits say.
    pub(crate) eni_limit_until: Option<Timestamp>,
    pub(crate) last_decrease: Option<Timestamp>,
    /// The words of the last failure that nothing has made good since.
    pub(crate) last_failure: Option<String>,
    pub(crate) survey_wanted: bool,
    /// EC2 has not described the interfaces yet: metadata alone has told of them.
    pub(crate) undescribed: bool,
    pub(crate) jitter: Jitter,
    pub(crate) serial: u64,
    pub(crate) lost_enis: u64,
    pub(crate) lost_addresses: u64,
}

impl Pool {
    /// An empty pool; [`Pool::reconcile`] with a full description fills it.
    pub fn new(facts: &InstanceFacts, settings: Settings) -> Self {
        let jitter = Jitter::new(settings.seed);
        let bucket = Bucket::new(settings.seed);
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
            creating: BTreeMap::new(),
            resting: BTreeMap::new(),
            released: BTreeMap::new(),
            gone: BTreeMap::new(),
            network: Network::new(),
            demand: Demand::default(),
            unschedulable: false,
            bucket,
            growth: Retry::default(),
            eni_limit_until: None,
            last_decrease: None,
            last_failure: None,
            survey_wanted: false,
            undescribed: false,
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

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The bucket that all calls to EC2 draw on: actions do so by themselves ([`Pool::begin`], [`Pool::apply`]), whoever
    /// makes other calls notes them here.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// See [`Pool::bucket`].
    pub fn bucket_mut(&mut self) -> &mut Bucket {
        &mut self.bucket
    }

    /// What the last failure was, in the cloud's words; nothing since something went well.
    pub fn last_failure(&self) -> Option<&str> {
        self.last_failure.as_deref()
    }

    /// Whether the node takes new pods. While it does not, interfaces neither come nor go, unless the settings say so.
    pub fn set_unschedulable(&mut self, unschedulable: bool) {
        self.unschedulable = unschedulable;
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
            stats.total = stats.total.saturating_add(eni.total());
            stats.assigned += eni.assigned();
            stats.cooling += eni.cooling(now);
            let prefixes = eni.blocks().filter(|b| b.is_prefix() && !b.is_leaving());
            stats.prefixes += sum(prefixes.map(|_| 1));
            if eni.stage.is_ready() && self.serves(eni) {
                stats.available = stats.available.saturating_add(eni.free(now));
            }
        }
        stats
    }

    /// Whether a new pod would be given an address at once.
    pub(crate) fn has_free(&self, now: Timestamp) -> bool {
        let mut enis = self.enis.values();
        enis.any(|eni| eni.stage.is_ready() && self.serves(eni) && eni.free(now) > 0)
    }

    /// Whether it serves at all: an interface is ready, may serve and holds an address, free or not.
    pub fn can_serve(&self) -> bool {
        self.enis
            .values()
            .any(|e| e.stage.is_ready() && e.total() > 0 && self.serves(e))
    }

    /// The next moment at which time alone makes an address free; `None` if none rests.
    pub fn next_cooled(&self, now: Timestamp) -> Option<Timestamp> {
        self.enis
            .values()
            .filter(|e| e.stage.is_ready() && self.serves(e))
            .flat_map(|e| e.blocks.values())
            .filter(|block| !block.is_leaving())
            .flat_map(|block| block.resting(now))
            .map(|(_, until)| until)
            .min()
    }

    /// Whether instance metadata shows something else than we hold, beyond what a change under way explains. Notes what
    /// it shows.
    pub fn differs(&mut self, seen: &[SeenEni], now: Timestamp) -> bool {
        let shown: BTreeMap<&EniId, BTreeSet<IpNet>> = seen
            .iter()
            .map(|seen| (&seen.id, self.relevant(seen.blocks())))
            .collect();
        let unknown = shown.keys().any(|id| {
            !self.enis.contains_key(*id)
                && !self.foreign.contains_key(*id)
                && !self.gone.contains_key(*id)
        });
        let foreign_gone = self.foreign.keys().any(|id| !shown.contains_key(id));
        let mut vanished = false;
        for eni in self.enis.values_mut() {
            let held = eni.in_flight.is_none() && eni.stage.place().is_some();
            let blocks = shown.get(&eni.id);
            for block in eni.blocks.values_mut() {
                match blocks {
                    Some(blocks) if blocks.contains(&block.net()) => block.sighted(true),
                    // EC2 is asked before it is believed: metadata may be stale.
                    Some(_) | None => vanished |= held && block.is_shown(),
                }
            }
        }
        self.undescribed
            || unknown
            || vanished
            || foreign_gone
            || self.enis.values().any(|eni| {
                let settled = eni.in_flight.is_none() && now.since(eni.moved) > READS_MAY_LAG;
                let attached = eni.stage.place().is_some();
                match shown.get(&eni.id) {
                    None => settled && attached,
                    Some(blocks) => {
                        let new = blocks.iter().any(|net| {
                            !eni.blocks.contains_key(net) && !self.released.contains_key(net)
                        });
                        let missing = eni.blocks.values().any(|block| {
                            !blocks.contains(&block.net())
                                && now.since(block.acquired) > READS_MAY_LAG
                        });
                        // One that has just been detached is shown for some seconds more.
                        (settled && !attached) || new || (settled && missing)
                    }
                }
            })
    }

    /// Of an interface's blocks those of the family that pods have.
    pub(crate) fn relevant(&self, blocks: BTreeSet<IpNet>) -> BTreeSet<IpNet> {
        let wanted = |net: &IpNet| match (self.settings.mode, net) {
            (Mode::Addresses | Mode::Prefixes, IpNet::V4(_)) | (Mode::Ipv6, IpNet::V6(_)) => true,
            (Mode::Addresses | Mode::Prefixes, IpNet::V6(_)) | (Mode::Ipv6, IpNet::V4(_)) => false,
        };
        blocks.into_iter().filter(wanted).collect()
    }

    /// Whether the pool may use an interface: the primary one always; others by kind, card and tags.
    pub(crate) fn may_use(&self, facts: &EniFacts) -> bool {
        if facts.id == self.primary_eni {
            return true;
        }
        let tagged = facts
            .tags
            .get(TAG_INSTANCE)
            .is_some_and(|v| v == self.instance_id.as_str());
        let asked_for = tagged || facts.tags.contains_key(TAG_NO_MANAGE);
        facts.is_usable() && (self.settings.manage_untagged || asked_for)
    }

    /// Whether the cloud should be asked for everything soon; asking clears it.
    pub fn take_survey_wanted(&mut self) -> bool {
        std::mem::take(&mut self.survey_wanted)
    }

    /// The request for the `nth` new interface of a plan, with a token of its own.
    pub(crate) fn new_request(
        &self,
        site: &Site,
        want: Want,
        nth: u64,
        now: Timestamp,
    ) -> CreateEni {
        let mut tags = self.tags();
        tags.insert(TAG_CREATED.into(), now.rfc3339());
        // At most 64 ASCII characters; the instance keeps two nodes apart, the seed two starts of the daemon.
        let token = format!(
            "{}-{:016x}-{}",
            self.instance_id,
            self.settings.seed,
            self.serial + nth
        );
        CreateEni {
            token: ClientToken::new(token),
            subnet_id: site.subnet_id.clone(),
            security_groups: site.security_groups.clone(),
            want,
            description: format!("{DESCRIPTION}{}", self.instance_id),
            tags,
        }
    }

    /// The tags that every interface in the pool should carry.
    pub(crate) fn tags(&self) -> BTreeMap<String, String> {
        let mut tags = self.settings.tags.clone();
        tags.insert(TAG_INSTANCE.into(), self.instance_id.to_string());
        if !self.settings.cluster.is_empty() {
            tags.insert(TAG_CLUSTER.into(), self.settings.cluster.clone());
            tags.insert(TAG_OWNER.into(), OWNER.into());
        }
        tags
    }

    /// Forgets what was only remembered because reads lag.
    pub(crate) fn forget_old(&mut self, now: Timestamp) {
        self.released
            .retain(|_, at| now.since(*at) <= READS_MAY_LAG);
        self.gone.retain(|_, at| now.since(*at) <= READS_MAY_LAG);
        self.resting.retain(|_, until| now < *until);
    }
}
