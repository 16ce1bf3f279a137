//! Corner cases of enforcement, each on a node of its own.

#[path = "support/cluster.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod cluster;

use std::net::IpAddr;

use selvage_policy_core::compile::compile;
use selvage_policy_core::eval::{Packet, Verdict, eval};
use selvage_policy_core::index::{Event, Index, Settings, Unenforced};
use selvage_policy_core::model::{Direction, NamespaceName, PodKey};
use selvage_policy_core::ruleset::{
    Family, FlowState, Match, Protocol, Ruleset, SetKind, VethPrefix,
};
use selvage_policy_core::verdict::{self, Flow};
use serde_json::{Value, json};

const OUTSIDE: &str = "198.51.100.10";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn tcp(port: u16) -> Option<(Protocol, u16)> {
    Some((Protocol::Tcp, port))
}

fn veth(pod: &str) -> String {
    VethPrefix::default().veth("n0", pod).to_string()
}

fn key(pod: &str) -> PodKey {
    PodKey {
        namespace: NamespaceName::new("n0"),
        name: pod.to_owned(),
    }
}

/// A pod of namespace n0 on the node, with its name as label `app`.
fn pod(name: &str, address: &str, ports: Value) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "n0", "uid": name, "labels": {"app": name}},
        "spec": {"nodeName": cluster::NODE, "containers": [{"ports": ports}]},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    })
}

fn elsewhere(mut pod: Value) -> Value {
    pod["spec"]["nodeName"] = json!("there");
    pod
}

fn policy(spec: Value) -> Value {
    json!({"metadata": {"name": "q", "namespace": "n0"}, "spec": spec})
}

fn index(pods: &[Value], policies: &[Value]) -> Index {
    let namespace = json!({"metadata": {"name": "n0", "labels": {"team": "a"}}});
    cluster::index(&[namespace], pods, policies)
}

fn passes(ruleset: &Ruleset, packet: &Packet) -> bool {
    eval(ruleset, packet) == Verdict::Passed
}

/// From outside to a pod.
fn into(pod: &str, address: &str, port: Option<(Protocol, u16)>) -> Packet {
    Packet::first("ens5", veth(pod), ip(OUTSIDE), ip(address), port)
}

/// From a pod to outside.
fn out_of(pod: &str, address: &str, to: &str, port: Option<(Protocol, u16)>) -> Packet {
    Packet::first(veth(pod), "ens5", ip(address), ip(to), port)
}

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

#[test]
fn what_begins_in_the_middle_of_a_flow_is_dropped_on_our_veths_and_nowhere_else() {
    let mut index = index(&[pod("a", "10.0.0.1", json!([]))], &[]);
    let rules = compile(&mut index, Family::V4);
    let udp = Some((Protocol::Udp, 53));
    let sctp = Some((Protocol::Sctp, 80));
    for first in [
        into("a", "10.0.0.1", tcp(80)),
        out_of("a", "10.0.0.1", OUTSIDE, tcp(80)),
    ] {
        for (port, opens, state, want) in [
            (tcp(80), true, FlowState::New, true),
            (tcp(80), false, FlowState::New, false),
            (tcp(80), false, FlowState::Established, true),
            (tcp(80), false, FlowState::Invalid, false),
            (tcp(80), false, FlowState::Untracked, true),
            (sctp, true, FlowState::New, true),
            (sctp, false, FlowState::New, false),
            (sctp, false, FlowState::Established, true),
            (sctp, false, FlowState::Untracked, true),
            (udp, false, FlowState::New, true),
            (None, false, FlowState::New, true),
            (None, false, FlowState::Invalid, false),
        ] {
            let packet = Packet {
                port,
                opens,
                state,
                ..first.clone()
            };
            assert_eq!(
                passes(&rules, &packet),
                want,
                "{port:?} opens {opens} {state:?}"
            );
            let stranger = Packet {
                in_interface: "docker0".to_owned(),
                out_interface: "ens5".to_owned(),
                ..packet
            };
            assert!(passes(&rules, &stranger), "not ours");
        }
    }
}

