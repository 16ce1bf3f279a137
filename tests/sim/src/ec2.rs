//! One EC2 for every node: subnets, interfaces, limits, quotas; reads that lag behind what was done.
//!
//! A call takes effect when it is made; its reply arrives later. An attached interface reaches its instance seconds
//! after the call; a detached one can be deleted seconds after the call. Error codes are EC2's.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use fastrand::Rng;
use ipnet::Ipv4Net;
use selvage_ipamd_core::cloud::LooseEni;
use selvage_ipamd_core::ids::{AttachmentId, EniId, SubnetId, Timestamp};

use crate::machine::{Machine, NodeId};
use crate::quota::{Api, Quotas};

mod eni;
mod refusal;
mod subnet;
mod timing;

pub use eni::View;
pub use refusal::Refusal;

use eni::{Attachment, Eni};
use subnet::Subnet;

/// When the reply arrives, and what it says.
pub type Reply<T> = (Timestamp, Result<T, Refusal>);

/// What a create or an assign asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// So many single addresses.
    Addresses(u32),
    /// So many blocks of sixteen.
    Prefixes(u32),
}

/// The region.
pub struct Ec2 {
    subnets: Vec<Subnet>,
    enis: BTreeMap<u32, Eni>,
    serial: u32,
    /// The interfaces made for each node, those just deleted included.
    of_node: Vec<Vec<u32>>,
    machines: Vec<Machine>,
    running: Vec<bool>,
    by_token: HashMap<String, u32>,
    /// What was called and throttled.
    pub quotas: Quotas,
    /// What was refused, by action and code.
    pub refused: BTreeMap<(Api, &'static str), u64>,
    rng: Rng,
}

/// A reader may be behind by less than this.
const TOMBSTONE: Duration = Duration::from_secs(10);

impl Ec2 {
    /// A region with these subnets and machines, none of which runs.
    pub fn new(subnets: &[Ipv4Net], machines: &[Machine], seed: u64, now: Timestamp) -> Self {
        Self {
            subnets: subnets.iter().map(|net| Subnet::new(*net)).collect(),
            enis: BTreeMap::new(),
            serial: 0,
            of_node: vec![Vec::new(); machines.len()],
            machines: machines.to_vec(),
            running: vec![false; machines.len()],
            by_token: HashMap::new(),
            quotas: Quotas::new(now),
            refused: BTreeMap::new(),
            rng: Rng::with_seed(seed),
        }
    }

    /// Takes so many addresses of a subnet for others, whole blocks as far as there are any.
    pub fn occupy(&mut self, subnet: usize, addresses: u32) {
        let subnet = &mut self.subnets[subnet];
        let mut left = addresses;
        while left >= subnet::PREFIX && subnet.take_prefix(&mut self.rng).is_some() {
            left -= subnet::PREFIX;
        }
        for _ in 0..left {
            subnet.take_address(&mut self.rng);
        }
    }

    /// Addresses that nobody has, and blocks of which nobody has an address.
    pub fn free(&self, subnet: usize) -> (u32, usize) {
        let subnet = &self.subnets[subnet];
        (subnet.free(), subnet.empty_blocks())
    }

    /// Name of a subnet.
    pub fn subnet_id(subnet: usize) -> SubnetId {
        SubnetId::new(format!("subnet-{subnet:04}"))
    }

    /// Block of a subnet.
    pub fn subnet_net(&self, subnet: usize) -> Ipv4Net {
        self.subnets[subnet].net
    }

