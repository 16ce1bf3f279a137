//! NodePort: what comes to the node by its primary interface is answered by it, wherever the pod is.

use std::net::SocketAddr;

use selvage_ipamd::hostnet::{Change, Host, Kernel, NodeNet, Snat};

use crate::world::{
    INSIDE, NODE, OUTSIDE, build, ensure_all, exchange, listen, node, pod, sh, talk, with_v4,
};

const PORT: u16 = 30080;

/// How kube-proxy leads the port to the pod, its source left alone (externalTrafficPolicy Local).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proxy {
    Tool(&'static str),
    Nftables,
}

const PROXIES: [Proxy; 3] = [
    Proxy::Tool("iptables-nft"),
    Proxy::Tool("iptables-legacy"),
    Proxy::Nftables,
];

impl Proxy {
    fn lead(self) {
        match self {
            Proxy::Tool(tool) => sh(&format!(
                "
                set -e
                {tool} -t mangle -N KUBE-KUBELET-CANARY
                {tool} -t nat -A PREROUTING -p udp --dport {PORT} -m addrtype --dst-type LOCAL \
                    -j DNAT --to-destination 10.40.0.10:8080
                "
            )),
            Proxy::Nftables => sh(&format!(
                "
                nft -f - <<END
                table ip kube-proxy {{
                    chain nat-prerouting {{
                        type nat hook prerouting priority dstnat
                        fib daddr type local udp dport {PORT} dnat to 10.40.0.10:8080
                    }}
                }}
END
                "
            )),
        };
    }
}

/// The pod's port, reached from an address beyond by the node's.
fn reached(from: &str) -> bool {
    let server = listen("b", "10.40.0.10", 8080);
    let client = listen("vpc", from, 0);
    let to = SocketAddr::new(NODE.parse().unwrap(), PORT);
    exchange(&client, &server, to) == Some(from.parse().unwrap())
}

fn marked(node_port: bool, snat: bool) -> NodeNet {
    with_v4(|pods| {
        pods.node_port = node_port;
        if !snat {
            pods.snat = Snat::External;
        }
    })
}

async fn answered_by_the_primary_interface(proxy: Proxy) {
    build();
    let pods = [pod("a", "10.40.0.9", 0), pod("b", "10.40.0.10", 1)];
    proxy.lead();
    let kernel = Kernel::new();
    ensure_all(&kernel, &pods).await;
    for from in [INSIDE, OUTSIDE] {
        assert!(reached(from), "{proxy:?}: from {from}");
    }
    assert_eq!(
        talk("b", "vpc", INSIDE),
        Some("10.40.0.10".parse().unwrap()),
        "{proxy:?}: what the pod begins goes its own way"
    );
    // Also where somebody else translates, since that is another matter.
    kernel.ensure_node(&marked(true, false)).await.unwrap();
    assert!(reached(OUTSIDE), "{proxy:?}: with external SNAT");
    assert!(sh("ip rule list priority 1024").contains("0x80/0x80"));
    assert_eq!(
        kernel.ensure_node(&marked(true, false)).await.unwrap(),
        Vec::<Change>::new(),
        "{proxy:?}: again"
    );
    // The VPC drops what the second interface sends in the node's name: without the marks nobody is reached.
    for snat in [true, false] {
        kernel.ensure_node(&marked(false, snat)).await.unwrap();
        assert!(!reached(OUTSIDE), "{proxy:?}: without support");
    }
    assert_eq!(sh("ip rule list priority 1024"), "");
    kernel.ensure_node(&node()).await.unwrap();
    assert!(reached(OUTSIDE), "{proxy:?}: with support again");
}

#[tokio::test]
async fn a_node_port_of_a_pod_on_a_second_interface_is_answered_by_the_primary_one_nft() {
    answered_by_the_primary_interface(PROXIES[0]).await;
}

#[tokio::test]
async fn a_node_port_of_a_pod_on_a_second_interface_is_answered_by_the_primary_one_legacy() {
    answered_by_the_primary_interface(PROXIES[1]).await;
}

#[tokio::test]
async fn a_node_port_of_a_pod_on_a_second_interface_is_answered_by_the_primary_one_nftables_mode() {
    answered_by_the_primary_interface(PROXIES[2]).await;
}

#[tokio::test]
async fn another_mark_takes_the_place_of_the_first_everywhere() {
    build();
    let pods = [pod("b", "10.40.0.10", 1)];
    PROXIES[0].lead();
    let kernel = Kernel::new();
    ensure_all(&kernel, &pods).await;
    let mut other = node();
    other.mark = 0x100.try_into().unwrap();
    kernel.ensure_node(&other).await.unwrap();
    assert!(reached(OUTSIDE));
    assert!(talk("b", "vpc", OUTSIDE).is_some());
    assert_eq!(
        sh("ip rule list priority 1024"),
        "1024:\tfrom all fwmark 0x100/0x100 lookup main\n"
    );
    let rules = sh("iptables-nft -t mangle -S; iptables-nft -t nat -S");
    assert!(!rules.contains("0x80"), "{rules}");
}

#[tokio::test]
async fn marks_of_others_are_left_in_the_packet_and_in_the_connection() {
    build();
    let pods = [pod("b", "10.40.0.10", 1)];
    ensure_all(&Kernel::new(), &pods).await;
    // As an agent that marks packets and connections before us and looks after us.
    sh("
        set -e
        iptables-nft -t raw -A PREROUTING -i enib -j MARK --set-xmark 0x20000/0x20000
        iptables-nft -t mangle -A FORWARD -i enib -m mark --mark 0x20080/0x20080
    ");
    talk("b", "vpc", OUTSIDE).unwrap();
    let counted = sh("iptables-nft -t mangle -L FORWARD -nvx | sed -n 3p");
    let packets: u64 = counted.split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(packets, 3, "{counted}");
}
