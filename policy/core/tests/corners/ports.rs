//! Ports by name.

use super::*;

#[test]
fn a_named_port_opens_each_pods_own_number_and_nobody_elses() {
    let http = |number: u16| json!([{"name": "http", "containerPort": number}]);
    let pods = [
        pod("a", "10.0.0.1", http(8080)),
        pod("b", "10.0.0.2", http(9090)),
        pod("c", "10.0.0.3", json!([])),
        pod(
            "u",
            "10.0.0.4",
            json!([{"name": "http", "containerPort": 8080, "protocol": "UDP"}]),
        ),
    ];
    let spec = json!({"podSelector": {}, "ingress": [{"ports": [{"port": "http"}]}]});
    let rules = compile(&mut index(&pods, &[policy(spec)]), Family::V4);
    let cases = [
        ("a", "10.0.0.1", tcp(8080), true),
        ("a", "10.0.0.1", tcp(9090), false),
        ("b", "10.0.0.2", tcp(9090), true),
        ("b", "10.0.0.2", tcp(8080), false),
        ("c", "10.0.0.3", tcp(8080), false),
        ("u", "10.0.0.4", tcp(8080), false),
        ("u", "10.0.0.4", Some((Protocol::Udp, 8080)), false),
    ];
    for (pod, address, port, want) in cases {
        assert_eq!(
            passes(&rules, &into(pod, address, port)),
            want,
            "{pod} {port:?}"
        );
    }
}

#[test]
fn a_named_port_in_egress_is_each_peers_own_number_and_follows_the_peer() {
    let http = |number: u16| json!([{"name": "http", "containerPort": number}]);
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "a"}},
        "policyTypes": ["Egress"],
        "egress": [{
            "to": [
                {"podSelector": {"matchLabels": {"app": "b"}}},
                {"ipBlock": {"cidr": "0.0.0.0/0"}},
            ],
            "ports": [{"port": "http"}],
        }],
    });
    let mut index = index(
        &[
            pod("a", "10.0.0.1", json!([])),
            elsewhere(pod("b", "10.0.0.2", http(9090))),
            elsewhere(pod("c", "10.0.0.3", http(9090))),
        ],
        &[policy(spec)],
    );
    let to = |to: &str, port| out_of("a", "10.0.0.1", to, tcp(port));
    let rules = compile(&mut index, Family::V4);
    assert!(passes(&rules, &to("10.0.0.2", 9090)));
    assert!(!passes(&rules, &to("10.0.0.2", 8080)));
    assert!(
        !passes(&rules, &to(OUTSIDE, 9090)),
        "a block has no ports by name"
    );
    assert!(
        !passes(&rules, &to("10.0.0.3", 9090)),
        "not even where a pod is in it that no selector selects"
    );
    // The same pod again, with another number and one more.
    let two = json!([
        {"name": "http", "containerPort": 8080}, {"name": "http", "containerPort": 8081},
    ]);
    let delta = index.apply(cluster::pod_applied(&elsewhere(pod("b", "10.0.0.2", two))));
    assert!(!delta.recompile, "members only");
    let changes = index.take_member_changes().unwrap();
    let change = changes.values().next().unwrap();
    assert_eq!((change.add.len(), change.remove.len()), (2, 1));
    let rules = compile(&mut index, Family::V4);
    assert!(passes(&rules, &to("10.0.0.2", 8080)) && passes(&rules, &to("10.0.0.2", 8081)));
    assert!(!passes(&rules, &to("10.0.0.2", 9090)));
}

#[test]
fn a_number_by_name_and_the_same_by_number_leave_the_set_with_the_last_of_both() {
    let http = json!([{"name": "http", "containerPort": 80}]);
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "a"}},
        "policyTypes": ["Egress"],
        "egress": [
            {"to": [{"podSelector": {}}], "ports": [{"port": "http"}]},
            {"to": [{"podSelector": {}}], "ports": [{"port": 80}]},
        ],
    });
    let mut index = index(&[pod("a", "10.0.0.1", json!([]))], &[policy(spec)]);
    let before = compile(&mut index, Family::V4);
    let b = |ports| cluster::pod_applied(&elsewhere(pod("b", "10.0.0.2", ports)));
    index.apply(b(http));
    let added = index.take_member_changes().unwrap();
    let added = added.values().map(|change| change.add.len());
    assert_eq!(added.sum::<usize>(), 1);
    index.apply(b(json!([])));
    let changes = index.take_member_changes().unwrap();
    assert!(changes.is_empty(), "80 is allowed by number still");
    index.apply(Event::PodDeleted(
        key("b"),
        selvage_policy_core::model::PodUid::new("b"),
    ));
    assert_eq!(compile(&mut index, Family::V4), before);
}

#[test]
fn egress_to_a_named_port_of_anybody_reaches_pods_of_every_namespace_and_nobody_else() {
    let http = json!([{"name": "http", "containerPort": 80}]);
    let mut other = elsewhere(pod("b", "10.0.0.2", http));
    other["metadata"]["namespace"] = json!("n1");
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "a"}},
        "policyTypes": ["Egress"],
        "egress": [{"ports": [{"port": "http"}]}],
    });
    let mut index = index(&[pod("a", "10.0.0.1", json!([])), other], &[policy(spec)]);
    index.apply(cluster::namespace_applied(
        &json!({"metadata": {"name": "n1"}}),
    ));
    let rules = compile(&mut index, Family::V4);
    assert!(passes(
        &rules,
        &out_of("a", "10.0.0.1", "10.0.0.2", tcp(80))
    ));
    assert!(!passes(&rules, &out_of("a", "10.0.0.1", OUTSIDE, tcp(80))));
}
