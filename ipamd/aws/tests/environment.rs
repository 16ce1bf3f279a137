//! The shipped binary, and what it takes from the environment: whose credentials it signs with, which endpoint it asks,
//! through which proxy. The servers are on loopback; nothing leaves the machine.

use std::collections::BTreeMap;
use std::process::Output;
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_rustls::TlsAcceptor;

/// One server for all that the binary talks to: metadata, EC2, STS, the agent of Pod Identity, a proxy.
#[derive(Clone, Default)]
struct World {
    requests: Arc<Mutex<Vec<String>>>,
}

/// A type that the binary's own table does not have, so that EC2 must be asked.
const TYPE: &str = "z9.large";
const EC2: &str = "<DescribeInstanceTypesResponse><instanceTypeSet><item><instanceType>z9.large</instanceType>\
     <hypervisor>nitro</hypervisor><vCpuInfo><defaultVCpus>4</defaultVCpus></vCpuInfo>\
     <networkInfo><maximumNetworkInterfaces>5</maximumNetworkInterfaces>\
     <ipv4AddressesPerInterface>20</ipv4AddressesPerInterface></networkInfo></item></instanceTypeSet>\
     </DescribeInstanceTypesResponse>";
const STS: &str = "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
     <AccessKeyId>AKIDIRSA</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>\
     <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
     </AssumeRoleWithWebIdentityResponse>";

fn keys(id: &str) -> String {
    format!(
        r#"{{"Code":"Success","Type":"AWS-HMAC","LastUpdated":"2026-01-01T00:00:00Z","AccessKeyId":"{id}",
            "SecretAccessKey":"s","Token":"t","Expiration":"2099-01-01T00:00:00Z"}}"#
    )
}

/// What is answered to one request.
fn reply(request: &str) -> (u16, String) {
    let path = request.split(' ').nth(1).unwrap_or_default();
    let facts = BTreeMap::from([
        ("mac", "02:00:00:00:00:00"),
        ("instance-id", "i-1"),
        ("instance-type", TYPE),
        ("placement/region", "us-west-2"),
        ("placement/availability-zone", "us-west-2a"),
        ("local-ipv4", "10.40.0.10"),
        ("interface-id", "eni-0"),
        ("subnet-id", "subnet-1"),
        ("vpc-id", "vpc-1"),
        ("security-group-ids", "sg-1"),
        ("subnet-ipv4-cidr-block", "10.40.0.0/20"),
    ]);
    let name = path
        .trim_start_matches("/latest/meta-data/")
        .trim_start_matches("network/interfaces/macs/02:00:00:00:00:00/");
    if request.contains("Action=AssumeRoleWithWebIdentity") {
        return (200, STS.to_owned());
    }
    if request.contains("Action=DescribeInstanceTypes") {
        return (200, EC2.to_owned());
    }
    match path {
        _ if request.starts_with("CONNECT ") => (403, "no way out".to_owned()),
        "/latest/api/token" => (200, "token".to_owned()),
        "/pod-identity" => (200, keys("AKIDPOD")),
        "/latest/meta-data/iam/security-credentials/" => (200, "node-role".to_owned()),
        "/latest/meta-data/iam/security-credentials/node-role" => (200, keys("AKIDNODE")),
        _ => match facts.get(name) {
            Some(text) => (200, (*text).to_owned()),
            None => (404, String::new()),
        },
    }
}

impl World {
    /// Serves on loopback until the test ends.
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let world = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(world.clone().answer(stream));
            }
        });
        url
    }

    /// The same behind TLS, by a certificate that only its owner trusts: in PEM, beside the URL.
    async fn start_tls(&self) -> (String, String) {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = certified.signing_key.serialize_der();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certified.cert.der().clone()],
                PrivateKeyDer::Pkcs8(key.into()),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!(
            "https://localhost:{}",
            listener.local_addr().unwrap().port()
        );
        let world = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, world) = (acceptor.clone(), world.clone());
                tokio::spawn(async move {
                    // A client that does not trust us hangs up.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        world.answer(stream).await;
                    }
                });
            }
        });
        (url, certified.cert.pem())
    }

    async fn answer(self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut text = String::new();
        let mut buffer = vec![0; 16384];
        while !is_whole(&text) {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(n) => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
            }
        }
        let (status, body) = reply(&text);
        self.requests.lock().unwrap().push(text);
        let head = format!(
            "HTTP/1.1 {status} x\r\nx-aws-ec2-metadata-token-ttl-seconds: 600\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        // A client that has gone has what it wanted.
        let _ = stream.write_all((head + &body).as_bytes()).await;
        let _ = stream.shutdown().await;
    }

    /// The one request that holds these words.
    fn request(&self, words: &str) -> String {
        let requests = self.requests.lock().unwrap();
        let found = requests.iter().find(|request| request.contains(words));
        found
            .unwrap_or_else(|| panic!("{words} is in none of {requests:#?}"))
            .clone()
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

/// Runs `selvage-ipamd max-pods` for a type that only EC2 knows, with nothing of our own environment.
async fn max_pods(url: &str, variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_selvage-ipamd"))
        .args(["max-pods", TYPE])
        .env_clear()
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        .envs(variables.iter().copied())
        .output()
        .await
        .unwrap()
}

fn assert_prints(output: &Output, pods: &str) {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(out, pods, "{err}");
}

#[tokio::test]
async fn without_more_the_nodes_role_signs() {
    let world = World::default();
    let url = world.start().await;
    let output = max_pods(&url, &[("AWS_ENDPOINT_URL_EC2", &url)]).await;
    assert_prints(&output, "97\n");
    let request = world.request("Action=DescribeInstanceTypes");
    assert!(request.contains("Credential=AKIDNODE/"), "{request}");
    assert!(request.contains("us-west-2/ec2/aws4_request"), "{request}");
    assert!(request.contains("app/selvage-ipamd-"), "{request}");
}

#[tokio::test]
async fn a_role_of_the_service_account_signs_where_there_is_one() {
    let world = World::default();
    let url = world.start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "a-web-identity").unwrap();
    let variables = [
        ("AWS_ENDPOINT_URL_EC2", url.as_str()),
        ("AWS_ENDPOINT_URL_STS", &url),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/cni"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
    ];
    assert_prints(&max_pods(&url, &variables).await, "97\n");
    let asked = world.request("Action=AssumeRoleWithWebIdentity");
    assert!(asked.contains("WebIdentityToken=a-web-identity"), "{asked}");
    let request = world.request("Action=DescribeInstanceTypes");
    assert!(request.contains("Credential=AKIDIRSA/"), "{request}");
}

