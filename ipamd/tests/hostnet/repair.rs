//! What others take away or put in its place: noticed, put right, told by kind.

use std::time::Duration;

use selvage_ipamd::hostnet::{Change, Disturbed, Host, Kernel, Part, PodNet, Snat};

use crate::world::{
    INSIDE, NODE, OUTSIDE, build, ensure_all, exchange, listen, node, pod, primary, second, sh,
    talk, told, with_v4, words,
};

/// One look as the daemon makes it.
async fn look(kernel: &Kernel, pods: &[PodNet]) -> Vec<Change> {
    let enis = [primary(), second()];
    told(kernel.ensure_routing(&node(), &enis, pods).await)
}

/// Everything as the daemon makes it at its start.
async fn start(kernel: &Kernel, pods: &[PodNet]) {
    ensure_all(kernel, pods).await;
    look(kernel, pods).await;
}

/// What the kernel tells of a disturbance.
async fn disturbance(kernel: &Kernel) -> Option<Disturbed> {
    let patience = Duration::from_millis(500);
    let told = tokio::time::timeout(patience, kernel.disturbed()).await;
    told.ok()
}

async fn is_disturbed(kernel: &Kernel) -> bool {
    disturbance(kernel).await.is_some()
}

async fn quiet(kernel: &Kernel) {
    while is_disturbed(kernel).await {}
}

