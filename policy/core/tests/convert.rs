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
        (port(json!({"port": "HTTP"})), "\"HTTP\" is no port name"),
        (port(json!({"port": "80"})), "\"80\" is no port name"),
        (port(json!({"port": ""})), "\"\" is no port name"),
        (port(json!({"port": "-a"})), "\"-a\" is no port name"),
        (port(json!({"port": "a-"})), "\"a-\" is no port name"),
        (port(json!({"port": "a--b"})), "\"a--b\" is no port name"),
        (port(json!({"port": "a\nCOMMIT"})), "is no port name"),
        (port(json!({"port": "a-name-too-long-"})), "is no port name"),
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
        (
            port(json!({"port": "http", "endPort": 79})),
            "endPort 79 with named port \"http\"",
        ),
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
    assert_eq!(policy.ingress, Some([].into()), "its rules are void");
    assert_eq!(policy.egress, None, "only in its directions");
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("all pods of the namespace are isolated"));
}

#[test]
fn a_policy_type_that_is_not_understood_isolates_in_both_directions() {
    let (policy, problems) = policy(json!({"policyTypes": ["Sideways"], "ingress": [{}]}));
    assert_eq!(policy.ingress.map(|rules| rules.len()), Some(1));
    assert_eq!(policy.egress, Some([].into()));
    assert_eq!(problems.len(), 1);
}

fn pod(object: Value) -> selvage_policy_core::model::Pod {
    convert::pod(serde_json::from_value(object).unwrap())
}

