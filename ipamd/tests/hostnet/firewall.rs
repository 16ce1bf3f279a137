//! Hosts with a firewall of the distribution: what works by itself, and what is named because it cannot.

use selvage_ipamd::hostnet::{Host, Kernel, Obstacle};

use crate::world::{OUTSIDE, build, ensure_all, node, pod, sh, talk};

async fn obstacles(kernel: &Kernel) -> Vec<Obstacle> {
    kernel.obstacles(&node()).await.unwrap()
}

/// As `ufw enable` with its defaults leaves FORWARD: a policy of DROP, chains that accept what is established, chains
/// that the user fills.
fn ufw(tool: &str) {
    sh(&format!(
        "
        set -e
        for chain in before-forward user-forward after-forward after-logging-forward reject-forward track-forward; do
            {tool} -N ufw-$chain
        done
        {tool} -P FORWARD DROP
        for chain in before-forward after-forward after-logging-forward reject-forward track-forward; do
            {tool} -A FORWARD -j ufw-$chain
        done
        {tool} -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
        {tool} -A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
        {tool} -A ufw-before-forward -j ufw-user-forward
        {tool} -A ufw-after-logging-forward -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix '[UFW BLOCK] '
        "
    ));
}

async fn behind_ufw(tool: &str) {
    build();
    sh(&format!("{tool} -t mangle -N KUBE-KUBELET-CANARY"));
    ufw(tool);
    let pods = [pod("a", "10.40.0.9", 0), pod("b", "10.40.0.10", 1)];
    let kernel = Kernel::new();
    ensure_all(&kernel, &pods).await;
    assert!(talk("a", "b", "10.40.0.10").is_some(), "pod to pod");
    assert!(talk("b", "vpc", OUTSIDE).is_some(), "pod to the world");
    assert_eq!(obstacles(&kernel).await, [], "nothing to complain of");

    // `ufw default reject routed`: a rule that refuses everything, in front of ours.
    sh(&format!(
        "{tool} -A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable"
    ));
    kernel.ensure_node(&node()).await.unwrap();
    assert_eq!(
        talk("a", "b", "10.40.0.10"),
        None,
        "nobody's verdict is overridden"
    );
    let found = obstacles(&kernel).await;
    assert_eq!(found.len(), 1, "{found:?}");
    let words = found[0].to_string();
    for part in [
        "ufw-reject-forward",
        tool,
        "-j REJECT --reject-with icmp-port-unreachable",
        "-I FORWARD -i eni+ -j ACCEPT",
    ] {
        assert!(words.contains(part), "{part} is not in: {words}");
    }
    // What the message says helps.
    sh(&format!(
        "{tool} -I FORWARD -i eni+ -j ACCEPT; {tool} -I FORWARD -o eni+ -j ACCEPT"
    ));
    assert!(talk("a", "b", "10.40.0.10").is_some());
    assert_eq!(obstacles(&kernel).await, []);
}

#[tokio::test]
async fn pods_are_reached_behind_ufw_and_a_rule_that_refuses_them_is_named_nft() {
    behind_ufw("iptables-nft").await;
}

#[tokio::test]
async fn pods_are_reached_behind_ufw_and_a_rule_that_refuses_them_is_named_legacy() {
    behind_ufw("iptables-legacy").await;
}

#[tokio::test]
async fn a_policy_of_drop_in_the_tables_of_the_other_tools_is_handled_too() {
    build();
    // A node whose kubelet uses nft's tools and whose Docker the legacy ones.
    sh("iptables-nft -t mangle -N KUBE-KUBELET-CANARY; iptables-legacy -P FORWARD DROP");
    let pods = [pod("a", "10.40.0.9", 0), pod("b", "10.40.0.10", 1)];
    let kernel = Kernel::new();
    ensure_all(&kernel, &pods).await;
    assert!(talk("a", "b", "10.40.0.10").is_some());
    assert_eq!(obstacles(&kernel).await, []);
    assert!(!sh("iptables-legacy -t nat -S").contains("AWS"));
    sh("iptables-legacy -P FORWARD ACCEPT");
    kernel.ensure_node(&node()).await.unwrap();
    assert!(!sh("iptables-legacy -S FORWARD").contains("selvage"));
}

#[tokio::test]
async fn a_native_firewall_that_refuses_what_is_forwarded_is_named() {
    build();
    let pods = [pod("a", "10.40.0.9", 0), pod("b", "10.40.0.10", 1)];
    let kernel = Kernel::new();
    ensure_all(&kernel, &pods).await;
    // As firewalld makes it.
    sh("nft -f - <<'END'
        table inet firewalld {
            chain filter_FORWARD {
                type filter hook forward priority filter + 10; policy accept;
                ct state { established, related } accept
                ct state invalid drop
                reject with icmpx admin-prohibited
            }
        }
END");
    assert_eq!(talk("a", "b", "10.40.0.10"), None);
    let found = obstacles(&kernel).await;
    assert_eq!(found.len(), 1, "{found:?}");
    let words = found[0].to_string();
    assert!(words.contains("inet firewalld filter_FORWARD"), "{words}");
    assert!(words.contains("eni*"), "{words}");
    sh("nft insert rule inet firewalld filter_FORWARD iifname 'eni*' accept");
    sh("nft insert rule inet firewalld filter_FORWARD oifname 'eni*' accept");
    assert!(talk("a", "b", "10.40.0.10").is_some());
    assert_eq!(obstacles(&kernel).await, []);
    sh("nft delete table inet firewalld; nft -f - <<'END'
        table ip mine {
            chain fw { type filter hook forward priority 0; policy drop; }
        }
END");
    let found = obstacles(&kernel).await;
    assert_eq!(found[0].what, "policy drop", "{found:?}");
}
