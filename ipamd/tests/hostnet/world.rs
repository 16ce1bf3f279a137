//! A node with two interfaces, the VPC they lead to, an address beyond it, and pods.
//!
//! ```text
//!  pod-a, pod-b ── veths eni… ── node (this namespace) ── ens5 10.40.0.4, ens6 10.40.0.5 ── vpc: 10.40.0.1 (router)
//!  10.40.0.9       to the node                                                               10.40.16.9 (in the VPC)
//!  10.40.0.10                                                                                198.51.100.10 (outside)
//!                                                                                            172.31.0.10 (peered VPC)
//! ```
//!
//! The VPC drops what an interface sends with an address that is not its own, as EC2 does, and sends to an address by
//! the interface that has it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use selvage_ipamd::config::RandomizeSnat;
use selvage_ipamd::hostnet::{
    Change, DEFAULT_MARK, EniNet, Host, Kernel, Looked, NodeNet, PodNet, Pods, PodsV4, Snat,
};
use selvage_ipamd_core::ids::Mac;
use selvage_nodenet::NetNs;

/// How AWS's agent marks connections where the tools are nft's: a chain of type nat, at -90.
pub const AWS_MARKS: &str = "nft -f - <<'END'
table ip aws-cni {
    chain snat-mark {
        counter ip daddr & 255.255.0.0 == 10.40.0.0 return
        counter ct mark set ct mark and 0xffffff7f xor 0x80
    }
    chain nat-prerouting {
        type nat hook prerouting priority -90; policy accept;
        fib daddr type local return
        iifname \"eni*\" counter jump snat-mark
        counter meta mark set ct mark and 0x80
    }
}
END";
pub const INSIDE: &str = "10.40.16.9";
pub const OUTSIDE: &str = "198.51.100.10";
pub const PEERED: &str = "172.31.0.10";
pub const NODE: &str = "10.40.0.4";
pub const SECOND: &str = "10.40.0.5";
pub const THIRD: &str = "100.64.32.5";

/// Runs a line of shell and gives what it printed.
#[expect(
    clippy::disallowed_methods,
    reason = "tests look at the node with the tools that people use"
)]
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn not_the_machine() {
    let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
    let machines = std::env::var_os("SELVAGE_HOST_NETNS").expect("run by tests/netns-runner");
    assert_ne!(ours.as_os_str(), machines, "this is the machine's network");
}

