//! The cloud of the shipped daemon: metadata of this instance, and EC2 once metadata has said which instance it is.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::time::Duration;

use aws_sdk_ec2::config::SharedHttpClient;
use ipnet::{IpNet, Ipv4Net};
use selvage_ipamd::instances;
use selvage_ipamd_core::cloud::{
    Cloud, CloudError, CreateEni, EniFacts, InstanceFacts, LooseEni, SeenEni, SubnetFacts, Want,
};
use selvage_ipamd_core::ids::{AttachmentId, EniId, InstanceType, SecurityGroupId};
use selvage_ipamd_core::limits::Limits;
use selvage_ipamd_core::metadata::Reader;
use tokio::sync::OnceCell;

use crate::ec2::{self, Ec2};
use crate::imds::Imds;

/// AWS as the daemon's [`Cloud`].
pub(crate) struct Aws {
    http: SharedHttpClient,
    metadata: Reader<Imds>,
    deadline: Duration,
    /// Needs the region and the instance, which metadata may not tell at once: made at the first call that succeeds.
    ec2: OnceCell<Ec2>,
}

impl Aws {
    /// Nothing is sent before the first call. `deadline` bounds every call to EC2.
    pub(crate) fn new(http: SharedHttpClient, deadline: Duration) -> Self {
        Self {
            metadata: Reader::new(Imds::new(http.clone())),
            http,
            deadline,
            ec2: OnceCell::new(),
        }
    }

    async fn ec2(&self) -> Result<&Ec2, CloudError> {
        self.ec2
            .get_or_try_init(|| async {
                let facts = self.metadata.facts().await?;
                let region = env::var("AWS_REGION").unwrap_or_else(|_| facts.region.clone());
                let client = ec2::client(self.http.clone(), region, self.deadline).await;
                Ok(Ec2::new(client, facts))
            })
            .await
    }
}

impl Cloud for Aws {
    async fn facts(&self) -> Result<InstanceFacts, CloudError> {
        self.metadata.facts().await
    }

    async fn limits(&self, instance_type: &InstanceType) -> Result<Limits, CloudError> {
        match instances::find(instance_type) {
            Some(limits) => Ok(limits),
            None => self.ec2().await?.limits(instance_type).await,
        }
    }

    async fn vpc_cidrs(&self) -> Result<Vec<Ipv4Net>, CloudError> {
        self.metadata.vpc_cidrs().await
    }

    async fn seen_enis(&self) -> Result<Vec<SeenEni>, CloudError> {
        self.metadata.seen_enis().await
    }

    async fn attached_enis(&self) -> Result<Vec<EniFacts>, CloudError> {
        self.ec2().await?.attached_enis().await
    }

    async fn unattached_enis(&self) -> Result<Vec<EniFacts>, CloudError> {
        self.ec2().await?.unattached_enis().await
    }

    async fn describe_eni(&self, eni: &EniId) -> Result<Option<EniFacts>, CloudError> {
        self.ec2().await?.describe_eni(eni).await
    }

    async fn describe_subnets(&self) -> Result<Vec<SubnetFacts>, CloudError> {
        self.ec2().await?.describe_subnets().await
    }

    async fn find_loose_enis(&self, cluster: &str) -> Result<Vec<LooseEni>, CloudError> {
        self.ec2().await?.find_loose_enis(cluster).await
    }

    async fn create_eni(&self, request: &CreateEni) -> Result<EniFacts, CloudError> {
        self.ec2().await?.create_eni(request).await
    }

    async fn attach_eni(&self, eni: &EniId, device_index: u16) -> Result<AttachmentId, CloudError> {
        self.ec2().await?.attach_eni(eni, device_index).await
    }

    async fn keep_with_instance(
        &self,
        eni: &EniId,
        attachment: &AttachmentId,
    ) -> Result<(), CloudError> {
        self.ec2().await?.keep_with_instance(eni, attachment).await
    }

    async fn assign(&self, eni: &EniId, want: Want) -> Result<Vec<IpNet>, CloudError> {
        self.ec2().await?.assign(eni, want).await
    }

    async fn unassign(&self, eni: &EniId, blocks: &BTreeSet<IpNet>) -> Result<(), CloudError> {
        self.ec2().await?.unassign(eni, blocks).await
    }

    async fn tag_eni(
        &self,
        eni: &EniId,
        tags: &BTreeMap<String, String>,
    ) -> Result<(), CloudError> {
        self.ec2().await?.tag_eni(eni, tags).await
    }

    async fn regroup_eni(
        &self,
        eni: &EniId,
        groups: &BTreeSet<SecurityGroupId>,
    ) -> Result<(), CloudError> {
        self.ec2().await?.regroup_eni(eni, groups).await
    }

    async fn detach_eni(&self, attachment: &AttachmentId) -> Result<(), CloudError> {
        self.ec2().await?.detach_eni(attachment).await
    }

    async fn delete_eni(&self, eni: &EniId) -> Result<(), CloudError> {
        self.ec2().await?.delete_eni(eni).await
    }
}