#[test]
fn invalid_packets_are_judged_as_others_where_their_drop_is_switched_off() {
    let mut index = Index::new(Settings {
        drop_invalid: false,
        deny_log: None,
        ..cluster::settings()
    });
    let spec = json!({"podSelector": {"matchLabels": {"app": "b"}}});
    for pod in [
        pod("a", "10.0.0.1", json!([])),
        pod("b", "10.0.0.2", json!([])),
    ] {
        index.apply(cluster::pod_applied(&pod));
    }
    index.apply(cluster::policy_applied(&policy(spec)));
    let rules = compile(&mut index, Family::V4);
    let invalid = |packet| Packet {
        state: FlowState::Invalid,
        opens: false,
        ..packet
    };
    assert!(passes(&rules, &invalid(into("a", "10.0.0.1", None))));
    let denied = invalid(into("b", "10.0.0.2", None));
    assert!(!passes(&rules, &denied), "a policy's drop");
    for protocol in [Protocol::Tcp, Protocol::Sctp] {
        let middle = invalid(into("a", "10.0.0.1", Some((protocol, 80))));
        assert!(
            !passes(&rules, &middle),
            "a cut flow would go on: {protocol}"
        );
    }
}

#[test]
fn cut_flows_are_looked_up_for_new_packets_alone() {
    let mut index = index(&[pod("a", "10.0.0.1", json!([]))], &[]);
    for (family, name) in [(Family::V4, "selvage-cut4"), (Family::V6, "selvage-cut6")] {
        let rules = compile(&mut index, family);
        let (set, _) = rules
            .sets
            .iter()
            .find(|(_, set)| set.kind == SetKind::Guard)
            .unwrap();
        assert_eq!(set.as_str(), name);
        for root in ["selvage-from", "selvage-to"] {
            let (_, chain) = rules
                .chains
                .iter()
                .find(|(name, _)| name.as_str() == root)
                .unwrap();
            let guard = chain.rules().iter().find(|rule| {
                rule.matches.iter().any(|it| {
                    matches!(
                        it,
                        Match::Set {
                            kind: SetKind::Guard,
                            ..
                        }
                    )
                })
            });
            let matches = &guard.expect("the set is used").matches;
            assert!(matches.contains(&Match::State(FlowState::New)), "{root}");
        }
    }
}

#[test]
fn neighbour_discovery_passes_the_source_check_and_other_icmpv6_does_not() {
    let mut index = index(&[pod("a", "fd00::1", json!([]))], &[]);
    let rules = compile(&mut index, Family::V6);
    for (number, want) in [
        (133, true),
        (134, true),
        (135, true),
        (136, true),
        (137, false),
        (130, true),
        (131, true),
        (132, true),
        (143, true),
        (128, false),
        (1, false),
    ] {
        let packet = Packet {
            icmp6: Some(number),
            state: FlowState::Untracked,
            source_elsewhere: true,
            ..Packet::first(veth("a"), "ens5", ip("fe80::1"), ip("ff02::1"), None)
        };
        assert_eq!(passes(&rules, &packet), want, "type {number}");
    }
}

#[test]
fn a_pod_on_a_branch_eni_is_enforced_under_both_names_and_the_uplink_is_nobodys() {
    let mut branch = pod("a", "10.0.0.1", json!([]));
    branch["metadata"]["annotations"] = json!({"vpc.amazonaws.com/pod-eni": "[{}]"});
    let spec = json!({
        "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"ports": [{"port": 80}]}],
    });
    let mut index = index(&[branch, pod("b", "10.0.0.2", json!([]))], &[policy(spec)]);
    let rules = compile(&mut index, Family::V4);
    let vlan = veth("a").replace("eni", "vlan");
    for name in [veth("a"), vlan.clone()] {
        let to = |port| {
            Packet::first(
                "vlan.eth.7",
                name.as_str(),
                ip(OUTSIDE),
                ip("10.0.0.1"),
                tcp(port),
            )
        };
        assert!(
            passes(&rules, &to(80)) && !passes(&rules, &to(81)),
            "{name}"
        );
        let from = Packet::first(
            name.as_str(),
            "vlan.eth.7",
            ip("10.0.0.1"),
            ip(OUTSIDE),
            tcp(80),
        );
        assert!(!passes(&rules, &from), "{name}");
        let middle = Packet {
            opens: false,
            ..to(80)
        };
        assert!(!passes(&rules, &middle), "guarded: {name}");
    }
    for host in ["vlan.eth.7", "vlan100", "vlan"] {
        let through = |opens| Packet {
            opens,
            ..Packet::first(host, "ens5", ip(OUTSIDE), ip("203.0.113.1"), tcp(81))
        };
        assert!(
            passes(&rules, &through(true)) && passes(&rules, &through(false)),
            "{host}"
        );
        let back = Packet::first("ens5", host, ip(OUTSIDE), ip("203.0.113.1"), tcp(81));
        assert!(passes(&rules, &back), "{host}");
    }
    let b = veth("b").replace("eni", "vlan");
    let from_b = Packet::first(b.as_str(), "ens5", ip("10.0.0.2"), ip(OUTSIDE), tcp(80));
    assert!(
        passes(&rules, &from_b),
        "b is on no branch ENI: the name is nobody's"
    );
}

