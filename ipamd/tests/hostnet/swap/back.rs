//! From us back to aws-node: what it would find is in its own forms. Its readers are restated here, each as it is known.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use selvage_ipamd::hostnet::veth_suffix;
use selvage_ipamd_core::fake::Ec2;
use selvage_ipamd_core::ids::PodName;
use serde_json::Value;

use super::aws_node::{Blocks, NODE_PORT, RUN, addresses, interfaces};
use super::take_over::{Daemon, add};
use crate::world::{AWS_MARKS, OUTSIDE, sh, talk};

const PODS: [&str; 4] = ["a", "b", "c", "d"];

/// A node of ours that has given four pods addresses on both interfaces, and whose daemon has ended.
async fn left_by_us(tool: &str, blocks: Blocks) -> (Ec2, Vec<Value>) {
    let ec2 = interfaces(blocks).await;
    sh(&format!("{tool} -t mangle -N KUBE-KUBELET-CANARY"));
    let daemon = Daemon::ready(&ec2, blocks).await;
    let mut results = Vec::new();
    for name in PODS {
        results.push(add(name).await);
    }
    daemon.stop().await;
    (ec2, results)
}

/// A pod as aws-node takes it from the checkpoint.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Restored {
    address: Ipv4Addr,
    name: String,
    key: (String, String, String),
}