#[tokio::test]
async fn the_agent_of_pod_identity_is_asked_where_there_is_one_and_never_through_a_proxy() {
    let world = World::default();
    let url = world.start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "a-pod-token").unwrap();
    let agent = format!("{url}/pod-identity");
    let variables = [
        ("AWS_ENDPOINT_URL_EC2", url.as_str()),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent),
        (
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            token.to_str().unwrap(),
        ),
        ("HTTP_PROXY", "http://127.0.0.1:9"),
        ("HTTPS_PROXY", "http://127.0.0.1:9"),
    ];
    assert_prints(&max_pods(&url, &variables).await, "97\n");
    let asked = world.request("GET /pod-identity");
    assert!(asked.to_lowercase().contains("authorization: a-pod-token"));
    let request = world.request("Action=DescribeInstanceTypes");
    assert!(request.contains("Credential=AKIDPOD/"), "{request}");
}

#[tokio::test]
async fn endpoints_are_the_sdks_own_choice_and_reached_through_the_proxy() {
    for (variable, host) in [
        (None, "ec2.us-west-2.amazonaws.com:443"),
        (
            Some("AWS_USE_FIPS_ENDPOINT"),
            "ec2-fips.us-west-2.amazonaws.com:443",
        ),
        (
            Some("AWS_USE_DUALSTACK_ENDPOINT"),
            "ec2.us-west-2.api.aws:443",
        ),
    ] {
        let world = World::default();
        let url = world.start().await;
        let mut variables = vec![("HTTPS_PROXY", url.as_str())];
        variables.extend(variable.map(|name| (name, "true")));
        let output = max_pods(&url, &variables).await;
        assert!(!output.status.success());
        let asked = world.request("CONNECT ");
        assert!(asked.starts_with(&format!("CONNECT {host} ")), "{asked}");
    }
}

#[tokio::test]
async fn a_host_that_is_kept_from_the_proxy_is_reached_directly() {
    let world = World::default();
    let url = world.start().await;
    // Nothing listens there; the name of the endpoint is an address of loopback where nothing listens either.
    let variables = [
        ("AWS_ENDPOINT_URL_EC2", "https://127.0.0.1:9"),
        ("HTTPS_PROXY", &url),
        ("NO_PROXY", "127.0.0.1"),
    ];
    let output = max_pods(&url, &variables).await;
    assert!(!output.status.success());
    let requests = world.requests.lock().unwrap();
    let through = requests
        .iter()
        .any(|request| request.starts_with("CONNECT"));
    assert!(!through, "{requests:#?}");
}

#[tokio::test]
async fn an_endpoint_behind_a_certificate_of_ones_own_is_trusted_where_that_is_named() {
    let world = World::default();
    let metadata = world.start().await;
    let (url, certificate) = world.start_tls().await;
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("ca.pem");
    std::fs::write(&bundle, certificate).unwrap();
    let endpoint = ("AWS_ENDPOINT_URL_EC2", url.as_str());
    let trusted = [endpoint, ("AWS_CA_BUNDLE", bundle.to_str().unwrap())];
    assert_prints(&max_pods(&metadata, &trusted).await, "97\n");
    let output = max_pods(&metadata, &[endpoint]).await;
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(words.contains("certificate"), "{words}");
}

#[tokio::test]
async fn types_of_the_table_need_no_cloud() {
    for (arguments, printed) in [
        (&["max-pods", "c5.large"][..], "29\n"),
        (&["max-pods", "c5.xlarge"], "58\n"),
        (
            &[
                "--enable-prefix-delegation=true",
                "--warm-prefix-target=1",
                "max-pods",
                "c5.large",
            ],
            "110\n",
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_selvage-ipamd"))
            .args(arguments)
            .env_clear()
            .output()
            .await
            .unwrap();
        assert_prints(&output, printed);
    }
    let output = Command::new(env!("CARGO_BIN_EXE_selvage-ipamd"))
        .args(["max-pods", "c5.large", "-o", "json"])
        .env_clear()
        .output()
        .await
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["maxPods"], 29);
    assert_eq!(json["instanceType"], "c5.large");
    assert_eq!(json["interfaces"], 3);
    assert_eq!(json["addressesPerInterface"], 9);
}