#[test]
fn without_pods_on_branch_enis_no_packet_meets_a_rule_for_them() {
    let rules = compile(
        &mut index(&[pod("a", "10.0.0.1", json!([]))], &[]),
        Family::V4,
    );
    assert!(
        rules
            .chains
            .keys()
            .all(|name| !name.as_str().contains("branch"))
    );
}

#[test]
fn a_pod_with_an_interface_on_each_network_card_is_enforced_on_all_of_them() {
    let mut wide = pod("a", "10.0.0.1", json!([]));
    wide["metadata"]["annotations"] =
        json!({"k8s.amazonaws.com/nicConfig": "multi-nic-attachment"});
    let deny = policy(json!({"podSelector": {}}));
    let mut index = index(&[wide, pod("b", "10.0.0.2", json!([]))], &[deny]);
    let rules = compile(&mut index, Family::V4);
    for card in ["a.1", "a.31"] {
        let into = Packet::first("ens5", veth(card), ip(OUTSIDE), ip("10.0.0.1"), tcp(80));
        assert!(!passes(&rules, &into), "ingress, {card}");
        let out = Packet::first(veth(card), "ens5", ip("10.0.0.1"), ip(OUTSIDE), tcp(80));
        assert!(passes(&rules, &out), "known, and egress is open, {card}");
    }
    let strange = Packet::first(veth("b.1"), "ens5", ip("10.0.0.1"), ip(OUTSIDE), tcp(80));
    assert!(!passes(&rules, &strange), "b asked for no more");
}

#[test]
fn an_isolated_pod_with_interfaces_of_another_plugin_is_named() {
    let mut multus = pod("a", "10.0.0.1", json!([]));
    multus["metadata"]["annotations"] = json!({"k8s.v1.cni.cncf.io/networks": "macvlan-1"});
    let mut index = index(&[multus, pod("b", "10.0.0.2", json!([]))], &[]);
    assert!(index.unenforced().is_empty(), "nothing is asked for");
    index.apply(cluster::policy_applied(&policy(json!({"podSelector": {}}))));
    let named = index.unenforced();
    assert_eq!(
        named.into_iter().collect::<Vec<_>>(),
        [(key("a"), Unenforced::OtherInterfaces)]
    );
}

/// Two pods of n0 whose names' hashes begin with the same 11 digits: a minute's search.
const COLLISION: (&str, &str) = ("p181a0d", "p2f28b9");

#[test]
fn two_pods_whose_interfaces_have_one_name_are_both_closed() {
    let (one, other) = COLLISION;
    assert_eq!(veth(one), veth(other), "they share the name");
    let deny = policy(json!({"podSelector": {"matchLabels": {"app": one}}}));
    let pods = [
        pod(one, "10.0.0.1", json!([])),
        pod(other, "10.0.0.2", json!([])),
    ];
    let rules = compile(&mut index(&pods, &[deny]), Family::V4);
    assert!(!passes(&rules, &into(one, "10.0.0.1", tcp(80))));
    assert!(!passes(
        &rules,
        &out_of(other, "10.0.0.2", OUTSIDE, tcp(80))
    ));
}

fn routes(pod: &str, addresses: &[&str]) -> Event {
    Event::Routes {
        interface: veth(pod),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
    }
}