/// All of the node's rules, routes, links and addresses, in order of their words: what is put back comes last. Without
/// IPv6, which the kernel is still busy with.
fn picture() -> Vec<String> {
    let text = sh("ip rule; ip -4 route show table all; ip -br link; ip -4 -br address");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn parts(changed: &[Change]) -> Vec<Part> {
    let mut parts: Vec<Part> = changed.iter().map(|change| change.part).collect();
    parts.dedup();
    parts
}

#[tokio::test]
async fn what_is_taken_from_a_pod_an_interface_or_the_node_is_told_at_once_and_put_back() {
    build();
    let pods = [pod("a", "10.40.0.9", 0), pod("b", "10.40.0.10", 1)];
    let kernel = Kernel::new();
    start(&kernel, &pods).await;
    assert_eq!(look(&kernel, &pods).await, []);
    let before = picture();
    // Who does it: NetworkManager, systemd-networkd, ec2-net-utils and cloud-init's scripts, people.
    for (line, part) in [
        ("ip rule delete priority 512 to 10.40.0.9", Part::PodRule),
        ("ip rule delete priority 1536", Part::PodRule),
        (
            "ip rule delete priority 1536; ip rule add from 10.40.0.10 lookup 7 priority 1536",
            Part::PodRule,
        ),
        ("ip route delete 10.40.0.10", Part::PodRoute),
        ("ip rule delete priority 1024", Part::NodeRule),
        ("ip rule delete priority 32765", Part::EniRule),
        ("ip route flush table 2", Part::EniRoute),
        ("ip address delete 10.40.0.5/20 dev ens6", Part::EniAddress),
        ("ip address add 10.40.0.9/20 dev ens5", Part::HostAddress),
        ("ip address add 10.40.0.10/32 dev lo", Part::HostAddress),
        ("ip address add 10.40.0.77/32 dev ens6", Part::HostAddress),
        ("ip link set ens6 mtu 1500", Part::EniLink),
        ("ip link set ens6 down", Part::EniLink),
        ("ip link set enib address 02:00:00:00:00:99", Part::VethMac),
    ] {
        quiet(&kernel).await;
        sh(line);
        assert!(is_disturbed(&kernel).await, "{line}: not told");
        let changed = look(&kernel, &pods).await;
        assert!(
            parts(&changed).contains(&part),
            "{line}: {}",
            words(&changed)
        );
        assert_eq!(look(&kernel, &pods).await, [], "{line}: again");
        assert_eq!(picture(), before, "{line}: the node is as it was");
    }
    for name in ["a", "b"] {
        assert!(talk(name, "vpc", INSIDE).is_some(), "{name} in the VPC");
        assert!(talk(name, "vpc", OUTSIDE).is_some(), "{name} to the world");
    }
}

#[tokio::test]
async fn a_pod_whose_veth_was_given_another_address_hears_again() {
    build();
    let pods = [pod("a", "10.40.0.9", 0)];
    let kernel = Kernel::new();
    start(&kernel, &pods).await;
    // A pod that comes while we run, and a policy that rewrites its address before anybody looks.
    let late = pod("b", "10.40.0.10", 1);
    sh("ip link set enib address 02:00:00:00:00:99");
    let pods = [pods[0].clone(), late];
    assert_eq!(talk("b", "vpc", INSIDE), None, "it is deaf");
    let changed = look(&kernel, &pods).await;
    assert!(parts(&changed).contains(&Part::VethMac), "{changed:?}");
    assert!(talk("b", "vpc", INSIDE).is_some());
    assert!(sh("ip link show enib").contains("ee:ee:ee:ee:ee:ee"));
}

#[tokio::test]
async fn pods_that_come_are_no_disturbance_and_addresses_that_are_nobodys_pods_stay() {
    build();
    let kernel = Kernel::new();
    start(&kernel, &[]).await;
    quiet(&kernel).await;
    // As the plugin makes a pod.
    let pods = [pod("b", "10.40.0.10", 1)];
    sh("
        set -e
        ip route add 10.40.0.10 dev enib scope link
        ip rule add to 10.40.0.10 lookup main priority 512
        ip rule add from 10.40.0.10 lookup 2 priority 1536
    ");
    assert!(!is_disturbed(&kernel).await);
    assert_eq!(look(&kernel, &pods).await, []);
    // Somebody's own on the primary interface.
    sh("ip address add 192.168.7.1/24 dev ens5; ip address add 10.40.0.200/20 dev ens5");
    assert_eq!(look(&kernel, &pods).await, []);
}

#[tokio::test]
async fn a_pod_without_a_veth_is_given_nothing() {
    build();
    let kernel = Kernel::new();
    start(&kernel, &[]).await;
    let coming = PodNet {
        address: "10.40.0.10".parse().unwrap(),
        device_index: 1,
        veth: "0d7763386da".into(),
    };
    assert_eq!(look(&kernel, &[coming]).await, []);
    assert!(!sh("ip rule").contains("10.40.0.10"));
}

#[tokio::test]
async fn what_fails_for_one_does_not_keep_the_others_back() {
    build();
    let kernel = Kernel::new();
    let pods = [pod("a", "10.40.0.9", 0), pod("b", "10.40.0.10", 1)];
    // Nothing can be sent by a link that is down: no route leads there.
    sh("ip link set enia down");
    let missing = selvage_ipamd::hostnet::EniNet {
        mac: selvage_ipamd_core::ids::Mac([2, 0, 0, 0, 0, 99]),
        ..second()
    };
    let enis = [missing, second()];
    let looked = kernel.ensure_routing(&node(), &enis, &pods).await;
    let failed: Vec<String> = looked.failed.iter().map(ToString::to_string).collect();
    assert_eq!(failed.len(), 2, "{failed:?}");
    assert!(failed[0].contains("02:00:00:00:00:63"), "{failed:?}");
    assert!(failed[1].contains("10.40.0.9/32"), "{failed:?}");
    assert!(sh("ip route show table 2").contains("default via 10.40.0.1"));
    assert!(sh("ip rule list priority 1536").contains("10.40.0.10"));
    assert!(looked.pods.contains(&pods[1].address));
}

#[tokio::test]
async fn rules_of_pods_that_somebody_left_behind_go_with_their_interface() {
    build();
    let kernel = Kernel::new();
    start(&kernel, &[]).await;
    sh("
        ip rule add to 10.40.0.10 lookup main priority 512
        ip rule add from 10.40.0.10 lookup 2 priority 1536
        ip rule add to 10.40.0.9 lookup main priority 512
        ip rule add from 10.40.0.11 lookup 3 priority 1536
    ");
    kernel.remove_eni(&second()).await.unwrap();
    let rules = sh("ip rule");
    assert!(!rules.contains("10.40.0.10 "), "{rules}");
    assert!(
        rules.contains("to 10.40.0.9 ") && rules.contains("from 10.40.0.11 "),
        "{rules}"
    );
}

#[tokio::test]
async fn tables_that_somebody_changes_are_told_at_once_and_what_others_do_in_theirs_is_not() {
    build();
    let pods = [pod("b", "10.40.0.10", 1)];
    let kernel = Kernel::new();
    start(&kernel, &pods).await;
    for (line, part) in [
        ("iptables-nft -t nat -F AWS-SNAT-CHAIN-0", Part::Nat),
        ("iptables-nft -t nat -D AWS-CONNMARK-CHAIN-0 1", Part::Nat),
        ("iptables-nft -t nat -F POSTROUTING", Part::Nat),
        ("iptables-nft -t mangle -F PREROUTING", Part::Mangle),
        ("iptables-nft -P FORWARD DROP", Part::Forward),
        ("nft delete table ip nat", Part::Nat),
    ] {
        quiet(&kernel).await;
        sh(line);
        let told = disturbance(&kernel).await;
        assert_eq!(told, Some(Disturbed::Tables), "{line}");
        let changed = kernel.ensure_node(&node()).await.unwrap();
        assert_eq!(parts(&changed), [part], "{line}: {}", words(&changed));
        assert!(talk("b", "vpc", OUTSIDE).is_some(), "{line}");
    }
    quiet(&kernel).await;
    // As kube-proxy does with each change of a Service.
    sh("
        printf '*nat\\n:KUBE-POSTROUTING - [0:0]\\n-A KUBE-POSTROUTING -j RETURN\\nCOMMIT\\n' | iptables-nft-restore --noflush
        iptables-nft -t filter -A INPUT -j ACCEPT
    ");
    assert_eq!(disturbance(&kernel).await, None);
}

/// Connections that begin while the chains are not there, by a backend's tools.
async fn begins_anew(tool: &str) {
    build();
    sh(&format!("{tool} -t mangle -N KUBE-KUBELET-CANARY"));
    let pods = [pod("b", "10.40.0.10", 1)];
    let kernel = Kernel::new();
    start(&kernel, &pods).await;
    for chain in ["AWS-SNAT-CHAIN-0", "AWS-CONNMARK-CHAIN-0"] {
        let server = listen("vpc", OUTSIDE, 0);
        let inside = listen("vpc", INSIDE, 0);
        let (to, to_inside) = (server.local_addr().unwrap(), inside.local_addr().unwrap());
        let (client, other) = (listen("b", "0.0.0.0", 0), listen("b", "0.0.0.0", 0));
        sh(&format!("{tool} -t nat -F {chain}"));
        client.send_to(b"lost", to).unwrap();
        other.send_to(b"unanswered", to_inside).unwrap();
        // The VPC drops it.
        server
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        assert!(server.recv_from(&mut [0; 16]).is_err(), "{chain}");
        let changed = kernel.ensure_node(&node()).await.unwrap();
        assert_eq!(parts(&changed), [Part::Flow, Part::Nat], "{chain}");
        assert!(changed[0].what.starts_with("1 connections"), "{changed:?}");
        let seen = exchange(&client, &server, to).map(|a| a.to_string());
        assert_eq!(seen.as_deref(), Some(NODE), "{chain}");
        // The same repair once more: what works is left alone.
        sh(&format!("{tool} -t nat -F {chain}"));
        let changed = kernel.ensure_node(&node()).await.unwrap();
        assert_eq!(parts(&changed), [Part::Nat], "{chain}");
        assert!(exchange(&client, &server, to).is_some(), "{chain}");
    }
}

#[tokio::test]
async fn where_somebody_else_translates_no_connection_begins_anew() {
    build();
    let pods = [pod("b", "10.40.0.10", 1)];
    let kernel = Kernel::new();
    start(&kernel, &pods).await;
    let external = with_v4(|pods| pods.snat = Snat::External);
    kernel.ensure_node(&external).await.unwrap();
    let client = listen("b", "0.0.0.0", 0);
    client.send_to(b"unanswered", (OUTSIDE, 9)).unwrap();
    sh(
        "iptables-nft -t nat -N AWS-SNAT-CHAIN-0; iptables-nft -t nat -A AWS-SNAT-CHAIN-0 -j RETURN",
    );
    let changed = kernel.ensure_node(&external).await.unwrap();
    assert_eq!(parts(&changed), [Part::Nat], "{}", words(&changed));
}

#[tokio::test]
async fn a_connection_that_began_while_a_chain_was_missing_gets_through_after_the_repair() {
    begins_anew("iptables-nft").await;
}

#[tokio::test]
async fn a_connection_that_began_while_a_legacy_chain_was_missing_gets_through_after_the_repair() {
    begins_anew("iptables-legacy").await;
}
