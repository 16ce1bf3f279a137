//! What a person finds on the node.

use selvage_ipamd::hostnet::{
    Change, EniNet, Family, Host, HostError, Kernel, Prepare, Snat, prepare_node,
};
use selvage_ipamd_core::ids::Mac;

use crate::world::{
    build, ensure_all, interface, node, not_the_machine, pod, routing, second, sh, with_v4, words,
};

const NOTHING: Vec<Change> = Vec::new();

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
        let changed = words(&kernel.ensure_eni(&second()).await.unwrap());
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

/// Its address may be given to a pod of another interface, whose packets would leave by the newcomer.
#[tokio::test]
async fn an_interface_takes_the_table_of_one_that_was_detached_by_hand_and_its_rule_goes() {
    build();
    let kernel = Kernel::new();
    kernel.ensure_eni(&second()).await.unwrap();
    sh("ip link delete ens6; ip -n vpc link delete vpc6 2>/dev/null || true");
    sh("ip rule add from 10.40.0.99 lookup 77 priority 32765");
    interface(7, "10.40.0.6");
    let newcomer = EniNet {
        mac: Mac([2, 0, 0, 0, 0, 7]),
        address: "10.40.0.6".parse().unwrap(),
        ..second()
    };
    let changed = words(&kernel.ensure_eni(&newcomer).await.unwrap());
    assert!(
        changed.contains("rule 32765: from 10.40.0.5/32 lookup 2 removed"),
        "{changed}"
    );
    assert_eq!(
        sh("ip rule list priority 32765"),
        "32765:\tfrom 10.40.0.99 lookup 77\n32765:\tfrom 10.40.0.6 lookup 2\n"
    );
    assert_eq!(kernel.ensure_eni(&newcomer).await.unwrap(), NOTHING);
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
    assert_eq!(routing(&kernel, &pods).await.len(), 1);
    assert_eq!(routing(&kernel, &pods).await, NOTHING);
    assert_eq!(
        sh("ip rule list priority 1536"),
        "1536:\tfrom 10.40.0.10 lookup 2\n"
    );

    kernel
        .forget_pod("10.40.0.10".parse().unwrap())
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
            changed.iter().any(|c| c.what.contains("nat table")),
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

/// The chains that aws-node made before 1.16.1, one for each block, each leading to the next.
const OLD_AWS_NODE: &str = "
    -t nat -N AWS-SNAT-CHAIN-0
    -t nat -N AWS-SNAT-CHAIN-1
    -t nat -N AWS-SNAT-CHAIN-2
    -t nat -A POSTROUTING -m comment --comment 'AWS SNAT CHAN' -j AWS-SNAT-CHAIN-0
    -t nat -A AWS-SNAT-CHAIN-0 ! -d 10.40.0.0/16 -m comment --comment 'AWS SNAT CHAN' -j AWS-SNAT-CHAIN-1
    -t nat -A AWS-SNAT-CHAIN-1 ! -d 10.41.0.0/16 -m comment --comment 'AWS SNAT CHAN' -j AWS-SNAT-CHAIN-2
    -t nat -A AWS-SNAT-CHAIN-2 -m comment --comment 'AWS, SNAT' -m addrtype ! --dst-type LOCAL -j SNAT --to-source 10.40.0.4 --random-fully
    -t nat -N AWS-CONNMARK-CHAIN-0
    -t nat -N AWS-CONNMARK-CHAIN-1
    -t nat -A PREROUTING -i eni+ -m comment --comment 'AWS, outbound connections' -m state --state NEW -j AWS-CONNMARK-CHAIN-0
    -t nat -A AWS-CONNMARK-CHAIN-0 ! -d 10.40.0.0/16 -m comment --comment 'AWS CONNMARK CHAIN, VPC CIDR' -j AWS-CONNMARK-CHAIN-1
    -t nat -A AWS-CONNMARK-CHAIN-1 -m comment --comment 'AWS, CONNMARK' -j CONNMARK --set-xmark 0x80/0x80
    -t nat -A PREROUTING -m comment --comment 'AWS, CONNMARK' -j CONNMARK --restore-mark --mask 0x80
    -t mangle -A PREROUTING -i ens5 -m comment --comment 'AWS, primary ENI' -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-mark 0x80/0x80
    -t mangle -A PREROUTING -i eni+ -m comment --comment 'AWS, primary ENI' -j CONNMARK --restore-mark --mask 0x80
    -t mangle -A PREROUTING -i vlan+ -m comment --comment 'AWS, primary ENI' -j CONNMARK --restore-mark --mask 0x80
";

#[tokio::test]
async fn what_an_older_aws_node_left_is_taken_over_whole_and_nothing_of_it_stays() {
    build();
    for tool in ["iptables-legacy", "iptables-nft"] {
        sh(&format!("{tool} -t mangle -N KUBE-KUBELET-CANARY"));
        for line in OLD_AWS_NODE.lines().filter(|line| !line.trim().is_empty()) {
            sh(&format!("{tool} {line}"));
        }
        let kernel = Kernel::new();
        kernel.ensure_node(&node()).await.unwrap();
        let nat = sh(&format!("{tool} -t nat -S"));
        for gone in ["CHAIN-1", "CHAIN-2", "CHAN", "--state NEW", "10.41"] {
            assert!(!nat.contains(gone), "{tool}: {gone} in {nat}");
        }
        let count = |text: &str, part: &str| text.matches(part).count();
        assert_eq!(count(&nat, "-j AWS-SNAT-CHAIN-0"), 1, "{tool}: {nat}");
        assert_eq!(count(&nat, "-j AWS-CONNMARK-CHAIN-0"), 1, "{tool}: {nat}");
        assert_eq!(count(&nat, "--restore-mark"), 1, "{tool}: {nat}");
        let mangle = sh(&format!("{tool} -t mangle -S PREROUTING"));
        assert_eq!(
            mangle,
            "-P PREROUTING ACCEPT\n\
             -A PREROUTING -i ens5 -m comment --comment \"AWS, primary ENI\" -m addrtype --dst-type LOCAL --limit-iface-in \
             -j CONNMARK --set-xmark 0x80/0x80\n\
             -A PREROUTING -i eni+ -m comment --comment \"AWS, primary ENI\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80\n\
             -A PREROUTING -i vlan+ -m comment --comment \"AWS, primary ENI\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80\n",
            "{tool}: its rules for NodePort are ours, and there once"
        );
        assert_eq!(
            kernel.ensure_node(&node()).await.unwrap(),
            NOTHING,
            "{tool}"
        );
        sh(&format!("{tool} -t mangle -X KUBE-KUBELET-CANARY"));
    }
}

#[tokio::test]
async fn a_vpc_without_blocks_is_refused_rather_than_translated_whole() {
    build();
    let nothing = with_v4(|pods| match &mut pods.snat {
        Snat::Here { exempt, .. } => exempt.clear(),
        Snat::External => panic!("it translates"),
    });
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

#[tokio::test]
async fn tables_of_legacy_that_nobody_uses_are_not_made_by_looking() {
    build();
    let names = || sh("cat /proc/net/ip_tables_names");
    let before = names();
    let kernel = Kernel::new();
    kernel.ensure_node(&node()).await.unwrap();
    kernel.obstacles(&node()).await.unwrap();
    assert_eq!(names(), before);
}

#[test]
fn init_sets_what_pods_need_and_nothing_twice() {
    not_the_machine();
    build();
    let primary = Mac([2, 0, 0, 0, 0, 5]);
    let prepare = |family, tcp_early_demux| {
        let wanted = Prepare {
            family,
            tcp_early_demux,
        };
        let changed = prepare_node(primary, wanted).unwrap();
        assert_eq!(prepare_node(primary, wanted).unwrap(), [""; 0], "again");
        changed
    };
    sh(
        "sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.ens5.rp_filter=1 net.ipv6.conf.all.forwarding=0",
    );
    let changed = prepare(Family::V4, true);
    assert_eq!(
        changed,
        [
            "net/ipv4/ip_forward = 1",
            "net/ipv4/conf/ens5/rp_filter = 2"
        ]
    );
    assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward"), "1\n");
    sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    let changed = prepare(Family::V6, true);
    assert_eq!(
        changed,
        [
            "net/ipv6/conf/all/disable_ipv6 = 0",
            "net/ipv6/conf/all/forwarding = 1",
            "net/ipv6/conf/ens5/accept_ra = 2"
        ]
    );
    // Where the kernel has the key, which in a network namespace of its own it may not.
    let demux = std::path::Path::new("/proc/sys/net/ipv4/tcp_early_demux").exists();
    let changed = prepare(Family::V4, false);
    let want = ["net/ipv4/tcp_early_demux = 0".to_owned()];
    assert_eq!(changed, if demux { &want[..] } else { &[] });
    let wanted = Prepare {
        family: Family::V4,
        tcp_early_demux: true,
    };
    let error = prepare_node(Mac([2, 0, 0, 0, 0, 99]), wanted).unwrap_err();
    assert!(error.to_string().contains("02:00:00:00:00:63"), "{error}");
}
