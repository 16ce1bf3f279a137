//! What packets meet.

use selvage_ipamd::hostnet::{Host, Kernel, NodeNet, Snat};

use crate::world::{
    INSIDE, NODE, OUTSIDE, build, ensure_all, listen, node, pod, sh, talk, talk_by,
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
    let external = NodeNet {
        snat: Snat::External,
        ..node()
    };
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
    let mut excluding = node();
    let peer: ipnet::Ipv4Net = "198.51.100.0/24".parse().unwrap();
    if let Snat::Here {
        exempt, excluded, ..
    } = &mut excluding.snat
    {
        exempt.insert(peer);
        excluded.insert(peer);
    }
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
    kernel.ensure_pods(&pods).await.unwrap();
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
        Vec::<String>::new()
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
    let inside = listen("vpc", "10.40.16.9:5353");
    let seen = talk_by("b", &inside, "10.96.0.10:53".parse().unwrap());
    assert_eq!(seen, Some("10.40.0.10".parse().unwrap()), "in the VPC");
    assert_eq!(counted(), 3, "by its own interface");
    let outside = listen("vpc", "198.51.100.10:5353");
    let seen = talk_by("b", &outside, "10.96.0.11:53".parse().unwrap());
    assert_eq!(seen, Some(NODE.parse().unwrap()), "outside");
    assert_eq!(counted(), 3, "by the primary interface");
    let direct = talk("b", "vpc", OUTSIDE);
    assert_eq!(direct, Some(NODE.parse().unwrap()), "without a Service");

    assert_eq!(
        kernel.ensure_node(&node()).await.unwrap(),
        Vec::<String>::new()
    );
    sh("nft flush chain ip aws-cni nat-prerouting");
    assert_eq!(kernel.ensure_node(&node()).await.unwrap(), ["nft table"]);
    assert!(talk("b", "vpc", OUTSIDE).is_some(), "after a repair");

    // Back to iptables mode: kube-proxy takes its table away.
    sh("nft delete table ip kube-proxy");
    kernel.ensure_node(&node()).await.unwrap();
    assert!(!sh("nft list tables").contains("aws-cni"));
    assert_eq!(talk("b", "vpc", OUTSIDE), Some(NODE.parse().unwrap()));
}
