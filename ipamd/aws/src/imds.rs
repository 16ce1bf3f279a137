//! Instance metadata (IMDSv2): what the instance is, and its interfaces as they are now.
//!
//! ```text
//! latest/meta-data/instance-id …                           -> InstanceFacts
//! latest/meta-data/network/interfaces/macs/<mac>/…         -> SeenEni, VPC blocks
//! ```
//!
//! Tokens, their renewal and short retries are the SDK client's. Metadata that is silent or answers nonsense is an
//! error of kind [`Unknown`](selvage_ipamd_core::cloud::CloudErrorKind::Unknown): ask again later.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use aws_config::imds::Client;
use aws_config::imds::client::error::ImdsError;
use aws_config::provider_config::ProviderConfig;
use aws_sdk_ec2::config::SharedHttpClient;
use ipnet::Ipv4Net;
use selvage_ipamd_core::cloud::{CloudError, InstanceFacts, Operation, SeenEni};
use selvage_ipamd_core::ids::{
    EniId, InstanceId, InstanceType, Mac, SecurityGroupId, SubnetId, VpcId,
};

use crate::chain::chain;

/// One answer comes from the hypervisor's own host: a second is long.
const CONNECT: Duration = Duration::from_secs(1);
/// One try, connection included.
const TRY: Duration = Duration::from_secs(2);
/// One question with its retries.
const QUESTION: Duration = Duration::from_secs(5);
/// Tries of one question: what is retried is a 5xx or a token that has run out.
const TRIES: u32 = 3;

/// The metadata service, with a deadline on each question.
pub(crate) struct Imds {
    client: Client,
}

impl Imds {
    /// A client of `AWS_EC2_METADATA_SERVICE_ENDPOINT`, by default `http://169.254.169.254`. Sends nothing yet.
    pub(crate) fn new(http: SharedHttpClient) -> Self {
        let config = ProviderConfig::without_region().with_http_client(http);
        let client = Client::builder()
            .configure(&config)
            .connect_timeout(CONNECT)
            .read_timeout(TRY)
            .operation_attempt_timeout(TRY)
            .operation_timeout(QUESTION)
            .max_attempts(TRIES)
            .build();
        Self { client }
    }

    /// All that does not change while the instance runs.
    pub(crate) async fn facts(&self) -> Result<InstanceFacts, CloudError> {
        let operation = Operation::Facts;
        let mac: Mac = self.one(operation, "mac").await?;
        let primary = |key: &str| format!("{MACS}/{mac}/{key}");
        let groups: Vec<String> = self.many(operation, &primary("security-group-ids")).await?;
        Ok(InstanceFacts {
            instance_id: InstanceId::new(self.text(operation, "instance-id").await?),
            instance_type: InstanceType::new(self.text(operation, "instance-type").await?),
            region: self.text(operation, "placement/region").await?,
            availability_zone: self.text(operation, "placement/availability-zone").await?,
            vpc_id: VpcId::new(self.text(operation, &primary("vpc-id")).await?),
            primary_eni: EniId::new(self.text(operation, &primary("interface-id")).await?),
            primary_mac: mac,
            primary_address: self.one(operation, "local-ipv4").await?,
            primary_ipv6: self
                .maybe_many(operation, &primary("ipv6s"))
                .await?
                .first()
                .copied(),
            subnet_id: SubnetId::new(self.text(operation, &primary("subnet-id")).await?),
            subnet: self
                .one(operation, &primary("subnet-ipv4-cidr-block"))
                .await?,
            security_groups: groups.into_iter().map(SecurityGroupId::new).collect(),
        })
    }

    /// The VPC's IPv4 blocks; a VPC has at least one.
    pub(crate) async fn vpc_cidrs(&self) -> Result<Vec<Ipv4Net>, CloudError> {
        let operation = Operation::VpcCidrs;
        let mac: Mac = self.one(operation, "mac").await?;
        let path = format!("{MACS}/{mac}/vpc-ipv4-cidr-blocks");
        let blocks: Vec<Ipv4Net> = self.many(operation, &path).await?;
        if blocks.is_empty() {
            return Err(CloudError::unknown(operation, format!("{path}: no block")));
        }
        Ok(blocks)
    }

    /// The attached interfaces. One that goes while it is read is left out.
    pub(crate) async fn seen_enis(&self) -> Result<Vec<SeenEni>, CloudError> {
        let operation = Operation::SeenEnis;
        let listing = self.text(operation, &format!("{MACS}/")).await?;
        let macs: Vec<Mac> = parse_lines(operation, MACS, &listing)?;
        let mut enis = Vec::with_capacity(macs.len());
        for mac in macs {
            enis.extend(self.seen_eni(operation, mac).await?);
        }
        Ok(enis)
    }

