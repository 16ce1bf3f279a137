//! A node whose pods speak IPv6: a /80 on the primary interface, nothing translated, nothing marked.

use selvage_ipamd::hostnet::{Change, EniNet, Host, Kernel, NodeNet, Part, PodNet, Pods};
use selvage_ipamd_core::ids::Mac;

use crate::world::{namespace_of_pod, node, not_the_machine, operational, sh, talk, told};

pub const OUTSIDE6: &str = "2001:db8:ffff::10";
const PREFIX: &str = "2001:db8:40:0:aaaa::/80";

fn node6() -> NodeNet {
    NodeNet {
        pods: Pods::V6,
        ..node()
    }
}

fn eni(device_index: u16, address: &str) -> EniNet {
    EniNet {
        mac: Mac([2, 0, 0, 0, 0, u8::try_from(5 + device_index).unwrap()]),
        device_index,
        address: address.parse().unwrap(),
        subnet: "2001:db8:40::/64".parse().unwrap(),
        mtu: 9001,
        for_pods: if device_index == 0 {
            vec![PREFIX.parse().unwrap()]
        } else {
            vec![]
        },
    }
}

fn primary6() -> EniNet {
    eni(0, "2001:db8:40::4")
}

/// A node as a distribution leaves it: an address and a default route from the router, by the router's own address.
pub fn build6() {
    not_the_machine();
    sh(&format!(
        "
        set -e
        mkdir -p /run/netns
        ip netns add vpc
        # Neighbours are asked for from the link's own address, which is tested for a second or two.
        sysctl -qw net.ipv6.conf.default.accept_dad=0
        ip netns exec vpc sysctl -qw net.ipv6.conf.default.accept_dad=0
        ip -n vpc link set lo up
        ip -n vpc address add {OUTSIDE6}/128 dev lo
        ip link add ens5 address 02:00:00:00:00:05 type veth peer name br0 netns vpc
        ip -n vpc link set br0 up
        ip -n vpc address add fe80:ec2::1/64 dev br0 nodad
        ip -n vpc address add 2001:db8:40::1/64 dev br0 nodad
        ip netns exec vpc sysctl -qw net.ipv6.conf.all.forwarding=1
        sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv6.conf.ens5.accept_ra=2 net.ipv4.ip_forward=1
        ip link set ens5 up
        ip address add 2001:db8:40::4/64 dev ens5 nodad
        ip route add default via fe80:ec2::1 dev ens5
        ip -n vpc route add {PREFIX} via 2001:db8:40::4
        "
    ));
    operational("br0");
}

fn pods6() -> [PodNet; 2] {
    // The first address of a /80 is used too.
    [
        ("a", "2001:db8:40:0:aaaa::"),
        ("b", "2001:db8:40:0:aaaa::1"),
    ]
    .map(|(name, address)| namespace_of_pod(name, address, 0, "fe80::1"))
}

async fn look(kernel: &Kernel, pods: &[PodNet]) -> Vec<Change> {
    told(kernel.ensure_routing(&node6(), &[primary6()], pods).await)
}

fn everyone_talks() {
    for (from, to_netns, to, source) in [
        ("a", "vpc", OUTSIDE6, "2001:db8:40:0:aaaa::"),
        ("b", "vpc", OUTSIDE6, "2001:db8:40:0:aaaa::1"),
        ("a", "b", "2001:db8:40:0:aaaa::1", "2001:db8:40:0:aaaa::"),
        ("vpc", "b", "2001:db8:40:0:aaaa::1", "2001:db8:40::1"),
    ] {
        let seen = talk(from, to_netns, to);
        assert_eq!(seen, Some(source.parse().unwrap()), "{from} to {to}");
    }
}

#[tokio::test]
async fn pods_of_ipv6_reach_everything_with_their_own_address() {
    build6();
    let pods = pods6();
    let kernel = Kernel::new();
    kernel.ensure_node(&node6()).await.unwrap();
    look(&kernel, &pods).await;
    everyone_talks();
    let rules = sh("ip -6 rule");
    assert_eq!(
        rules,
        "0:\tfrom all lookup local\n\
         512:\tfrom all to 2001:db8:40:0:aaaa:: lookup main\n\
         512:\tfrom all to 2001:db8:40:0:aaaa::1 lookup main\n\
         1024:\tfrom all fwmark 0x80/0x80 lookup main\n\
         32766:\tfrom all lookup main\n"
    );
    // Nothing of ours in IPv4, nothing translated in either.
    assert!(!sh("ip rule").contains("512:"));
    let tables = sh("iptables-nft-save; ip6tables-nft-save; nft list ruleset");
    assert!(!tables.contains("AWS"), "{tables}");
    assert_eq!(kernel.ensure_node(&node6()).await.unwrap(), []);
    assert_eq!(look(&kernel, &pods).await, []);
}