/// Its reader: the version is compared, unknown fields are skipped, an address twice is fatal; an entry whose veth is
/// not there or whose address is on no interface is dropped.
fn aws_restores(text: &str, ec2: &Ec2) -> Vec<Restored> {
    let document: Value = serde_json::from_str(text).unwrap();
    assert_eq!(document["version"], "vpc-cni-ipam/1");
    let links = sh("ip -o link | sed 's/^[0-9]*: //; s/[@:].*//'");
    let known: BTreeSet<Ipv4Addr> = ec2
        .enis()
        .into_iter()
        .flat_map(|eni| addresses(&eni))
        .collect();
    let mut seen = BTreeSet::new();
    let mut restored = Vec::new();
    for entry in document["allocations"].as_array().unwrap() {
        // Go takes a number into an int64, a text into a string, and nothing else.
        assert!(entry["allocationTimestamp"].as_i64().is_some(), "{entry}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let address: Ipv4Addr = entry["ipv4"].as_str().unwrap().parse().unwrap();
        let pod = PodName {
            namespace: text(&entry["metadata"]["k8sPodNamespace"]),
            name: text(&entry["metadata"]["k8sPodName"]),
        };
        let interfaces = entry["metadata"]["interfacesCount"].as_i64();
        assert!(matches!(interfaces, None | Some(0 | 1)), "{entry}");
        let suffix = veth_suffix(&pod);
        if !links.lines().any(|link| link.ends_with(&suffix)) || !known.contains(&address) {
            continue;
        }
        assert!(seen.insert(address), "{address} twice");
        restored.push(Restored {
            address,
            name: pod.name,
            key: (
                text(&entry["networkName"]),
                text(&entry["containerID"]),
                text(&entry["ifName"]),
            ),
        });
    }
    restored.sort();
    restored
}

#[tokio::test]
async fn aws_node_restores_every_pod_of_ours_from_the_checkpoint() {
    restored(Blocks::Addresses).await;
}

#[tokio::test]
async fn aws_node_with_prefixes_restores_every_pod_of_ours_from_the_checkpoint() {
    restored(Blocks::Prefixes).await;
}

async fn restored(blocks: Blocks) {
    let (ec2, results) = left_by_us("iptables-nft", blocks).await;
    let text = std::fs::read_to_string(format!("{RUN}/ipam.json")).unwrap();
    let restored = aws_restores(&text, &ec2);
    let mut want: Vec<Restored> = PODS
        .iter()
        .zip(&results)
        .map(|(name, result)| Restored {
            address: address(result),
            name: (*name).to_owned(),
            key: ("aws-cni".into(), format!("sandbox-{name}"), "eth0".into()),
        })
        .collect();
    want.sort();
    assert_eq!(restored, want);
}

fn address(result: &Value) -> Ipv4Addr {
    let text = result["ips"][0]["address"].as_str().unwrap();
    text.strip_suffix("/32").unwrap().parse().unwrap()
}

/// What its plugin reads of a previous result at DEL: host veth, container interface, table, device.
fn aws_reads_result(result: &Value) -> (String, String, u32, u16) {
    let interfaces = result["interfaces"].as_array().unwrap();
    let dummy = interfaces.last().unwrap();
    assert!(
        dummy["name"].as_str().unwrap().starts_with("dummy"),
        "{result}"
    );
    assert_eq!(dummy["mac"], "0", "else it is a pod of a branch interface");
    let index = usize::try_from(result["ips"][0]["interface"].as_u64().unwrap()).unwrap();
    let inner = &interfaces[index];
    let table = inner["mac"].as_str().unwrap().parse().unwrap();
    assert!(
        inner["sandbox"]
            .as_str()
            .unwrap()
            .starts_with("/var/run/netns/")
    );
    (
        interfaces[index - 1]["name"].as_str().unwrap().to_owned(),
        inner["name"].as_str().unwrap().to_owned(),
        table,
        dummy["sandbox"].as_str().unwrap().parse().unwrap(),
    )
}

#[tokio::test]
async fn awss_plugin_deletes_pods_of_ours_without_a_daemon() {
    let (_, results) = left_by_us("iptables-nft", Blocks::Addresses).await;
    let mut tables = BTreeSet::new();
    for (name, result) in PODS.iter().zip(&results) {
        let (veth, inner, table, device) = aws_reads_result(result);
        let suffix = veth_suffix(&PodName {
            namespace: "default".into(),
            name: (*name).to_owned(),
        });
        assert_eq!(
            (veth.as_str(), inner.as_str()),
            (format!("eni{suffix}").as_str(), "eth0")
        );
        assert_eq!(
            table,
            if device == 0 {
                254
            } else {
                u32::from(device) + 1
            }
        );
        tables.insert(table);
        // It names each rule and route in full: what is not of its form it does not find.
        let own = address(result);
        sh(&format!(
            "ip rule delete priority 512 to {own}/32 table 254"
        ));
        if table != 254 {
            sh(&format!(
                "ip rule delete priority 1536 from {own}/32 table {table}"
            ));
        }
        sh(&format!(
            "ip route delete {own}/32 dev {veth} scope link table 254"
        ));
        let left = sh(&format!("ip rule | grep -w {own} || true"));
        assert_eq!(left, "", "{name}");
    }
    assert_eq!(tables, BTreeSet::from([2, 254]), "pods on both interfaces");
}

/// Rules as it gives them to `iptables -C`: where one is found, none is added.
const AWS_RULES: [&str; 6] = [
    "-t nat -C POSTROUTING -m comment --comment 'AWS SNAT CHAIN' -j AWS-SNAT-CHAIN-0",
    "-t nat -C AWS-SNAT-CHAIN-0 -d 10.40.0.0/16 -m comment --comment 'AWS SNAT CHAIN' -j RETURN",
    "-t nat -C AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment 'AWS, SNAT' -m addrtype ! --dst-type LOCAL -j SNAT --to-source 10.40.0.4 --random-fully",
    "-t mangle -C PREROUTING -m comment --comment 'AWS, primary ENI' -i ens5 -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-mark 0x80/0x80",
    "-t mangle -C PREROUTING -m comment --comment 'AWS, primary ENI' -i eni+ -j CONNMARK --restore-mark --mask 0x80",
    "-t mangle -C PREROUTING -m comment --comment 'AWS, primary ENI' -i vlan+ -j CONNMARK --restore-mark --mask 0x80",
];

/// The same, of the marks of connections that pods begin.
const AWS_CONNMARK_RULES: [&str; 4] = [
    "-t nat -C PREROUTING -i eni+ -m comment --comment 'AWS, outbound connections' -j AWS-CONNMARK-CHAIN-0",
    "-t nat -C PREROUTING -m comment --comment 'AWS, CONNMARK' -j CONNMARK --restore-mark --mask 0x80",
    "-t nat -C AWS-CONNMARK-CHAIN-0 -d 10.40.0.0/16 -m comment --comment 'AWS CONNMARK CHAIN' -j RETURN",
    "-t nat -C AWS-CONNMARK-CHAIN-0 -m comment --comment 'AWS, CONNMARK' -j CONNMARK --set-xmark 0x80/0x80",
];

#[tokio::test]
async fn aws_node_finds_its_own_rules_and_adds_none() {
    for tool in ["iptables-legacy", "iptables-nft"] {
        if tool == "iptables-legacy" {
            left_by_us(tool, Blocks::Addresses).await;
        } else {
            // The same node, whose agents use other tools from now on.
            sh(
                "iptables-legacy -t mangle -X KUBE-KUBELET-CANARY; iptables-nft -t mangle -N KUBE-KUBELET-CANARY",
            );
            let kernel = selvage_ipamd::hostnet::Kernel::new();
            selvage_ipamd::hostnet::Host::ensure_node(&kernel, &node())
                .await
                .unwrap();
        }
        for rule in AWS_RULES.iter().chain(&AWS_CONNMARK_RULES) {
            sh(&format!("{tool} {rule}"));
        }
        // What it takes for stale: rules of the chain that are none of those it wants, token by token.
        for chain in ["AWS-SNAT-CHAIN-0", "AWS-CONNMARK-CHAIN-0"] {
            let listed = sh(&format!("{tool} -t nat -S {chain}"));
            let rules: Vec<&str> = listed
                .lines()
                .filter(|line| line.starts_with("-A"))
                .collect();
            assert_eq!(rules.len(), 2, "{tool}: one block and the rest: {listed}");
        }
        // Chains -1 to -N would be those of its time before 1.16.1.
        assert!(!sh(&format!("{tool} -t nat -S")).contains("-CHAIN-1"));
    }
    let node_rules = sh("ip rule list priority 1024; ip rule list priority 32765");
    assert_eq!(
        node_rules,
        "1024:\tfrom all fwmark 0x80/0x80 lookup main\n32765:\tfrom 10.40.0.8 lookup 2\n"
    );
    assert_eq!(
        sh("ip route show table 2"),
        "default via 10.40.0.1 dev ens6 \n10.40.0.1 dev ens6 scope link \n"
    );
}

/// As our daemon asks on that node.
fn node() -> selvage_ipamd::hostnet::NodeNet {
    selvage_ipamd::hostnet::NodeNet {
        primary_mac: selvage_ipamd_core::ids::Mac([2, 0, 0, 0, 0, 0]),
        ..crate::world::node()
    }
}

#[tokio::test]
async fn a_connection_through_a_node_port_outlives_both_ways() {
    use super::aws_node::{AwsNode, Connmark};
    use super::stream::Stream;
    let aws = AwsNode::build("iptables-nft", Connmark::Nft, Blocks::Addresses).await;
    let server = ("web-1", "10.40.0.9:8080".parse().unwrap());
    let port = format!("10.40.0.4:{NODE_PORT}").parse().unwrap();
    let stream = Stream::begin(("vpc", OUTSIDE), port, server);
    Daemon::ready(&aws.ec2, Blocks::Addresses)
        .await
        .stop()
        .await;
    // aws-node of that version, back again: its chain is of another type than ours, so ours is deleted and its made.
    aws_marks_again();
    let told = stream.end();
    assert!(told.answered > 50, "{told:?}");
    assert!(talk("web-1", "vpc", OUTSIDE).is_some());
}

/// What it does about marks where `iptables --version` says nft: its own table, then the rules of its iptables backend
/// are removed.
fn aws_marks_again() {
    sh("
        set -e
        nft add table ip aws-cni
        if nft list chain ip aws-cni nat-prerouting >/dev/null 2>&1; then
            nft delete chain ip aws-cni nat-prerouting
        fi
    ");
    sh(AWS_MARKS);
    sh("
        set -e
        iptables-nft -t nat -D PREROUTING -i eni+ -m comment --comment 'AWS, outbound connections' -j AWS-CONNMARK-CHAIN-0
        iptables-nft -t nat -D PREROUTING -m comment --comment 'AWS, CONNMARK' -j CONNMARK --restore-mark --mask 0x80
        iptables-nft -t nat -F AWS-CONNMARK-CHAIN-0
        iptables-nft -t nat -X AWS-CONNMARK-CHAIN-0
    ");
}