    /// An instance begins, with its primary interface.
    ///
    /// # Panics
    /// When the subnet has no address for it: such an instance never starts.
    pub fn start(&mut self, node: NodeId, now: Timestamp) -> View {
        self.running[node.index()] = true;
        let subnet = self.machines[node.index()].subnet;
        let made = self.make(node, subnet, Ask::Addresses(0), Default::default(), now);
        let number = made.expect("the subnet has an address for the instance itself");
        let eni = self.eni_mut(number);
        eni.keep = true;
        // It was made when the instance was asked for, long before an agent runs there.
        let since = ago(now, TOMBSTONE);
        eni.created = since;
        eni.attachment = Some(Attachment {
            id: AttachmentId::new(format!("eni-attach-{number:08x}")),
            device_index: 0,
            since,
            there: since,
            until: None,
        });
        eni.view(now, true).expect("it has just been made")
    }

    /// An instance ends, and with it what was to end with it.
    pub fn stop(&mut self, node: NodeId, now: Timestamp) {
        self.running[node.index()] = false;
        for number in self.of_node[node.index()].clone() {
            let eni = self.eni_mut(number);
            if eni.deleted.is_some() || !eni.attached(now) {
                continue;
            }
            let keep = eni.keep;
            if let Some(attachment) = &mut eni.attachment {
                attachment.until = Some(now);
            }
            if keep {
                self.remove(number, now);
            }
        }
    }

    /// DescribeNetworkInterfaces: those attached to the node.
    pub fn describe_attached(&mut self, node: NodeId, now: Timestamp) -> Reply<Vec<View>> {
        self.read(Api::DescribeNetworkInterfaces, now, |ec2, at| {
            let mut views = ec2.views(node, at, false);
            views.retain(|view| view.attachment.is_some());
            views
        })
    }

    /// DescribeNetworkInterfaces: those made for the node and attached to nothing.
    pub fn describe_loose(&mut self, node: NodeId, now: Timestamp) -> Reply<Vec<View>> {
        self.read(Api::DescribeNetworkInterfaces, now, |ec2, at| {
            let mut views = ec2.views(node, at, false);
            views.retain(|view| view.attachment.is_none());
            views
        })
    }

    /// DescribeNetworkInterfaces of one.
    pub fn describe_one(&mut self, eni: &EniId, now: Timestamp) -> Reply<Option<View>> {
        let number = number(eni);
        self.read(Api::DescribeNetworkInterfaces, now, |ec2, at| {
            ec2.enis.get(&number).and_then(|eni| eni.view(at, false))
        })
    }

    /// DescribeInstances, DescribeSubnets: what matters of their answer is that there is one.
    pub fn describe_other(&mut self, api: Api, now: Timestamp) -> Reply<()> {
        self.read(api, now, |_, _| ())
    }

    /// DescribeSubnets: the node's, and its free addresses.
    pub fn describe_subnet(&mut self, node: NodeId, now: Timestamp) -> Reply<(usize, u32)> {
        self.read(Api::DescribeSubnets, now, |ec2, _| {
            let subnet = ec2.machines[node.index()].subnet;
            (subnet, ec2.subnets[subnet].free())
        })
    }

    /// CreateNetworkInterface. The same token answers the same interface.
    pub fn create(
        &mut self,
        node: NodeId,
        (subnet, ask): (usize, Ask),
        token: &str,
        (tags, description): (BTreeMap<String, String>, String),
        now: Timestamp,
    ) -> Reply<View> {
        self.change(Api::CreateNetworkInterface, now, |ec2| {
            let number = match ec2.by_token.get(token) {
                Some(number) => *number,
                None => {
                    let number = ec2.make(node, subnet, ask, (tags, description), now)?;
                    if !token.is_empty() {
                        ec2.by_token.insert(token.to_owned(), number);
                    }
                    number
                }
            };
            ec2.eni(number)?.view(now, false).ok_or(Refusal::NO_ENI)
        })
    }

