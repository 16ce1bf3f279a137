//! What aws-node 1.23 leaves on a node: its rules, tables, chains, checkpoint, and what its plugin told the runtime.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use selvage_ipamd::hostnet::veth_suffix;
use selvage_ipamd_core::cloud::{Cloud, EniFacts, Operation, Want};
use selvage_ipamd_core::fake::Ec2;
use selvage_ipamd_core::ids::PodName;
use serde_json::{Value, json};

use crate::world::{AWS_MARKS, NODE, build, namespace_with_veth, operational, sh};

/// Its socket and checkpoint; on the test's own /run.
pub const RUN: &str = "/var/run/aws-node";
/// A port of the node that leads to the pod `web-1`, its source left alone.
pub const NODE_PORT: u16 = 30080;
/// How it marks connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connmark {
    /// In nat PREROUTING: where `iptables --version` says legacy.
    Iptables,
    /// In a table of nft's: everywhere else, since 1.23.
    Nft,
}

/// What its pods have their addresses from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocks {
    /// Three single addresses on either interface.
    Addresses,
    /// A /28 on either.
    Prefixes,
    /// A /80 on the primary one.
    Ipv6,
}

/// A pod that it has made.
#[derive(Debug, Clone)]
pub struct AwsPod {
    pub name: String,
    pub container: String,
    pub address: IpAddr,
    pub device: u16,
}

impl AwsPod {
    pub fn veth(&self) -> String {
        format!("eni{}", self.suffix())
    }

    fn suffix(&self) -> String {
        veth_suffix(&PodName {
            namespace: "default".into(),
            name: self.name.clone(),
        })
    }

    pub fn table(&self) -> u32 {
        match self.device {
            0 => 254,
            device => u32::from(device) + 1,
        }
    }

    /// Of what family it is, and how long its address is.
    fn family(&self) -> (&'static str, u8) {
        match self.address {
            IpAddr::V4(_) => ("4", 32),
            IpAddr::V6(_) => ("6", 128),
        }
    }

    /// What its plugin printed, as the runtime kept it.
    pub fn result(&self) -> Value {
        let (family, whole) = self.family();
        json!({
            "cniVersion": "0.4.0",
            "interfaces": [
                { "name": self.veth() },
                {
                    "name": "eth0",
                    "mac": self.table().to_string(),
                    "sandbox": self.netns(),
                },
                {
                    "name": format!("dummy{}", self.suffix()),
                    "mac": "0",
                    "sandbox": self.device.to_string(),
                },
            ],
            "ips": [
                { "version": family, "interface": 1, "address": format!("{}/{whole}", self.address) }
            ],
            "dns": {},
        })
    }

    /// As its plugin makes it, host's side included.
    pub fn wire(&self) {
        let AwsPod { name, address, .. } = self;
        let (family, _) = self.family();
        let gateway = if family == "4" {
            "169.254.1.1"
        } else {
            "fe80::1"
        };
        let veth = self.veth();
        namespace_with_veth(name, &veth, &address.to_string(), gateway);
        sh(&format!(
            "
            set -e
            ip -{family} route replace {address} dev {veth} scope link
            ip -{family} rule add priority 512 to {address} lookup main
            "
        ));
        if self.device != 0 {
            let table = self.table();
            sh(&format!(
                "ip -{family} rule add priority 1536 from {address} lookup {table}"
            ));
        }
    }

    pub fn netns(&self) -> PathBuf {
        PathBuf::from("/var/run/netns").join(&self.name)
    }

    pub fn allocation(&self) -> Value {
        let family = format!("ipv{}", self.family().0);
        json!({
            "networkName": "aws-cni",
            "containerID": self.container,
            "ifName": "eth0",
            family: self.address,
            "allocationTimestamp": 1_700_000_000_000_000_001_i64,
            "metadata": {
                "k8sPodNamespace": "default",
                "k8sPodName": self.name,
                "interfacesCount": 1,
            },
        })
    }
}

