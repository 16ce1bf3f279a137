//! Where a pod is: its interfaces, and the addresses that it has.

use super::*;

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
