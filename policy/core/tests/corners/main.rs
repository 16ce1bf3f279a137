//! Corner cases of enforcement, each on a node of its own: flows, verdicts and sizes; [`ports`], [`places`].

#[path = "../support/cluster.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod cluster;
mod places;
mod ports;

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

fn routes(pod: &str, addresses: &[&str]) -> Event {
    Event::Routes {
        interface: veth(pod),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
    }
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
