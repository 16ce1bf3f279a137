//! EC2's API, one function an action, in the core's types.
//!
//! Nothing is retried here but what is certain not to have happened ([`once_visible`]): the daemon decides when to ask
//! again, and its requests carry what makes a repeat harmless.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, Region};
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::SharedHttpClient;
use aws_sdk_ec2::types::{
    ConnectionTrackingSpecificationRequest, Filter, InstanceType as Ec2InstanceType,
    NetworkInterface, NetworkInterfaceAttachmentChanges, ResourceType, Tag, TagSpecification,
};
use ipnet::Ipv4Net;
use selvage_ipamd_core::cloud::{
    CloudError, CloudErrorKind, CreateEni, EniFacts, InstanceFacts, Operation, TAG_INSTANCE, Want,
};
use selvage_ipamd_core::ids::{
    AttachmentId, ClientToken, EniId, InstanceType, SecurityGroupId, SubnetId,
};
use selvage_ipamd_core::limits::Limits;
use tracing::debug;

mod assign;
mod convert;
mod error;
mod search;
#[cfg(test)]
mod tests;

use error::cloud_error;

/// To reach the endpoint at all.
const CONNECT: Duration = Duration::from_secs(3);
/// Pauses between the tries of [`once_visible`]: EC2 shows a new interface to all its own parts within a second or two;
/// longer is the daemon's affair.
const UNTIL_VISIBLE: [Duration; 3] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];

/// EC2's largest page.
const PAGE: i32 = 1000;

/// A client that answers for a region. Credentials and endpoint as AWS's SDKs find them (environment, web identity,
/// else the instance's role; `AWS_ENDPOINT_URL_EC2`). Every call ends within `deadline`. Sends nothing yet.
pub(crate) async fn client(http: SharedHttpClient, region: String, deadline: Duration) -> Client {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .region(Region::new(region))
        .timeout_config(timeouts(deadline))
        .retry_config(RetryConfig::disabled());
    if let Ok(name) = AppName::new(concat!("selvage-ipamd-", env!("CARGO_PKG_VERSION"))) {
        loader = loader.app_name(name);
    }
    Client::new(&loader.load().await)
}

fn timeouts(deadline: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT.min(deadline))
        .read_timeout(deadline)
        .operation_attempt_timeout(deadline)
        .operation_timeout(deadline)
        .build()
}

/// EC2 for one instance.
pub(crate) struct Ec2 {
    client: Client,
    facts: InstanceFacts,
    until_visible: [Duration; 3],
    /// Blocks of the subnets met so far: EC2 doesn't repeat them with an interface, and they never change.
    subnets: Mutex<BTreeMap<SubnetId, Ipv4Net>>,
    /// How long the primary interface lets connections be silent, if somebody has set that: new ones do the same.
    tracking: Mutex<Option<ConnectionTrackingSpecificationRequest>>,
}

impl Ec2 {
    /// EC2 for the instance that metadata has described.
    pub(crate) fn new(client: Client, facts: InstanceFacts) -> Self {
        let subnets = BTreeMap::from([(facts.subnet_id.clone(), facts.subnet)]);
        Self {
            client,
            facts,
            until_visible: UNTIL_VISIBLE,
            subnets: Mutex::new(subnets),
            tracking: Mutex::new(None),
        }
    }

