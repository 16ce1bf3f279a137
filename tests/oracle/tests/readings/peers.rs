//! Peers by label.

use serde_json::{Value, json};

use crate::world::World;

fn from(peers: Value) -> World {
    World::new().into_a(json!({"from": peers}))
}

fn pods(name: &str) -> Value {
    json!({"matchLabels": {"pod": name}})
}

fn namespaces(name: &str) -> Value {
    json!({"matchLabels": {"ns": name}})
}

#[test]
fn no_peers_are_anybody_pods_nodes_and_the_world() {
    for peers in [Value::Null, json!([])] {
        from(peers).allows(&[
            "y/a > x/a TCP 80",
            "node-b > x/a TCP 80",
            "8.8.8.8 > x/a ICMP",
        ]);
    }
    World::new()
        .out_of_a(json!({"to": []}))
        .allows(&["x/a > y/a TCP 80", "x/a > 8.8.8.8 UDP 53"]);
}

#[test]
fn a_pod_selector_alone_is_about_the_policys_own_namespace() {
    let world = from(json!([{"podSelector": pods("b")}]));
    world
        .allows(&["x/b > x/a TCP 80"])
        .forbids(&["y/b > x/a TCP 80", "x/c > x/a TCP 80"]);
    let world = from(json!([{"podSelector": {}}]));
    world.allows(&["x/b > x/a TCP 80", "x/c > x/a UDP 1"]);
    world.forbids(&[
        "y/b > x/a TCP 80",
        "8.8.8.8 > x/a TCP 80",
        "node-b > x/a TCP 80",
    ]);
}

#[test]
fn a_namespace_selector_alone_is_about_all_pods_there() {
    let world = from(json!([{"namespaceSelector": namespaces("y")}]));
    world.allows(&["y/a > x/a TCP 80", "y/c > x/a TCP 80"]);
    world.forbids(&["z/a > x/a TCP 80", "x/b > x/a TCP 80"]);
}

#[test]
fn all_namespaces_are_pods_and_neither_nodes_nor_the_world() {
    for peers in [
        json!([{"namespaceSelector": {}}]),
        json!([{"namespaceSelector": {}, "podSelector": {}}]),
        json!([{"namespaceSelector": {"matchLabels": {}, "matchExpressions": []}}]),
    ] {
        let world = from(peers);
        world.allows(&[
            "y/a > x/a TCP 80",
            "x/b > x/a TCP 80",
            "z/c@6 > x/a@6 TCP 80",
        ]);
        world.forbids(&["8.8.8.8 > x/a TCP 80", "node-b > x/a TCP 80"]);
    }
}

#[test]
fn an_absent_namespace_selector_is_not_an_empty_one() {
    from(json!([{"podSelector": pods("b")}])).forbids(&["y/b > x/a TCP 80"]);
    let world = from(json!([{"podSelector": pods("b"), "namespaceSelector": {}}]));
    world
        .allows(&["y/b > x/a TCP 80"])
        .forbids(&["y/c > x/a TCP 80"]);
}

#[test]
fn two_selectors_of_one_peer_must_both_match_and_two_peers_need_not() {
    let one = json!([{"namespaceSelector": namespaces("y"), "podSelector": pods("b")}]);
    from(one)
        .allows(&["y/b > x/a TCP 80"])
        .forbids(&["y/a > x/a TCP 80", "x/b > x/a TCP 80"]);
    let two = json!([{"namespaceSelector": namespaces("y")}, {"podSelector": pods("b")}]);
    from(two)
        .allows(&["y/a > x/a TCP 80", "x/b > x/a TCP 80"])
        .forbids(&["z/b > x/a TCP 80"]);
}

