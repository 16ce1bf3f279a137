//! API objects to the model: what is understood, and what holds when it isn't.

use std::collections::BTreeSet;
use std::net::IpAddr;

use selvage_policy_core::model::{Peers, Policy, Selector};
use selvage_policy_core::{api, convert};
use serde_json::{Value, json};

fn policy(spec: Value) -> (Policy, Vec<String>) {
    let object: api::NetworkPolicy = serde_json::from_value(json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": spec,
    }))
    .unwrap();
    let (policy, problems) = convert::policy(&object);
    for problem in &problems {
        assert_eq!(problem.policy(), &policy.key);
    }
    let problems = problems.iter().map(ToString::to_string).collect();
    (policy, problems)
}

#[test]
fn policy_types_default_as_the_api_says() {
    let rule = json!([{}]);
    let cases = [
        (json!({}), true, false, "nothing given"),
        (json!({"ingress": rule}), true, false, "ingress rules"),
        (json!({"egress": rule}), true, true, "egress rules"),
        (json!({"egress": []}), true, false, "no egress rules"),
        (json!({"egress": null}), true, false, "egress null"),
        (json!({"policyTypes": []}), true, false, "no types"),
        (
            json!({"policyTypes": ["Egress"], "ingress": rule}),
            false,
            true,
            "ingress rules of an egress policy are inert",
        ),
        (
            json!({"policyTypes": ["Ingress"], "egress": rule}),
            true,
            false,
            "egress rules of an ingress policy are inert",
        ),
        (
            json!({"policyTypes": ["Ingress", "Egress"]}),
            true,
            true,
            "both without rules",
        ),
    ];
    for (spec, ingress, egress, message) in cases {
        let (policy, problems) = policy(spec);
        assert_eq!(policy.ingress.is_some(), ingress, "{message}");
        assert_eq!(policy.egress.is_some(), egress, "{message}");
        assert_eq!(problems, Vec::<String>::new(), "{message}");
    }
}

#[test]
fn a_rule_that_is_not_understood_allows_nothing_and_the_others_hold() {
    let port = |port: Value| json!({"from": [{"podSelector": {}}], "ports": [port]});
    let peer = |peer: Value| json!({"from": [peer]});
    let cases = [
        (port(json!({"port": "http"})), "named port \"http\""),
        (port(json!({"port": 0})), "0 is no port"),
        (port(json!({"port": 65536})), "65536 is no port"),
        (port(json!({"port": -1})), "-1 is no port"),
        (
            port(json!({"protocol": "tcp", "port": 1})),
            "protocol \"tcp\"",
        ),
        (port(json!({"protocol": "ICMP"})), "protocol \"ICMP\""),
        (port(json!({"port": 80, "endPort": 79})), "endPort 79"),
        (
            port(json!({"port": 80, "endPort": 70000})),
            "70000 is no port",
        ),
        (port(json!({"endPort": 79})), "endPort 79"),
        (port(json!({"port": "http", "endPort": 79})), "named port"),
        (peer(json!({})), "peer 0: no selector and no ipBlock"),
        (
            peer(json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}})),
            "ipBlock beside a selector",
        ),
        (
            peer(json!({"namespaceSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}})),
            "ipBlock beside a selector",
        ),
        (
            peer(
                json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}}),
            ),
            "operator \"Gt\"",
        ),
        (
            peer(
                json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
            ),
            "In without values",
        ),
        (peer(json!({"ipBlock": {"cidr": "10.0.0.0"}})), "is no CIDR"),
        (
            peer(json!({"ipBlock": {"cidr": "10.0.0.0/33"}})),
            "is no CIDR",
        ),
        (peer(json!({"ipBlock": {"cidr": ""}})), "is no CIDR"),
        (
            peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["x\nCOMMIT"]}})),
            "\"x\\nCOMMIT\" is no CIDR",
        ),
        (
            peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/9"]}})),
            "is not inside",
        ),
        (
            peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}})),
            "is not inside",
        ),
        (
            peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/9"]}})),
            "is not inside",
        ),
    ];
    let good = json!({"from": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]});
    for (bad, reason) in cases {
        let spec = json!({"ingress": [bad, good]});
        let (policy, problems) = policy(spec);
        let rules = policy.ingress.expect("it still isolates");
        assert_eq!(rules.len(), 1, "{reason}: the good rule holds, alone");
        assert!(matches!(&rules[0].peers, Peers::Listed(peers) if peers.len() == 1));
        let [problem] = problems.as_slice() else {
            panic!("{reason}: one problem, got {problems:?}");
        };
        assert!(
            problem.starts_with("policy shop/web: ingress rule 0: ") && problem.contains(reason),
            "{reason}: {problem}"
        );
    }
}