#[test]
fn addresses_come_from_the_annotation_else_from_the_status_in_each_family() {
    let annotation = "vpc.amazonaws.com/pod-ips";
    let cases: [(Value, Value, &[&str], &str); 10] = [
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
            &["10.0.0.9"],
            "the annotation is written first, and at the end of the address",
        ),
        (
            json!({"annotations": {annotation: "10.0.0.9"}}),
            json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}),
            &["10.0.0.9", "fd00::1"],
            "what the annotation doesn't speak of comes from the status",
        ),
        (
            json!({}),
            json!({"podIPs": [{"ip": "::ffff:10.0.0.1"}, {"ip": "FD00:0::0001"}]}),
            &["10.0.0.1", "fd00::1"],
            "however they are written",
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

fn named_ports(pod: &selvage_policy_core::model::Pod) -> Vec<String> {
    let ports = pod.ports.iter();
    ports
        .map(|(named, number)| format!("{named}={number}"))
        .collect()
}

#[test]
fn a_pods_named_ports_are_those_of_its_containers_and_sidecars() {
    let pod = pod(json!({"metadata": {}, "spec": {
        "containers": [
            {"ports": [
                {"name": "http", "containerPort": 8080},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                {"name": "dns", "containerPort": 53, "protocol": "TCP"},
                {"containerPort": 9000},
                {"name": "far", "containerPort": 65536},
                {"name": "none", "containerPort": 0},
                {"name": "odd", "containerPort": 1, "protocol": "ICMP"},
                {"name": "Not A Name", "containerPort": 1},
            ]},
            {"ports": [{"name": "http", "containerPort": 8081}]},
            {"ports": null},
        ],
        "initContainers": [
            {"restartPolicy": "Always", "ports": [{"name": "mesh", "containerPort": 15000}]},
            {"ports": [{"name": "setup", "containerPort": 1, "protocol": "SCTP"}]},
        ],
    }}));
    let want = [
        "tcp:dns=53",
        "tcp:http=8080",
        "tcp:http=8081",
        "tcp:mesh=15000",
        "udp:dns=53",
    ];
    assert_eq!(named_ports(&pod), want);
}

#[test]
fn a_pod_says_which_interfaces_it_has() {
    let with = |annotation: &str, text: &str| json!({"annotations": {annotation: text}});
    let eni = "vpc.amazonaws.com/pod-eni";
    let nic = "k8s.amazonaws.com/nicConfig";
    let multus = "k8s.v1.cni.cncf.io/networks";
    let limited = json!({"containers": [{"resources": {"limits": {eni: "1", "cpu": "2"}}}]});
    let cases = [
        (json!({}), json!({}), [false; 3], "one, as every pod"),
        (
            with(eni, "[{\"eniId\":\"eni-1\"}]"),
            json!({}),
            [true, false, false],
            "a branch ENI",
        ),
        (
            json!({}),
            limited,
            [true, false, false],
            "a branch ENI to come",
        ),
        (
            with(nic, "multi-nic-attachment"),
            json!({}),
            [false, true, false],
            "one on each card",
        ),
        (with(nic, "other"), json!({}), [false; 3], "another word"),
        (
            with(multus, "macvlan-1"),
            json!({}),
            [false, false, true],
            "Multus",
        ),
        (with(multus, "[]"), json!({}), [false; 3], "no networks"),
    ];
    for (metadata, spec, want, message) in cases {
        let interfaces = pod(json!({"metadata": metadata, "spec": spec})).interfaces;
        let found = [
            interfaces.branch_eni,
            interfaces.more_cards,
            interfaces.others,
        ];
        assert_eq!(found, want, "{message}");
    }
}

#[test]
fn ten_thousand_peers_and_five_hundred_exceptions_are_understood() {
    let blocks: Vec<Value> = (0..10_000)
        .map(|n| json!({"ipBlock": {"cidr": format!("10.{}.{}.0/25", n / 250, n % 250)}}))
        .collect();
    let pods: Vec<Value> = (0..10_000)
        .map(|n| json!({"podSelector": {"matchLabels": {"app": format!("a{n}")}}}))
        .collect();
    let except: Vec<String> = (0..500).map(|n| format!("fd00:{n:x}::1/128")).collect();
    let holes = json!({"ipBlock": {"cidr": "::/0", "except": except}});
    let spec = json!({"ingress": [{"from": blocks}, {"from": pods}, {"from": [holes]}]});
    let (policy, problems) = policy(spec);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(policy.ingress.unwrap().len(), 3);
}

#[test]
fn a_rule_of_more_members_than_a_set_should_hold_allows_nothing_and_is_named() {
    let except: Vec<String> = (0..3000).map(|n| format!("fd00:{n:x}::1/128")).collect();
    let blocks: Vec<Value> = (0..10_000)
        .map(|n| json!({"ipBlock": {"cidr": format!("10.{}.{}.0/25", n / 250, n % 250)}}))
        .collect();
    let ports: Vec<Value> = (1..=27).map(|port| json!({"port": port})).collect();
    let spec = json!({"ingress": [
        {"from": [{"ipBlock": {"cidr": "::/0", "except": except}}]},
        {"from": blocks, "ports": ports},
        {"from": [{"podSelector": {}}]},
    ]});
    let (policy, problems) = policy(spec);
    assert_eq!(policy.ingress.unwrap().len(), 1, "the third rule holds");
    assert_eq!(problems.len(), 2);
    for problem in problems {
        assert!(problem.contains("over the limit of 262144"), "{problem}");
    }
}

#[test]
fn problems_are_told_apart_by_what_they_are_about() {
    let cases = [
        (
            json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}),
            "subject",
        ),
        (json!({"policyTypes": ["Sideways"]}), "policy_type"),
        (json!({"ingress": [{"from": [{}]}]}), "peer"),
        (
            json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10"}}]}]}),
            "block",
        ),
        (json!({"egress": [{"ports": [{"port": 0}]}]}), "port"),
    ];
    for (spec, want) in cases {
        let object = json!({"metadata": {"name": "q", "namespace": "n"}, "spec": spec});
        let (_, problems) = convert::policy(&serde_json::from_value(object).unwrap());
        let kinds: Vec<&str> = problems
            .iter()
            .map(|problem| problem.kind().as_str())
            .collect();
        assert_eq!(kinds, [want]);
    }
}

#[test]
fn a_block_of_ipv4_written_as_ipv6_is_a_block_of_ipv4() {
    let block = |cidr: &str| {
        let (policy, problems) =
            policy(json!({"ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]}));
        assert_eq!(problems, Vec::<String>::new());
        policy.ingress.unwrap()
    };
    assert_eq!(block("::ffff:10.0.0.0/104"), block("10.0.0.0/8"));
    assert_eq!(block("FD00:0::1/64"), block("fd00::/64"));
}
