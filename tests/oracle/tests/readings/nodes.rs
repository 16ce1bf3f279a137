//! Nodes, the pods on them, and addresses that are on every node.

use serde_json::json;

use crate::world::World;

#[test]
fn a_node_reaches_its_own_pods_and_they_reach_it_whatever_policies_say() {
    let types = json!(["Ingress", "Egress"]);
    let world = World::new().policy(json!({"podSelector": {}, "policyTypes": types}));
    world.allows(&[
        "node-a > x/a TCP 80",
        "x/a > node-a TCP 80",
        "node-b > x/b UDP 1",
    ]);
}

#[test]
fn another_node_is_judged_by_its_address() {
    let world = World::new().into_a(json!({"from": [{"namespaceSelector": {}}]}));
    world
        .forbids(&["node-b > x/a TCP 80"])
        .allows(&["node-a > x/a TCP 80"]);
    let world = world.into_a(json!({"from": [{"ipBlock": {"cidr": "10.1.0.2/32"}}]}));
    world.allows(&["node-b > x/a TCP 80"]);
}

#[test]
fn a_pod_reaches_itself_whatever_policies_say() {
    let types = json!(["Ingress", "Egress"]);
    let world = World::new().policy(json!({"podSelector": {}, "policyTypes": types}));
    world
        .allows(&["x/a > x/a TCP 80", "x/a@6 > x/a@6 UDP 53"])
        .forbids(&["x/a > x/c TCP 80"]);
}

#[test]
fn a_link_local_address_is_opened_by_a_block_and_by_no_selector() {
    let dns = "x/a > 169.254.20.10 UDP 53";
    World::new()
        .out_of_a(json!({"to": [{"namespaceSelector": {}}]}))
        .forbids(&[dns]);
    World::new()
        .out_of_a(json!({"to": [{"ipBlock": {"cidr": "169.254.20.10/32"}}]}))
        .allows(&[dns]);
}