#[test]
fn a_selector_that_matches_no_pod_opens_nothing() {
    let world = from(json!([{"podSelector": pods("none")}]));
    world.forbids(&["x/b > x/a TCP 80", "8.8.8.8 > x/a TCP 80"]);
    let world = World::new().out_of_a(json!({"to": [{"namespaceSelector": namespaces("none")}]}));
    world.forbids(&["x/a > x/b TCP 80", "x/a > 8.8.8.8 TCP 80"]);
}

#[test]
fn a_peer_that_names_nobody_or_too_much_opens_nothing_of_its_rule() {
    for peer in [
        json!({}),
        json!({"podSelector": {}, "ipBlock": {"cidr": "0.0.0.0/0"}}),
    ] {
        let world = from(json!([peer, {"namespaceSelector": {}}]));
        world.forbids(&["x/b > x/a TCP 80", "8.8.8.8 > x/a TCP 80"]);
    }
}

#[test]
fn a_host_network_pod_is_no_selectors_peer() {
    let world = from(json!([{"namespaceSelector": {}}]))
        .pod("y/b", "/spec/hostNetwork", json!(true))
        .pod("y/b", "/status/podIPs", json!([{"ip": "10.1.0.2"}]));
    world
        .forbids(&["node-b > x/a TCP 80"])
        .allows(&["z/b > x/a TCP 80"]);
}

#[test]
fn a_peer_without_an_address_of_the_family_opens_nothing_in_it() {
    let world = from(json!([{"podSelector": pods("b")}])).pod(
        "x/b",
        "/status/podIPs",
        json!([{"ip": "fd00::1:2"}]),
    );
    world
        .allows(&["x/b@6 > x/a@6 TCP 80"])
        .forbids(&["10.0.1.2 > x/a TCP 80"]);
}

#[test]
fn a_subject_can_be_its_own_policys_peer() {
    // b and c bear the label of the subject and of the peer.
    let world = World::new()
        .pod("x/c", "/metadata/labels/pod", json!("b"))
        .policy(
            json!({"podSelector": pods("b"), "ingress": [{"from": [{"podSelector": pods("b")}]}]}),
        );
    world
        .allows(&["x/b > x/c TCP 80", "x/c > x/b TCP 80"])
        .forbids(&["x/a > x/b TCP 80"]);
}

#[test]
fn expressions_mean_what_they_say_with_and_without_the_label() {
    let expression = |operator: &str, values: Value| {
        let expression = json!({"key": "k", "operator": operator, "values": values});
        // b has the label, c has it empty, y/b not at all.
        from(json!([{"namespaceSelector": {}, "podSelector": {"matchExpressions": [expression]}}]))
            .pod("x/b", "/metadata/labels/k", json!("v"))
            .pod("x/c", "/metadata/labels/k", json!(""))
    };
    let (with, empty, without) = ("x/b > x/a TCP 80", "x/c > x/a TCP 80", "y/b > x/a TCP 80");
    expression("In", json!(["v", "w"]))
        .allows(&[with])
        .forbids(&[empty, without]);
    expression("NotIn", json!(["v"]))
        .allows(&[empty, without])
        .forbids(&[with]);
    expression("Exists", Value::Null)
        .allows(&[with, empty])
        .forbids(&[without]);
    expression("DoesNotExist", json!([]))
        .allows(&[without])
        .forbids(&[with, empty]);
    expression("In", json!([""]))
        .allows(&[empty])
        .forbids(&[with, without]);
    expression("NotIn", json!([""]))
        .allows(&[with, without])
        .forbids(&[empty]);
}

#[test]
fn every_condition_of_a_selector_must_hold() {
    let selector = json!({
        "matchLabels": {"pod": "b"},
        "matchExpressions": [
            {"key": "k", "operator": "Exists"},
            {"key": "k", "operator": "NotIn", "values": ["w"]},
        ],
    });
    let world = from(json!([{"namespaceSelector": {}, "podSelector": selector}]))
        .pod("x/b", "/metadata/labels/k", json!("v"))
        .pod("y/b", "/metadata/labels/k", json!("w"))
        .pod("y/c", "/metadata/labels/k", json!("v"));
    world.allows(&["x/b > x/a TCP 80"]);
    world.forbids(&["y/b > x/a TCP 80", "y/c > x/a TCP 80", "z/b > x/a TCP 80"]);
}

