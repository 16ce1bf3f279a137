//! What a person finds on the node.

use std::net::Ipv4Addr;

use selvage_ipamd::hostnet::{Host, HostError, Kernel, Snat, prepare_node};
use selvage_ipamd_core::ids::Mac;

use crate::world::{build, ensure_all, node, not_the_machine, pod, second, sh};

const NOTHING: Vec<String> = Vec::new();

#[tokio::test]
async fn a_second_interface_has_its_table_its_rule_and_no_say_in_main() {
    build();
    let kernel = Kernel::new();
    kernel.ensure_eni(&second()).await.unwrap();
    assert_eq!(
        sh("ip rule list priority 32765"),
        "32765:\tfrom 10.40.0.5 lookup 2\n"
    );
    assert_eq!(
        sh("ip route show table 2"),
        "default via 10.40.0.1 dev ens6 \n10.40.0.1 dev ens6 scope link \n"
    );
    let main = sh("ip route show table main");
    assert!(!main.contains("ens6"), "{main}");
    assert!(sh("ip -o -4 address show dev ens6").contains("10.40.0.5/20"));
    assert!(sh("ip link show ens6").contains("mtu 9001"));
    assert_eq!(
        kernel.ensure_eni(&second()).await.unwrap(),
        NOTHING,
        "again"
    );
}

#[tokio::test]
async fn what_somebody_removes_or_adds_is_put_right() {
    build();
    let kernel = Kernel::new();
    kernel.ensure_eni(&second()).await.unwrap();
    for (line, want) in [
        ("ip rule delete priority 32765", "rule 32765"),
        ("ip route delete default table 2", "table 2"),
        ("ip route flush table 2", "table 2"),
        ("ip link set ens6 mtu 1500", "mtu 9001"),
        // Distribution scripts that give pods' addresses to the host.
        (
            "ip address add 10.40.0.77/32 dev ens6",
            "10.40.0.77/32 removed",
        ),
        ("ip route append 10.40.0.0/20 dev ens6", "removed from main"),
        (
            "ip rule delete priority 32765; ip rule add from 10.40.0.5 lookup 77 priority 32765",
            "rule 32765",
        ),
    ] {
        sh(line);
        let changed = kernel.ensure_eni(&second()).await.unwrap().join("; ");
        assert!(changed.contains(want), "{line}: {changed}");
        assert_eq!(
            kernel.ensure_eni(&second()).await.unwrap(),
            NOTHING,
            "{line}"
        );
    }
}

#[tokio::test]
async fn an_interface_that_goes_leaves_nothing_behind() {
    build();
    let kernel = Kernel::new();
    kernel.ensure_eni(&second()).await.unwrap();
    kernel.remove_eni(&second()).await.unwrap();
    assert_eq!(sh("ip rule list priority 32765"), "");
    assert_eq!(sh("ip route show table 2"), "");
    // And when its link has gone first.
    kernel.ensure_eni(&second()).await.unwrap();
    sh("ip link delete ens6");
    kernel.remove_eni(&second()).await.unwrap();
    assert_eq!(sh("ip rule list priority 32765"), "");
    let error = kernel.ensure_eni(&second()).await.unwrap_err();
    assert!(matches!(error, HostError::NoLink { .. }), "{error}");
    assert!(error.to_string().contains("02:00:00:00:00:06"), "{error}");
}

#[tokio::test]
async fn pods_found_at_the_start_get_their_route_and_rules_back() {
    build();
    let pods = [pod("a", "10.40.0.9", 0), pod("b", "10.40.0.10", 1)];
    let kernel = Kernel::new();
    ensure_all(&kernel, &pods).await;
    assert_eq!(
        sh("ip rule list priority 512"),
        "512:\tfrom all to 10.40.0.9 lookup main\n512:\tfrom all to 10.40.0.10 lookup main\n"
    );
    assert_eq!(
        sh("ip rule list priority 1536"),
        "1536:\tfrom 10.40.0.10 lookup 2\n"
    );
    assert_eq!(
        sh("ip route show 10.40.0.9"),
        "10.40.0.9 dev enia scope link \n"
    );
    // An address that has moved to another interface.
    sh("ip rule delete priority 1536; ip rule add from 10.40.0.10 lookup 7 priority 1536");
    kernel.ensure_pods(&pods).await.unwrap();
    kernel.ensure_pods(&pods).await.unwrap();
    assert_eq!(
        sh("ip rule list priority 1536"),
        "1536:\tfrom 10.40.0.10 lookup 2\n"
    );

    kernel
        .forget_pod(Ipv4Addr::new(10, 40, 0, 10).into())
        .await
        .unwrap();
    assert_eq!(sh("ip rule list priority 1536"), "");
    assert!(!sh("ip rule list priority 512").contains("10.40.0.10"));
}