#[test]
fn a_pod_is_a_peer_from_when_its_address_is_routed_and_leaves_with_the_route() {
    let mut client = pod("b", "10.0.0.2", json!([]));
    client["status"] = json!({"phase": "Pending"});
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "a"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "b"}}}]}],
    });
    let mut index = index(&[pod("a", "10.0.0.1", json!([])), client], &[policy(spec)]);
    let _ = compile(&mut index, Family::V4);
    let packet =
        |source: &str| Packet::first(veth("b"), veth("a"), ip(source), ip("10.0.0.1"), tcp(80));
    let allowed =
        |index: &mut Index, source: &str| passes(&compile(index, Family::V4), &packet(source));
    assert!(!allowed(&mut index, "10.0.0.2"), "no address yet");
    let delta = index.apply(routes("b", &["10.0.0.2"]));
    assert!(!delta.recompile && delta.members);
    assert_eq!(index.take_member_changes().unwrap().len(), 1);
    assert!(allowed(&mut index, "10.0.0.2"));
    // The status catches up, and is wrong for once: the kernel knows better.
    assert!(
        index
            .apply(cluster::pod_applied(&pod("b", "10.0.0.9", json!([]))))
            .is_empty()
    );
    assert!(allowed(&mut index, "10.0.0.2") && !allowed(&mut index, "10.0.0.9"));
    let delta = index.apply(routes("b", &[]));
    assert_eq!(
        delta.left,
        [ip("10.0.0.2")].into(),
        "its flows must not be found by the next"
    );
    assert!(!allowed(&mut index, "10.0.0.2"));
    assert!(
        allowed(&mut index, "10.0.0.9"),
        "without a route, what the API says"
    );
}

#[test]
fn routes_told_before_the_pod_are_remembered_and_a_family_without_route_is_the_apis() {
    let mut index = index(&[], &[]);
    index.apply(routes("a", &["10.0.0.7"]));
    let mut dual = pod("a", "10.0.0.1", json!([]));
    dual["status"]["podIPs"] = json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]);
    index.apply(cluster::pod_applied(&dual));
    let local = index.enforced_pods().next().unwrap();
    assert_eq!(*local.addresses, [ip("10.0.0.7"), ip("fd00::1")].into());
}

#[test]
fn an_address_that_another_pod_of_the_node_has_too_has_not_left() {
    let mut index = index(
        &[
            pod("a", "10.0.0.1", json!([])),
            pod("b", "10.0.0.1", json!([])),
        ],
        &[],
    );
    let gone = |index: &mut Index, name: &str| {
        let uid = selvage_policy_core::model::PodUid::new(name);
        index.apply(Event::PodDeleted(key(name), uid)).left
    };
    assert!(gone(&mut index, "a").is_empty());
    assert_eq!(gone(&mut index, "b"), [ip("10.0.0.1")].into());
}

#[test]
fn a_finished_or_host_network_pods_address_is_nobodys() {
    let mut finished = pod("b", "10.0.0.2", json!([]));
    finished["status"]["phase"] = json!("Succeeded");
    let mut host = pod("h", "10.0.0.3", json!([]));
    host["spec"]["hostNetwork"] = json!(true);
    let mut ending = pod("t", "10.0.0.4", json!([]));
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "a"}}, "ingress": [{"from": [{"podSelector": {}}]}],
    });
    let pods = [pod("a", "10.0.0.1", json!([])), finished, host, ending];
    let mut index = index(&pods, &[policy(spec)]);
    let rules = compile(&mut index, Family::V4);
    let from = |source: &str| Packet::first("ens5", veth("a"), ip(source), ip("10.0.0.1"), None);
    assert!(!passes(&rules, &from("10.0.0.2")), "finished");
    assert!(!passes(&rules, &from("10.0.0.3")), "host network");
    assert!(
        passes(&rules, &from("10.0.0.4")),
        "being deleted, and alive"
    );
    let judge = index.judge();
    let flow = |source| Flow {
        source: ip(source),
        destination: ip(OUTSIDE),
        port: tcp(80),
    };
    assert_eq!(judge.verdict(&flow("10.0.0.2")), verdict::Verdict::NotOurs);
    assert_eq!(judge.verdict(&flow("10.0.0.4")), verdict::Verdict::Allowed);
}