    /// AttachNetworkInterface.
    pub fn attach(&mut self, eni: &EniId, index: u16, now: Timestamp) -> Reply<AttachmentId> {
        let number = number(eni);
        self.change(Api::AttachNetworkInterface, now, |ec2| {
            let node = ec2.eni(number)?.node;
            let at = node.index();
            let attached = ec2.of_node[at]
                .iter()
                .filter_map(|other| ec2.enis.get(other))
                .filter(|other| other.deleted.is_none() && other.attached(now));
            let taken: Vec<u16> = attached
                .filter_map(|other| other.attachment.as_ref())
                .map(|a| a.device_index)
                .collect();
            let limit = usize::try_from(ec2.machines[at].limits.enis()).unwrap_or(usize::MAX);
            if taken.len() >= limit {
                return Err(Refusal::ATTACHMENT_LIMIT);
            }
            if taken.contains(&index) || ec2.eni(number)?.attached(now) || !ec2.running[at] {
                return Err(Refusal::INVALID);
            }
            let there = now + timing::attaching(&mut ec2.rng);
            let id = AttachmentId::new(format!("eni-attach-{number:08x}"));
            ec2.eni_mut(number).attachment = Some(Attachment {
                id: id.clone(),
                device_index: index,
                since: now,
                there,
                until: None,
            });
            Ok(id)
        })
    }

    /// ModifyNetworkInterfaceAttribute: the interface ends with its instance.
    pub fn keep_with_instance(&mut self, eni: &EniId, now: Timestamp) -> Reply<()> {
        let number = number(eni);
        self.change(Api::ModifyNetworkInterfaceAttribute, now, |ec2| {
            if !ec2.eni(number)?.attached(now) {
                return Err(Refusal::NO_ATTACHMENT);
            }
            ec2.eni_mut(number).keep = true;
            Ok(())
        })
    }

    /// CreateTags.
    pub fn tag(
        &mut self,
        eni: &EniId,
        tags: &BTreeMap<String, String>,
        now: Timestamp,
    ) -> Reply<()> {
        let number = number(eni);
        self.change(Api::CreateTags, now, |ec2| {
            ec2.eni(number)?;
            ec2.eni_mut(number).tags.extend(tags.clone());
            Ok(())
        })
    }

    /// AssignPrivateIpAddresses by count: all or nothing.
    pub fn assign(&mut self, eni: &EniId, ask: Ask, now: Timestamp) -> Reply<Vec<Ipv4Net>> {
        let number = number(eni);
        self.change(Api::AssignPrivateIpAddresses, now, |ec2| {
            ec2.add_blocks(number, ask, now)
        })
    }

    /// UnassignPrivateIpAddresses.
    pub fn unassign(&mut self, eni: &EniId, blocks: &[Ipv4Net], now: Timestamp) -> Reply<()> {
        let number = number(eni);
        self.change(Api::UnassignPrivateIpAddresses, now, |ec2| {
            let known = ec2.eni(number)?;
            let held: Vec<Ipv4Net> = known.held().collect();
            if blocks.iter().any(|block| !held.contains(block)) {
                return Err(Refusal::INVALID);
            }
            let subnet = known.subnet;
            for block in blocks {
                if let Some(span) = ec2.eni_mut(number).blocks.get_mut(block) {
                    span.1 = Some(now);
                }
                ec2.subnets[subnet].give_back(*block);
            }
            Ok(())
        })
    }

    /// DetachNetworkInterface, not forced.
    pub fn detach(&mut self, eni: &EniId, now: Timestamp) -> Reply<()> {
        let number = number(eni);
        self.change(Api::DetachNetworkInterface, now, |ec2| {
            if !ec2.eni(number)?.attached(now) {
                return Err(Refusal::NO_ATTACHMENT);
            }
            let until = now + timing::detaching(&mut ec2.rng);
            if let Some(attachment) = &mut ec2.eni_mut(number).attachment {
                attachment.until.get_or_insert(until);
            }
            Ok(())
        })
    }

    /// DeleteNetworkInterface: one that is attached, or still being detached, is refused.
    pub fn delete(&mut self, eni: &EniId, now: Timestamp) -> Reply<()> {
        let number = number(eni);
        self.change(Api::DeleteNetworkInterface, now, |ec2| {
            if ec2.eni(number)?.attached(now) {
                return Err(Refusal::INVALID);
            }
            ec2.remove(number, now);
            Ok(())
        })
    }

