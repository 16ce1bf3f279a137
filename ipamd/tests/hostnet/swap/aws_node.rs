//! What aws-node 1.23 leaves on a node: its rules, tables, chains, checkpoint, and what its plugin told the runtime.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use selvage_ipamd::hostnet::veth_suffix;
use selvage_ipamd_core::cloud::{Cloud, Want};
use selvage_ipamd_core::fake::Ec2;
use selvage_ipamd_core::ids::PodName;
use serde_json::{Value, json};

use crate::world::{AWS_MARKS, NODE, build, namespace_with_veth, operational, sh};

/// Its socket and checkpoint; on the test's own /run.
pub const RUN: &str = "/var/run/aws-node";
/// A port of the node that leads to the pod `web-1`, its source left alone.
pub const NODE_PORT: u16 = 30080;
/// The second interface's own address.
pub const ENI: &str = "10.40.0.8";

/// How it marks connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connmark {
    /// In nat PREROUTING: where `iptables --version` says legacy.
    Iptables,
    /// In a table of nft's: everywhere else, since 1.23.
    Nft,
}

/// A pod that it has made.
#[derive(Debug, Clone)]
pub struct AwsPod {
    pub name: String,
    pub container: String,
    pub address: Ipv4Addr,
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

    /// What its plugin printed, as the runtime kept it.
    pub fn result(&self) -> Value {
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
                { "version": "4", "interface": 1, "address": format!("{}/32", self.address) }
            ],
            "dns": {},
        })
    }

    pub fn netns(&self) -> PathBuf {
        PathBuf::from("/var/run/netns").join(&self.name)
    }

    fn allocation(&self) -> Value {
        json!({
            "networkName": "aws-cni",
            "containerID": self.container,
            "ifName": "eth0",
            "ipv4": self.address,
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
}

impl AwsNode {
    /// A node with pods on both interfaces.
    pub async fn build(tool: &'static str, connmark: Connmark) -> Self {
        let ec2 = interfaces().await;
        let pods = [("web-0", 5, 0), ("web-1", 9, 1), ("job", 10, 1)];
        let pods = pods.map(|(name, last, device)| AwsPod {
            name: name.into(),
            container: format!("sandbox-{name}"),
            address: Ipv4Addr::new(10, 40, 0, last),
            device,
        });
        let node = AwsNode {
            tool,
            ec2,
            pods: pods.to_vec(),
        };
        sh(&format!("{tool} -t mangle -N KUBE-KUBELET-CANARY"));
        node.rules();
        node.tables(connmark);
        node.kube_proxy();
        node.write_checkpoint(node.pods.iter().map(AwsPod::allocation).collect());
        for pod in &node.pods {
            node.wire(pod);
        }
        for link in ["vpc5", "vpc6", "br0"] {
            operational(link);
        }
        node
    }

    /// What its daemon sets up with netlink.
    fn rules(&self) {
        sh(&format!(
            "
            set -e
            ip rule add priority 1024 fwmark 0x80/0x80 lookup main
            ip link set ens6 mtu 9001
            ip link set ens6 up
            ip address add {ENI}/20 dev ens6
            ip route replace 10.40.0.1 dev ens6 scope link table 2
            ip route replace default via 10.40.0.1 dev ens6 table 2
            ip route delete 10.40.0.0/20 dev ens6
            ip rule add priority 32765 from {ENI} lookup 2
            "
        ));
    }

    /// A pod as its plugin makes it, host's side included.
    fn wire(&self, pod: &AwsPod) {
        let AwsPod { name, address, .. } = pod;
        namespace_with_veth(name, &pod.veth(), &address.to_string(), "169.254.1.1");
        let veth = pod.veth();
        sh(&format!(
            "ip route replace {address} dev {veth} scope link; ip rule add priority 512 to {address} lookup main"
        ));
        if pod.device != 0 {
            let table = pod.table();
            sh(&format!(
                "ip rule add priority 1536 from {address} lookup {table}"
            ));
        }
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
            "{} -t nat -A PREROUTING -p tcp --dport {NODE_PORT} -m addrtype --dst-type LOCAL -j DNAT --to-destination 10.40.0.9:8080",
            self.tool
        ));
    }

    /// Its checkpoint, with these allocations.
    pub fn write_checkpoint(&self, allocations: Vec<Value>) {
        std::fs::create_dir_all(RUN).unwrap();
        let document = json!({ "version": "vpc-cni-ipam/1", "allocations": allocations });
        std::fs::write(format!("{RUN}/ipam.json"), document.to_string()).unwrap();
    }

    pub fn pod(&self, name: &str) -> &AwsPod {
        self.pods.iter().find(|pod| pod.name == name).unwrap()
    }
}

/// The instance's two interfaces in EC2, on the node and in the VPC: 10.40.0.4 with .5 to .7 for pods, 10.40.0.8 with
/// .9 to .11.
pub async fn interfaces() -> Ec2 {
    build();
    let ec2 = Ec2::with_limits(2, 4);
    let primary = ec2.instance().primary_eni;
    ec2.assign(&primary, Want::Addresses(3)).await.unwrap();
    ec2.attach_by_hand(1, 3);
    sh(&format!(
        "
        set -e
        ip link set ens5 address 02:00:00:00:00:00
        ip link set ens6 address 02:00:00:00:00:01
        ip -n vpc neigh replace {NODE} lladdr 02:00:00:00:00:00 dev br0 nud permanent
        ip -n vpc neigh add {ENI} lladdr 02:00:00:00:00:01 dev br0 nud permanent
        "
    ));
    for eni in ec2.enis() {
        let number = 5 + eni.attachment.unwrap().device_index;
        let own = eni.primary_address;
        sh(&format!(
            "ip netns exec vpc nft add element netdev vpc on{number} '{{ {own} }}'"
        ));
        for address in eni.secondary_addresses {
            sh(&format!(
                "ip netns exec vpc nft add element netdev vpc on{number} '{{ {address} }}'; ip -n vpc route add {address}/32 via {own} dev br0"
            ));
        }
    }
    ec2
}