/// The node.
pub struct AwsNode {
    pub tool: &'static str,
    pub ec2: Ec2,
    pub pods: Vec<AwsPod>,
    /// How often EC2 had been asked for addresses when it ended.
    pub asked: u64,
}

impl AwsNode {
    /// A node with pods on both interfaces.
    pub async fn build(tool: &'static str, connmark: Connmark, blocks: Blocks) -> Self {
        let ec2 = interfaces(blocks).await;
        let pods = [("web-0", 0, 0), ("web-1", 1, 0), ("job", 1, 1)];
        let pods = pods.map(|(name, device, nth)| AwsPod {
            name: name.into(),
            container: format!("sandbox-{name}"),
            address: addresses(&eni(&ec2, device))[nth].into(),
            device,
        });
        let node = AwsNode {
            tool,
            asked: ec2.calls(Operation::AssignAddresses),
            ec2,
            pods: pods.to_vec(),
        };
        sh(&format!("{tool} -t mangle -N KUBE-KUBELET-CANARY"));
        node.rules();
        node.tables(connmark);
        node.kube_proxy();
        write_checkpoint(node.pods.iter().map(AwsPod::allocation).collect());
        node.pods.iter().for_each(AwsPod::wire);
        for link in ["vpc5", "vpc6", "br0"] {
            operational(link);
        }
        node
    }

    /// What its daemon sets up with netlink.
    fn rules(&self) {
        let second = eni(&self.ec2, 1).primary_address;
        sh(&format!(
            "
            set -e
            ip rule add priority 1024 fwmark 0x80/0x80 lookup main
            ip link set ens6 mtu 9001
            ip link set ens6 up
            ip address add {second}/20 dev ens6
            ip route replace 10.40.0.1 dev ens6 scope link table 2
            ip route replace default via 10.40.0.1 dev ens6 table 2
            ip route delete 10.40.0.0/20 dev ens6
            ip rule add priority 32765 from {second} lookup 2
            "
        ));
    }

    /// What it sets up with the tools, in the order of a clean start: each block is inserted at the head.
    fn tables(&self, connmark: Connmark) {
        let run = |line: &str| sh(&format!("{} -w {line}", self.tool));
        run("-t nat -N AWS-SNAT-CHAIN-0");
        run("-t nat -A POSTROUTING -m comment --comment 'AWS SNAT CHAIN' -j AWS-SNAT-CHAIN-0");
        run(
            "-t nat -I AWS-SNAT-CHAIN-0 1 -d 10.40.0.0/16 -m comment --comment 'AWS SNAT CHAIN' -j RETURN",
        );
        run(&format!(
            "-t nat -A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment 'AWS, SNAT' -m addrtype ! --dst-type LOCAL -j SNAT --to-source {NODE} --random-fully"
        ));
        run(
            "-t mangle -A PREROUTING -i ens5 -m comment --comment 'AWS, primary ENI' -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-mark 0x80/0x80",
        );
        run(
            "-t mangle -A PREROUTING -i eni+ -m comment --comment 'AWS, primary ENI' -j CONNMARK --restore-mark --mask 0x80",
        );
        run(
            "-t mangle -A PREROUTING -i vlan+ -m comment --comment 'AWS, primary ENI' -j CONNMARK --restore-mark --mask 0x80",
        );
        match connmark {
            Connmark::Iptables => {
                run("-t nat -N AWS-CONNMARK-CHAIN-0");
                run(
                    "-t nat -A PREROUTING -i eni+ -m comment --comment 'AWS, outbound connections' -j AWS-CONNMARK-CHAIN-0",
                );
                run(
                    "-t nat -I AWS-CONNMARK-CHAIN-0 1 -d 10.40.0.0/16 -m comment --comment 'AWS CONNMARK CHAIN' -j RETURN",
                );
                run(
                    "-t nat -A AWS-CONNMARK-CHAIN-0 -m comment --comment 'AWS, CONNMARK' -j CONNMARK --set-xmark 0x80/0x80",
                );
                run(
                    "-t nat -A PREROUTING -m comment --comment 'AWS, CONNMARK' -j CONNMARK --restore-mark --mask 0x80",
                );
            }
            Connmark::Nft => {
                sh(AWS_MARKS);
            }
        }
    }