#[test]
fn a_verdict_names_the_pod_and_the_direction_and_stays_as_it_was_when_it_was_asked_for() {
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "a"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": 80}]}],
    });
    let pods = [
        pod("a", "10.0.0.1", json!([])),
        elsewhere(pod("b", "10.0.0.2", json!([]))),
    ];
    let mut index = index(&pods, &[policy(spec)]);
    let judge = index.judge();
    let forbidden = verdict::Verdict::Forbidden {
        pod: key("a"),
        direction: Direction::Ingress,
    };
    let flow = |source: &str, destination: &str, number, port| {
        Flow::new(ip(source), ip(destination), number, port)
    };
    let allowed = flow("10.0.0.2", "10.0.0.1", 6, Some(80));
    assert_eq!(judge.verdict(&allowed), verdict::Verdict::Allowed);
    assert_eq!(
        judge.verdict(&flow("10.0.0.2", "10.0.0.1", 6, Some(81))),
        forbidden
    );
    assert_eq!(
        judge.verdict(&flow("10.0.0.2", "10.0.0.1", 17, Some(80))),
        forbidden
    );
    assert_eq!(
        judge.verdict(&flow("10.0.0.2", "10.0.0.1", 1, None)),
        forbidden
    );
    assert_eq!(
        judge.verdict(&flow("10.0.0.1", OUTSIDE, 6, Some(80))),
        verdict::Verdict::Allowed
    );
    assert_eq!(
        judge.verdict(&flow("10.0.0.2", OUTSIDE, 6, Some(80))),
        verdict::Verdict::NotOurs
    );
    assert_eq!(
        judge.verdict(&flow("10.0.0.1", "10.0.0.1", 6, Some(1))),
        verdict::Verdict::Allowed
    );
    let uid = selvage_policy_core::model::PodUid::new("b");
    index.apply(Event::PodDeleted(key("b"), uid));
    assert_eq!(
        judge.verdict(&allowed),
        verdict::Verdict::Allowed,
        "a picture doesn't move"
    );
    assert_eq!(index.judge().verdict(&allowed), forbidden);
    fn send<T: Send + Sync>(_: &T) {}
    send(&judge);
}

#[test]
fn a_flow_of_an_address_that_two_pods_have_is_forbidden_when_either_forbids_until_a_route_tells() {
    let spec = json!({"podSelector": {"matchLabels": {"app": "a"}}});
    let pods = [
        pod("a", "10.0.0.1", json!([])),
        pod("b", "10.0.0.1", json!([])),
    ];
    let mut index = index(&pods, &[policy(spec)]);
    let flow = Flow {
        source: ip(OUTSIDE),
        destination: ip("10.0.0.1"),
        port: tcp(80),
    };
    let is_allowed = |index: &mut Index| index.judge().verdict(&flow) == verdict::Verdict::Allowed;
    assert!(!is_allowed(&mut index));
    index.apply(routes("a", &["10.0.0.5"]));
    assert!(
        is_allowed(&mut index),
        "a has another address by the kernel's word"
    );
}

#[test]
fn an_unwieldy_policy_is_enforced_and_leaves_every_other_as_it_was() {
    let selectors: Vec<Value> = (0..10_000)
        .map(|n| json!({"podSelector": {"matchLabels": {"app": format!("a{n}")}}}))
        .collect();
    let except: Vec<String> = (0..500)
        .map(|n| format!("10.{}.{}.1/32", n / 250, n % 250))
        .collect();
    let unwieldy = json!({
        "metadata": {"name": "unwieldy", "namespace": "n0"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "a"}},
            "ingress": [
                {"from": selectors, "ports": [{"port": 80}]},
                {"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": except}}], "ports": [{"port": 81}]},
            ],
        },
    });
    let plain = policy(json!({
        "podSelector": {"matchLabels": {"app": "b"}}, "ingress": [{"from": [{"podSelector": {}}]}],
    }));
    let pods = [
        pod("a", "10.9.0.1", json!([])),
        pod("b", "10.9.0.2", json!([])),
        elsewhere(pod("a9999", "10.9.0.3", json!([]))),
    ];
    let alone = compile(&mut index(&pods, std::slice::from_ref(&plain)), Family::V4);
    let both = compile(&mut index(&pods, &[plain, unwieldy]), Family::V4);
    for (name, set) in &alone.sets {
        assert_eq!(both.sets.get(name), Some(set));
    }
    let from = |source: &str, port| {
        Packet::first("ens5", veth("a"), ip(source), ip("10.9.0.1"), tcp(port))
    };
    assert!(passes(&both, &from("10.9.0.3", 80)) && !passes(&both, &from(OUTSIDE, 80)));
    assert!(passes(&both, &from(OUTSIDE, 81)) && passes(&both, &from("10.0.7.2", 81)));
    assert!(!passes(&both, &from("10.0.7.1", 81)) && !passes(&both, &from("10.1.249.1", 81)));
}

