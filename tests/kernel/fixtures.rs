//! The fixtures themselves: a probe that lies would make every other test worthless.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use selvage_tests::{
    Node, Outcome, Pod, Protocol, connect, probe, probe_at, run, run_with_input, send_from,
};

const A: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 11);
const B: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 12);

fn two_pods() -> Result<(Node, Pod, Pod)> {
    let node = Node::new()?;
    let a = node.pod("default", "a", A)?;
    let b = node.pod("default", "b", B)?;
    Ok((node, a, b))
}

fn drop_at_forward(matches: &str) -> Result<()> {
    let text = format!("*filter\n-A FORWARD {matches} -j DROP\nCOMMIT\n");
    run_with_input("iptables-nft-restore --noflush", &text).map(drop)
}

#[test]
fn pods_reach_each_other_and_the_node_reaches_them_when_nothing_forbids_it() -> Result<()> {
    let (node, a, b) = two_pods()?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let _server = b.serve(protocol, 8080)?;
        assert_eq!(probe(&a, &b, protocol, 8080), Outcome::Reached);
        assert_eq!(probe(&node, &b, protocol, 8080), Outcome::Reached);
        assert_eq!(probe(&b, &b, protocol, 8080), Outcome::Reached);
    }
    Ok(())
}

#[test]
fn a_port_without_a_server_is_refused_not_dropped() -> Result<()> {
    let (_node, a, b) = two_pods()?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        assert_eq!(probe(&a, &b, protocol, 8080), Outcome::Refused);
    }
    Ok(())
}

#[test]
fn a_dropped_probe_is_told_from_a_refused_one() -> Result<()> {
    let (_node, a, b) = two_pods()?;
    drop_at_forward(&format!("-o {}", b.interface()))?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let _server = b.serve(protocol, 8080)?;
        assert_eq!(probe(&a, &b, protocol, 8080), Outcome::Dropped);
    }
    Ok(())
}

#[test]
fn a_flow_is_seen_to_stop() -> Result<()> {
    let (_node, a, b) = two_pods()?;
    let _server = b.serve(Protocol::Tcp, 8080)?;
    let mut flow = connect(&a, SocketAddrV4::new(b.address(), 8080))?;
    assert!(flow.passes()?);
    assert!(flow.passes()?);
    drop_at_forward(&format!("-i {}", a.interface()))?;
    assert!(!flow.passes()?);
    run("iptables-nft -F FORWARD")?;
    assert!(flow.passes()?, "late echoes are not taken for the new one");
    Ok(())
}

#[test]
fn a_spoofed_datagram_arrives_where_nothing_checks_sources() -> Result<()> {
    let (_node, a, b) = two_pods()?;
    let server = b.serve(Protocol::Udp, 8080)?;
    let stranger = Ipv4Addr::new(10, 40, 9, 9);
    send_from(&a, stranger, SocketAddrV4::new(B, 8080))?;
    // Datagrams to one socket keep their order: when this one is echoed the other has arrived.
    assert_eq!(probe(&a, &b, Protocol::Udp, 8080), Outcome::Reached);
    assert_eq!(server.sources(), [stranger, A]);
    Ok(())
}

#[test]
fn a_deleted_pod_leaves_no_interface_and_no_route() -> Result<()> {
    let (_node, a, b) = two_pods()?;
    let interface = a.interface().to_owned();
    a.delete()?;
    assert!(!run("ip -br link")?.contains(&interface));
    assert!(!run("ip route")?.contains(&interface));
    assert!(run("ip -br link")?.contains(b.interface()));
    Ok(())
}

#[test]
fn a_service_address_is_probed_through_its_backend() -> Result<()> {
    let (_node, a, b) = two_pods()?;
    let server = b.serve(Protocol::Tcp, 8080)?;
    let vip = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 1), 80);
    run_with_input(
        "iptables-nft-restore --noflush",
        &format!(
            "*nat\n-A PREROUTING -d {}/32 -p tcp --dport 80 -j DNAT --to-destination {B}:8080\nCOMMIT\n",
            vip.ip()
        ),
    )?;
    assert_eq!(probe_at(&a, Protocol::Tcp, vip), Outcome::Reached);
    assert_eq!(server.sources(), [A]);
    Ok(())
}