    async fn seen_eni(
        &self,
        operation: Operation,
        mac: Mac,
    ) -> Result<Option<SeenEni>, CloudError> {
        let path = |key: &str| format!("{MACS}/{mac}/{key}");
        let id = self.get(operation, &path("interface-id")).await?;
        let addresses: Vec<Ipv4Addr> = self.maybe_many(operation, &path("local-ipv4s")).await?;
        // Without an address of its own it is none of ours (EFA-only), or is going.
        let (Some(id), Some(primary_address)) = (id, addresses.first().copied()) else {
            return Ok(None);
        };
        let prefixes: Vec<_> = self.maybe_many(operation, &path("ipv4-prefix")).await?;
        let ipv6_addresses: Vec<_> = self.maybe_many(operation, &path("ipv6s")).await?;
        let ipv6_prefixes: Vec<_> = self.maybe_many(operation, &path("ipv6-prefix")).await?;
        let card: Vec<u16> = self.maybe_many(operation, &path("network-card")).await?;
        Ok(Some(SeenEni {
            id: EniId::new(id.trim()),
            mac,
            device_index: self.one(operation, &path("device-number")).await?,
            // Instances with one card do not name it.
            card: card.first().copied().unwrap_or(0),
            subnet_id: SubnetId::new(self.text(operation, &path("subnet-id")).await?),
            subnet: self.one(operation, &path("subnet-ipv4-cidr-block")).await?,
            primary_address,
            addresses: BTreeSet::from_iter(addresses),
            prefixes: BTreeSet::from_iter(prefixes),
            ipv6_addresses: BTreeSet::from_iter(ipv6_addresses),
            ipv6_prefixes: BTreeSet::from_iter(ipv6_prefixes),
        }))
    }

    /// One value a line at a path that may not be there.
    async fn maybe_many<T: FromStr>(
        &self,
        operation: Operation,
        path: &str,
    ) -> Result<Vec<T>, CloudError> {
        let text = self.get(operation, path).await?.unwrap_or_default();
        parse_lines(operation, path, &text)
    }

    /// The text at a path, `None` if there is none (404).
    async fn get(&self, operation: Operation, path: &str) -> Result<Option<String>, CloudError> {
        match self.client.get(format!("{ROOT}/{path}")).await {
            Ok(text) => Ok(Some(String::from(text))),
            Err(ImdsError::ErrorResponse(context)) => match context.response().status().as_u16() {
                404 => Ok(None),
                status => Err(CloudError::unknown(
                    operation,
                    format!("{path}: HTTP {status}"),
                )),
            },
            Err(error) => Err(CloudError::unknown(
                operation,
                format!("{path}: {}", chain(&error)),
            )),
        }
    }

    /// The text at a path that must be there and not be empty.
    async fn text(&self, operation: Operation, path: &str) -> Result<String, CloudError> {
        let text = self.get(operation, path).await?.unwrap_or_default();
        match text.trim() {
            "" => Err(CloudError::unknown(
                operation,
                format!("{path}: nothing there"),
            )),
            // A page of HTML is not an identifier; it comes from something that sits where metadata should.
            text if text.contains(['<', '>']) => Err(CloudError::unknown(
                operation,
                format!("{path}: {}", unreadable(text)),
            )),
            text => Ok(text.to_owned()),
        }
    }

    async fn one<T: FromStr>(&self, operation: Operation, path: &str) -> Result<T, CloudError> {
        let text = self.text(operation, path).await?;
        text.parse()
            .map_err(|_| CloudError::unknown(operation, format!("{path}: {}", unreadable(&text))))
    }

    async fn many<T: FromStr>(
        &self,
        operation: Operation,
        path: &str,
    ) -> Result<Vec<T>, CloudError> {
        let text = self.text(operation, path).await?;
        parse_lines(operation, path, &text)
    }
}

const ROOT: &str = "/latest/meta-data";
const MACS: &str = "network/interfaces/macs";

/// One value a line; a listing of folders ends each with a slash.
fn parse_lines<T: FromStr>(
    operation: Operation,
    path: &str,
    text: &str,
) -> Result<Vec<T>, CloudError> {
    text.lines()
        .map(|line| line.trim().trim_end_matches('/'))
        .filter(|line| !line.is_empty())
        .map(|line| {
            line.parse().map_err(|_| {
                CloudError::unknown(operation, format!("{path}: {}", unreadable(line)))
            })
        })
        .collect()
}

/// What cannot be read, shortened: it may be a page.
fn unreadable(text: &str) -> String {
    let start: String = text.chars().take(60).collect();
    format!("cannot read {start:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_of_macs_is_read_with_or_without_slashes_and_nonsense_is_refused_by_name() {
        let macs: Vec<Mac> = parse_lines(
            Operation::SeenEnis,
            MACS,
            "02:00:00:00:00:01/\n02:00:00:00:00:02\n\n",
        )
        .unwrap();
        assert_eq!(macs.len(), 2);
        let error = parse_lines::<Mac>(Operation::SeenEnis, MACS, "<html>").unwrap_err();
        assert!(
            error.may_have_happened(),
            "metadata that lies is asked again"
        );
        assert!(error.message.contains("<html>"), "{error}");
    }
}