    /// Instance metadata: the interfaces that the instance has. Takes no token.
    pub fn seen(&mut self, node: NodeId, now: Timestamp) -> Vec<View> {
        let lag = timing::metadata_lag(&mut self.rng);
        let mut views = self.views(node, ago(now, lag), true);
        views.retain(|view| view.attachment.is_some());
        views
    }

    /// From when on the instance has the interface.
    pub fn there(&self, eni: &EniId) -> Option<Timestamp> {
        let eni = self.enis.get(&number(eni))?;
        eni.attachment.as_ref().map(|a| a.there)
    }

    /// The interfaces made for a node, as they truly are.
    pub fn truth(&self, node: NodeId, now: Timestamp) -> Vec<View> {
        self.views(node, now, false)
    }

    /// Addresses that pods on a node could have, as EC2 truly counts them.
    pub fn held(&self, node: NodeId) -> u32 {
        let enis = self.of_node[node.index()].iter();
        enis.filter_map(|number| self.enis.get(number))
            .filter(|eni| eni.deleted.is_none())
            .flat_map(Eni::held)
            .map(|net| 1u32 << (32 - net.prefix_len()))
            .sum()
    }

    /// Whether an interface attached to the node holds the address.
    pub fn holds(&self, node: NodeId, address: Ipv4Addr, now: Timestamp) -> bool {
        self.of_node[node.index()]
            .iter()
            .filter_map(|number| self.enis.get(number))
            .filter(|eni| eni.deleted.is_none() && eni.attached(now))
            .any(|eni| eni.held().any(|net| net.contains(&address)))
    }

    /// Interfaces that outlived their instance, and hold addresses for nobody.
    pub fn leaked(&self) -> Vec<LooseEni> {
        let loose = |eni: &&Eni| eni.deleted.is_none() && !self.running[eni.node.index()];
        let enis = self.enis.values().filter(loose);
        enis.map(|eni| LooseEni {
            id: eni.id.clone(),
            description: eni.description.clone(),
            tags: eni.tags.clone(),
        })
        .collect()
    }

    fn views(&self, node: NodeId, at: Timestamp, there: bool) -> Vec<View> {
        self.of_node[node.index()]
            .iter()
            .filter_map(|number| self.enis.get(number)?.view(at, there))
            .collect()
    }

    fn read<T>(
        &mut self,
        api: Api,
        now: Timestamp,
        look: impl FnOnce(&Self, Timestamp) -> T,
    ) -> Reply<T> {
        self.change(api, now, |ec2| {
            let at = ago(now, timing::lag(&mut ec2.rng));
            Ok(look(ec2, at))
        })
    }

    fn change<T>(
        &mut self,
        api: Api,
        now: Timestamp,
        act: impl FnOnce(&mut Self) -> Result<T, Refusal>,
    ) -> Reply<T> {
        if !self.quotas.take(api, now) {
            let reply = now + timing::throttled(&mut self.rng);
            return (reply, Err(Refusal::THROTTLED));
        }
        let result = act(self);
        if let Err(refusal) = &result {
            *self.refused.entry((api, refusal.code)).or_default() += 1;
        }
        (now + timing::replying(api, &mut self.rng), result)
    }

