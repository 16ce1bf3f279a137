//! Instance metadata (IMDSv2): what the instance is, and its interfaces as they are now.
//!
//! ```text
//! latest/meta-data/instance-id …                           -> InstanceFacts
//! latest/meta-data/network/interfaces/macs/<mac>/…         -> SeenEni, VPC blocks
//! ```
//!
//! Tokens, their renewal and short retries are the SDK client's. Metadata that is silent or answers nonsense is an
//! error of kind [`Unknown`](selvage_ipamd_core::cloud::CloudErrorKind::Unknown): ask again later.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
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

use selvage_ipamd::chain::chain;

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
    /// What is known of attached interfaces and does not change, by hardware address.
    known: Mutex<BTreeMap<Mac, SeenEni>>,
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
        Self {
            client,
            known: Mutex::default(),
        }
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
            primary_ipv6: self.first(operation, &primary("ipv6s")).await?,
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
        let macs: BTreeSet<Mac> = parse_lines(operation, MACS, &listing)?;
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
        let addresses: Vec<Ipv4Addr> = self.list(operation, &key("local-ipv4s")).await?;
        let device_index = self.first(operation, &key("device-number")).await?;
        // Its own address is the first; without one it is going away.
        let (Some(primary_address), Some(device_index)) = (addresses.first(), device_index) else {
            return Ok(None);
        };
        Ok(Some(SeenEni {
            primary_address: *primary_address,
            device_index,
            addresses: addresses.into_iter().collect(),
            prefixes: self.list(operation, &key("ipv4-prefix")).await?,
            ipv6_addresses: self.list(operation, &key("ipv6s")).await?,
            ipv6_prefixes: self.list(operation, &key("ipv6-prefix")).await?,
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
        let id: Option<String> = self.first(operation, &key("interface-id")).await?;
        let subnet_id: Option<String> = self.first(operation, &key("subnet-id")).await?;
        let subnet = self
            .first(operation, &key("subnet-ipv4-cidr-block"))
            .await?;
        // Instances with one card do not have the key.
        let card = self.first(operation, &key("network-card")).await?;
        let (Some(id), Some(subnet_id), Some(subnet)) = (id, subnet_id, subnet) else {
            return Ok(None);
        };
        let fixed = SeenEni {
            id: EniId::new(id),
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
    async fn list<T: FromStr, L: FromIterator<T>>(
        &self,
        operation: Operation,
        path: &str,
    ) -> Result<L, CloudError> {
        let text = self.get(operation, path).await?.unwrap_or_default();
        parse_lines(operation, path, &text)
    }

    /// The first value at a path, if there is one.
    async fn first<T: FromStr>(
        &self,
        operation: Operation,
        path: &str,
    ) -> Result<Option<T>, CloudError> {
        let list: Vec<T> = self.list(operation, path).await?;
        Ok(list.into_iter().next())
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

    /// At least one value, one a line.
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
fn parse_lines<T: FromStr, L: FromIterator<T>>(
    operation: Operation,
    path: &str,
    text: &str,
) -> Result<L, CloudError> {
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
        let error = parse_lines::<Mac, Vec<Mac>>(Operation::SeenEnis, MACS, "<html>").unwrap_err();
        assert!(
            error.may_have_happened(),
            "metadata that lies is asked again"
        );
        assert!(error.message.contains("<html>"), "{error}");
    }
}
