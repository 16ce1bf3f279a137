//! Instance metadata (IMDS): what the instance is, and its interfaces as they are now.
//!
//! ```text
//!  Reader ──path──> Metadata (the daemon, by HTTP) ──text──> Reader ──> facts
//!
//!  instance-id …                            -> InstanceFacts
//!  network/interfaces/macs/<mac>/…          -> SeenEni, VPC blocks
//! ```
//!
//! Metadata that is silent or answers nonsense is an error of kind [`Unknown`](crate::cloud::CloudErrorKind::Unknown):
//! ask again later.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

use ipnet::Ipv4Net;

use crate::cloud::{CloudError, InstanceFacts, Operation, SeenEni};
use crate::ids::{EniId, InstanceId, InstanceType, Mac, SecurityGroupId, SubnetId, VpcId};

mod text;

use text::{block, id, nothing, parse, prefix, prefix6, unreadable};

/// What answers questions.
pub trait Metadata: Send + Sync {
    /// The text at a path below `/latest/meta-data/`; `None` if there is none (404).
    ///
    /// # Errors
    /// [`Unknown`](crate::cloud::CloudErrorKind::Unknown), of `operation`, when nothing could be learned.
    fn get(
        &self,
        operation: Operation,
        path: &str,
    ) -> impl Future<Output = Result<Option<String>, CloudError>> + Send;
}

/// Asks [`Metadata`], and reads what it says.
#[derive(Debug)]
pub struct Reader<M> {
    metadata: M,
    /// What is known of attached interfaces and does not change, by hardware address.
    known: Mutex<BTreeMap<Mac, SeenEni>>,
}

const MACS: &str = "network/interfaces/macs";

impl<M: Metadata> Reader<M> {
    /// Asks nothing yet.
    pub fn new(metadata: M) -> Self {
        Self {
            metadata,
            known: Mutex::default(),
        }
    }

    /// All that does not change while the instance runs.
    ///
    /// # Errors
    /// When an answer that every instance has is missing, or cannot be read.
    pub async fn facts(&self) -> Result<InstanceFacts, CloudError> {
        let operation = Operation::Facts;
        let mac = self.one(operation, "mac", parse::<Mac>).await?;
        let primary = |key: &str| format!("{MACS}/{mac}/{key}");
        let groups = primary("security-group-ids");
        let groups: Vec<String> = self.many(operation, &groups, id).await?;
        Ok(InstanceFacts {
            instance_id: InstanceId::new(self.id(operation, "instance-id").await?),
            instance_type: InstanceType::new(self.id(operation, "instance-type").await?),
            region: self.id(operation, "placement/region").await?,
            availability_zone: self.id(operation, "placement/availability-zone").await?,
            vpc_id: VpcId::new(self.id(operation, &primary("vpc-id")).await?),
            primary_eni: EniId::new(self.id(operation, &primary("interface-id")).await?),
            primary_mac: mac,
            primary_address: self.one(operation, "local-ipv4", parse).await?,
            primary_ipv6: self.first(operation, &primary("ipv6s"), parse).await?,
            subnet_id: SubnetId::new(self.id(operation, &primary("subnet-id")).await?),
            subnet: self
                .one(operation, &primary("subnet-ipv4-cidr-block"), block)
                .await?,
            security_groups: groups.into_iter().map(SecurityGroupId::new).collect(),
        })
    }

    /// The VPC's IPv4 blocks; a VPC has at least one.
    ///
    /// # Errors
    /// When there is none, or one cannot be read.
    pub async fn vpc_cidrs(&self) -> Result<Vec<Ipv4Net>, CloudError> {
        let operation = Operation::VpcCidrs;
        let mac = self.one(operation, "mac", parse::<Mac>).await?;
        let path = format!("{MACS}/{mac}/vpc-ipv4-cidr-blocks");
        self.many(operation, &path, block).await
    }

    /// The attached interfaces. One that goes while it is read is left out.
    ///
    /// # Errors
    /// When an answer cannot be read.
    pub async fn seen_enis(&self) -> Result<Vec<SeenEni>, CloudError> {
        let operation = Operation::SeenEnis;
        let listing = self.text(operation, &format!("{MACS}/")).await?;
        let macs: BTreeSet<Mac> = text::lines(operation, MACS, &listing, parse)?;
        let mut enis = Vec::with_capacity(macs.len());
        for mac in &macs {
            if let Some(eni) = self.seen_eni(operation, *mac).await? {
                enis.push(eni);
            }
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|mac, _| macs.contains(mac));
        Ok(enis)
    }