    fn tracking(&self) -> Option<ConnectionTrackingSpecificationRequest> {
        let tracking = self.tracking.lock();
        tracking.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// DescribeInstanceTypes.
    pub(crate) async fn limits(&self, instance_type: &InstanceType) -> Result<Limits, CloudError> {
        let operation = Operation::Limits;
        let answer = self
            .client
            .describe_instance_types()
            .instance_types(Ec2InstanceType::from(instance_type.as_str()))
            .send()
            .await
            .map_err(|e| cloud_error(operation, e))?;
        match answer.instance_types() {
            [info, ..] => convert::limits(info),
            [] => Err(CloudError::unknown(
                operation,
                format!("no answer about {instance_type}"),
            )),
        }
    }

    /// DescribeNetworkInterfaces: those attached to this instance.
    pub(crate) async fn attached_enis(&self) -> Result<Vec<EniFacts>, CloudError> {
        let operation = Operation::DescribeEnis;
        let instance = self.facts.instance_id.as_str();
        let found = self
            .pages(operation, vec![filter("attachment.instance-id", instance)])
            .await?;
        let primary = self.facts.primary_eni.as_str();
        if let Some(primary) = found
            .iter()
            .find(|eni| eni.network_interface_id() == Some(primary))
        {
            *self.tracking.lock().unwrap_or_else(PoisonError::into_inner) =
                convert::tracking(primary);
        }
        self.read(operation, &found).await
    }

    /// DescribeNetworkInterfaces: those made for this instance that are not attached.
    pub(crate) async fn unattached_enis(&self) -> Result<Vec<EniFacts>, CloudError> {
        let operation = Operation::DescribeEnis;
        let filters = vec![
            filter(
                &format!("tag:{TAG_INSTANCE}"),
                self.facts.instance_id.as_str(),
            ),
            filter("status", "available"),
        ];
        let found = self.pages(operation, filters).await?;
        self.read(operation, &found).await
    }

    /// All pages of DescribeNetworkInterfaces.
    async fn pages(
        &self,
        operation: Operation,
        filters: Vec<Filter>,
    ) -> Result<Vec<NetworkInterface>, CloudError> {
        let mut pages = self
            .client
            .describe_network_interfaces()
            .set_filters(Some(filters))
            .into_paginator()
            .page_size(PAGE)
            .send();
        let mut enis = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| cloud_error(operation, e))?;
            enis.extend(page.network_interfaces.unwrap_or_default());
        }
        Ok(enis)
    }

    /// DescribeNetworkInterfaces of one. `None`: unknown to EC2, or attached to another instance.
    pub(crate) async fn describe_eni(&self, eni: &EniId) -> Result<Option<EniFacts>, CloudError> {
        let operation = Operation::DescribeEnis;
        let answer = self
            .client
            .describe_network_interfaces()
            .network_interface_ids(eni.as_str())
            .send()
            .await
            .map_err(|e| cloud_error(operation, e));
        let found = match answer {
            Ok(answer) => answer.network_interfaces.unwrap_or_default(),
            Err(error) if error.kind == CloudErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let ours = |eni: &NetworkInterface| {
            convert::owner(eni).is_none_or(|owner| owner == self.facts.instance_id.as_str())
        };
        let mut facts = self.read(operation, &found).await?;
        Ok(match found.first() {
            Some(first) if ours(first) => facts.pop(),
            Some(_) | None => None,
        })
    }

    /// CreateNetworkInterface with its client token.
    pub(crate) async fn create_eni(&self, request: &CreateEni) -> Result<EniFacts, CloudError> {
        let operation = Operation::CreateEni;
        let groups = request
            .security_groups
            .iter()
            .map(|g| g.as_str().to_owned());
        let tags = TagSpecification::builder()
            .resource_type(ResourceType::NetworkInterface)
            .set_tags(Some(ec2_tags(&request.tags)))
            .build();
        let wanted = match request.want.count() {
            0 => None,
            some => Some(count(operation, some)?),
        };
        let (addresses, prefixes, ipv6) = match request.want {
            Want::Addresses(_) => (wanted, None, None),
            Want::Prefixes(_) => (None, wanted, None),
            Want::Ipv6Prefix => (None, None, wanted),
        };
        let token: &ClientToken = &request.token;
        let answer = self
            .client
            .create_network_interface()
            .client_token(token.as_str())
            .subnet_id(request.subnet_id.as_str())
            .set_groups(Some(groups.collect()))
            .description(&request.description)
            .tag_specifications(tags)
            .set_secondary_private_ip_address_count(addresses)
            .set_ipv4_prefix_count(prefixes)
            .set_ipv6_prefix_count(ipv6)
            .set_connection_tracking_specification(self.tracking())
            .send()
            .await
            .map_err(|e| cloud_error(operation, e))?;
        let made = answer.network_interface.ok_or_else(|| {
            CloudError::unknown(operation, "an answer that cannot be read: no interface")
        })?;
        self.read(operation, std::slice::from_ref(&made))
            .await?
            .pop()
            .ok_or_else(|| CloudError::unknown(operation, "no interface"))
    }

    /// AttachNetworkInterface on network card 0.
    pub(crate) async fn attach_eni(
        &self,
        eni: &EniId,
        device_index: u16,
    ) -> Result<AttachmentId, CloudError> {
        let operation = Operation::AttachEni;
        let answer = once_visible(&self.until_visible, || async {
            self.client
                .attach_network_interface()
                .network_interface_id(eni.as_str())
                .instance_id(self.facts.instance_id.as_str())
                .device_index(i32::from(device_index))
                .network_card_index(0)
                .send()
                .await
                .map_err(|e| cloud_error(operation, e))
        })
        .await?;
        answer
            .attachment_id()
            .map(AttachmentId::new)
            .ok_or_else(|| {
                CloudError::unknown(operation, format!("{eni}: an answer without an attachment"))
            })
    }

    /// ModifyNetworkInterfaceAttribute: the interface ends with its instance.
    pub(crate) async fn keep_with_instance(
        &self,
        eni: &EniId,
        attachment: &AttachmentId,
    ) -> Result<(), CloudError> {
        once_visible(&self.until_visible, || async {
            let change = NetworkInterfaceAttachmentChanges::builder()
                .attachment_id(attachment.as_str())
                .delete_on_termination(true)
                .build();
            self.client
                .modify_network_interface_attribute()
                .network_interface_id(eni.as_str())
                .attachment(change)
                .send()
                .await
                .map_err(|e| cloud_error(Operation::KeepWithInstance, e))
        })
        .await?;
        Ok(())
    }

    /// ModifyNetworkInterfaceAttribute: security groups.
    pub(crate) async fn regroup_eni(
        &self,
        eni: &EniId,
        groups: &BTreeSet<SecurityGroupId>,
    ) -> Result<(), CloudError> {
        let groups = groups.iter().map(|group| group.as_str().to_owned());
        self.client
            .modify_network_interface_attribute()
            .network_interface_id(eni.as_str())
            .set_groups(Some(groups.collect()))
            .send()
            .await
            .map_err(|e| cloud_error(Operation::RegroupEni, e))?;
        Ok(())
    }

    /// DetachNetworkInterface, not forced.
    pub(crate) async fn detach_eni(&self, attachment: &AttachmentId) -> Result<(), CloudError> {
        self.client
            .detach_network_interface()
            .attachment_id(attachment.as_str())
            .send()
            .await
            .map_err(|e| cloud_error(Operation::DetachEni, e))?;
        Ok(())
    }

    /// DeleteNetworkInterface.
    pub(crate) async fn delete_eni(&self, eni: &EniId) -> Result<(), CloudError> {
        self.client
            .delete_network_interface()
            .network_interface_id(eni.as_str())
            .send()
            .await
            .map_err(|e| cloud_error(Operation::DeleteEni, e))?;
        Ok(())
    }

    /// Interfaces in the core's types, with the blocks of their subnets.
    async fn read(
        &self,
        operation: Operation,
        enis: &[NetworkInterface],
    ) -> Result<Vec<EniFacts>, CloudError> {
        let wanted: BTreeSet<SubnetId> = enis
            .iter()
            .filter_map(|eni| eni.subnet_id().map(SubnetId::new))
            .collect();
        let blocks = self.blocks(operation, wanted).await?;
        enis.iter()
            .map(|eni| {
                let subnet = SubnetId::new(eni.subnet_id().unwrap_or_default());
                let block = blocks.get(&subnet).copied().ok_or_else(|| {
                    let id = eni.network_interface_id().unwrap_or_default();
                    CloudError::unknown(operation, format!("{id}: block of subnet {subnet:?}"))
                })?;
                convert::eni_facts(operation, eni, block)
            })
            .collect()
    }

    /// The blocks of some subnets, by DescribeSubnets for those not met before.
    async fn blocks(
        &self,
        operation: Operation,
        wanted: BTreeSet<SubnetId>,
    ) -> Result<BTreeMap<SubnetId, Ipv4Net>, CloudError> {
        let known = self
            .subnets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let unknown: Vec<String> = wanted
            .iter()
            .filter(|id| !known.contains_key(*id))
            .map(|id| id.as_str().to_owned())
            .collect();
        if unknown.is_empty() {
            return Ok(known);
        }
        let answer = self
            .client
            .describe_subnets()
            .set_subnet_ids(Some(unknown))
            .send()
            .await
            .map_err(|e| cloud_error(operation, e))?;
        let mut subnets = self.subnets.lock().unwrap_or_else(PoisonError::into_inner);
        for subnet in answer.subnets() {
            let block = subnet.cidr_block().and_then(|text| text.parse().ok());
            if let (Some(id), Some(block)) = (subnet.subnet_id(), block) {
                subnets.insert(SubnetId::new(id), block);
            }
        }
        Ok(subnets.clone())
    }
}

/// Repeats a call on a young interface while EC2 says it is not there: parts of EC2 learn of it a little later, and
/// what answers NotFound has done nothing.
async fn once_visible<T, F, R>(pauses: &[Duration], mut call: F) -> Result<T, CloudError>
where
    F: FnMut() -> R,
    R: Future<Output = Result<T, CloudError>>,
{
    for pause in pauses {
        match call().await {
            Err(error) if error.kind == CloudErrorKind::NotFound => {
                debug!(%error, ?pause, "not visible yet");
                tokio::time::sleep(*pause).await;
            }
            answer => return answer,
        }
    }
    call().await
}

fn filter(name: &str, value: &str) -> Filter {
    Filter::builder().name(name).values(value).build()
}

fn ec2_tags(tags: &BTreeMap<String, String>) -> Vec<Tag> {
    tags.iter()
        .map(|(key, value)| Tag::builder().key(key).value(value).build())
        .collect()
}

fn count(operation: Operation, wanted: u32) -> Result<i32, CloudError> {
    i32::try_from(wanted).map_err(|_| CloudError::refused(operation, format!("{wanted} at once")))
}