#[tokio::test]
async fn what_is_taken_from_a_pod_of_ipv6_is_told_and_put_back() {
    build6();
    let pods = pods6();
    let kernel = Kernel::new();
    kernel.ensure_node(&node6()).await.unwrap();
    look(&kernel, &pods).await;
    let before = sh("ip -6 rule; ip -6 route show table main; ip -6 address show scope global");
    for (line, part) in [
        ("ip -6 rule delete priority 512", Part::PodRule),
        ("ip -6 route delete 2001:db8:40:0:aaaa::1", Part::PodRoute),
        ("ip -6 rule delete priority 1024", Part::NodeRule),
        (
            "ip address add 2001:db8:40:0:aaaa::1/128 dev ens5 nodad",
            Part::HostAddress,
        ),
        ("ip link set enib address 02:00:00:00:00:99", Part::VethMac),
    ] {
        while tokio::time::timeout(std::time::Duration::from_millis(500), kernel.disturbed())
            .await
            .is_ok()
        {}
        sh(line);
        let told = tokio::time::timeout(std::time::Duration::from_secs(5), kernel.disturbed());
        assert!(told.await.is_ok(), "{line}: not told");
        let changed = look(&kernel, &pods).await;
        assert!(
            changed.iter().any(|c| c.part == part),
            "{line}: {changed:?}"
        );
        assert_eq!(look(&kernel, &pods).await, [], "{line}: again");
        let after = sh("ip -6 rule; ip -6 route show table main; ip -6 address show scope global");
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&after), sorted(&before), "{line}");
    }
    everyone_talks();
    kernel.forget_pod(pods[1].address).await.unwrap();
    let left = sh("ip -6 rule; ip -6 route");
    assert!(!left.contains("aaaa::1"), "{left}");
}

#[tokio::test]
async fn pods_of_ipv6_are_reached_although_the_hosts_forward_policy_is_drop() {
    for tool in ["ip6tables-legacy", "ip6tables-nft"] {
        if tool == "ip6tables-legacy" {
            build6();
            pods6();
        }
        let pods = ["2001:db8:40:0:aaaa::", "2001:db8:40:0:aaaa::1"];
        let pods: Vec<PodNet> = pods
            .iter()
            .zip(["enia", "enib"])
            .map(|(address, veth)| PodNet {
                address: address.parse().unwrap(),
                device_index: 0,
                veth: veth.into(),
            })
            .collect();
        sh(&format!("{tool} -t mangle -N KUBE-KUBELET-CANARY"));
        sh(&format!("{tool} -P FORWARD DROP"));
        let kernel = Kernel::new();
        look(&kernel, &pods).await;
        assert_eq!(talk("a", "vpc", OUTSIDE6), None, "{tool}: in force");
        kernel.ensure_node(&node6()).await.unwrap();
        everyone_talks();
        sh(&format!("{tool} -P FORWARD ACCEPT"));
        kernel.ensure_node(&node6()).await.unwrap();
        assert!(!sh(&format!("{tool} -S FORWARD")).contains("selvage"));
        sh(&format!("{tool} -t mangle -X KUBE-KUBELET-CANARY"));
    }
}

#[tokio::test]
async fn a_second_interface_of_ipv6_has_its_table_by_the_routers_own_address() {
    build6();
    sh(
        "ip link add ens6 address 02:00:00:00:00:06 type veth peer name br6 netns vpc; ip -n vpc link set br6 up",
    );
    let kernel = Kernel::new();
    let second = eni(1, "2001:db8:40::5");
    kernel.ensure_eni(&second).await.unwrap();
    let table = sh("ip -6 route show table 2");
    assert!(
        table.contains("default via fe80:ec2::1 dev ens6"),
        "{table}"
    );
    assert!(table.contains("fe80:ec2::1 dev ens6"), "{table}");
    assert_eq!(
        sh("ip -6 rule list priority 32765"),
        "32765:\tfrom 2001:db8:40::5 lookup 2\n"
    );
    let main = sh("ip -6 route show 2001:db8:40::/64");
    assert!(!main.contains("ens6"), "{main}");
    assert_eq!(kernel.ensure_eni(&second).await.unwrap(), [], "again");
    kernel.remove_eni(&second).await.unwrap();
    assert_eq!(sh("ip -6 rule list priority 32765"), "");
    let table = sh("ip -6 route show table 2");
    assert!(!table.contains("default"), "{table}");
}