    async fn seen_eni(
        &self,
        operation: Operation,
        mac: Mac,
    ) -> Result<Option<SeenEni>, CloudError> {
        let Some(fixed) = self.fixed(operation, mac).await? else {
            return Ok(None);
        };
        let key = |key: &str| format!("{MACS}/{mac}/{key}");
        let addresses: Vec<Ipv4Addr> = self.list(operation, &key("local-ipv4s"), parse).await?;
        let device_index = self.first(operation, &key("device-number"), parse).await?;
        // Its own address is the first; without one it is going away.
        let (Some(primary_address), Some(device_index)) = (addresses.first(), device_index) else {
            return Ok(None);
        };
        Ok(Some(SeenEni {
            primary_address: *primary_address,
            device_index,
            addresses: addresses.into_iter().collect(),
            prefixes: self.list(operation, &key("ipv4-prefix"), prefix).await?,
            ipv6_addresses: self.list(operation, &key("ipv6s"), parse).await?,
            ipv6_prefixes: self.list(operation, &key("ipv6-prefix"), prefix6).await?,
            ..fixed
        }))
    }

    /// What does not change while an interface is attached: read once. `None`: it has gone.
    async fn fixed(&self, operation: Operation, mac: Mac) -> Result<Option<SeenEni>, CloudError> {
        let known = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(&mac).cloned()
        };
        if known.is_some() {
            return Ok(known);
        }
        let key = |key: &str| format!("{MACS}/{mac}/{key}");
        let eni = self.first(operation, &key("interface-id"), id).await?;
        let subnet_id = self.first(operation, &key("subnet-id"), id).await?;
        let subnet = self
            .first(operation, &key("subnet-ipv4-cidr-block"), block)
            .await?;
        // Instances with one card do not have the key.
        let card = self.first(operation, &key("network-card"), parse).await?;
        let (Some(eni), Some(subnet_id), Some(subnet)) = (eni, subnet_id, subnet) else {
            return Ok(None);
        };
        let fixed = SeenEni {
            id: EniId::new(eni),
            mac,
            device_index: 0,
            card: card.unwrap_or(0),
            subnet_id: SubnetId::new(subnet_id),
            subnet,
            primary_address: Ipv4Addr::UNSPECIFIED,
            addresses: BTreeSet::new(),
            prefixes: BTreeSet::new(),
            ipv6_addresses: BTreeSet::new(),
            ipv6_prefixes: BTreeSet::new(),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(mac, fixed.clone());
        Ok(Some(fixed))
    }

    /// The values at a path, one a line; none where there is no such path.
    async fn list<T, L: FromIterator<T>>(
        &self,
        operation: Operation,
        path: &str,
        read: fn(&str) -> Option<T>,
    ) -> Result<L, CloudError> {
        let text = self.metadata.get(operation, path).await?;
        text::lines(operation, path, &text.unwrap_or_default(), read)
    }

    /// The first value at a path, if there is one.
    async fn first<T>(
        &self,
        operation: Operation,
        path: &str,
        read: fn(&str) -> Option<T>,
    ) -> Result<Option<T>, CloudError> {
        let list: Vec<T> = self.list(operation, path, read).await?;
        Ok(list.into_iter().next())
    }

    /// The text at a path that must be there and not be empty.
    async fn text(&self, operation: Operation, path: &str) -> Result<String, CloudError> {
        let text = self.metadata.get(operation, path).await?;
        match text.unwrap_or_default().trim() {
            "" => Err(nothing(operation, path)),
            text => Ok(text.to_owned()),
        }
    }

    async fn id(&self, operation: Operation, path: &str) -> Result<String, CloudError> {
        self.one(operation, path, id).await
    }

    /// The one value at a path that must be there.
    async fn one<T>(
        &self,
        operation: Operation,
        path: &str,
        read: fn(&str) -> Option<T>,
    ) -> Result<T, CloudError> {
        let text = self.text(operation, path).await?;
        read(&text).ok_or_else(|| unreadable(operation, path, &text))
    }

    /// At least one value, one a line.
    async fn many<T>(
        &self,
        operation: Operation,
        path: &str,
        read: fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, CloudError> {
        let text = self.text(operation, path).await?;
        let values: Vec<T> = text::lines(operation, path, &text, read)?;
        if values.is_empty() {
            return Err(nothing(operation, path));
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests;
