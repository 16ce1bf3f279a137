//! What the EC2 in memory holds, and its rules.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use super::Fault;
use super::subnet::Subnet;
use crate::cloud::{
    Attachment, CloudError, CreateEni, DESCRIPTION, EniFacts, EniKind, InstanceFacts, Operation,
    PREFIX_ADDRESSES, SubnetFacts, TAG_INSTANCE, Want,
};
use crate::ids::{AttachmentId, ClientToken, EniId, Mac, SecurityGroupId, SubnetId};
use crate::limits::Limits;

pub(super) struct State {
    pub(super) facts: InstanceFacts,
    pub(super) limits: Limits,
    addresses_per_eni: u32,
    pub(super) vpc: Vec<Ipv4Net>,
    subnets: BTreeMap<SubnetId, Subnet>,
    pub(super) enis: BTreeMap<EniId, EniFacts>,
    before: BTreeMap<EniId, EniFacts>,
    tokens: BTreeMap<ClientToken, (CreateEni, EniId)>,
    serial: u16,
    pub(super) faults: BTreeMap<Operation, VecDeque<Fault>>,
    pub(super) standing: BTreeMap<Operation, Fault>,
    pub(super) calls: BTreeMap<Operation, u64>,
    pub(super) lagging_reads: u32,
    pub(super) free_left: Option<u32>,
}

impl State {
    pub(super) fn new(facts: InstanceFacts, (enis, addresses): (u16, u16)) -> Self {
        let primary = EniFacts {
            id: facts.primary_eni.clone(),
            mac: facts.primary_mac,
            subnet_id: facts.subnet_id.clone(),
            subnet: facts.subnet,
            primary_address: facts.primary_address,
            secondary_addresses: BTreeSet::new(),
            prefixes: BTreeSet::new(),
            ipv6_addresses: facts.primary_ipv6.into_iter().collect(),
            ipv6_prefixes: BTreeSet::new(),
            attachment: Some(Attachment {
                id: AttachmentId::new("eni-attach-0"),
                device_index: 0,
                card: 0,
                delete_on_termination: true,
            }),
            kind: EniKind::Interface,
            security_groups: Some(facts.security_groups.iter().cloned().collect()),
            description: String::new(),
            tags: BTreeMap::new(),
        };
        let subnet = Subnet::new(facts.subnet, 1);
        let subnets = BTreeMap::from([(facts.subnet_id.clone(), subnet)]);
        let vpc = Ipv4Net::new(Ipv4Addr::new(10, 40, 0, 0), 16);
        let limits = Limits::new(enis, addresses);
        let limits = limits.expect("a fake instance has at least one interface and one address");
        Self {
            facts,
            limits: limits.with_prefixes(true),
            subnets,
            addresses_per_eni: u32::from(addresses),
            vpc: vpc.into_iter().collect(),
            enis: BTreeMap::from([(primary.id.clone(), primary)]),
            before: BTreeMap::new(),
            tokens: BTreeMap::new(),
            serial: 0,
            faults: BTreeMap::new(),
            standing: BTreeMap::new(),
            calls: BTreeMap::new(),
            lagging_reads: 0,
            free_left: None,
        }
    }

    /// Before a change: what lagging reads will still tell.
    pub(super) fn remember(&mut self) {
        self.before = self.enis.clone();
    }

    pub(super) fn read(&mut self) -> &BTreeMap<EniId, EniFacts> {
        if self.lagging_reads > 0 && !self.before.is_empty() {
            self.lagging_reads -= 1;
            &self.before
        } else {
            &self.enis
        }
    }

    pub(super) fn add_subnet(&mut self, id: SubnetId, block: Ipv4Net) {
        let number = u16::try_from(self.subnets.len() + 1).unwrap_or(u16::MAX);
        self.subnets.insert(id, Subnet::new(block, number));
    }

    pub(super) fn tag_subnet(&mut self, id: &SubnetId, tags: BTreeMap<String, String>) {
        if let Some(subnet) = self.subnets.get_mut(id) {
            subnet.tags = tags;
        }
    }

    pub(super) fn fragment(&mut self, id: &SubnetId, fragmented: bool) {
        let enis = &self.enis;
        if let Some(subnet) = self.subnets.get_mut(id) {
            subnet.fragment(enis.values().filter(|e| e.subnet_id == *id), fragmented);
        }
    }

