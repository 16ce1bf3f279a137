//! The SDK's client against a server that answers what we tell it: what the daemon learns from each kind of answer.

use std::net::Ipv4Addr;
use std::sync::Arc;

use aws_credential_types::credential_fn::provide_credentials_fn;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::Config;
use aws_sdk_ec2::config::{BehaviorVersion, Credentials, Region};
use selvage_ipamd_core::cloud::TAG_CREATED;
use selvage_ipamd_core::ids::{InstanceId, Mac, SecurityGroupId, VpcId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Mutex as AsyncMutex;

use super::*;

mod modes;

/// What the server does with one request.
#[derive(Clone)]
enum Answer {
    /// Status and body.
    Http(u16, String),
    /// The connection ends without an answer.
    HangUp,
    /// Nothing, ever.
    Silence,
}

/// A server on loopback that gives `answers` in turn, and remembers the bodies it was sent.
struct Server {
    url: String,
    requests: Arc<AsyncMutex<Vec<String>>>,
}

impl Server {
    async fn start(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(AsyncMutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut text = String::new();
                let mut buffer = vec![0; 16384];
                while !is_whole(&text) {
                    let n = stream.read(&mut buffer).await.unwrap();
                    text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
                }
                let body = text.split_once("\r\n\r\n").unwrap().1.to_owned();
                seen.lock().await.push(body);
                match answer {
                    Answer::Http(status, body) => {
                        let head = format!(
                            "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                            body.len()
                        );
                        stream.write_all((head + &body).as_bytes()).await.unwrap();
                    }
                    Answer::HangUp => drop(stream),
                    Answer::Silence => std::future::pending().await,
                }
            }
        });
        Self { url, requests }
    }

    fn ec2(&self, credentials: bool, deadline: Duration) -> Ec2 {
        let http = aws_smithy_http_client::Builder::new().build_http();
        let provider = provide_credentials_fn(move || async move {
            if credentials {
                Ok(Credentials::new("id", "secret", None, None, "test"))
            } else {
                Err(CredentialsError::not_loaded("no credentials here"))
            }
        });
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .endpoint_url(&self.url)
            .region(Region::new("us-west-2"))
            .timeout_config(timeouts(deadline))
            .credentials_provider(provider)
            .retry_config(RetryConfig::disabled());
        let mut ec2 = Ec2::new(Client::from_conf(config.build()), facts());
        ec2.until_visible = [Duration::ZERO; 3];
        ec2
    }
}

fn is_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok());
    body.len() >= length.unwrap_or(0)
}

fn facts() -> InstanceFacts {
    InstanceFacts {
        instance_id: InstanceId::new("i-1"),
        instance_type: InstanceType::new("c5.large"),
        region: "us-west-2".to_owned(),
        availability_zone: "us-west-2a".to_owned(),
        vpc_id: VpcId::new("vpc-1"),
        primary_eni: EniId::new("eni-0"),
        primary_mac: Mac([2, 0, 0, 0, 0, 0]),
        primary_address: Ipv4Addr::new(10, 40, 0, 10),
        primary_ipv6: None,
        subnet_id: SubnetId::new("subnet-1"),
        subnet: "10.40.0.0/20".parse().unwrap(),
        security_groups: vec![SecurityGroupId::new("sg-1")],
    }
}

fn refusal(status: u16, code: &str) -> Answer {
    Answer::Http(
        status,
        format!(
            "<Response><Errors><Error><Code>{code}</Code><Message>words of EC2</Message></Error></Errors>\
             <RequestID>r-1</RequestID></Response>"
        ),
    )
}

const PATIENT: Duration = Duration::from_secs(20);

async fn assign_fails(answer: Answer, deadline: Duration) -> CloudError {
    let server = Server::start(vec![answer]).await;
    let ec2 = server.ec2(true, deadline);
    ec2.assign(&EniId::new("eni-1"), Want::Addresses(3))
        .await
        .expect_err("the answer is no success")
}

