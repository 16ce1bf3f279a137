//! What packets meet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use selvage_ipamd::config::RandomizeSnat;
use selvage_ipamd::hostnet::{Change, Host, Kernel, Pods, PodsV4, Snat};

use crate::world::{
    AWS_MARKS, INSIDE, NODE, OUTSIDE, PEERED, build, ensure_all, exchange, excluding, listen, node,
    not_the_machine, pod, primary, routing, sh, talk, talk_by, third, told, with_v4, words,
};

/// Packets that left the node by an interface and came from an address, since the counter was made.
fn count_leaving(interface: &str, source: &str) {
    sh(&format!(
        "iptables-nft -t mangle -I POSTROUTING -o {interface} -s {source} -j RETURN"
    ));
}

fn counted() -> u64 {
    let line = sh("iptables-nft -t mangle -L POSTROUTING -nvx | sed -n 3p");
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_pod_reaches_the_vpc_with_its_own_address_and_the_world_with_the_nodes() {
    build();
    let pods = [pod("a", "10.40.0.9", 0), pod("b", "10.40.0.10", 1)];
    ensure_all(&Kernel::new(), &pods).await;
    for (from, own) in [("a", "10.40.0.9"), ("b", "10.40.0.10")] {
        let inside = talk(from, "vpc", INSIDE).map(|a| a.to_string());
        assert_eq!(inside.as_deref(), Some(own), "{from} within the VPC");
        let outside = talk(from, "vpc", OUTSIDE).map(|a| a.to_string());
        assert_eq!(outside.as_deref(), Some(NODE), "{from} to the world");
    }
    assert_eq!(
        talk("a", "b", "10.40.0.10")
            .map(|a| a.to_string())
            .as_deref(),
        Some("10.40.0.9"),
        "pod to pod"
    );
}

#[tokio::test]
async fn every_packet_to_the_world_leaves_by_the_primary_interface_and_to_the_vpc_by_its_own() {
    build();
    let pods = [pod("b", "10.40.0.10", 1)];
    ensure_all(&Kernel::new(), &pods).await;
    count_leaving("ens6", "10.40.0.10");
    talk("b", "vpc", INSIDE).unwrap();
    assert_eq!(counted(), 3, "to the VPC by its own interface");
    // Before translation the source is the pod's; the VPC would drop it on the primary interface, and the node's
    // address on the second one.
    count_leaving("ens6", "10.40.0.0/20");
    talk("b", "vpc", OUTSIDE).unwrap();
    assert_eq!(counted(), 0, "to the world by the second interface");
}

#[tokio::test]
async fn with_external_snat_sources_are_left_alone_and_packets_leave_by_their_own_interface() {
    build();
    let pods = [pod("b", "10.40.0.10", 1)];
    let kernel = Kernel::new();
    ensure_all(&kernel, &pods).await;
    let external = with_v4(|pods| {
        pods.snat = Snat::External;
        pods.node_port = false;
    });
    kernel.ensure_node(&external).await.unwrap();
    count_leaving("ens6", "10.40.0.10");
    let seen = talk("b", "vpc", OUTSIDE).map(|a| a.to_string());
    assert_eq!(seen.as_deref(), Some("10.40.0.10"));
    assert_eq!(counted(), 3);
    let rules = sh("ip rule");
    assert!(!rules.contains("0x80"), "{rules}");
}

#[tokio::test]
async fn a_block_that_is_excluded_sees_the_pods_own_address() {
    build();
    let pods = [pod("a", "10.40.0.9", 0)];
    let kernel = Kernel::new();
    ensure_all(&kernel, &pods).await;
    let excluding = excluding(&["198.51.100.0/24"]);
    kernel.ensure_node(&excluding).await.unwrap();
    let seen = talk("a", "vpc", OUTSIDE).map(|a| a.to_string());
    assert_eq!(seen.as_deref(), Some("10.40.0.9"));
}

#[tokio::test]
async fn pods_are_reached_although_the_hosts_forward_policy_is_drop() {
    reached_in_spite_of_drop("iptables-nft").await;
}

#[tokio::test]
async fn pods_are_reached_although_the_forward_policy_of_legacy_tables_is_drop() {
    reached_in_spite_of_drop("iptables-legacy").await;
}

async fn reached_in_spite_of_drop(tool: &str) {
    build();
    // The tools are chosen by what the kubelet has made.
    sh(&format!("{tool} -t mangle -N KUBE-KUBELET-CANARY"));
    sh(&format!("{tool} -P FORWARD DROP"));
    let pods = [pod("a", "10.40.0.9", 0), pod("b", "10.40.0.10", 1)];
    let kernel = Kernel::new();
    routing(&kernel, &pods).await;
    assert_eq!(
        talk("a", "b", "10.40.0.10"),
        None,
        "the policy is not in force"
    );
    ensure_all(&kernel, &pods).await;
    assert!(talk("a", "b", "10.40.0.10").is_some(), "pod to pod");
    assert!(talk("a", "vpc", OUTSIDE).is_some(), "pod to the world");
    sh(&format!("{tool} -P FORWARD ACCEPT"));
    kernel.ensure_node(&node()).await.unwrap();
    assert!(!sh(&format!("{tool} -S FORWARD")).contains("selvage"));
}

#[tokio::test]
async fn nobodys_denial_is_overridden_whether_it_was_there_before_us_or_came_after() {
    build();
    let pods = [pod("a", "10.40.0.9", 0), pod("b", "10.40.0.10", 1)];
    let kernel = Kernel::new();
    sh("iptables-nft -P FORWARD DROP");
    ensure_all(&kernel, &pods).await;
    assert!(talk("a", "b", "10.40.0.10").is_some());

    // An agent that inserts its chain, as Calico does.
    sh(
        "iptables-nft -N agent; iptables-nft -A agent -d 10.40.0.10 -j DROP; iptables-nft -I FORWARD -j agent",
    );
    assert_eq!(talk("a", "b", "10.40.0.10"), None, "inserted above us");
    kernel.ensure_node(&node()).await.unwrap();
    assert_eq!(talk("a", "b", "10.40.0.10"), None, "and after a repair");
    sh("iptables-nft -F agent");
    assert!(talk("a", "b", "10.40.0.10").is_some());

    // A default-deny that is appended below us: we go below it at the next look.
    sh("iptables-nft -A FORWARD -j DROP");
    let changed = kernel.ensure_node(&node()).await.unwrap();
    assert!(!changed.is_empty());
    assert_eq!(talk("a", "b", "10.40.0.10"), None, "appended below us");
    let chain = sh("iptables-nft -S FORWARD");
    let last: Vec<&str> = chain.lines().rev().take(2).collect();
    assert!(
        last.iter().all(|line| line.contains("selvage: pods")),
        "{chain}"
    );
    assert_eq!(
        kernel.ensure_node(&node()).await.unwrap(),
        Vec::<Change>::new()
    );
}

/// Services as kube-proxy in nftables mode makes them: one in the VPC, one outside.
const KUBE_PROXY: &str = "nft -f - <<'END'
table ip kube-proxy {
    chain nat-prerouting {
        type nat hook prerouting priority dstnat;
        ip daddr 10.96.0.10 udp dport 53 dnat to 10.40.16.9:5353
        ip daddr 10.96.0.11 udp dport 53 dnat to 198.51.100.10:5353
    }
}
END";

#[tokio::test]
async fn services_of_a_kube_proxy_in_nftables_mode_are_reached_by_the_right_interface() {
    build();
    let pods = [pod("b", "10.40.0.10", 1)];
    let kernel = Kernel::new();
    // Ours are made later, and come first: the worse order.
    sh(KUBE_PROXY);
    ensure_all(&kernel, &pods).await;
    count_leaving("ens6", "10.40.0.10");
    let inside = listen("vpc", INSIDE, 5353);
    let seen = talk_by("b", &inside, "10.96.0.10:53".parse().unwrap());
    assert_eq!(seen, Some("10.40.0.10".parse().unwrap()), "in the VPC");
    assert_eq!(counted(), 3, "by its own interface");
    let outside = listen("vpc", OUTSIDE, 5353);
    let seen = talk_by("b", &outside, "10.96.0.11:53".parse().unwrap());
    assert_eq!(seen, Some(NODE.parse().unwrap()), "outside");
    assert_eq!(counted(), 3, "by the primary interface");
    let direct = talk("b", "vpc", OUTSIDE);
    assert_eq!(direct, Some(NODE.parse().unwrap()), "without a Service");

    assert_eq!(
        kernel.ensure_node(&node()).await.unwrap(),
        Vec::<Change>::new()
    );
    sh("nft flush chain ip aws-cni nat-prerouting");
    let repaired = kernel.ensure_node(&node()).await.unwrap();
    assert_eq!(words(&repaired), "nft table");
    assert!(talk("b", "vpc", OUTSIDE).is_some(), "after a repair");

    // Back to iptables mode: kube-proxy takes its table away.
    sh("nft delete table ip kube-proxy");
    kernel.ensure_node(&node()).await.unwrap();
    assert!(!sh("nft list tables").contains("aws-cni"));
    assert_eq!(talk("b", "vpc", OUTSIDE), Some(NODE.parse().unwrap()));
}

/// Connections that a pod on the second interface begins while the node's part is made anew again and again: each must
/// arrive, in the node's name. `change` alternates with what the daemon asks for first.
async fn no_gap(change: &str) {
    build();
    let pods = [pod("b", "10.40.0.10", 1)];
    let kernel = Kernel::new();
    ensure_all(&kernel, &pods).await;
    let server = listen("vpc", OUTSIDE, 0);
    let to = server.local_addr().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    // Each new connection by itself: its first packet and the answer.
    let talker = std::thread::spawn(move || {
        let mut seen: BTreeMap<Option<IpAddr>, u32> = BTreeMap::new();
        while !stopped.load(Ordering::Relaxed) {
            let from = exchange(&listen("b", "0.0.0.0", 0), &server, to);
            *seen.entry(from).or_default() += 1;
        }
        seen
    });
    let mut times = 0;
    for _ in 0..15 {
        for wanted in [excluding(&[change]), node()] {
            let changed = kernel.ensure_node(&wanted).await.unwrap();
            times += changed.len();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let seen = talker.join().unwrap();
    assert!(times >= 30, "the tables were replaced {times} times");
    let whole: Vec<_> = seen.keys().collect();
    assert_eq!(whole, [&Some(NODE.parse().unwrap())], "{seen:?}");
    assert!(seen.values().all(|count| *count > 100), "{seen:?}");
}

#[tokio::test]
async fn no_connection_is_lost_or_untranslated_while_chains_are_replaced_nft() {
    no_gap("203.0.113.0/24").await;
}

#[tokio::test]
async fn no_connection_is_lost_or_untranslated_while_chains_are_replaced_legacy() {
    not_the_machine();
    sh("iptables-legacy -t mangle -N KUBE-KUBELET-CANARY");
    no_gap("203.0.113.0/24").await;
}

#[tokio::test]
async fn no_connection_is_lost_or_untranslated_while_the_nft_table_is_replaced() {
    not_the_machine();
    sh(KUBE_PROXY);
    no_gap("203.0.113.0/24").await;
}

#[tokio::test]
async fn a_service_beyond_the_vpc_that_is_named_is_reached_by_the_primary_interface() {
    build();
    let pods = [pod("b", "10.40.0.10", 1)];
    let kernel = Kernel::new();
    ensure_all(&kernel, &pods).await;
    let mut named = with_v4(|pods| {
        pods.snat = Snat::External;
        pods.node_port = false;
        pods.external_services = ["198.51.100.0/24".parse().unwrap()].into();
    });
    kernel.ensure_node(&named).await.unwrap();
    assert_eq!(
        sh("ip rule list priority 1535"),
        "1535:\tfrom all to 198.51.100.0/24 lookup main\n"
    );
    count_leaving("ens5", "10.40.0.10");
    // The fabric has no such address on that interface: no answer.
    let client = listen("b", "0.0.0.0", 0);
    client.send_to(b"to", (OUTSIDE, 9)).unwrap();
    assert_eq!(counted(), 1, "by the primary interface");
    client.send_to(b"to", (PEERED, 9)).unwrap();
    assert_eq!(counted(), 1, "others by their own");
    assert_eq!(kernel.ensure_node(&named).await.unwrap(), []);

    // Another block takes its place; nobody else's rules there are touched.
    sh("ip rule add to 203.0.113.0/24 lookup 77 priority 1535");
    if let Pods::V4(pods) = &mut named.pods {
        pods.external_services = ["192.0.3.0/24".parse().unwrap()].into();
    }
    kernel.ensure_node(&named).await.unwrap();
    let rules = sh("ip rule list priority 1535");
    assert!(rules.contains("192.0.3.0/24 lookup main"), "{rules}");
    assert!(rules.contains("203.0.113.0/24 lookup 77"), "{rules}");
    assert!(!rules.contains("198.51.100.0/24"), "{rules}");
}

#[tokio::test]
async fn source_ports_are_chosen_as_asked() {
    build();
    for (randomize, end) in [
        (
            RandomizeSnat::Prng,
            "--to-source 10.40.0.4 --random-fully\n",
        ),
        (RandomizeSnat::Hash, "--to-source 10.40.0.4 --random\n"),
        (RandomizeSnat::None, "--to-source 10.40.0.4\n"),
    ] {
        let wanted = with_v4(|pods| {
            if let Snat::Here { randomize: how, .. } = &mut pods.snat {
                *how = randomize;
            }
        });
        let kernel = Kernel::new();
        kernel.ensure_node(&wanted).await.unwrap();
        let chain = sh("iptables-nft -t nat -S AWS-SNAT-CHAIN-0");
        assert!(chain.ends_with(end), "{randomize:?}: {chain}");
        assert_eq!(
            kernel.ensure_node(&wanted).await.unwrap(),
            [],
            "{randomize:?}"
        );
    }
}

#[tokio::test]
async fn pods_in_a_subnet_of_their_own_leave_by_its_router_and_reach_peered_vpcs_untranslated() {
    build();
    let third = third();
    let pods = [pod("c", "100.64.33.9", 2)];
    let kernel = Kernel::new();
    // Several blocks of one VPC, and another VPC that is peered with it.
    let mut wanted = excluding(&["172.31.0.0/16"]);
    if let Pods::V4(PodsV4 {
        snat: Snat::Here { exempt, .. },
        ..
    }) = &mut wanted.pods
    {
        exempt.insert("100.64.0.0/16".parse().unwrap());
    }
    kernel.ensure_node(&wanted).await.unwrap();
    kernel.ensure_eni(&third).await.unwrap();
    told(
        kernel
            .ensure_routing(&wanted, &[primary(), third], &pods)
            .await,
    );
    assert_eq!(
        sh("ip route show table 3"),
        "default via 100.64.32.1 dev ens7 \n100.64.32.1 dev ens7 scope link \n"
    );
    for (to, source) in [
        (INSIDE, "100.64.33.9"),
        (PEERED, "100.64.33.9"),
        (OUTSIDE, NODE),
    ] {
        let seen = talk("c", "vpc", to);
        assert_eq!(seen, Some(source.parse().unwrap()), "to {to}");
    }
    // The peer's pods reach ours by their own addresses.
    let server = listen("c", "100.64.33.9", 0);
    let client = listen("vpc", PEERED, 0);
    let seen = exchange(&client, &server, server.local_addr().unwrap());
    assert_eq!(seen, Some(PEERED.parse().unwrap()));
}

#[tokio::test]
async fn a_chain_of_type_nat_as_awss_agent_makes_it_never_sees_what_kube_proxy_has_translated() {
    build();
    let pods = [pod("b", "10.40.0.10", 1)];
    let kernel = Kernel::new();
    sh(KUBE_PROXY);
    ensure_all(&kernel, &pods).await;
    let service = "10.96.0.11:53".parse().unwrap();
    sh("nft delete table ip aws-cni");
    sh(AWS_MARKS);
    assert!(talk("b", "vpc", OUTSIDE).is_some(), "without a Service");
    let outside = listen("vpc", OUTSIDE, 5353);
    assert_eq!(talk_by("b", &outside, service), None, "by a Service");
    kernel.ensure_node(&node()).await.unwrap();
    assert_eq!(talk_by("b", &outside, service), Some(NODE.parse().unwrap()));
}