    pub(super) fn mend_subnets(&mut self) {
        for subnet in self.subnets.values_mut() {
            subnet.fragment(std::iter::empty(), false);
        }
    }

    pub(super) fn subnets(&self) -> Vec<SubnetFacts> {
        let facts = self.subnets.iter().map(|(id, subnet)| {
            let enis = self.enis.values().filter(|e| e.subnet_id == *id);
            subnet.facts(id, enis)
        });
        facts.collect()
    }

    /// Takes `own` single addresses and what is wanted from a subnet, or nothing.
    fn take_free(
        &mut self,
        op: Operation,
        id: &SubnetId,
        own: u32,
        want: Want,
    ) -> Result<(Vec<Ipv4Addr>, Vec<IpNet>), CloudError> {
        let enis = &self.enis;
        let here = || enis.values().filter(|eni| eni.subnet_id == *id);
        let subnet = self.subnets.get_mut(id).ok_or_else(|| {
            refusal(
                op,
                "InvalidSubnetID.NotFound",
                format!("{id} does not exist"),
            )
        })?;
        let (singles, wide, addresses) = match want {
            Want::Addresses(count) => (own + count, Vec::new(), own + count),
            Want::Prefixes(count) => {
                let free = subnet.free_prefixes(here(), count);
                let found = u32::try_from(free.len()).unwrap_or(u32::MAX);
                if found < count {
                    return Err(refusal(
                        op,
                        "InsufficientCidrBlocks",
                        format!("{id} has not enough free /28 blocks"),
                    ));
                }
                let taken = own + count * PREFIX_ADDRESSES;
                (own, free.into_iter().map(IpNet::V4).collect(), taken)
            }
            Want::Ipv6Prefix => {
                let prefix = IpNet::V6(subnet.next_ipv6_prefix());
                (own, vec![prefix], own)
            }
        };
        let wide: Vec<IpNet> = wide;
        // A single address may not lie in a prefix of the same answer.
        let in_wide = |address: &Ipv4Addr| {
            wide.iter()
                .any(|net| net.contains(&std::net::IpAddr::V4(*address)))
        };
        let enough = singles + u32::try_from(wide.len()).unwrap_or(0) * PREFIX_ADDRESSES;
        let free: Vec<Ipv4Addr> = subnet
            .free_addresses(here(), enough)
            .into_iter()
            .filter(|address| !in_wide(address))
            .take(usize::try_from(singles).unwrap_or(usize::MAX))
            .collect();
        let short = u32::try_from(free.len()).unwrap_or(u32::MAX) < singles;
        if short || self.free_left.is_some_and(|left| left < addresses) {
            return Err(refusal(
                op,
                "InsufficientFreeAddressesInSubnet",
                format!("{id} has not enough free addresses"),
            ));
        }
        if let Some(left) = &mut self.free_left {
            *left -= addresses;
        }
        Ok((free, wide))
    }

    fn known(&mut self, op: Operation, eni: &EniId) -> Result<&mut EniFacts, CloudError> {
        self.enis.get_mut(eni).ok_or_else(|| {
            refusal(
                op,
                "InvalidNetworkInterfaceID.NotFound",
                format!("{eni} does not exist"),
            )
        })
    }

