//! How the daemon comes and goes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use selvage_ipamd::health;
use selvage_ipamd_core::cloud::{EniFacts, Operation, TAG_INSTANCE};
use selvage_ipamd_core::fake::{Ec2, Fault};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::node::{Node, until};

#[tokio::test(start_paused = true)]
async fn silent_metadata_is_waited_for_and_named() {
    let node = Node::new(Ec2::small());
    node.ec2.fail_always(Operation::Facts, Fault::Hang);
    let daemon = node.start().await;
    let socket = node.path("run/ipamd.sock");
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(daemon.is_running());
    health(&socket, true).await.unwrap();
    health(&socket, false).await.unwrap_err();
    let error = daemon.add("web").await.unwrap_err();
    assert!(error.message().contains("instance metadata"), "{error}");
    assert!(error.message().contains("no answer within"), "{error}");
    assert!(!node.conflist().exists(), "the node would be Ready");
    let calls = node.ec2.calls(Operation::Facts);
    assert!((3..=14).contains(&calls), "{calls} tries in five minutes");

    node.ec2.heal();
    until("the conflist is written", || node.conflist().exists()).await;
    health(&socket, false).await.unwrap();
    daemon.add_ok("web").await;
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_conflist_waits_for_the_first_address_and_outlives_the_daemon() {
    let node = Node::new(Ec2::small());
    node.ec2
        .fail_always(Operation::AssignAddresses, Fault::Broken);
    node.ec2.fail_always(Operation::CreateEni, Fault::Broken);
    let daemon = node.start().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!node.conflist().exists());
    let error = daemon.add("web").await.unwrap_err();
    assert!(error.message().contains("InternalError"), "{error}");
    node.ec2.heal();
    until("the conflist is written", || node.conflist().exists()).await;
    assert!(node.path("bin/aws-cni").exists());
    daemon.stop().await;
    assert!(node.conflist().exists());
    assert!(node.path("run/ipam.json").exists());
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_cannot_be_understood_stops_the_start_and_is_not_touched() {
    for (text, words) in [
        ("not json", "cannot be understood"),
        (
            r#"{"version":"vpc-cni-ipam/2","pods":{}}"#,
            "vpc-cni-ipam/2",
        ),
        (
            r#"{"version":"vpc-cni-ipam/1","allocations":[
                {"networkName":"n","containerID":"c1","ifName":"eth0","ipv4":"10.40.0.5"},
                {"networkName":"n","containerID":"c2","ifName":"eth0","ipv4":"10.40.0.5"}]}"#,
            "10.40.0.5 is leased to n/c1/eth0 and to n/c2/eth0",
        ),
    ] {
        let node = Node::new(Ec2::small());
        fs::create_dir(node.path("run")).unwrap();
        fs::write(node.path("run/ipam.json"), text).unwrap();
        let ended = node.run(CancellationToken::new()).await.unwrap();
        let error = ended.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(error.contains("drain the node"), "{error}");
        let there = fs::read_to_string(node.path("run/ipam.json")).unwrap();
        assert_eq!(there, text);
        assert_eq!(node.ec2.calls(Operation::CreateEni), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_daemon_refuses_to_run_beside_the_first() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    let second = node.run(CancellationToken::new()).await.unwrap();
    let error = second.unwrap_err().to_string();
    assert!(error.contains("another ipamd is running"), "{error}");
    daemon.add_ok("web").await;
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_whose_socket_another_takes_or_removes_says_so_and_ends() {
    for taken in [true, false] {
        let node = Node::new(Ec2::small());
        let run = node.run(CancellationToken::new());
        until("the conflist is written", || node.conflist().exists()).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!run.is_finished());
        let socket = node.path("run/ipamd.sock");
        fs::remove_file(&socket).unwrap();
        let other = taken.then(|| std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let ended = tokio::time::timeout(Duration::from_secs(11), run).await;
        let error = ended.unwrap().unwrap().unwrap_err().to_string();
        assert!(error.contains("it is no longer ours"), "{error}");
        assert!(node.told.has("SocketLost", "no longer ours"));
        // Nothing of the other's is touched.
        assert_eq!(socket.exists(), other.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_was_left_behind_is_replaced_and_only_its_group_may_use_it() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    daemon.kill().await;
    let socket = node.path("run/ipamd.sock");
    assert!(socket.exists());
    let daemon = node.start().await;
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    daemon.add_ok("web").await;
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_is_told_to_end_while_it_starts_ends() {
    let node = Node::new(Ec2::small());
    node.ec2.fail_always(Operation::Facts, Fault::Hang);
    node.start().await.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_when_the_daemon_ends_is_told_so() {
    let node = Node::new(Ec2::with_limits(2, 2).slowed_by(|operation| {
        Box::pin(async move {
            if operation == Operation::CreateEni {
                tokio::time::sleep(Duration::from_secs(4)).await;
            }
        })
    }));
    let daemon = node.start_ready().await;
    daemon.add_ok("one").await;
    let client = daemon.client.clone();
    let waiting = tokio::spawn(async move {
        let request = selvage_ipamd_rpc::ipam::AddNetworkRequest {
            if_name: "eth0".into(),
            network_name: "aws-cni".into(),
            container_id: "two".into(),
            ..Default::default()
        };
        client.add_network(request).await
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    daemon.stop().await;
    let error = waiting.await.unwrap().unwrap_err();
    assert!(error.message().contains("stopping"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn awss_policy_agent_is_told_mode_and_node() {
    use selvage_ipamd_rpc::client::{Deadlines, call, request};
    use selvage_ipamd_rpc::ipam::config_server_backend_client::ConfigServerBackendClient;
    let mut node = Node::new(Ec2::small());
    node.args.network_policy_enforcing_mode = Some("standard".into());
    let daemon = node.start_ready().await;
    let deadlines = Deadlines {
        connect: Duration::from_secs(1),
        reply: Duration::from_secs(1),
    };
    let reply = call(&node.path("run/ipamd.sock"), deadlines, async |ipamd| {
        ConfigServerBackendClient::new(ipamd)
            .get_network_policy_configs(request((), deadlines))
            .await
    })
    .await
    .unwrap();
    assert_eq!(reply.network_policy_mode, "standard");
    assert_eq!(reply.node_ipv4, "10.40.0.4");
    assert_eq!(reply.instance_id, "i-0fake");
    assert_eq!(reply.region, "us-west-2");
    assert_eq!(
        daemon.add("web").await.unwrap().network_policy_mode,
        "standard"
    );
    daemon.stop().await;
}

/// Enough that hardly a node's turn comes at once.
const MANY: u32 = 100_000;

fn describes(node: &Node) -> u64 {
    node.ec2.calls(Operation::DescribeEnis)
}

#[tokio::test(start_paused = true)]
async fn a_new_node_asks_ec2_what_it_has_when_it_makes_an_interface_and_a_later_start_at_once() {
    let node = Node::new(Ec2::small());
    node.ec2.fail_always(Operation::CreateEni, Fault::Broken);
    let daemon = node.start_ready().await;
    assert_eq!(describes(&node), 0);
    node.ec2
        .fail_next(Operation::DescribeEnis, &[Fault::Throttle]);
    daemon.add_ok("web").await;
    let tried = || node.ec2.calls(Operation::CreateEni) >= 2;
    until("an interface is wanted", tried).await;
    assert_eq!(
        describes(&node),
        2,
        "asked until it has answered, and no more"
    );
    node.ec2.heal();
    until("it is made", || node.ec2.enis().len() == 2).await;
    daemon.kill().await;
    let before = describes(&node);
    let daemon = node.start().await;
    // And what was left: made and not attached.
    until("it has looked", || describes(&node) == before + 2).await;
    daemon.add_ok("api").await;
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_node_asks_ec2_at_once_where_metadata_shows_more_than_ec2_made_or_tags_matter() {
    let held = Node::new(Ec2::small());
    held.ec2.attach_by_hand(1, 2);
    let mut tags = Node::new(Ec2::small());
    tags.args.additional_eni_tags = Some(r#"{"team":"blue"}"#.into());
    let mut attached = Node::new(Ec2::small());
    attached.args.disable_network_resource_provisioning = Some("true".into());
    attached.ec2.attach_by_hand(1, 2);
    let silent = Node::new(Ec2::small());
    silent.ec2.fail_next(Operation::SeenEnis, &[Fault::Broken]);
    for (node, why) in [
        (held, "a second interface"),
        (tags, "tags of the user's"),
        (attached, "interfaces are somebody else's"),
        (silent, "metadata is silent"),
    ] {
        let daemon = node.start_ready().await;
        assert_eq!(describes(&node), 1, "{why}");
        daemon.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn where_a_daemon_ran_since_the_boot_ec2_is_asked_whatever_metadata_shows() {
    let node = Node::new(Ec2::small());
    fs::create_dir(node.path("run")).unwrap();
    let empty = r#"{"version":"vpc-cni-ipam/1","allocations":[]}"#;
    fs::write(node.path("run/ipam.json"), empty).unwrap();
    let daemon = node.start_ready().await;
    // It may have ended between making an interface and attaching it.
    assert_eq!(describes(&node), 2);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_started_again_while_ec2_is_away_serves_what_metadata_shows() {
    let node = Node::new(Ec2::with_limits(4, 4));
    let daemon = node.start_ready().await;
    for pod in ["a", "b", "c", "d"] {
        node.make_veth(pod);
        daemon.add_ok(pod).await;
    }
    let whole = || {
        let enis = node.ec2.enis();
        enis.len() == 3 && enis.iter().all(|eni| eni.tags.contains_key(TAG_INSTANCE))
    };
    until("interfaces are there and tagged", whole).await;
    tokio::time::sleep(Duration::from_secs(70)).await;
    daemon.stop().await;
    // One that no pod uses may be anybody's.
    let before = node.ec2.enis();
    node.ec2.attach_by_hand(3, 2);
    let by_hand = |eni: &EniFacts| eni.attachment.as_ref().is_some_and(|a| a.device_index == 3);
    let away = [
        Operation::DescribeEnis,
        Operation::CreateEni,
        Operation::AssignAddresses,
    ];
    for operation in away {
        node.ec2.fail_always(operation, Fault::Throttle);
    }
    let tagged = node.ec2.calls(Operation::TagEni);
    let begun = Instant::now();
    let daemon = node.start().await;
    until("it says so", || {
        node.told.has("StartWithoutEC2", "RequestLimitExceeded")
    })
    .await;
    let took = begun.elapsed().as_secs();
    assert!((10..20).contains(&took), "{took} s");
    let more = [daemon.add_ok("e").await, daemon.add_ok("f").await];
    let held = |eni: &EniFacts| eni.secondary_addresses.clone();
    let used: Vec<_> = before.iter().flat_map(held).collect();
    assert!(
        more.iter().all(|address| used.contains(address)),
        "{more:?}"
    );
    daemon.del_ok("a").await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let now = node.ec2.enis();
    let same = |eni: &EniFacts| by_hand(eni) || before.contains(eni);
    assert!(
        now.iter().all(same),
        "nothing was changed meanwhile: {now:?}"
    );
    assert_eq!(node.ec2.calls(Operation::TagEni), tagged);
    // EC2 answers: the fourth is taken in, and what we made is ours again.
    node.ec2.heal();
    let adopted = || {
        let enis = node.ec2.enis();
        enis.iter().all(|eni| eni.tags.contains_key(TAG_INSTANCE))
    };
    until("the other interface is adopted", adopted).await;
    for pod in ["b", "c", "d", "e", "f"] {
        daemon.del_ok(pod).await;
    }
    tokio::time::sleep(Duration::from_secs(720)).await;
    let fewer = || node.ec2.enis().len() == 2;
    until("what we made is given back, and nothing else", fewer).await;
    assert!(node.ec2.enis().iter().any(by_hand));
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_first_start_waits_for_ec2_where_metadata_shows_what_somebody_attached() {
    let node = Node::new(Ec2::small());
    node.ec2.attach_by_hand(1, 2);
    node.ec2
        .fail_always(Operation::DescribeEnis, Fault::Throttle);
    let daemon = node.start().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let error = daemon.add("web").await.unwrap_err();
    assert!(
        error.message().contains("describe the interfaces"),
        "{error}"
    );
    node.ec2.heal();
    until("the conflist is written", || node.conflist().exists()).await;
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_booted_again_finds_what_was_made_before() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    let tagged = || {
        node.ec2
            .enis()
            .iter()
            .all(|eni| eni.tags.contains_key(TAG_INSTANCE))
    };
    until("the interface is tagged", tagged).await;
    // It ends between making an interface and attaching it.
    node.ec2.fail_always(Operation::AttachEni, Fault::Broken);
    daemon.add_ok("web").await;
    until("one is made", || node.ec2.enis().len() == 2).await;
    daemon.kill().await;
    fs::remove_file(node.path("run/ipam.json")).unwrap();
    node.ec2.heal();
    let daemon = node.start_ready().await;
    let attached = || node.ec2.enis().iter().all(|eni| eni.attachment.is_some());
    until("it is attached", attached).await;
    assert_eq!(node.ec2.enis().len(), 2, "no other is made");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn where_many_nodes_start_each_waits_for_its_turn_and_says_so() {
    let node = Node::new(Ec2::small());
    *node.told.starting.lock().unwrap() = Some(MANY);
    let daemon = node.start().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let reads = || node.ec2.calls(Operation::DescribeSubnets) + describes(&node);
    assert_eq!(reads(), 0);
    let error = daemon.add("web").await.unwrap_err();
    assert!(error.message().contains("its turn"), "{error}");
    health(&node.path("run/ipamd.sock"), true).await.unwrap();
    let asked = || node.told.asked_starting.load(Ordering::Relaxed);
    while !node.conflist().exists() {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    let (asked_until_ready, reads_until_ready) = (asked(), reads());
    assert!(
        (2..2000).contains(&asked_until_ready),
        "{asked_until_ready} questions"
    );
    assert!(
        (1..=2).contains(&reads_until_ready),
        "{reads_until_ready} reads"
    );
    daemon.add_ok("web").await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(asked(), asked_until_ready, "its turn has come");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_starts_as_if_alone_where_nobody_says_how_many_start() {
    for silent in [true, false] {
        let node = Node::new(Ec2::small());
        node.told.silent.store(silent, Ordering::Relaxed);
        let started = Instant::now();
        let daemon = node.start_ready().await;
        assert!(
            started.elapsed() < Duration::from_secs(3),
            "silent: {silent}"
        );
        daemon.add_ok("web").await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        let asked = node.told.asked_starting.load(Ordering::Relaxed);
        assert_eq!(asked, 1, "silent: {silent}");
        daemon.stop().await;
    }
}

/// It calls EC2 for nothing.
#[tokio::test(start_paused = true)]
async fn a_node_that_lives_on_metadata_alone_has_no_turn_and_asks_for_none() {
    let mut node = Node::new(Ec2::small());
    node.args.enable_imds_only_mode = Some("true".into());
    node.ec2.attach_by_hand(1, 2);
    *node.told.starting.lock().unwrap() = Some(MANY);
    let started = Instant::now();
    let daemon = node.start_ready().await;
    assert!(started.elapsed() < Duration::from_secs(3));
    daemon.add_ok("web").await;
    assert_eq!(node.told.asked_starting.load(Ordering::Relaxed), 0);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_pods_waits_for_nobody() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    node.make_veth("web");
    daemon.add_ok("web").await;
    daemon.stop().await;
    *node.told.starting.lock().unwrap() = Some(MANY);
    let asked = node.told.asked_starting.load(Ordering::Relaxed);
    let before = describes(&node);
    let daemon = node.start().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(describes(&node), before + 2);
    assert_eq!(node.told.asked_starting.load(Ordering::Relaxed), asked);
    daemon.add_ok("other").await;
    daemon.stop().await;
}