#[test]
fn a_nodeport_client_behind_snat_is_seen_as_the_node_that_took_it_in() {
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "a"}},
        "ingress": [{"from": [{"ipBlock": {"cidr": format!("{OUTSIDE}/32")}}]}],
    });
    let rules = compile(
        &mut index(&[pod("a", "10.0.0.1", json!([]))], &[policy(spec)]),
        Family::V4,
    );
    let from = |source: &str| Packet::first("ens5", veth("a"), ip(source), ip("10.0.0.1"), tcp(80));
    assert!(
        passes(&rules, &from(OUTSIDE)),
        "externalTrafficPolicy: Local"
    );
    let node = "10.0.128.7";
    assert!(
        !passes(&rules, &from(node)),
        "Cluster: the client is not to be seen"
    );
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "a"}},
        "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.128.0/24"}}]}],
    });
    let rules = compile(
        &mut index(&[pod("a", "10.0.0.1", json!([]))], &[policy(spec)]),
        Family::V4,
    );
    assert!(
        passes(&rules, &from(node)),
        "where nodes are allowed, so is whoever comes through one"
    );
}

#[test]
fn multicast_and_broadcast_of_an_isolated_pod_are_destinations_like_any_other() {
    let none = json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"]});
    let groups = json!({
        "podSelector": {"matchLabels": {"app": "b"}},
        "policyTypes": ["Egress"],
        "egress": [{"to": [{"ipBlock": {"cidr": "224.0.0.0/4"}}]}],
    });
    let mut others = policy(groups);
    others["metadata"]["name"] = json!("r");
    let pods = ["a", "b", "c"].map(|name| pod(name, "10.0.0.1", json!([])));
    let rules = compile(&mut index(&pods, &[policy(none), others]), Family::V4);
    let mdns = Some((Protocol::Udp, 5353));
    for (pod, to, want) in [
        ("a", "224.0.0.251", false),
        ("a", "255.255.255.255", false),
        ("b", "224.0.0.251", true),
        ("b", "255.255.255.255", false),
        ("c", "224.0.0.251", true),
        ("c", "255.255.255.255", true),
    ] {
        let packet = out_of(pod, "10.0.0.1", to, mdns);
        assert_eq!(passes(&rules, &packet), want, "{pod} to {to}");
    }
}

#[test]
fn a_policy_over_thousands_of_pods_that_are_there_already_reaches_every_node() {
    const NODES: usize = 20;
    const PODS: usize = 4_000;
    let objects: Vec<Value> = (0..PODS)
        .map(|number| {
            let address =
                std::net::Ipv4Addr::from_bits(0x0a00_0001 + u32::try_from(number).unwrap());
            let mut pod = pod(&format!("p{number}"), &address.to_string(), json!([]));
            pod["spec"]["nodeName"] = json!(format!("node-{}", number % NODES));
            pod
        })
        .collect();
    let space = json!({"metadata": {"name": "n0", "labels": {}}});
    for node in 0..NODES {
        let mut settings = cluster::settings();
        settings.node = selvage_policy_core::model::NodeName::new(format!("node-{node}"));
        let mut index = Index::new(settings);
        index.apply(cluster::namespace_applied(&space));
        for pod in &objects {
            index.apply(cluster::pod_applied(pod));
        }
        let _ = compile(&mut index, Family::V4);
        let spec = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "p7"}}}]}]});
        assert!(
            index
                .apply(cluster::policy_applied(&policy(spec)))
                .recompile
        );
        let rules = compile(&mut index, Family::V4);
        for number in (node..PODS).step_by(NODES) {
            let name = format!("p{number}");
            let address =
                std::net::Ipv4Addr::from_bits(0x0a00_0001 + u32::try_from(number).unwrap());
            let from = |source: &str| {
                Packet::first("ens5", veth(&name), ip(source), address.into(), tcp(80))
            };
            assert!(!passes(&rules, &from(OUTSIDE)), "{name} on node {node}");
            // p7's address; on its own node it does not come in from outside.
            assert!(
                node == 7 || passes(&rules, &from("10.0.0.8")),
                "{name} on node {node}"
            );
        }
    }
}