    pub(super) fn create(&mut self, request: &CreateEni) -> Result<EniFacts, CloudError> {
        let op = Operation::CreateEni;
        if let Some((first, eni)) = self.tokens.get(&request.token) {
            if first != request {
                return Err(refusal(
                    op,
                    "IdempotentParameterMismatch",
                    "same token, other request".into(),
                ));
            }
            let eni = eni.clone();
            return self.known(op, &eni).cloned();
        }
        if request.want.count() + 1 > self.addresses_per_eni {
            return Err(refusal(
                op,
                "PrivateIpAddressLimitExceeded",
                "too many addresses".into(),
            ));
        }
        let (addresses, blocks) = self.take_free(op, &request.subnet_id, 1, request.want)?;
        let mut addresses = addresses.into_iter();
        let block = self.subnets[&request.subnet_id].block;
        self.remember();
        self.serial += 1;
        let [high, low] = self.serial.to_be_bytes();
        let id = EniId::new(format!("eni-{}", self.serial));
        let mut facts = EniFacts {
            id: id.clone(),
            mac: Mac([2, 0, 0, 0, high, low]),
            subnet_id: request.subnet_id.clone(),
            subnet: block,
            primary_address: addresses
                .next()
                .expect("take_free gives as many as asked for"),
            secondary_addresses: addresses.collect(),
            prefixes: BTreeSet::new(),
            ipv6_addresses: BTreeSet::new(),
            ipv6_prefixes: BTreeSet::new(),
            attachment: None,
            kind: EniKind::Interface,
            security_groups: Some(request.security_groups.iter().cloned().collect()),
            description: request.description.clone(),
            tags: request.tags.clone(),
        };
        add_blocks(&mut facts, &blocks);
        self.tokens
            .insert(request.token.clone(), (request.clone(), id.clone()));
        self.enis.insert(id, facts.clone());
        Ok(facts)
    }

    /// What a person does with the console; nothing of it can fail.
    pub(super) fn attach_by_hand(&mut self, device_index: u16, addresses: u32) -> EniId {
        let request = CreateEni {
            token: ClientToken::new(format!("by hand {device_index}")),
            subnet_id: self.facts.subnet_id.clone(),
            security_groups: self.facts.security_groups.clone(),
            want: Want::Addresses(addresses),
            description: String::new(),
            tags: BTreeMap::new(),
        };
        let made = self.create(&request);
        let made = made.expect("the test asks for what the subnet has");
        self.attach(&made.id, device_index)
            .expect("the test asks for a free device");
        made.id
    }

    pub(super) fn attach_foreign(&mut self, device_index: u16, kind: EniKind) -> EniId {
        let id = self.attach_by_hand(device_index, 1);
        let instance = self.facts.instance_id.to_string();
        if let Some(eni) = self.enis.get_mut(&id) {
            eni.kind = kind;
            eni.description = format!("{DESCRIPTION}{instance}");
            eni.tags.insert(TAG_INSTANCE.into(), instance);
        }
        id
    }

    pub(super) fn attach(&mut self, eni: &EniId, index: u16) -> Result<AttachmentId, CloudError> {
        let op = Operation::AttachEni;
        let attached: Vec<&Attachment> = self
            .enis
            .values()
            .filter_map(|e| e.attachment.as_ref())
            .collect();
        if attached.iter().any(|a| a.device_index == index) {
            return Err(refusal(
                op,
                "InvalidParameterValue",
                format!("device {index} is in use"),
            ));
        }
        if u32::try_from(attached.len()).unwrap_or(u32::MAX) >= self.limits.enis() {
            return Err(refusal(
                op,
                "AttachmentLimitExceeded",
                "too many interfaces".into(),
            ));
        }
        let id = AttachmentId::new(format!("eni-attach-{eni}"));
        let known = self.known(op, eni)?;
        if known.attachment.is_some() {
            return Err(refusal(
                op,
                "InvalidParameterValue",
                format!("{eni} is attached"),
            ));
        }
        self.remember();
        self.known(op, eni)?.attachment = Some(Attachment {
            id: id.clone(),
            device_index: index,
            card: 0,
            delete_on_termination: false,
        });
        Ok(id)
    }

    pub(super) fn keep(
        &mut self,
        eni: &EniId,
        attachment: &AttachmentId,
    ) -> Result<(), CloudError> {
        self.remember();
        match &mut self.known(Operation::KeepWithInstance, eni)?.attachment {
            Some(known) if known.id == *attachment => {
                known.delete_on_termination = true;
                Ok(())
            }
            Some(_) | None => Err(refusal(
                Operation::KeepWithInstance,
                "InvalidAttachmentID.NotFound",
                format!("{attachment} does not exist"),
            )),
        }
    }

