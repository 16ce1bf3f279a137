//! Instance metadata (IMDSv2): the questions of [`metadata`](selvage_ipamd_core::metadata) by HTTP. Tokens, their renewal
//! and short retries are the SDK client's.

use std::time::Duration;

use aws_config::imds::Client;
use aws_config::imds::client::error::ImdsError;
use aws_config::provider_config::ProviderConfig;
use aws_sdk_ec2::config::SharedHttpClient;
use selvage_ipamd::chain::chain;
use selvage_ipamd_core::cloud::{CloudError, Operation};
use selvage_ipamd_core::metadata::Metadata;

/// One answer comes from the hypervisor's own host: a second is long.
const CONNECT: Duration = Duration::from_secs(1);
/// One try, connection included.
const TRY: Duration = Duration::from_secs(2);
/// One question with its retries.
const QUESTION: Duration = Duration::from_secs(5);
/// Tries of one question: what is retried is a 5xx or a token that has run out.
const TRIES: u32 = 3;

const ROOT: &str = "/latest/meta-data";

/// The metadata service, with a deadline on each question.
pub(crate) struct Imds(Client);

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
        Self(client)
    }
}

impl Metadata for Imds {
    async fn get(&self, operation: Operation, path: &str) -> Result<Option<String>, CloudError> {
        match self.0.get(format!("{ROOT}/{path}")).await {
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
}
