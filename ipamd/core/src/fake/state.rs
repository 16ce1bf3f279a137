//! What the EC2 in memory holds, and its rules.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::Fault;
use crate::cloud::{
    Attachment, CloudError, CreateEni, EniFacts, EniKind, InstanceFacts, Operation,
};
use crate::ids::{AttachmentId, ClientToken, EniId, Mac};
use crate::limits::Limits;

pub(super) struct State {
    pub(super) facts: InstanceFacts,
    pub(super) limits: Limits,
    addresses_per_eni: u32,
    pub(super) vpc: Vec<Ipv4Net>,
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
            attachment: Some(Attachment {
                id: AttachmentId::new("eni-attach-0"),
                device_index: 0,
                card: 0,
                delete_on_termination: true,
            }),
            kind: EniKind::Interface,
            tags: BTreeMap::new(),
        };
        let vpc = Ipv4Net::new(Ipv4Addr::new(10, 40, 0, 0), 16);
        let limits = Limits::new(enis, addresses);
        Self {
            facts,
            limits: limits.expect("a fake instance has at least one interface and one address"),
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

    fn take_free(&mut self, op: Operation, count: u32) -> Result<Vec<Ipv4Addr>, CloudError> {
        let used: BTreeSet<Ipv4Addr> = self
            .enis
            .values()
            .flat_map(|e| {
                e.secondary_addresses
                    .iter()
                    .copied()
                    .chain([e.primary_address])
            })
            .collect();
        let wanted = usize::try_from(count).unwrap_or(usize::MAX);
        // The first four and the last address of a subnet are reserved.
        let free: Vec<Ipv4Addr> = self
            .facts
            .subnet
            .hosts()
            .skip(3)
            .filter(|a| !used.contains(a))
            .take(wanted)
            .collect();
        if free.len() < wanted || self.free_left.is_some_and(|left| left < count) {
            return Err(CloudError::from_code(
                op,
                "InsufficientFreeAddressesInSubnet",
                "the subnet has not enough free addresses",
                Some(400),
            ));
        }
        if let Some(left) = &mut self.free_left {
            *left -= count;
        }
        Ok(free)
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
        if request.addresses + 1 > self.addresses_per_eni {
            return Err(refusal(
                op,
                "PrivateIpAddressLimitExceeded",
                "too many addresses".into(),
            ));
        }
        let mut addresses = self.take_free(op, request.addresses + 1)?.into_iter();
        self.remember();
        self.serial += 1;
        let [high, low] = self.serial.to_be_bytes();
        let id = EniId::new(format!("eni-{}", self.serial));
        let facts = EniFacts {
            id: id.clone(),
            mac: Mac([2, 0, 0, 0, high, low]),
            subnet_id: request.subnet_id.clone(),
            subnet: self.facts.subnet,
            primary_address: addresses
                .next()
                .expect("take_free gives as many as asked for"),
            secondary_addresses: addresses.collect(),
            attachment: None,
            kind: EniKind::Interface,
            tags: request.tags.clone(),
        };
        self.tokens
            .insert(request.token.clone(), (request.clone(), id.clone()));
        self.enis.insert(id, facts.clone());
        Ok(facts)
    }

    /// What a person does with the console; nothing of it can fail.
    pub(super) fn attach_by_hand(&mut self, device_index: u16, addresses: u32) {
        let request = CreateEni {
            token: ClientToken::new(format!("by hand {device_index}")),
            subnet_id: self.facts.subnet_id.clone(),
            security_groups: self.facts.security_groups.clone(),
            addresses,
            description: String::new(),
            tags: BTreeMap::new(),
        };
        let made = self.create(&request);
        let made = made.expect("the test asks for what the subnet has");
        self.attach(&made.id, device_index)
            .expect("the test asks for a free device");
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

    pub(super) fn assign(&mut self, eni: &EniId, count: u32) -> Result<Vec<Ipv4Addr>, CloudError> {
        let op = Operation::AssignAddresses;
        let limit = self.addresses_per_eni;
        let held = self.known(op, eni)?.secondary_addresses.len();
        if u32::try_from(held).unwrap_or(u32::MAX) + 1 + count > limit {
            return Err(refusal(
                op,
                "PrivateIpAddressLimitExceeded",
                format!("{eni} has {held} secondary addresses"),
            ));
        }
        let addresses = self.take_free(op, count)?;
        self.remember();
        self.known(op, eni)?.secondary_addresses.extend(&addresses);
        Ok(addresses)
    }

    pub(super) fn unassign(
        &mut self,
        eni: &EniId,
        addresses: &BTreeSet<Ipv4Addr>,
    ) -> Result<(), CloudError> {
        let op = Operation::UnassignAddresses;
        if !addresses.is_subset(&self.known(op, eni)?.secondary_addresses) {
            return Err(refusal(
                op,
                "InvalidParameterValue",
                format!("some addresses are not assigned to {eni}"),
            ));
        }
        self.remember();
        self.known(op, eni)?
            .secondary_addresses
            .retain(|a| !addresses.contains(a));
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

fn refusal(op: Operation, code: &str, words: String) -> CloudError {
    CloudError::from_code(op, code, words, Some(400))
}