    pub(super) fn assign(&mut self, id: &EniId, want: Want) -> Result<Vec<IpNet>, CloudError> {
        let op = want.operation();
        let limit = self.addresses_per_eni;
        let eni = self.known(op, id)?;
        let held = match want {
            Want::Addresses(_) | Want::Prefixes(_) => {
                eni.secondary_addresses.len() + eni.prefixes.len()
            }
            Want::Ipv6Prefix => eni.ipv6_prefixes.len(),
        };
        let subnet = eni.subnet_id.clone();
        if u32::try_from(held).unwrap_or(u32::MAX) + 1 + want.count() > limit {
            return Err(refusal(
                op,
                "PrivateIpAddressLimitExceeded",
                format!("{id} has {held} secondary addresses and prefixes"),
            ));
        }
        let (addresses, mut blocks) = self.take_free(op, &subnet, 0, want)?;
        let single = addresses.into_iter().map(std::net::IpAddr::V4);
        blocks.extend(single.map(IpNet::from));
        self.remember();
        add_blocks(self.known(op, id)?, &blocks);
        Ok(blocks)
    }

    pub(super) fn unassign(
        &mut self,
        id: &EniId,
        blocks: &BTreeSet<IpNet>,
    ) -> Result<(), CloudError> {
        let op = Operation::unassign(blocks);
        let kinds: BTreeSet<_> = blocks.iter().map(IpNet::prefix_len).collect();
        if kinds.len() != 1 {
            return Err(refusal(op, "InvalidParameterValue", "mixed blocks".into()));
        }
        let eni = self.known(op, id)?;
        if !blocks.is_subset(&eni.blocks()) {
            return Err(refusal(
                op,
                "InvalidParameterValue",
                format!("some addresses are not assigned to {id}"),
            ));
        }
        self.remember();
        let eni = self.known(op, id)?;
        eni.secondary_addresses
            .retain(|a| !blocks.contains(&IpNet::from(std::net::IpAddr::V4(*a))));
        eni.prefixes
            .retain(|net| !blocks.contains(&IpNet::V4(*net)));
        eni.ipv6_prefixes
            .retain(|net| !blocks.contains(&IpNet::V6(*net)));
        Ok(())
    }

    pub(super) fn tag(
        &mut self,
        eni: &EniId,
        tags: &BTreeMap<String, String>,
    ) -> Result<(), CloudError> {
        self.remember();
        let known = self.known(Operation::TagEni, eni)?;
        known.tags.extend(tags.clone());
        Ok(())
    }

    pub(super) fn regroup(
        &mut self,
        eni: &EniId,
        groups: &BTreeSet<SecurityGroupId>,
    ) -> Result<(), CloudError> {
        self.remember();
        let known = self.known(Operation::RegroupEni, eni)?;
        known.security_groups = Some(groups.clone());
        Ok(())
    }

    pub(super) fn detach(&mut self, attachment: &AttachmentId) -> Result<(), CloudError> {
        let op = Operation::DetachEni;
        let primary = self.facts.primary_eni.clone();
        self.remember();
        let found = self
            .enis
            .values_mut()
            .find(|e| e.attachment.as_ref().is_some_and(|a| a.id == *attachment));
        match found {
            None => Err(refusal(
                op,
                "InvalidAttachmentID.NotFound",
                format!("{attachment} does not exist"),
            )),
            Some(eni) if eni.id == primary => Err(refusal(
                op,
                "OperationNotPermitted",
                "the primary interface stays".into(),
            )),
            Some(eni) => {
                eni.attachment = None;
                Ok(())
            }
        }
    }

    pub(super) fn delete(&mut self, eni: &EniId) -> Result<(), CloudError> {
        let op = Operation::DeleteEni;
        if self.known(op, eni)?.attachment.is_some() {
            return Err(refusal(
                op,
                "InvalidParameterValue",
                format!("{eni} is in use"),
            ));
        }
        self.remember();
        self.enis.remove(eni);
        Ok(())
    }
}

fn add_blocks(eni: &mut EniFacts, blocks: &[IpNet]) {
    for net in blocks {
        match net {
            IpNet::V4(net) if net.prefix_len() == 32 => {
                eni.secondary_addresses.insert(net.addr());
            }
            IpNet::V4(net) => {
                eni.prefixes.insert(*net);
            }
            IpNet::V6(net) => {
                eni.ipv6_prefixes.insert(*net);
            }
        }
    }
}

fn refusal(op: Operation, code: &str, words: String) -> CloudError {
    CloudError::from_code(op, code, words, Some(400))
}