    /// A Service's port on the node, with externalTrafficPolicy Local, as kube-proxy leads it.
    fn kube_proxy(&self) {
        sh(&format!(
            "{} -t nat -A PREROUTING -p tcp --dport {NODE_PORT} -m addrtype --dst-type LOCAL -j DNAT --to-destination {}:8080",
            self.tool,
            self.pod("web-1").address
        ));
    }

    pub fn pod(&self, name: &str) -> &AwsPod {
        self.pods.iter().find(|pod| pod.name == name).unwrap()
    }
}

/// Its checkpoint, with these allocations.
pub fn write_checkpoint(allocations: Vec<Value>) {
    std::fs::create_dir_all(RUN).unwrap();
    let document = json!({ "version": "vpc-cni-ipam/1", "allocations": allocations });
    std::fs::write(format!("{RUN}/ipam.json"), document.to_string()).unwrap();
}

/// The interface of a device index.
fn eni(ec2: &Ec2, device: u16) -> EniFacts {
    let index = |eni: &EniFacts| eni.attachment.as_ref().unwrap().device_index;
    let mut enis = ec2.enis().into_iter();
    enis.find(|eni| index(eni) == device).unwrap()
}

/// What pods can have of an interface, in order.
pub fn addresses(eni: &EniFacts) -> Vec<Ipv4Addr> {
    let prefixes = eni.prefixes.iter().flat_map(|block| {
        let first = u32::from(block.network());
        (first..first + 16).map(Ipv4Addr::from)
    });
    eni.secondary_addresses
        .iter()
        .copied()
        .chain(prefixes)
        .collect()
}

/// The instance's two interfaces in EC2, on the node and in the VPC: with single addresses 10.40.0.4 with .5 to .7 for
/// pods, and 10.40.0.8 with .9 to .11.
pub async fn interfaces(blocks: Blocks) -> Ec2 {
    build();
    let ec2 = Ec2::with_limits(2, 4);
    let primary = ec2.instance().primary_eni;
    match blocks {
        Blocks::Addresses => {
            ec2.assign(&primary, Want::Addresses(3)).await.unwrap();
            ec2.attach_by_hand(1, 3);
        }
        Blocks::Prefixes => {
            ec2.attach_by_hand(1, 0);
            for eni in ec2.enis() {
                ec2.assign(&eni.id, Want::Prefixes(1)).await.unwrap();
            }
        }
        Blocks::Ipv6 => unreachable!("it has a world of its own"),
    }
    let second = eni(&ec2, 1).primary_address;
    sh(&format!(
        "
        set -e
        ip link set ens5 address 02:00:00:00:00:00
        ip link set ens6 address 02:00:00:00:00:01
        ip -n vpc neigh replace {NODE} lladdr 02:00:00:00:00:00 dev br0 nud permanent
        ip -n vpc neigh replace {second} lladdr 02:00:00:00:00:01 dev br0 nud permanent
        "
    ));
    for eni in ec2.enis() {
        let pods = addresses(&eni);
        let number = 5 + eni.attachment.unwrap().device_index;
        let own = eni.primary_address;
        sh(&format!(
            "ip netns exec vpc nft add element netdev vpc on{number} '{{ {own} }}'"
        ));
        for address in pods {
            sh(&format!(
                "ip netns exec vpc nft add element netdev vpc on{number} '{{ {address} }}'; ip -n vpc route add {address}/32 via {own} dev br0"
            ));
        }
    }
    ec2
}