#[test]
fn namespaces_are_selected_by_the_name_that_every_one_bears_as_a_label() {
    let key = "kubernetes.io/metadata.name";
    let world = from(json!([{"namespaceSelector": {"matchLabels": {key: "y"}}}]));
    world
        .allows(&["y/a > x/a TCP 80"])
        .forbids(&["z/a > x/a TCP 80"]);
    let not_y = json!({"matchExpressions": [{"key": key, "operator": "NotIn", "values": ["y"]}]});
    let world = World::new().out_of_a(json!({"to": [{"namespaceSelector": not_y}]}));
    world
        .allows(&["x/a > z/a TCP 80"])
        .forbids(&["x/a > y/a TCP 80"]);
}

#[test]
fn a_namespace_that_is_relabelled_takes_all_its_pods_along() {
    let world = from(json!([{"namespaceSelector": namespaces("y")}]));
    world
        .allows(&["y/a > x/a TCP 80", "y/b > x/a TCP 80"])
        .forbids(&["z/b > x/a TCP 80"]);
    let world = world
        .namespace("y", "/metadata/labels/ns", json!("other"))
        .namespace("z", "/metadata/labels/ns", json!("y"));
    world
        .forbids(&["y/a > x/a TCP 80", "y/b > x/a TCP 80"])
        .allows(&["z/b > x/a TCP 80"]);
}

#[test]
fn a_peer_that_is_relabelled_is_no_peer_any_more() {
    let world = from(json!([{"podSelector": pods("b")}]));
    world
        .allows(&["x/b > x/a TCP 80"])
        .forbids(&["x/c > x/a TCP 80"]);
    let world = world
        .pod("x/b", "/metadata/labels/pod", json!("other"))
        .pod("x/c", "/metadata/labels/pod", json!("b"));
    world
        .forbids(&["x/b > x/a TCP 80"])
        .allows(&["x/c > x/a TCP 80"]);
}

#[test]
fn pods_of_a_namespace_that_is_gone_or_not_yet_known_are_nobodys_peers_by_it() {
    let world = from(json!([{"namespaceSelector": {}}])).without_namespace("y");
    world
        .forbids(&["y/a > x/a TCP 80"])
        .allows(&["z/a > x/a TCP 80"]);
    let world = world.without_pods_of("y");
    world.forbids(&["10.0.2.1 > x/a TCP 80"]);
}

#[test]
fn a_peer_selector_that_is_not_understood_opens_nothing_and_other_rules_hold() {
    for (operator, values) in [
        ("Like", json!(["b"])),
        ("In", json!([])),
        ("Exists", json!(["b"])),
    ] {
        let bad =
            json!({"matchExpressions": [{"key": "pod", "operator": operator, "values": values}]});
        let world = from(json!([{"podSelector": bad}, {"podSelector": pods("b")}]));
        world.forbids(&["x/b > x/a TCP 80", "x/c > x/a TCP 80"]);
        let world = world.into_a(json!({"from": [{"podSelector": pods("c")}]}));
        world
            .allows(&["x/c > x/a TCP 80"])
            .forbids(&["x/b > x/a TCP 80"]);
    }
}

#[test]
fn every_address_of_a_pod_is_subject_and_peer_in_its_family() {
    let world = from(json!([{"podSelector": pods("b")}]));
    world.allows(&["x/b > x/a TCP 80", "x/b@6 > x/a@6 TCP 80"]);
    world.forbids(&[
        "x/c > x/a TCP 80",
        "x/c@6 > x/a@6 TCP 80",
        "2001:db8::1 > x/a@6 TCP 80",
    ]);
}