#[tokio::test]
async fn each_kind_of_answer_tells_the_daemon_what_it_can_do() {
    let page = "<html><body>something else answers here</body></html>".to_owned();
    let page = |status| Answer::Http(status, page.clone());
    for (name, answer, kind, code) in [
        (
            "throttled",
            refusal(503, "RequestLimitExceeded"),
            CloudErrorKind::Throttled,
            Some("RequestLimitExceeded"),
        ),
        (
            "no room",
            refusal(400, "InsufficientFreeAddressesInSubnet"),
            CloudErrorKind::SubnetExhausted,
            Some("InsufficientFreeAddressesInSubnet"),
        ),
        (
            "too many",
            refusal(400, "PrivateIpAddressLimitExceeded"),
            CloudErrorKind::AddressLimit,
            Some("PrivateIpAddressLimitExceeded"),
        ),
        (
            "not allowed",
            refusal(403, "UnauthorizedOperation"),
            CloudErrorKind::Denied,
            Some("UnauthorizedOperation"),
        ),
        (
            "a code of next year",
            refusal(400, "NoSuchCodeYet"),
            CloudErrorKind::Refused,
            Some("NoSuchCodeYet"),
        ),
        (
            "EC2 itself failed",
            refusal(500, "InternalError"),
            CloudErrorKind::Unknown,
            Some("InternalError"),
        ),
        (
            "a proxy that has no EC2",
            page(502),
            CloudErrorKind::Unknown,
            Some("HTTP 502"),
        ),
        (
            "a proxy that refuses",
            page(407),
            CloudErrorKind::Refused,
            Some("HTTP 407"),
        ),
        (
            "a proxy that throttles",
            page(429),
            CloudErrorKind::Throttled,
            Some("HTTP 429"),
        ),
        (
            "garbage as success",
            page(200),
            CloudErrorKind::Unknown,
            None,
        ),
        ("no answer", Answer::HangUp, CloudErrorKind::Unknown, None),
    ] {
        let error = assign_fails(answer, PATIENT).await;
        assert_eq!(error.kind, kind, "{name}: {error}");
        assert_eq!(error.code.as_deref(), code, "{name}: {error}");
    }
}

#[tokio::test]
async fn a_silent_ec2_ends_a_call_at_its_deadline_and_the_call_may_have_happened() {
    let error = assign_fails(Answer::Silence, Duration::from_millis(100)).await;
    assert_eq!(error.kind, CloudErrorKind::Unknown, "{error}");
}

#[tokio::test]
async fn a_call_without_credentials_is_not_sent_and_says_so() {
    let server = Server::start(vec![]).await;
    let ec2 = server.ec2(false, PATIENT);
    let error = ec2.attached_enis().await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Refused, "{error}");
    assert!(error.message.contains("no credentials here"), "{error}");
}

#[tokio::test]
async fn a_young_interface_that_ec2_does_not_see_yet_is_attached_once_it_does() {
    let server = Server::start(vec![
        refusal(400, "InvalidNetworkInterfaceID.NotFound"),
        Answer::Http(
            200,
            "<AttachNetworkInterfaceResponse><attachmentId>eni-attach-1</attachmentId>\
             </AttachNetworkInterfaceResponse>"
                .to_owned(),
        ),
    ])
    .await;
    let ec2 = server.ec2(true, PATIENT);
    let attachment = ec2.attach_eni(&EniId::new("eni-1"), 1).await.unwrap();
    assert_eq!(attachment.as_str(), "eni-attach-1");
}

#[tokio::test]
async fn a_create_carries_its_token_and_all_that_makes_the_interface_ours() {
    let server = Server::start(vec![Answer::Http(
        200,
        "<CreateNetworkInterfaceResponse><networkInterface>\
         <networkInterfaceId>eni-1</networkInterfaceId><subnetId>subnet-1</subnetId>\
         <macAddress>02:00:00:00:00:01</macAddress><privateIpAddress>10.40.0.20</privateIpAddress>\
         <privateIpAddressesSet><item><privateIpAddress>10.40.0.20</privateIpAddress><primary>true</primary></item>\
         <item><privateIpAddress>10.40.0.21</privateIpAddress><primary>false</primary></item></privateIpAddressesSet>\
         </networkInterface></CreateNetworkInterfaceResponse>"
            .to_owned(),
    )])
    .await;
    let request = CreateEni {
        token: ClientToken::new("token-1"),
        subnet_id: SubnetId::new("subnet-1"),
        security_groups: vec![SecurityGroupId::new("sg-1")],
        want: Want::Addresses(1),
        description: "aws-K8S-i-1".to_owned(),
        tags: BTreeMap::from([
            (TAG_CREATED.to_owned(), "now".to_owned()),
            (TAG_INSTANCE.to_owned(), "i-1".to_owned()),
        ]),
    };
    let made = server
        .ec2(true, PATIENT)
        .create_eni(&request)
        .await
        .unwrap();
    assert_eq!(made.id.as_str(), "eni-1");
    assert_eq!(
        made.secondary_addresses,
        BTreeSet::from([Ipv4Addr::new(10, 40, 0, 21)])
    );
    let sent = server.requests.lock().await.concat();
    for field in [
        "Action=CreateNetworkInterface",
        "ClientToken=token-1",
        "SubnetId=subnet-1",
        "SecurityGroupId.1=sg-1",
        "Description=aws-K8S-i-1",
        "SecondaryPrivateIpAddressCount=1",
        "TagSpecification.1.ResourceType=network-interface",
        "TagSpecification.1.Tag.2.Key=node.k8s.amazonaws.com%2Finstance_id",
        "TagSpecification.1.Tag.2.Value=i-1",
    ] {
        assert!(
            sent.split('&').any(|part| part == field),
            "{field} in {sent}"
        );
    }
}