#[tokio::test]
async fn both_kinds_of_tables_hold_awss_chains_and_are_left_alone_once_right() {
    for tool in ["iptables-legacy", "iptables-nft"] {
        if tool == "iptables-legacy" {
            build();
        }
        sh(&format!("{tool} -t mangle -N KUBE-KUBELET-CANARY"));
        sh(&format!(
            "{tool} -t nat -A POSTROUTING -s 203.0.113.9 -j ACCEPT"
        ));
        let kernel = Kernel::new();
        let changed = kernel.ensure_node(&node()).await.unwrap();
        assert!(
            changed.iter().any(|c| c.contains("nat table")),
            "{changed:?}"
        );
        let snat = sh(&format!("{tool} -t nat -S AWS-SNAT-CHAIN-0"));
        assert_eq!(
            snat,
            "-N AWS-SNAT-CHAIN-0\n\
             -A AWS-SNAT-CHAIN-0 -d 10.40.0.0/16 -m comment --comment \"AWS SNAT CHAIN\" -j RETURN\n\
             -A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment \"AWS, SNAT\" -m addrtype ! --dst-type LOCAL \
             -j SNAT --to-source 10.40.0.4 --random-fully\n",
            "{tool}"
        );
        let pre = sh(&format!("{tool} -t nat -S PREROUTING"));
        assert!(
            pre.ends_with(
                "-A PREROUTING -i eni+ -m comment --comment \"AWS, outbound connections\" -j AWS-CONNMARK-CHAIN-0\n\
                 -A PREROUTING -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80\n"
            ),
            "{pre}"
        );
        let post = sh(&format!("{tool} -t nat -S POSTROUTING"));
        assert!(
            post.contains("203.0.113.9"),
            "a stranger's rule is gone: {post}"
        );
        assert_eq!(
            kernel.ensure_node(&node()).await.unwrap(),
            NOTHING,
            "{tool}: again"
        );
        assert_eq!(
            Kernel::new().ensure_node(&node()).await.unwrap(),
            NOTHING,
            "{tool}: restart"
        );

        for line in [
            "-t nat -F AWS-SNAT-CHAIN-0",
            "-t nat -D POSTROUTING -m comment --comment 'AWS SNAT CHAIN' -j AWS-SNAT-CHAIN-0",
            "-t mangle -F PREROUTING",
            "-t nat -A AWS-CONNMARK-CHAIN-0 -j ACCEPT",
        ] {
            sh(&format!("{tool} {line}"));
            let changed = kernel.ensure_node(&node()).await.unwrap();
            assert_eq!(changed.len(), 1, "{tool} {line}: {changed:?}");
            assert_eq!(
                kernel.ensure_node(&node()).await.unwrap(),
                NOTHING,
                "{tool} {line}"
            );
        }
        sh(&format!("{tool} -t mangle -X KUBE-KUBELET-CANARY"));
    }
}

#[tokio::test]
async fn awss_own_leftovers_are_taken_over_and_its_nodeport_rules_left() {
    build();
    // As AWS's agent leaves them, in its order.
    sh("
        set -e
        iptables-nft -t nat -N AWS-SNAT-CHAIN-0
        iptables-nft -t nat -A POSTROUTING -m comment --comment 'AWS SNAT CHAIN' -j AWS-SNAT-CHAIN-0
        iptables-nft -t nat -A AWS-SNAT-CHAIN-0 -d 10.99.0.0/16 -m comment --comment 'AWS SNAT CHAIN' -j RETURN
        iptables-nft -t mangle -A PREROUTING -i ens5 -m comment --comment 'AWS, primary ENI' -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-mark 0x80/0x80
        iptables-nft -t mangle -A PREROUTING -i eni+ -m comment --comment 'AWS, primary ENI' -j CONNMARK --restore-mark --mask 0x80
    ");
    let kernel = Kernel::new();
    kernel.ensure_node(&node()).await.unwrap();
    let post = sh("iptables-nft -t nat -S POSTROUTING");
    assert_eq!(post.matches("AWS-SNAT-CHAIN-0").count(), 1, "{post}");
    let chain = sh("iptables-nft -t nat -S AWS-SNAT-CHAIN-0");
    assert!(!chain.contains("10.99.0.0/16"), "{chain}");
    let mangle = sh("iptables-nft -t mangle -S PREROUTING");
    assert_eq!(mangle.matches("--restore-mark").count(), 1, "{mangle}");
    assert!(mangle.contains("--limit-iface-in"), "{mangle}");
}

#[tokio::test]
async fn a_vpc_without_blocks_is_refused_rather_than_translated_whole() {
    build();
    let mut nothing = node();
    if let Snat::Here { exempt, .. } = &mut nothing.snat {
        exempt.clear();
    }
    let error = Kernel::new().ensure_node(&nothing).await.unwrap_err();
    assert!(matches!(error, HostError::NoExemptBlocks), "{error}");
    assert!(!sh("iptables-nft -t nat -S").contains("AWS"));
}

#[tokio::test]
async fn tools_that_differ_from_the_nodes_are_left_when_the_node_shows_which_it_uses() {
    build();
    let kernel = Kernel::new();
    // Nothing to go by: nft.
    kernel.ensure_node(&node()).await.unwrap();
    assert!(sh("iptables-nft -t nat -S").contains("AWS, SNAT"));
    sh("iptables-legacy -t mangle -N KUBE-IPTABLES-HINT");
    kernel.ensure_node(&node()).await.unwrap();
    assert!(sh("iptables-legacy -t nat -S").contains("AWS, SNAT"));
    let old = sh("iptables-nft -t nat -S");
    assert!(
        !old.contains("AWS, SNAT") && !old.contains("-j AWS"),
        "{old}"
    );
}

#[test]
fn init_sets_what_pods_need_and_nothing_twice() {
    not_the_machine();
    build();
    sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.ens5.rp_filter=1");
    let primary = Mac([2, 0, 0, 0, 0, 5]);
    let changed = prepare_node(primary).unwrap();
    assert!(
        changed.contains(&"net/ipv4/ip_forward = 1".to_owned()),
        "{changed:?}"
    );
    assert!(
        changed.contains(&"net/ipv4/conf/ens5/rp_filter = 2".to_owned()),
        "{changed:?}"
    );
    assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward"), "1\n");
    assert_eq!(prepare_node(primary).unwrap(), NOTHING);
    let error = prepare_node(Mac([2, 0, 0, 0, 0, 99])).unwrap_err();
    assert!(error.to_string().contains("02:00:00:00:00:63"), "{error}");
}
