//! What there is beside this instance's own interfaces: subnets, and interfaces that nobody has.

use std::collections::BTreeMap;

use selvage_ipamd_core::cloud::{
    CloudError, LooseEni, Operation, SubnetFacts, TAG_CLUSTER, TAG_INSTANCE,
};
use selvage_ipamd_core::ids::EniId;

use super::error::cloud_error;
use super::{Ec2, PAGE, convert, filter};

impl Ec2 {
    /// DescribeSubnets of the instance's VPC and zone.
    pub(crate) async fn describe_subnets(&self) -> Result<Vec<SubnetFacts>, CloudError> {
        let operation = Operation::DescribeSubnets;
        let mut pages = self
            .client
            .describe_subnets()
            .filters(filter("vpc-id", self.facts.vpc_id.as_str()))
            .filters(filter("availability-zone", &self.facts.availability_zone))
            .into_paginator()
            .page_size(PAGE)
            .send();
        let mut subnets = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| cloud_error(operation, e))?;
            // One that has no IPv4 block is no place for an interface of ours.
            subnets.extend(page.subnets().iter().filter_map(convert::subnet_facts));
        }
        Ok(subnets)
    }

    /// DescribeNetworkInterfaces: those of the VPC that an agent made and nobody has.
    pub(crate) async fn find_loose_enis(&self, cluster: &str) -> Result<Vec<LooseEni>, CloudError> {
        let mut filters = vec![
            filter("tag-key", TAG_INSTANCE),
            filter("status", "available"),
            filter("vpc-id", self.facts.vpc_id.as_str()),
        ];
        if !cluster.is_empty() {
            filters.push(filter(&format!("tag:{TAG_CLUSTER}"), cluster));
        }
        let found = self.pages(Operation::FindLooseEnis, filters).await?;
        // By identifier: each once, and the same order every time.
        let found: BTreeMap<EniId, LooseEni> = found
            .iter()
            .filter_map(|eni| {
                let id = EniId::new(eni.network_interface_id()?);
                let loose = LooseEni {
                    id: id.clone(),
                    description: eni.description().unwrap_or_default().to_owned(),
                    tags: convert::tags(eni.tag_set()),
                };
                Some((id, loose))
            })
            .collect();
        Ok(found.into_values().collect())
    }
}
