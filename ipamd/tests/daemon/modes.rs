//! Modes of a node, from its settings to what a pod is given; and what is seen of it from outside.

use std::net::IpAddr;
use std::time::Duration;

use selvage_ipamd::inspect;
use selvage_ipamd_core::cloud::Operation;
use selvage_ipamd_core::fake::Ec2;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::node::{Node, until};

/// Every call to EC2 there is.
const EC2_CALLS: [Operation; 12] = [
    Operation::DescribeEnis,
    Operation::DescribeSubnets,
    Operation::FindLooseEnis,
    Operation::CreateEni,
    Operation::AttachEni,
    Operation::KeepWithInstance,
    Operation::AssignAddresses,
    Operation::AssignIpv6,
    Operation::UnassignAddresses,
    Operation::TagEni,
    Operation::DetachEni,
    Operation::DeleteEni,
];

#[tokio::test(start_paused = true)]
async fn with_prefixes_pods_get_addresses_of_one_block() {
    let mut node = Node::new(Ec2::with_limits(3, 10));
    node.args.enable_prefix_delegation = Some("true".into());
    node.args.warm_prefix_target = Some("1".into());
    let daemon = node.start_ready().await;
    let mut addresses = Vec::new();
    for pod in 0..16 {
        addresses.push(daemon.add_ok(&format!("pod-{pod}")).await);
    }
    let block = |address: &std::net::Ipv4Addr| u32::from(*address) >> 4;
    assert!(
        addresses.iter().all(|a| block(a) == block(&addresses[0])),
        "{addresses:?}"
    );
    let view = inspect::status(&node.path("run/ipamd.sock")).await.unwrap();
    assert_eq!(view.mode, "prefixes");
    assert!(view.numbers.prefixes >= 2, "{view}");
    assert!(view.to_string().contains("/28"), "{view}");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn with_ipv6_a_pod_gets_an_address_of_the_primary_interfaces_block() {
    let mut node = Node::new(Ec2::with_limits(3, 10));
    node.args.enable_prefix_delegation = Some("true".into());
    node.args.enable_ipv6 = Some("true".into());
    let daemon = node.start_ready().await;
    let reply = daemon.add("web").await.unwrap();
    let got = &reply.ip_allocation_metadata[0];
    assert_eq!(got.ipv4_addr, "");
    assert!(
        matches!(got.ipv6_addr.parse(), Ok(IpAddr::V6(_))),
        "{got:?}"
    );
    assert_eq!((got.device_number, got.route_table_id), (0, 254));
    assert_eq!(daemon.add("web").await.unwrap(), reply);
    let gone = daemon.del("web").await.unwrap();
    assert_eq!(gone.ip_allocation_metadata[0].ipv6_addr, got.ipv6_addr);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn by_metadata_alone_pods_get_what_is_attached_and_ec2_is_never_called() {
    let ec2 = Ec2::with_limits(3, 10);
    ec2.attach_by_hand(1, 4);
    let mut node = Node::new(ec2);
    node.args.enable_imds_only_mode = Some("true".into());
    node.args.add_wait_seconds = Some("0".into());
    let daemon = node.start_ready().await;
    for pod in 0..4 {
        daemon.add_ok(&format!("pod-{pod}")).await;
    }
    let refused = daemon.add("one-more").await.unwrap_err();
    assert!(
        refused.message().contains("ENABLE_IMDS_ONLY_MODE"),
        "{refused}"
    );
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    for operation in EC2_CALLS {
        assert_eq!(node.ec2.calls(operation), 0, "{operation}");
    }
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_provisioning_ec2_is_asked_and_never_told() {
    let ec2 = Ec2::with_limits(3, 10);
    ec2.attach_by_hand(1, 4);
    let mut node = Node::new(ec2);
    node.args.disable_network_resource_provisioning = Some("true".into());
    node.args.add_wait_seconds = Some("0".into());
    let daemon = node.start_ready().await;
    daemon.add_ok("web").await;
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    for operation in EC2_CALLS {
        let reads = operation.budget() == Some(selvage_ipamd_core::cloud::Budget::Read);
        assert!(reads || node.ec2.calls(operation) == 0, "{operation}");
    }
    assert!(node.ec2.calls(Operation::DescribeEnis) > 0);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn status_shows_the_pool_its_pods_and_what_comes_next() {
    let node = Node::new(Ec2::with_limits(3, 10));
    let daemon = node.start_ready().await;
    daemon.add_ok("web").await;
    let socket = node.path("run/ipamd.sock");
    let view = inspect::status(&socket).await.unwrap();
    assert_eq!(view.status, "ready");
    assert_eq!(view.instance, "i-0fake");
    assert_eq!(view.numbers.assigned, 1);
    let pods: Vec<&str> = view
        .interfaces
        .iter()
        .flat_map(|eni| &eni.blocks)
        .flat_map(|block| block.pods.values())
        .map(|pod| pod.name.as_str())
        .collect();
    assert_eq!(pods, ["web"]);
    assert_eq!(view.calls.len(), 2);
    let text = view.to_string();
    assert!(text.contains("eni-0"), "{text}");
    let metrics = inspect::read(&socket, "/metrics").await.unwrap();
    assert!(
        metrics.contains("\nawscni_assigned_ip_addresses 1\n"),
        "{metrics}"
    );
    assert!(metrics.contains("\nselvage_ipamd_ready 1\n"), "{metrics}");
    let enis = inspect::read(&socket, "/v1/enis").await.unwrap();
    assert!(enis.contains("\"k8sPodName\": \"web\""), "{enis}");
    assert!(!enis.contains("sandbox-web"), "{enis}");
    let error = inspect::read(&socket, "/v1/pods").await.unwrap_err();
    assert!(error.to_string().contains("/v1/enis"), "{error}");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn status_of_a_daemon_that_starts_says_what_it_waits_for() {
    let node = Node::new(Ec2::small());
    node.ec2
        .fail_always(Operation::Facts, selvage_ipamd_core::fake::Fault::Broken);
    let daemon = node.start().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let view = inspect::status(&node.path("run/ipamd.sock")).await.unwrap();
    assert!(
        view.status.starts_with("starting: read instance metadata"),
        "{view}"
    );
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn introspection_is_served_where_it_was_asked_for() {
    let mut node = Node::new(Ec2::small());
    let path = node.path("run/pages.sock");
    node.args.disable_introspection = None;
    node.args.introspection_bind_address = Some(format!("unix:{}", path.display()));
    let daemon = node.start_ready().await;
    until("it is there", || path.exists()).await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream
        .write_all(b"GET /v1/ipamd-env-settings HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    assert!(reply.contains("application/json"), "{reply}");
    assert!(reply.contains("\"WARM_ENI_TARGET\": 1"), "{reply}");
    daemon.stop().await;
}
