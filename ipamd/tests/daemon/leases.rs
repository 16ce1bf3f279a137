//! Addresses given and taken back.

use std::collections::BTreeSet;
use std::time::Duration;

use selvage_ipamd_core::cloud::Operation;
use selvage_ipamd_core::fake::Ec2;

use crate::node::{Node, until};

#[tokio::test(start_paused = true)]
async fn a_pod_gets_an_address_that_ec2_holds_and_the_table_of_its_interface() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    let reply = daemon.add("web").await.unwrap();
    let got = &reply.ip_allocation_metadata[0];
    assert!(node.held().contains(&got.ipv4_addr.parse().unwrap()));
    assert_eq!((got.device_number, got.route_table_id), (0, 254));
    assert!(!reply.use_external_snat);
    assert_eq!(reply.vpc_v4_cidrs, ["10.40.0.0/16"]);
    assert_eq!(reply.network_policy_mode, "");

    // The primary interface of a t3.small has three; the fourth pod is on another one.
    for pod in ["b", "c", "d"] {
        daemon.add_ok(pod).await;
    }
    let fourth = daemon.add("d").await.unwrap();
    let got = &fourth.ip_allocation_metadata[0];
    assert_eq!((got.device_number, got.route_table_id), (1, 2));
    assert!(node.book.0.lock().unwrap().enis.contains(&1));
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_same_sandbox_asking_again_gets_what_it_has() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    let first = daemon.add_ok("web").await;
    assert_eq!(daemon.add_ok("web").await, first);
    assert_ne!(daemon.add_ok("other").await, first);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn thirty_pods_at_once_get_thirty_addresses() {
    let node = Node::new(Ec2::with_limits(8, 30));
    let daemon = node.start_ready().await;
    let names: Vec<String> = (0..30).map(|n| format!("pod-{n}")).collect();
    let replies = futures::future::join_all(names.iter().map(|name| daemon.add_ok(name))).await;
    let distinct: BTreeSet<_> = replies.into_iter().collect();
    assert_eq!(distinct.len(), 30);
    assert!(distinct.is_subset(&node.held()));
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_rests_for_thirty_seconds_between_two_pods() {
    let mut node = Node::new(Ec2::with_limits(1, 2));
    node.args.add_wait_seconds = Some("0".into());
    let daemon = node.start_ready().await;
    let address = daemon.add_ok("one").await;
    assert_eq!(daemon.del_ok("one").await, address);
    let refused = daemon.add("two").await.unwrap_err();
    assert!(
        refused.message().contains("rest after their pods"),
        "{refused}"
    );
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(daemon.add_ok("two").await, address);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_runtime_no_longer_lists_is_collected_and_rests() {
    let mut node = Node::new(Ec2::with_limits(1, 4));
    node.args.add_wait_seconds = Some("0".into());
    let daemon = node.start_ready().await;
    let (one, two) = (daemon.add_ok("one").await, daemon.add_ok("two").await);
    let all = [("sandbox-one", "eth0"), ("sandbox-two", "eth0")];
    assert!(daemon.collect("aws-cni", &all).await.is_empty());
    assert!(
        daemon.collect("another", &[]).await.is_empty(),
        "of another network"
    );
    let left = [("sandbox-two", "eth0"), ("sandbox-one", "eth1")];
    assert_eq!(daemon.collect("aws-cni", &left).await, [one]);
    assert_eq!(daemon.add_ok("two").await, two);
    assert_eq!(
        daemon.del("one").await.unwrap_err().code(),
        tonic::Code::NotFound
    );
    let (three, refused) = (daemon.add_ok("three").await, daemon.add("four").await);
    assert_ne!(three, one, "it rests");
    assert!(
        refused
            .unwrap_err()
            .message()
            .contains("rest after their pods")
    );
    // On disk, too.
    daemon.kill().await;
    node.make_veth("two");
    let daemon = node.start_ready().await;
    assert_eq!(daemon.del_ok("two").await, two);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_nobody_knows_is_told_in_the_words_that_awss_plugin_looks_for() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    let error = daemon.del("nobody").await.unwrap_err();
    assert!(
        error.message().contains("datastore: unknown pod"),
        "{error}"
    );
    daemon.add_ok("web").await;
    daemon.del_ok("web").await;
    let error = daemon.del("web").await.unwrap_err();
    assert!(
        error.message().contains("datastore: unknown pod"),
        "{error}"
    );
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_sandbox_is_refused_by_name() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    let request = selvage_ipamd_rpc::ipam::AddNetworkRequest {
        if_name: "eth0".into(),
        network_name: "aws-cni".into(),
        ..Default::default()
    };
    let error = daemon
        .client
        .clone()
        .add_network(request)
        .await
        .unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert!(error.message().contains("ContainerID"), "{error}");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_add_waits_for_a_pool_that_is_being_refilled() {
    let ec2 = Ec2::with_limits(2, 2).slowed_by(|operation| {
        Box::pin(async move {
            if operation == Operation::CreateEni {
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
        })
    });
    let node = Node::new(ec2);
    let daemon = node.start_ready().await;
    daemon.add_ok("one").await;
    // The second address comes with an interface that takes three seconds to make.
    let started = tokio::time::Instant::now();
    daemon.add_ok("two").await;
    let waited = started.elapsed();
    assert!(waited >= Duration::from_secs(2), "{waited:?}");
    assert!(waited <= Duration::from_secs(5), "{waited:?}");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pods_keep_their_addresses_when_the_daemon_is_killed_and_comes_back() {
    for node in Node::on_disk_and_in_memory(Ec2::small) {
        let daemon = node.start_ready().await;
        let mut before = Vec::new();
        for pod in ["a", "b", "c", "d"] {
            before.push(daemon.add_ok(pod).await);
            node.make_veth(pod);
        }
        daemon.kill().await;

        let daemon = node.start().await;
        for (pod, address) in ["a", "b", "c", "d"].iter().zip(&before) {
            assert_eq!(daemon.add_ok(pod).await, *address, "{pod}");
        }
        assert!(!before.contains(&daemon.add_ok("e").await));
        let taken_over = node.book.0.lock().unwrap().pods.len();
        assert_eq!(taken_over, 4, "routes and rules made again");
        for (pod, address) in ["a", "b", "c", "d"].iter().zip(&before) {
            assert_eq!(daemon.del_ok(pod).await, *address, "{pod}");
        }
        daemon.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_went_while_no_daemon_ran_leaves_its_address_resting_and_no_rules() {
    let mut node = Node::new(Ec2::with_limits(1, 3));
    node.args.add_wait_seconds = Some("0".into());
    let daemon = node.start_ready().await;
    let gone = daemon.add_ok("gone").await;
    let here = daemon.add_ok("here").await;
    node.make_veth("here");
    daemon.stop().await;

    let daemon = node.start().await;
    until("the daemon has started", || {
        node.book.0.lock().unwrap().forgotten == [gone]
    })
    .await;
    let refused = loop {
        let error = daemon.add("new").await.unwrap_err();
        if !error.message().contains("starting") {
            break error;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(refused.message().contains("rest"), "{refused}");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(daemon.add_ok("new").await, gone);
    assert_eq!(daemon.add_ok("here").await, here);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_that_rests_still_rests_after_a_restart() {
    let mut node = Node::new(Ec2::with_limits(1, 2));
    node.args.add_wait_seconds = Some("0".into());
    let daemon = node.start_ready().await;
    daemon.add_ok("one").await;
    daemon.del_ok("one").await;
    daemon.stop().await;
    let daemon = node.start().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let refused = daemon.add("two").await.unwrap_err();
    assert!(refused.message().contains("rest"), "{refused}");
    daemon.stop().await;
}