    fn make(
        &mut self,
        node: NodeId,
        subnet: usize,
        ask: Ask,
        (tags, description): (BTreeMap<String, String>, String),
        now: Timestamp,
    ) -> Result<u32, Refusal> {
        let own = self.subnets[subnet].take_address(&mut self.rng);
        let own = own.ok_or(Refusal::NO_ADDRESS)?;
        self.serial += 1;
        let number = self.serial;
        let eni = Eni {
            id: EniId::new(format!("eni-{number:08x}")),
            node,
            subnet,
            primary: own.addr(),
            blocks: BTreeMap::new(),
            created: now,
            deleted: None,
            attachment: None,
            keep: false,
            tags,
            description,
        };
        self.enis.insert(number, eni);
        match self.add_blocks(number, ask, now) {
            Ok(_) => {
                self.forget_deleted(node, now);
                self.of_node[node.index()].push(number);
                Ok(number)
            }
            Err(refusal) => {
                self.enis.remove(&number);
                self.subnets[subnet].give_back(own);
                Err(refusal)
            }
        }
    }

    fn add_blocks(
        &mut self,
        number: u32,
        ask: Ask,
        now: Timestamp,
    ) -> Result<Vec<Ipv4Net>, Refusal> {
        let eni = self.eni(number)?;
        let (node, subnet) = (eni.node, eni.subnet);
        let held = u32::try_from(eni.held().count()).unwrap_or(u32::MAX);
        let (count, prefixes) = match ask {
            Ask::Addresses(count) => (count, false),
            Ask::Prefixes(count) => (count, true),
        };
        // The interface's own address takes one of its places; a prefix takes one like an address.
        let places = self.machines[node.index()].limits.places_per_eni();
        if held.saturating_add(count) > places {
            return Err(Refusal::ADDRESS_LIMIT);
        }
        let subnet = &mut self.subnets[subnet];
        let mut blocks = Vec::new();
        for _ in 0..count {
            let block = match prefixes {
                true => subnet.take_prefix(&mut self.rng),
                false => subnet.take_address(&mut self.rng),
            };
            match block {
                Some(block) => blocks.push(block),
                None => {
                    blocks.into_iter().for_each(|block| subnet.give_back(block));
                    return Err(if prefixes {
                        Refusal::NO_BLOCK
                    } else {
                        Refusal::NO_ADDRESS
                    });
                }
            }
        }
        let eni = self.eni_mut(number);
        eni.blocks
            .retain(|_, (_, until)| until.is_none_or(|until| now.since(until) <= TOMBSTONE));
        eni.blocks.extend(blocks.iter().map(|b| (*b, (now, None))));
        Ok(blocks)
    }

    fn remove(&mut self, number: u32, now: Timestamp) {
        let eni = self.eni_mut(number);
        eni.deleted = Some(now);
        let (subnet, primary) = (eni.subnet, eni.primary);
        let held: Vec<Ipv4Net> = eni.held().collect();
        for block in held.into_iter().chain(Ipv4Net::new(primary, 32).ok()) {
            self.subnets[subnet].give_back(block);
        }
    }

    fn forget_deleted(&mut self, node: NodeId, now: Timestamp) {
        let enis = &mut self.enis;
        self.of_node[node.index()].retain(|number| {
            let old = |eni: &Eni| eni.deleted.is_some_and(|at| now.since(at) > TOMBSTONE);
            if enis.get(number).is_none_or(old) {
                enis.remove(number);
                return false;
            }
            true
        });
    }

    fn eni(&self, number: u32) -> Result<&Eni, Refusal> {
        let eni = self.enis.get(&number).ok_or(Refusal::NO_ENI)?;
        match eni.deleted {
            None => Ok(eni),
            Some(_) => Err(Refusal::NO_ENI),
        }
    }

    fn eni_mut(&mut self, number: u32) -> &mut Eni {
        self.enis
            .get_mut(&number)
            .expect("whoever asks has looked whether it is there")
    }
}

/// The number in an interface's name; 0 is nobody's.
fn number(eni: &EniId) -> u32 {
    let hex = eni.as_str().strip_prefix("eni-").unwrap_or_default();
    u32::from_str_radix(hex, 16).unwrap_or(0)
}

fn ago(now: Timestamp, lag: Duration) -> Timestamp {
    let lag = u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX);
    Timestamp::from_unix_nanos(now.unix_nanos().saturating_sub(lag))
}
