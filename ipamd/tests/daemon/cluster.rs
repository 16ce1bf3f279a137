//! What the API server says of the node, and what the daemon leaves there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use selvage_ipamd::cluster::{EniConfigView, NodeView};
use selvage_ipamd_core::cloud::{
    Cloud, CreateEni, Operation, TAG_CLUSTER, TAG_CREATED, TAG_INSTANCE, Want,
};
use selvage_ipamd_core::fake::{Ec2, Fault};
use selvage_ipamd_core::ids::{ClientToken, EniId, InstanceId, SecurityGroupId, SubnetId};
use selvage_ipamd_core::pool::EniConfig;

use crate::node::{Node, until};

#[tokio::test(start_paused = true)]
async fn a_pod_carries_its_address_as_an_annotation_until_it_ends() {
    let mut node = Node::new(Ec2::small());
    node.args.annotate_pod_ip = Some("true".into());
    let daemon = node.start_ready().await;
    let address = daemon.add_ok("web").await.to_string();
    let annotation = |pod: &str| node.told.annotations.lock().unwrap().get(pod).cloned();
    assert_eq!(annotation("web"), Some(address));
    daemon.del_ok("web").await;
    assert_eq!(annotation("web").as_deref(), Some(""));
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_annotated_unless_it_was_asked_for() {
    let node = Node::new(Ec2::small());
    let daemon = node.start_ready().await;
    daemon.add_ok("web").await;
    assert!(node.told.annotations.lock().unwrap().is_empty());
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_cordoned_node_keeps_the_interfaces_that_it_has_and_says_so() {
    let mut node = Node::new(Ec2::small());
    node.args.warm_eni_target = Some("0".into());
    let daemon = node.start_ready().await;
    node.told.node.send_modify(|view| view.unschedulable = true);
    for pod in ["a", "b", "c"] {
        daemon.add_ok(pod).await;
    }
    let refused = daemon.add("d").await.unwrap_err();
    assert!(refused.message().contains("unschedulable"), "{refused}");
    assert_eq!(node.ec2.enis().len(), 1);
    node.told
        .node
        .send_modify(|view| view.unschedulable = false);
    until("another interface comes", || node.ec2.enis().len() == 2).await;
    daemon.add_ok("d").await;
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_pool_does_not_grow_beyond_the_pods_that_the_kubelet_takes() {
    let node = Node::new(Ec2::with_limits(8, 30));
    node.told.node.send_modify(|view| view.max_pods = Some(10));
    let daemon = node.start_ready().await;
    for pod in 0..10 {
        daemon.add_ok(&format!("pod-{pod}")).await;
    }
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(node.ec2.enis().len(), 1, "29 addresses are enough for 10");
    daemon.stop().await;
}

fn custom(node: &mut Node) {
    node.args.custom_network_cfg = Some("true".into());
    node.args.add_wait_seconds = Some("1".into());
}

fn found(subnet: &str) -> NodeView {
    NodeView {
        eni_config: EniConfigView::Found(EniConfig {
            name: "zone-a".into(),
            subnet_id: SubnetId::new(subnet),
            security_groups: vec![SecurityGroupId::new("sg-pods")],
        }),
        ..NodeView::default()
    }
}

fn missing(why: &str) -> NodeView {
    NodeView {
        eni_config: EniConfigView::Missing(why.into()),
        ..NodeView::default()
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_eni_config_every_add_says_so_and_with_one_pods_are_on_its_subnet() {
    let ec2 =
        Ec2::with_limits(3, 10).with_subnet("subnet-pods", "10.40.64.0/20".parse().unwrap(), &[]);
    let mut node = Node::new(ec2);
    custom(&mut node);
    node.told
        .node
        .send_replace(missing("there is no ENIConfig zone-a"));
    let daemon = node.start().await;
    until("it is told", || node.told.has("NoEniConfig", "zone-a")).await;
    let refused = daemon.add("web").await.unwrap_err();
    assert!(
        refused.message().contains("there is no ENIConfig zone-a"),
        "{refused}"
    );
    assert!(!node.conflist().exists(), "the node would be Ready");
    node.told.node.send_replace(found("subnet-pods"));
    until("the conflist is written", || node.conflist().exists()).await;
    let reply = daemon.add("web").await.unwrap();
    let got = &reply.ip_allocation_metadata[0];
    assert!(got.ipv4_addr.starts_with("10.40.64."), "{got:?}");
    assert_eq!((got.device_number, got.route_table_id), (1, 2));
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_eni_config_of_another_zone_is_named_in_the_add() {
    let ec2 =
        Ec2::with_limits(3, 10).with_subnet("subnet-pods", "10.40.64.0/20".parse().unwrap(), &[]);
    let mut node = Node::new(ec2);
    custom(&mut node);
    node.told.node.send_replace(found("subnet-elsewhere"));
    let daemon = node.start().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let refused = daemon.add("web").await.unwrap_err();
    for word in ["zone-a", "subnet-elsewhere"] {
        assert!(refused.message().contains(word), "{word}: {refused}");
    }
    assert_eq!(node.ec2.calls(Operation::CreateEni), 0, "it would leak");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn groups_that_do_not_exist_are_named_in_the_add_and_as_an_event() {
    let ec2 =
        Ec2::with_limits(3, 10).with_subnet("subnet-pods", "10.40.64.0/20".parse().unwrap(), &[]);
    let mut node = Node::new(ec2);
    custom(&mut node);
    let fault = Fault::Refuse("InvalidGroup.NotFound");
    node.ec2.fail_always(Operation::CreateEni, fault);
    node.told.node.send_replace(found("subnet-pods"));
    let daemon = node.start().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let refused = daemon.add("web").await.unwrap_err();
    assert!(
        refused.message().contains("InvalidGroup.NotFound"),
        "{refused}"
    );
    assert!(node.told.has("NoSuchNetwork", "InvalidGroup.NotFound"));
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_forgets_the_eni_config_stops_no_pod() {
    let ec2 =
        Ec2::with_limits(3, 10).with_subnet("subnet-pods", "10.40.64.0/20".parse().unwrap(), &[]);
    let mut node = Node::new(ec2);
    custom(&mut node);
    node.told.node.send_replace(found("subnet-pods"));
    let daemon = node.start_ready().await;
    daemon.add_ok("one").await;
    node.told
        .node
        .send_replace(missing("the API server is away"));
    tokio::time::sleep(Duration::from_secs(120)).await;
    daemon.add_ok("two").await;
    daemon.stop().await;
    // And not after a restart either.
    let daemon = node.start_ready().await;
    daemon.add_ok("three").await;
    daemon.stop().await;
}

/// An interface that nobody has, as if an instance had made it and died.
async fn leave_behind(ec2: &Ec2, instance: &str, created: Option<&str>) -> EniId {
    let mut tags = BTreeMap::from([
        (TAG_INSTANCE.to_owned(), instance.to_owned()),
        (TAG_CLUSTER.to_owned(), "blue".to_owned()),
    ]);
    tags.extend(created.map(|text| (TAG_CREATED.to_owned(), text.to_owned())));
    let request = CreateEni {
        token: ClientToken::new(format!("{instance}-{created:?}")),
        subnet_id: SubnetId::new("subnet-1"),
        security_groups: vec![],
        want: Want::Addresses(0),
        description: format!("aws-K8S-{instance}"),
        tags,
    };
    ec2.create_eni(&request).await.unwrap().id
}

fn there(ec2: &Ec2) -> BTreeSet<EniId> {
    ec2.enis().into_iter().map(|eni| eni.id).collect()
}

#[tokio::test(start_paused = true)]
async fn what_dead_nodes_left_behind_is_deleted_by_the_node_that_leads_and_by_no_other() {
    let old = Some("2020-01-01T00:00:00Z");
    let mut nodes = [Node::new(Ec2::small()), Node::new(Ec2::small())];
    let mut leaked = Vec::new();
    for node in &mut nodes {
        node.args.cluster_name = Some("blue".into());
        leaked.push(leave_behind(&node.ec2, "i-dead", old).await);
        let mut alive = node.told.alive.lock().unwrap();
        alive.insert(node.ec2.instance().instance_id);
        alive.insert(InstanceId::new("i-alive"));
    }
    let kept = leave_behind(&nodes[0].ec2, "i-alive", old).await;
    let undated = leave_behind(&nodes[0].ec2, "i-dead", None).await;
    nodes[0].told.leads.store(true, Ordering::Relaxed);
    let first = nodes[0].start_ready().await;
    let second = nodes[1].start_ready().await;
    until("it is deleted", || {
        !there(&nodes[0].ec2).contains(&leaked[0])
    })
    .await;
    let left = there(&nodes[0].ec2);
    assert!(left.contains(&kept), "its node lives");
    assert!(left.contains(&undated), "nobody knows how old it is");
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert!(
        there(&nodes[1].ec2).contains(&leaked[1]),
        "it does not lead"
    );
    // Dated at the first look, so it is old by now.
    assert!(!there(&nodes[0].ec2).contains(&undated));
    // The other one takes over.
    first.stop().await;
    nodes[1].told.leads.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(600)).await;
    until("it is deleted", || {
        !there(&nodes[1].ec2).contains(&leaked[1])
    })
    .await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_while_the_api_server_does_not_say_who_lives_or_where_it_is_turned_off()
{
    let old = Some("2020-01-01T00:00:00Z");
    for off in [
        |node: &mut Node| node.args.disable_leaked_eni_cleanup = Some("true".into()),
        |node: &mut Node| node.told.silent.store(true, Ordering::Relaxed),
    ] {
        let mut node = Node::new(Ec2::small());
        off(&mut node);
        node.told.leads.store(true, Ordering::Relaxed);
        let leaked = leave_behind(&node.ec2, "i-dead", old).await;
        let daemon = node.start_ready().await;
        tokio::time::sleep(Duration::from_secs(4 * 3600)).await;
        assert!(there(&node.ec2).contains(&leaked));
        daemon.stop().await;
    }
}
