//! A node with two interfaces, the VPC they lead to, an address beyond it, and pods.
//!
//! ```text
//!  pod-a, pod-b ── veths eni… ── node (this namespace) ── ens5 10.40.0.4, ens6 10.40.0.5 ── vpc: 10.40.0.1 (router)
//!  10.40.0.9       to the node                                                               10.40.16.9 (in the VPC)
//!  10.40.0.10                                                                                198.51.100.10 (outside)
//! ```

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use selvage_ipamd::config::RandomizeSnat;
use selvage_ipamd::hostnet::{EniNet, Host, Kernel, NodeNet, PodNet, Snat};
use selvage_ipamd_core::ids::Mac;
use selvage_nodenet::NetNs;

pub const INSIDE: &str = "10.40.16.9";
pub const OUTSIDE: &str = "198.51.100.10";
pub const NODE: &str = "10.40.0.4";

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
        ip -n vpc link add br0 type bridge
        for n in 5 6; do
            ip link add ens$n address 02:00:00:00:00:0$n type veth peer name vpc$n netns vpc
            ip -n vpc link set vpc$n master br0 up
        done
        ip -n vpc address add 10.40.0.1/20 dev br0
        ip -n vpc address add 10.40.16.9/32 dev lo
        ip -n vpc address add 198.51.100.10/32 dev lo
        ip -n vpc link set br0 up
        ip link set ens5 up
        ip address add 10.40.0.4/20 dev ens5
        ip route add default via 10.40.0.1
        sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.ens5.rp_filter=2
    ");
}

/// What the daemon would ask for.
pub fn node() -> NodeNet {
    NodeNet {
        primary_mac: Mac([2, 0, 0, 0, 0, 5]),
        primary_address: NODE.parse().unwrap(),
        mtu: 9001,
        veth_prefix: "eni".into(),
        snat: Snat::Here {
            exempt: ["10.40.0.0/16".parse().unwrap()].into(),
            excluded: [].into(),
            randomize: RandomizeSnat::Prng,
        },
    }
}

pub fn second() -> EniNet {
    EniNet {
        mac: Mac([2, 0, 0, 0, 0, 6]),
        device_index: 1,
        address: Ipv4Addr::new(10, 40, 0, 5),
        subnet: "10.40.0.0/20".parse().unwrap(),
        mtu: 9001,
    }
}

/// A pod as the plugin makes it, but for its rules and its route on the host.
pub fn pod(name: &str, address: &str, device_index: u16) -> PodNet {
    let veth = format!("eni{name}");
    sh(&format!(
        "
        set -e
        ip netns add {name}
        ip link add {veth} address ee:ee:ee:ee:ee:ee type veth peer name eth0 netns {name}
        ip link set {veth} up
        ip -n {name} link set lo up
        ip -n {name} link set eth0 up
        ip -n {name} address add {address}/32 dev eth0
        ip -n {name} route add 169.254.1.1 dev eth0 scope link
        ip -n {name} route add default via 169.254.1.1
        ip -n {name} neigh add 169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee nud permanent
        # What the VPC does: an interface answers for the addresses it holds.
        ip -n vpc route add {address}/32 via {} dev br0
        ",
        if device_index == 0 { NODE } else { "10.40.0.5" }
    ));
    PodNet {
        address: address.parse().unwrap(),
        device_index,
        veth,
    }
}

/// Everything as the daemon makes it.
pub async fn ensure_all(kernel: &Kernel, pods: &[PodNet]) {
    kernel.ensure_node(&node()).await.unwrap();
    kernel.ensure_eni(&second()).await.unwrap();
    kernel.ensure_pods(pods).await.unwrap();
}

/// Several packets of one connection from a pod to `to`, each answered: the source that `to` saw, if all arrived.
pub fn talk(from: &str, to_netns: &str, to: &str) -> Option<Ipv4Addr> {
    let server = listen(to_netns, &format!("{to}:0"));
    let address = server.local_addr().unwrap();
    talk_by(from, &server, address)
}

pub fn listen(netns: &str, address: &str) -> UdpSocket {
    let bind = || UdpSocket::bind(address).unwrap();
    let inside = NetNs::open(Path::new(&format!("/run/netns/{netns}"))).unwrap();
    inside.run(bind).unwrap()
}

/// The same, by an address that is translated to that of `server`.
pub fn talk_by(from: &str, server: &UdpSocket, address: SocketAddr) -> Option<Ipv4Addr> {
    let patience = Some(Duration::from_secs(2));
    let client = listen(from, "0.0.0.0:0");
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
        let SocketAddr::V4(source) = source else {
            panic!("{source} is not an IPv4 address");
        };
        seen = Some(*source.ip());
    }
    seen
}
