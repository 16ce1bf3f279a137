//! Whom a policy isolates, in which direction, and how policies add up.

use serde_json::json;

use crate::world::World;

#[test]
fn an_empty_pod_selector_isolates_its_whole_namespace_and_no_other() {
    let world = World::new().policy(json!({"podSelector": {}}));
    world.forbids(&["y/a > x/a TCP 80", "y/a > x/b TCP 80", "x/a > x/c UDP 53"]);
    world.allows(&["x/a > y/a TCP 80", "y/a > z/c TCP 80"]);
}

#[test]
fn a_pod_selector_that_matches_no_pod_isolates_nobody() {
    let world = World::new().policy(json!({"podSelector": {"matchLabels": {"pod": "none"}}}));
    world.allows(&["y/a > x/a TCP 80", "x/a > y/a TCP 80"]);
}

#[test]
fn isolation_in_one_direction_leaves_the_other_alone() {
    let world = World::new().policy(json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
    world
        .forbids(&["y/a > x/a TCP 80"])
        .allows(&["x/a > y/a TCP 80"]);
    let world = World::new().policy(json!({"podSelector": {}, "policyTypes": ["Egress"]}));
    world
        .forbids(&["x/a > y/a TCP 80"])
        .allows(&["y/a > x/a TCP 80"]);
}

#[test]
fn a_policy_without_types_is_about_ingress_and_with_egress_rules_about_both() {
    for types in [json!(null), json!([])] {
        let world = World::new().policy(json!({"podSelector": {}, "policyTypes": types}));
        world
            .forbids(&["y/a > x/a TCP 80"])
            .allows(&["x/a > y/a TCP 80"]);
        let to_z = json!([{"to": [{"namespaceSelector": {"matchLabels": {"ns": "z"}}}]}]);
        let spec = json!({"podSelector": {}, "policyTypes": types, "egress": to_z});
        let world = World::new().policy(spec);
        world
            .forbids(&["y/a > x/a TCP 80", "x/a > y/a TCP 80"])
            .allows(&["x/a > z/a TCP 80"]);
    }
}

#[test]
fn rules_of_a_direction_that_the_types_leave_out_do_nothing() {
    let from_y = json!([{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}]);
    let world = World::new().policy(json!({
        "podSelector": {}, "policyTypes": ["Egress"], "ingress": from_y,
    }));
    world
        .allows(&["z/a > x/a TCP 80"])
        .forbids(&["x/a > y/a TCP 80"]);
    let to_y = json!([{"to": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}]);
    let world = World::new().policy(json!({
        "podSelector": {}, "policyTypes": ["Ingress"], "egress": to_y,
    }));
    world
        .allows(&["x/a > z/a TCP 80"])
        .forbids(&["y/a > x/a TCP 80"]);
}

#[test]
fn both_types_without_a_rule_block_everything_both_ways() {
    let types = json!(["Ingress", "Egress"]);
    let world = World::new().policy(json!({"podSelector": {}, "policyTypes": types}));
    world.forbids(&[
        "y/a > x/a TCP 80",
        "x/a > y/a UDP 53",
        "x/a > 8.8.8.8 ICMP",
        "x/a > x/b SCTP 9",
    ]);
}

#[test]
fn no_rules_deny_everything_and_an_empty_rule_allows_everything() {
    let both = |rules: serde_json::Value| {
        let types = json!(["Ingress", "Egress"]);
        let spec = json!({
            "podSelector": {}, "policyTypes": types, "ingress": rules, "egress": rules,
        });
        World::new().policy(spec)
    };
    let (into, out) = (
        ["y/a > x/a TCP 80", "8.8.8.8 > x/a UDP 53", "y/a > x/a ICMP"],
        ["x/a > y/a SCTP 9", "x/a > 8.8.8.8 TCP 80", "x/a > y/a ICMP"],
    );
    both(json!([])).forbids(&into).forbids(&out);
    both(json!([{}])).allows(&into).allows(&out);
}

#[test]
fn a_policy_is_not_applied_to_a_pod_that_shares_its_nodes_network() {
    let types = json!(["Ingress", "Egress"]);
    let world = World::new()
        .pod("x/b", "/spec/hostNetwork", json!(true))
        .pod("x/b", "/status/podIPs", json!([{"ip": "10.1.0.2"}]))
        .policy(json!({"podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": types}));
    world.allows(&["node-b > y/a TCP 80", "y/a > node-b TCP 80"]);
}

#[test]
fn a_finished_pod_is_no_peer_and_its_address_is_judged_by_the_pod_that_has_it_now() {
    for phase in ["Succeeded", "Failed"] {
        let from_b = json!({"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "b"}}}]});
        let world = World::new()
            .into_a(from_b)
            .pod("y/b", "/status/phase", json!(phase));
        world
            .forbids(&["10.0.2.2 > x/a TCP 80"])
            .allows(&["z/b > x/a TCP 80"]);
        // The address goes to z/c: c's labels count, not b's.
        let world = world.pod("z/c", "/status/podIPs", json!([{"ip": "10.0.2.2"}]));
        world.forbids(&["z/c > x/a TCP 80"]);
        let world = world.pod("z/c", "/metadata/labels/pod", json!("b"));
        world.allows(&["z/c > x/a TCP 80"]);
    }
}

#[test]
fn a_pod_that_is_being_deleted_is_subject_and_peer_until_its_addresses_are_given_back() {
    let going = json!("2026-01-01T00:00:00Z");
    let from_b = json!({"from": [{"podSelector": {"matchLabels": {"pod": "b"}}}]});
    let world = World::new()
        .into_a(from_b)
        .pod("x/a", "/metadata/deletionTimestamp", going.clone())
        .pod("x/b", "/metadata/deletionTimestamp", going);
    world
        .allows(&["x/b > x/a TCP 80"])
        .forbids(&["x/c > x/a TCP 80"]);
    let blank = json!({"vpc.amazonaws.com/pod-ips": ""});
    let world = world.pod("x/b", "/metadata/annotations", blank);
    world.forbids(&["10.0.1.2 > x/a TCP 80"]);
}

#[test]
fn a_pod_that_is_relabelled_comes_under_a_policy_and_out_of_it_again() {
    let spec = json!({"podSelector": {"matchLabels": {"pod": "a"}}});
    let world = World::new().policy(spec);
    world
        .forbids(&["y/a > x/a TCP 80"])
        .allows(&["y/a > x/c TCP 80"]);
    let world = world.pod("x/a", "/metadata/labels/pod", json!("free")).pod(
        "x/c",
        "/metadata/labels/pod",
        json!("a"),
    );
    world
        .forbids(&["y/a > x/c TCP 80"])
        .allows(&["y/a > x/a TCP 80"]);
}

#[test]
fn a_mirror_pod_is_a_pod_like_any_other() {
    let mirror =
        json!({"kubernetes.io/config.mirror": "c0ffee", "kubernetes.io/config.source": "file"});
    let from_b = json!({"from": [{"podSelector": {"matchLabels": {"pod": "b"}}}]});
    let world = World::new()
        .into_a(from_b)
        .pod("x/a", "/metadata/annotations", mirror.clone())
        .pod("x/b", "/metadata/annotations", mirror);
    world
        .allows(&["x/b > x/a TCP 80"])
        .forbids(&["x/c > x/a TCP 80"]);
}

#[test]
fn policies_of_one_name_in_two_namespaces_do_not_mix() {
    // Both are called policy-0: each is the first of its namespace.
    let ports = |port: u16| json!({"podSelector": {}, "ingress": [{"ports": [{"port": port}]}]});
    let world = World::new()
        .policy_in("x", ports(80))
        .policy_in("y", ports(81));
    world.allows(&["z/a > x/a TCP 80", "z/a > y/a TCP 81"]);
    world.forbids(&["z/a > x/a TCP 81", "z/a > y/a TCP 80"]);
}

#[test]
fn what_any_policy_allows_is_allowed_whatever_the_others_say() {
    let ports = |port: u16| json!({"ports": [{"port": port}]});
    let world = World::new()
        .into_a(ports(81))
        .policy(json!({"podSelector": {}}))
        .into_a(ports(80));
    world.allows(&["y/a > x/a TCP 80", "y/a > x/a TCP 81"]);
    world.forbids(&["y/a > x/a TCP 82", "y/a > x/b TCP 80"]);
    world
        .into_a(json!({}))
        .allows(&["y/a > x/a TCP 82", "y/a > x/a ICMP"]);
}

#[test]
fn a_flow_needs_the_consent_of_both_ends() {
    let everything = json!({"podSelector": {}, "ingress": [{}]});
    let nothing = json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Egress"]});
    let world = World::new().policy(everything).policy_in("y", nothing);
    world
        .forbids(&["y/a > x/a TCP 80", "y/a > x/b TCP 80"])
        .allows(&["y/b > x/a TCP 80"]);
    let world = World::new().policy(json!({"podSelector": {}})).policy_in(
        "y",
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}),
    );
    world
        .forbids(&["y/a > x/a TCP 80"])
        .allows(&["y/a > z/a TCP 80"]);
}

#[test]
fn a_pod_is_free_again_without_the_last_policy_that_selects_it() {
    let world = World::new().policy(json!({"podSelector": {}}));
    world.forbids(&["y/a > x/a TCP 80"]);
    world.without_policies().allows(&["y/a > x/a TCP 80"]);
}

#[test]
fn a_subject_that_is_not_understood_isolates_the_namespace_and_its_rules_are_void() {
    let like = json!({"matchExpressions": [{"key": "pod", "operator": "Like", "values": ["a"]}]});
    let world = World::new().policy(json!({"podSelector": like, "ingress": [{}]}));
    world
        .forbids(&["y/a > x/a TCP 80", "y/a > x/b TCP 80"])
        .allows(&["y/a > z/a TCP 80"]);
    world
        .policy(json!({"podSelector": {}, "ingress": [{}]}))
        .allows(&["y/a > x/a TCP 80"]);
}
