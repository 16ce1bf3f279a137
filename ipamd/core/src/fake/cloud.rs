//! The EC2 in memory as the daemon's cloud.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net};

use super::state::State;
use super::{Ec2, HANG};
use crate::cloud::{
    Cloud, CloudError, CreateEni, EniFacts, InstanceFacts, LooseEni, Operation, SeenEni,
    SubnetFacts, TAG_CLUSTER, TAG_INSTANCE, Want,
};
use crate::ids::{AttachmentId, EniId, InstanceType, SecurityGroupId};
use crate::limits::Limits;

impl Ec2 {
    /// Waits, calls, and hangs if the fault says so.
    async fn reply<T: Send>(
        &self,
        operation: Operation,
        act: impl FnOnce(&mut State) -> Result<T, CloudError> + Send,
    ) -> Result<T, CloudError> {
        if let Some(delay) = &self.delay {
            delay(operation).await;
        }
        let result = self.call(operation, act);
        if matches!(&result, Err(error) if error.message == HANG) {
            std::future::pending::<()>().await;
        }
        result
    }
}

impl Cloud for Ec2 {
    async fn facts(&self) -> Result<InstanceFacts, CloudError> {
        self.reply(Operation::Facts, |s| Ok(s.facts.clone())).await
    }

    async fn limits(&self, _: &InstanceType) -> Result<Limits, CloudError> {
        self.reply(Operation::Limits, |s| Ok(s.limits)).await
    }

    async fn vpc_cidrs(&self) -> Result<Vec<Ipv4Net>, CloudError> {
        self.reply(Operation::VpcCidrs, |s| Ok(s.vpc.clone())).await
    }

    async fn seen_enis(&self) -> Result<Vec<SeenEni>, CloudError> {
        self.reply(Operation::SeenEnis, |s| {
            Ok(s.read().values().filter_map(seen).collect())
        })
        .await
    }

    async fn attached_enis(&self) -> Result<Vec<EniFacts>, CloudError> {
        self.reply(Operation::DescribeEnis, |s| {
            let attached = |eni: &&EniFacts| eni.attachment.is_some();
            Ok(s.read().values().filter(attached).cloned().collect())
        })
        .await
    }

    async fn unattached_enis(&self) -> Result<Vec<EniFacts>, CloudError> {
        self.reply(Operation::DescribeEnis, |s| {
            let instance = s.facts.instance_id.clone();
            let ours = |eni: &&EniFacts| {
                let tag = eni.tags.get(TAG_INSTANCE);
                eni.attachment.is_none() && tag.is_some_and(|v| v == instance.as_str())
            };
            Ok(s.read().values().filter(ours).cloned().collect())
        })
        .await
    }

    async fn describe_eni(&self, eni: &EniId) -> Result<Option<EniFacts>, CloudError> {
        self.reply(Operation::DescribeEnis, |s| Ok(s.read().get(eni).cloned()))
            .await
    }

    async fn describe_subnets(&self) -> Result<Vec<SubnetFacts>, CloudError> {
        self.reply(Operation::DescribeSubnets, |s| Ok(s.subnets()))
            .await
    }

    async fn find_loose_enis(&self, cluster: &str) -> Result<Vec<LooseEni>, CloudError> {
        self.reply(Operation::FindLooseEnis, |s| {
            let loose = s.read().values().filter(|eni| {
                let ours =
                    cluster.is_empty() || eni.tags.get(TAG_CLUSTER).is_some_and(|v| v == cluster);
                eni.attachment.is_none() && eni.tags.contains_key(TAG_INSTANCE) && ours
            });
            Ok(loose
                .map(|eni| LooseEni {
                    id: eni.id.clone(),
                    description: eni.description.clone(),
                    tags: eni.tags.clone(),
                })
                .collect())
        })
        .await
    }

    async fn create_eni(&self, request: &CreateEni) -> Result<EniFacts, CloudError> {
        self.reply(Operation::CreateEni, |s| s.create(request))
            .await
    }

    async fn attach_eni(&self, eni: &EniId, device_index: u16) -> Result<AttachmentId, CloudError> {
        self.reply(Operation::AttachEni, |s| s.attach(eni, device_index))
            .await
    }

    async fn keep_with_instance(
        &self,
        eni: &EniId,
        attachment: &AttachmentId,
    ) -> Result<(), CloudError> {
        self.reply(Operation::KeepWithInstance, |s| s.keep(eni, attachment))
            .await
    }

    async fn assign(&self, eni: &EniId, want: Want) -> Result<Vec<IpNet>, CloudError> {
        self.reply(want.operation(), |s| s.assign(eni, want)).await
    }

    async fn unassign(&self, eni: &EniId, blocks: &BTreeSet<IpNet>) -> Result<(), CloudError> {
        self.reply(Operation::unassign(blocks), |s| s.unassign(eni, blocks))
            .await
    }

    async fn tag_eni(
        &self,
        eni: &EniId,
        tags: &BTreeMap<String, String>,
    ) -> Result<(), CloudError> {
        self.reply(Operation::TagEni, |s| s.tag(eni, tags)).await
    }

    async fn regroup_eni(
        &self,
        eni: &EniId,
        groups: &BTreeSet<SecurityGroupId>,
    ) -> Result<(), CloudError> {
        self.reply(Operation::RegroupEni, |s| s.regroup(eni, groups))
            .await
    }

    async fn detach_eni(&self, attachment: &AttachmentId) -> Result<(), CloudError> {
        self.reply(Operation::DetachEni, |s| s.detach(attachment))
            .await
    }

    async fn delete_eni(&self, eni: &EniId) -> Result<(), CloudError> {
        self.reply(Operation::DeleteEni, |s| s.delete(eni)).await
    }
}

/// What metadata shows, without lag.
pub(super) fn attached(state: &State) -> Vec<SeenEni> {
    state.enis.values().filter_map(seen).collect()
}

/// What metadata shows of an interface; `None`: it is not attached.
fn seen(eni: &EniFacts) -> Option<SeenEni> {
    let attachment = eni.attachment.as_ref()?;
    let own = [eni.primary_address];
    Some(SeenEni {
        id: eni.id.clone(),
        mac: eni.mac,
        device_index: attachment.device_index,
        card: attachment.card,
        subnet_id: eni.subnet_id.clone(),
        subnet: eni.subnet,
        primary_address: eni.primary_address,
        addresses: eni.secondary_addresses.iter().copied().chain(own).collect(),
        prefixes: eni.prefixes.clone(),
        ipv6_addresses: eni.ipv6_addresses.clone(),
        ipv6_prefixes: eni.ipv6_prefixes.clone(),
    })
}