#[test]
fn a_subject_that_is_not_understood_isolates_the_namespace() {
    let bad = json!({"matchExpressions": [{"key": "app", "operator": "Like", "values": ["x"]}]});
    let (policy, problems) = policy(json!({"podSelector": bad, "ingress": [{}]}));
    assert_eq!(policy.subject, Selector::everything());
    assert_eq!(policy.ingress, Some(Vec::new()), "its rules are void");
    assert_eq!(policy.egress, None, "only in its directions");
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("all pods of the namespace are isolated"));
}

#[test]
fn a_policy_type_that_is_not_understood_isolates_in_both_directions() {
    let (policy, problems) = policy(json!({"policyTypes": ["Sideways"], "ingress": [{}]}));
    assert_eq!(policy.ingress.map(|rules| rules.len()), Some(1));
    assert_eq!(policy.egress, Some(Vec::new()));
    assert_eq!(problems.len(), 1);
}

fn pod(object: Value) -> selvage_policy_core::model::Pod {
    convert::pod(serde_json::from_value(object).unwrap())
}

#[test]
fn addresses_come_from_the_status_else_from_the_annotation() {
    let annotation = "vpc.amazonaws.com/pod-ips";
    let cases: [(Value, Value, &[&str], &str); 8] = [
        (json!({}), json!({}), &[], "none yet"),
        (
            json!({}),
            json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}),
            &["10.0.0.1", "fd00::1"],
            "both families",
        ),
        (
            json!({}),
            json!({"podIP": "10.0.0.1"}),
            &["10.0.0.1"],
            "podIP alone",
        ),
        (
            json!({"annotations": {annotation: "10.0.0.1,fd00::1"}}),
            json!({}),
            &["10.0.0.1", "fd00::1"],
            "the annotation comes first",
        ),
        (
            json!({"annotations": {annotation: "10.0.0.9"}}),
            json!({"podIP": "10.0.0.1"}),
            &["10.0.0.1"],
            "the status is the kubelet's word",
        ),
        (
            json!({"annotations": {annotation: ""}, "deletionTimestamp": "2026-01-01T00:00:00Z"}),
            json!({"podIP": "10.0.0.1"}),
            &[],
            "given back",
        ),
        (
            json!({"annotations": {annotation: ""}}),
            json!({"podIP": "10.0.0.1"}),
            &["10.0.0.1"],
            "blanked late by its predecessor's end",
        ),
        (
            json!({}),
            json!({"podIP": "10.0.0.1; DROP"}),
            &[],
            "no address",
        ),
    ];
    for (metadata, status, want, message) in cases {
        let pod = pod(json!({"metadata": metadata, "status": status}));
        let want: BTreeSet<IpAddr> = want.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(pod.addresses, want, "{message}");
    }
}

#[test]
fn a_pod_is_enforced_from_binding_to_its_end() {
    let cases = [
        (json!({}), json!({}), false, "not bound"),
        (
            json!({"nodeName": ""}),
            json!({}),
            false,
            "empty is not bound",
        ),
        (
            json!({"nodeName": "a"}),
            json!({}),
            true,
            "bound, nothing else",
        ),
        (json!({"nodeName": "b"}), json!({}), false, "another node"),
        (
            json!({"nodeName": "a", "hostNetwork": true}),
            json!({}),
            false,
            "host network",
        ),
        (
            json!({"nodeName": "a"}),
            json!({"phase": "Pending"}),
            true,
            "pending",
        ),
        (
            json!({"nodeName": "a"}),
            json!({"phase": "Unknown"}),
            true,
            "unknown",
        ),
        (
            json!({"nodeName": "a"}),
            json!({"phase": "Succeeded"}),
            false,
            "succeeded",
        ),
        (
            json!({"nodeName": "a"}),
            json!({"phase": "Failed"}),
            false,
            "failed",
        ),
    ];
    let node = selvage_policy_core::model::NodeName::new("a");
    for (spec, status, want, message) in cases {
        let pod = pod(json!({"metadata": {}, "spec": spec, "status": status}));
        assert_eq!(pod.is_enforced_on(&node), want, "{message}");
    }
}
