//! What an interface that exists is given, and what it gives back: addresses, prefixes, tags.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use selvage_ipamd_core::cloud::{CloudError, Operation, Want};
use selvage_ipamd_core::ids::EniId;

use super::error::cloud_error;
use super::{Ec2, count, ec2_tags};

impl Ec2 {
    /// AssignPrivateIpAddresses or AssignIpv6Addresses by count; the answer names what is new only.
    pub(crate) async fn assign(&self, eni: &EniId, want: Want) -> Result<Vec<IpNet>, CloudError> {
        match want {
            Want::Addresses(wanted) => self.assign_v4(eni, Some(wanted), None).await,
            Want::Prefixes(wanted) => self.assign_v4(eni, None, Some(wanted)).await,
            Want::Ipv6Prefix => self.assign_v6(eni).await,
        }
    }

    async fn assign_v4(
        &self,
        eni: &EniId,
        addresses: Option<u32>,
        prefixes: Option<u32>,
    ) -> Result<Vec<IpNet>, CloudError> {
        let operation = Operation::AssignAddresses;
        let number = |wanted: Option<u32>| wanted.map(|n| count(operation, n)).transpose();
        let answer = self
            .client
            .assign_private_ip_addresses()
            .network_interface_id(eni.as_str())
            .set_secondary_private_ip_address_count(number(addresses)?)
            .set_ipv4_prefix_count(number(prefixes)?)
            .send()
            .await
            .map_err(|e| cloud_error(operation, e))?;
        let single = answer.assigned_private_ip_addresses().iter().map(|new| {
            let address: Option<Ipv4Addr> = new.private_ip_address().and_then(|t| t.parse().ok());
            address.map(|address| IpNet::from(IpAddr::V4(address)))
        });
        let blocks = answer
            .assigned_ipv4_prefixes()
            .iter()
            .map(|new| new.ipv4_prefix().and_then(|text| text.parse().ok()));
        readable(operation, eni, single.chain(blocks))
    }

    async fn assign_v6(&self, eni: &EniId) -> Result<Vec<IpNet>, CloudError> {
        let operation = Operation::AssignIpv6;
        let answer = self
            .client
            .assign_ipv6_addresses()
            .network_interface_id(eni.as_str())
            .ipv6_prefix_count(1)
            .send()
            .await
            .map_err(|e| cloud_error(operation, e))?;
        let blocks = answer.assigned_ipv6_prefixes().iter();
        readable(operation, eni, blocks.map(|text| text.parse().ok()))
    }

    /// UnassignPrivateIpAddresses or UnassignIpv6Addresses.
    pub(crate) async fn unassign(
        &self,
        eni: &EniId,
        blocks: &BTreeSet<IpNet>,
    ) -> Result<(), CloudError> {
        let (mut addresses, mut prefixes, mut ipv6) = (Vec::new(), Vec::new(), Vec::new());
        for block in blocks {
            match block {
                IpNet::V4(net) if net.prefix_len() == 32 => addresses.push(net.addr().to_string()),
                IpNet::V4(net) => prefixes.push(net.to_string()),
                IpNet::V6(net) => ipv6.push(net.to_string()),
            }
        }
        if !ipv6.is_empty() {
            self.client
                .unassign_ipv6_addresses()
                .network_interface_id(eni.as_str())
                .set_ipv6_prefixes(Some(ipv6))
                .send()
                .await
                .map_err(|e| cloud_error(Operation::UnassignIpv6, e))?;
            return Ok(());
        }
        let unless_empty = |list: Vec<String>| Some(list).filter(|list| !list.is_empty());
        self.client
            .unassign_private_ip_addresses()
            .network_interface_id(eni.as_str())
            .set_private_ip_addresses(unless_empty(addresses))
            .set_ipv4_prefixes(unless_empty(prefixes))
            .send()
            .await
            .map_err(|e| cloud_error(Operation::UnassignAddresses, e))?;
        Ok(())
    }

    /// CreateTags.
    pub(crate) async fn tag_eni(
        &self,
        eni: &EniId,
        tags: &BTreeMap<String, String>,
    ) -> Result<(), CloudError> {
        self.client
            .create_tags()
            .resources(eni.as_str())
            .set_tags(Some(ec2_tags(tags)))
            .send()
            .await
            .map_err(|e| cloud_error(Operation::TagEni, e))?;
        Ok(())
    }
}

/// An answer of which a part cannot be read is one that cannot be read: what it gave is looked up.
fn readable(
    operation: Operation,
    eni: &EniId,
    blocks: impl Iterator<Item = Option<IpNet>>,
) -> Result<Vec<IpNet>, CloudError> {
    blocks.collect::<Option<Vec<_>>>().ok_or_else(|| {
        CloudError::unknown(
            operation,
            format!("{eni}: an answer with an unreadable address"),
        )
    })
}