/// The node's interfaces and the VPC behind them. Both interfaces are in one subnet, as EC2 makes them.
pub fn build() {
    not_the_machine();
    sh("
        set -e
        mkdir -p /run/netns
        ip netns add vpc
        ip -n vpc link set lo up
        # Of its own, or it takes a port's, and forgets its neighbours each time.
        ip -n vpc link add br0 address 02:00:00:00:01:00 type bridge
        ip -n vpc address add 10.40.0.1/20 dev br0
        ip -n vpc link set br0 up
    ");
    interface(5, NODE);
    interface(6, SECOND);
    for beyond in [INSIDE, OUTSIDE, PEERED] {
        sh(&format!("ip -n vpc address add {beyond}/32 dev lo"));
    }
    sh("
        set -e
        ip link set ens5 up
        ip address add 10.40.0.4/20 dev ens5
        ip route add default via 10.40.0.1
        sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.ens5.rp_filter=2
    ");
}

/// An interface of the node, and the VPC's end of it.
pub fn interface(number: u8, address: &str) {
    sh(&format!(
        "
        set -e
        ip link add ens{number} address 02:00:00:00:00:0{number} type veth peer name vpc{number} netns vpc
        ip -n vpc link set vpc{number} master br0 up
        ip -n vpc neigh add {address} lladdr 02:00:00:00:00:0{number} dev br0 nud permanent
        ip netns exec vpc nft -f - <<END
        table netdev vpc {{
            set on{number} {{
                type ipv4_addr
                elements = {{ {address} }}
            }}
            chain in{number} {{
                type filter hook ingress device vpc{number} priority 0
                ip saddr != @on{number} drop
            }}
        }}
END
        "
    ));
}

/// What the daemon would ask for.
pub fn node() -> NodeNet {
    with_v4(|_| {})
}

/// The same, with something else for pods.
pub fn with_v4(change: impl FnOnce(&mut PodsV4)) -> NodeNet {
    let mut pods = PodsV4 {
        primary_address: NODE.parse().unwrap(),
        snat: Snat::Here {
            exempt: ["10.40.0.0/16".parse().unwrap()].into(),
            excluded: [].into(),
            randomize: RandomizeSnat::Prng,
        },
        node_port: true,
        external_services: [].into(),
    };
    change(&mut pods);
    NodeNet {
        primary_mac: Mac([2, 0, 0, 0, 0, 5]),
        veth_prefix: "eni".into(),
        mark: DEFAULT_MARK,
        pods: Pods::V4(pods),
    }
}

/// The same, with blocks that are left alone beside the VPC's.
pub fn excluding(blocks: &[&str]) -> NodeNet {
    with_v4(|pods| {
        let Snat::Here {
            exempt, excluded, ..
        } = &mut pods.snat
        else {
            panic!("it translates");
        };
        for block in blocks {
            exempt.insert(block.parse().unwrap());
            excluded.insert(block.parse().unwrap());
        }
    })
}

pub fn primary() -> EniNet {
    EniNet {
        mac: Mac([2, 0, 0, 0, 0, 5]),
        device_index: 0,
        address: NODE.parse().unwrap(),
        for_pods: vec!["10.40.0.9/32".parse().unwrap()],
        ..second()
    }
}

pub fn second() -> EniNet {
    EniNet {
        mac: Mac([2, 0, 0, 0, 0, 6]),
        device_index: 1,
        address: SECOND.parse().unwrap(),
        subnet: "10.40.0.0/20".parse().unwrap(),
        mtu: 9001,
        for_pods: vec!["10.40.0.10/32".parse().unwrap()],
    }
}

/// A pod as the plugin makes it, but for its rules and its route on the host. The first interface is ens5.
pub fn pod(name: &str, address: &str, device_index: u16) -> PodNet {
    let pod = namespace_of_pod(name, address, device_index, "169.254.1.1");
    // What the VPC does.
    let number = 5 + device_index;
    let eni = match device_index {
        0 => NODE,
        1 => SECOND,
        _ => THIRD,
    };
    sh(&format!(
        "
        set -e
        ip netns exec vpc nft add element netdev vpc on{number} '{{ {address} }}'
        ip -n vpc route add {address}/32 via {eni} dev br0
        "
    ));
    pod
}

/// A pod's own side, in either family.
pub fn namespace_of_pod(name: &str, address: &str, device_index: u16, gateway: &str) -> PodNet {
    let veth = format!("eni{name}");
    PodNet {
        address: namespace_with_veth(name, &veth, address, gateway),
        device_index,
        veth,
    }
}

/// The same, with a veth of this name.
pub fn namespace_with_veth(name: &str, veth: &str, address: &str, gateway: &str) -> IpAddr {
    let address: IpAddr = address.parse().unwrap();
    let whole = if address.is_ipv4() { 32 } else { 128 };
    sh(&format!(
        "
        set -e
        ip netns add {name}
        ip link add {veth} address ee:ee:ee:ee:ee:ee type veth peer name eth0 netns {name}
        ip link set {veth} up
        ip -n {name} link set lo up
        ip -n {name} link set eth0 up
        ip -n {name} address add {address}/{whole} dev eth0 $([ {whole} = 32 ] || echo nodad)
        ip -n {name} route add {gateway} dev eth0 scope link
        ip -n {name} route add default via {gateway} dev eth0
        ip -n {name} neigh add {gateway} dev eth0 lladdr ee:ee:ee:ee:ee:ee nud permanent
        # Before that what is sent to it is dropped; the plugin waits too.
        until ip -o link show {veth} | grep -q 'state UP'; do sleep 0.01; done
        until ip -n {name} -o link show eth0 | grep -q 'state UP'; do sleep 0.01; done
        "
    ));
    address
}

/// A third interface, in a subnet of its own, as custom networking makes them.
pub fn third() -> EniNet {
    sh("
        set -e
        ip -n vpc address add 100.64.32.1/19 dev br0
    ");
    interface(7, THIRD);
    EniNet {
        mac: Mac([2, 0, 0, 0, 0, 7]),
        device_index: 2,
        address: THIRD.parse().unwrap(),
        subnet: "100.64.32.0/19".parse().unwrap(),
        mtu: 9001,
        for_pods: vec!["100.64.33.0/28".parse().unwrap()],
    }
}

/// Waits for a link of the VPC's: until it has seen its peers' carriers it drops what is sent to the node.
pub fn operational(link: &str) {
    sh(&format!(
        "until ip -n vpc -o link show {link} | grep -q 'state UP'; do sleep 0.01; done"
    ));
}

/// Everything as the daemon makes it.
pub async fn ensure_all(kernel: &Kernel, pods: &[PodNet]) {
    kernel.ensure_node(&node()).await.unwrap();
    kernel.ensure_eni(&second()).await.unwrap();
    for link in ["vpc5", "vpc6", "br0"] {
        operational(link);
    }
    routing(kernel, pods).await;
}

/// Pods' routes and rules as the daemon makes them; tells what was changed.
pub async fn routing(kernel: &Kernel, pods: &[PodNet]) -> Vec<Change> {
    told(kernel.ensure_routing(&node(), &[], pods).await)
}

/// What was changed by a look at which nothing failed.
pub fn told(looked: Looked) -> Vec<Change> {
    assert!(looked.failed.is_empty(), "{:?}", looked.failed);
    looked.changed
}

/// Changes in words.
pub fn words(changed: &[Change]) -> String {
    let words: Vec<String> = changed.iter().map(ToString::to_string).collect();
    words.join("; ")
}

/// Several packets of one connection from a pod to `to`, each answered: the source that `to` saw, if all arrived.
pub fn talk(from: &str, to_netns: &str, to: &str) -> Option<IpAddr> {
    let server = listen(to_netns, to, 0);
    let address = server.local_addr().unwrap();
    talk_by(from, &server, address)
}

pub fn listen(netns: &str, address: &str, port: u16) -> UdpSocket {
    let address: IpAddr = address.parse().unwrap();
    let bind = || UdpSocket::bind((address, port)).unwrap();
    let inside = NetNs::open(Path::new(&format!("/run/netns/{netns}"))).unwrap();
    inside.run(bind).unwrap()
}

/// The same, by an address that is translated to that of `server`.
pub fn talk_by(from: &str, server: &UdpSocket, address: SocketAddr) -> Option<IpAddr> {
    let any = if address.is_ipv4() { "0.0.0.0" } else { "::" };
    exchange(&listen(from, any, 0), server, address)
}

/// Some packets from `client` to `server` by an address that leads there, and their answers.
pub fn exchange(client: &UdpSocket, server: &UdpSocket, address: SocketAddr) -> Option<IpAddr> {
    let patience = Some(Duration::from_secs(2));
    server.set_read_timeout(patience).unwrap();
    client.set_read_timeout(patience).unwrap();
    client.connect(address).unwrap();
    let mut seen = None;
    let mut buffer = [0; 16];
    for _ in 0..3 {
        client.send(b"to").ok()?;
        let (_, source) = server.recv_from(&mut buffer).ok()?;
        server.send_to(b"back", source).ok()?;
        client.recv(&mut buffer).ok()?;
        seen = Some(source.ip());
    }
    seen
}
