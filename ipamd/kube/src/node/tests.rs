use std::time::Duration;

use selvage_ipamd::config::Args;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use crate::server::Server;

const NODE: &str = "/api/v1/nodes/node-1";
const CONFIGS: &str = "/apis/crd.k8s.amazonaws.com/v1alpha1/eniconfigs";

fn config(custom: bool) -> Config {
    let args = Args {
        node_name: Some("node-1".into()),
        custom_network_cfg: Some(custom.to_string()),
        eni_config_label_def: Some("topology.kubernetes.io/zone".into()),
        ..Args::default()
    };
    Config::try_from(&args).unwrap()
}

fn node(labels: Value, annotations: Value) -> Value {
    json!({
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]},
        "status": {"capacity": {"pods": "58", "cpu": "4"}},
    })
}

fn eni_config(subnet: &str) -> Value {
    json!({"metadata": {}, "spec": {"subnet": subnet, "securityGroups": ["sg-1", "sg-2"]}})
}

/// Waits, in paused time, until the view is as it should be.
async fn until(view: &mut watch::Receiver<NodeView>, holds: impl Fn(&NodeView) -> bool) {
    let waited = timeout(Duration::from_secs(600), view.wait_for(|v| holds(v)))
        .await
        .is_ok();
    assert!(
        waited,
        "ten minutes have passed, and it is {:?}",
        view.borrow()
    );
}

fn subnet(view: &NodeView) -> Option<&str> {
    match &view.eni_config {
        EniConfigView::Found(found) => Some(found.subnet_id.as_str()),
        EniConfigView::Unused | EniConfigView::Missing(_) => None,
    }
}

fn missing(view: &NodeView) -> &str {
    match &view.eni_config {
        EniConfigView::Missing(why) => why,
        EniConfigView::Unused | EniConfigView::Found(_) => "",
    }
}

#[tokio::test(start_paused = true)]
async fn a_cordoned_node_is_noticed_and_so_is_its_end() {
    let server = Server::default();
    server.set(NODE, node(json!({}), json!({})));
    let mut view = start(server.client(), &config(false));
    until(&mut view, |v| v.max_pods == Some(58)).await;
    assert!(!view.borrow().unschedulable, "other taints do not count");
    let mut cordoned = node(json!({}), json!({}));
    cordoned["spec"]["taints"] = json!([{"key": UNSCHEDULABLE, "effect": "NoSchedule"}]);
    server.set(NODE, cordoned);
    until(&mut view, |v| v.unschedulable).await;
    server.set(NODE, node(json!({}), json!({})));
    until(&mut view, |v| !v.unschedulable).await;
    assert_eq!(view.borrow().eni_config, EniConfigView::Unused);
    let all = server.requests();
    assert!(
        all.iter().all(|r| r.contains("metadata.name%3Dnode-1")),
        "one object only: {all:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_goes_away_leaves_what_was_known() {
    let server = Server::default();
    server.set(
        NODE,
        node(
            json!({"topology.kubernetes.io/zone": "us-west-2a"}),
            json!({}),
        ),
    );
    server.set(&format!("{CONFIGS}/us-west-2a"), eni_config("subnet-1"));
    let mut view = start(server.client(), &config(true));
    until(&mut view, |v| subnet(v) == Some("subnet-1")).await;
    server.refuse(Some(503));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(subnet(&view.borrow()), Some("subnet-1"));
    assert_eq!(view.borrow().max_pods, Some(58));
    server.set(&format!("{CONFIGS}/us-west-2a"), eni_config("subnet-2"));
    server.refuse(None);
    until(&mut view, |v| subnet(v) == Some("subnet-2")).await;
}

#[test]
fn an_eni_config_is_named_in_awss_order() {
    let custom = config(true).custom_networking.unwrap();
    let external = (EXTERNAL_LABEL, "by-external");
    let zone = ("topology.kubernetes.io/zone", "by-zone");
    let annotation = ("k8s.amazonaws.com/eniConfig", "by-annotation");
    type Pairs<'a> = &'a [(&'a str, &'a str)];
    let rows: [(Pairs<'_>, Pairs<'_>, &str); 6] = [
        (&[external, zone], &[annotation], "by-external"),
        (&[zone], &[annotation], "by-annotation"),
        (&[zone], &[], "by-zone"),
        (&[], &[], "default"),
        (&[(EXTERNAL_LABEL, ""), zone], &[], "by-zone"),
        (&[annotation], &[], "default"),
    ];
    let map = |pairs: Pairs<'_>| {
        let owned = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Some(owned.collect())
    };
    for (labels, annotations, name) in rows {
        let meta = ObjectMeta {
            labels: map(labels),
            annotations: map(annotations),
            ..ObjectMeta::default()
        };
        let choice = Choice::of(&meta, &custom);
        assert_eq!(choice.name, name, "{labels:?} {annotations:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_changes_its_eni_config_follows_the_other_one() {
    let server = Server::default();
    server.set(NODE, node(json!({}), json!({})));
    let mut view = start(server.client(), &config(true));
    until(&mut view, |v| {
        missing(v).contains("there is no ENIConfig default")
    })
    .await;
    assert!(
        missing(&view.borrow()).contains("neither annotation k8s.amazonaws.com/eniConfig"),
        "{:?}",
        view.borrow()
    );
    server.set(&format!("{CONFIGS}/default"), eni_config("subnet-9"));
    until(&mut view, |v| subnet(v) == Some("subnet-9")).await;
    server.set(
        NODE,
        node(json!({}), json!({"k8s.amazonaws.com/eniConfig": "blue"})),
    );
    until(&mut view, |v| {
        missing(v).contains("there is no ENIConfig blue")
    })
    .await;
    server.set(&format!("{CONFIGS}/blue"), eni_config(" "));
    until(&mut view, |v| missing(v).contains("names no subnet")).await;
    server.set(&format!("{CONFIGS}/blue"), eni_config("subnet-7"));
    until(&mut view, |v| subnet(v) == Some("subnet-7")).await;
    server.remove(&format!("{CONFIGS}/blue"));
    until(&mut view, |v| {
        missing(v).contains("there is no ENIConfig blue")
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_permission_or_a_missing_crd_is_named() {
    let server = Server::default();
    server.refuse(Some(403));
    let mut view = start(server.client(), &config(true));
    until(&mut view, |v| missing(v).contains("refused with 403")).await;
    assert!(missing(&view.borrow()).contains("node node-1 cannot be read"));
}

#[tokio::test(start_paused = true)]
async fn the_watch_ends_with_who_wanted_it() {
    let server = Server::default();
    let view = start(server.client(), &config(false));
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(view);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let count = server.requests().len();
    server.refuse(Some(500));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(server.requests().len(), count);
}
