//! Corners of NetworkPolicy that only packets can decide, on both iptables backends.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use selvage_netfilter::Backend;
use selvage_tests::{Node, Outcome, PATIENCE, Place, Pod, Protocol, connect, probe, probe_at};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::policy::on_both_backends;

const A: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 11);
const B: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 12);
const C: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 13);

on_both_backends![
    an_icmp_error_about_an_allowed_flow_reaches_an_isolated_pod,
    an_isolated_pod_and_its_own_node_reach_each_other,
    fragments_are_judged_as_the_datagram_that_they_are_of,
    a_block_of_service_addresses_opens_nothing,
    an_update_of_a_policy_loses_nothing_that_stays_allowed_and_opens_nothing_that_stays_forbidden,
    a_pod_made_again_under_its_name_inherits_no_rights_and_gets_its_own,
];

fn isolated(app: &str) -> Value {
    json!({
        "podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress", "Egress"],
    })
}

fn into_b(from: &str, ports: &Value) -> Value {
    json!({
        "podSelector": {"matchLabels": {"app": "b"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": from}}}], "ports": ports}],
    })
}

fn dns() -> Value {
    json!([{"protocol": "UDP", "port": 53}])
}

/// Sends a datagram of a new flow and waits for what comes back.
fn exchange(from: &Pod, to: SocketAddrV4, size: usize) -> Result<bool> {
    from.netns().run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(&vec![7; size])?;
        Ok(socket.recv(&mut [0; 16]).is_ok())
    })?
}

fn an_icmp_error_about_an_allowed_flow_reaches_an_isolated_pod(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let (a, b) = (cluster.pod("a", A)?, cluster.pod("b", B)?);
    cluster.policy(
        "deny",
        json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress"]}),
    )?;
    cluster.enforce()?;
    // Nobody listens: what comes back is an ICMP error, to a pod that nothing may reach.
    assert_eq!(probe(&a, &b, Protocol::Udp, 80), Outcome::Refused);
    assert_eq!(probe(&b, &a, Protocol::Udp, 80), Outcome::Dropped);
    Ok(())
}

fn an_isolated_pod_and_its_own_node_reach_each_other(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let (a, b) = (cluster.pod("a", A)?, cluster.pod("b", B)?);
    let _server = a.serve(Protocol::Tcp, 80)?;
    let on_node = TcpListener::bind((Node::ADDRESS, 7777))?;
    cluster.policy("deny", isolated("a"))?;
    cluster.enforce()?;
    assert_eq!(
        probe(&cluster.node, &a, Protocol::Tcp, 80),
        Outcome::Reached
    );
    connect(&a, SocketAddrV4::new(Node::ADDRESS, 7777))?;
    assert_eq!(probe(&a, &b, Protocol::Tcp, 80), Outcome::Dropped);
    drop(on_node);
    Ok(())
}

fn fragments_are_judged_as_the_datagram_that_they_are_of(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let (a, b) = (cluster.pod("a", A)?, cluster.pod("b", B)?);
    let c = cluster.pod("c", C)?;
    let _servers = [b.serve(Protocol::Udp, 53)?, b.serve(Protocol::Udp, 54)?];
    cluster.policy("dns", into_b("a", &dns()))?;
    cluster.enforce()?;
    // 4000: three fragments over a veth, of which the first alone names the port.
    assert!(exchange(&a, SocketAddrV4::new(B, 53), 4000)?);
    assert!(!exchange(&a, SocketAddrV4::new(B, 54), 4000)?);
    assert!(!exchange(&c, SocketAddrV4::new(B, 53), 4000)?);
    Ok(())
}

fn a_block_of_service_addresses_opens_nothing(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let (a, b) = (cluster.pod("a", A)?, cluster.pod("b", B)?);
    let _server = b.serve(Protocol::Tcp, 8080)?;
    let vip = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 1), 80);
    crate::policy::service(backend, vip, &b, 8080)?;
    let to = |cidr: &str| {
        json!({
            "podSelector": {"matchLabels": {"app": "a"}},
            "policyTypes": ["Egress"],
            "egress": [{"to": [{"ipBlock": {"cidr": cidr}}]}],
        })
    };
    cluster.policy("out", to("10.96.0.0/12"))?;
    cluster.enforce()?;
    assert_eq!(probe_at(&a, Protocol::Tcp, vip), Outcome::Dropped);
    cluster.policy("out", to("10.40.0.12/32"))?;
    cluster.enforce()?;
    assert_eq!(probe_at(&a, Protocol::Tcp, vip), Outcome::Reached);
    Ok(())
}

fn an_update_of_a_policy_loses_nothing_that_stays_allowed_and_opens_nothing_that_stays_forbidden(
    backend: Backend,
) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let (a, b) = (cluster.pod("a", A)?, cluster.pod("b", B)?);
    let c = cluster.pod("c", C)?;
    let _server = b.serve(Protocol::Udp, 53)?;
    cluster.policy("p", into_b("a", &dns()))?;
    cluster.enforce()?;
    let stop = AtomicBool::new(false);
    let to = SocketAddrV4::new(B, 53);
    let (allowed, forbidden) = thread::scope(|scope| -> Result<_> {
        // Each a new flow: an established one would tell nothing.
        let flows = scope.spawn(|| -> Result<_> {
            let mut reached = 0;
            while !stop.load(Ordering::Relaxed) {
                ensure!(exchange(&a, to, 5)?, "lost after {reached}");
                reached += 1;
            }
            Ok(reached)
        });
        let strangers = scope.spawn(|| -> Result<_> {
            let mut sent = 0;
            let socket = c
                .netns()
                .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
            socket.set_read_timeout(Some(Duration::from_millis(1)))?;
            while !stop.load(Ordering::Relaxed) {
                socket.send_to(b"x", to)?;
                ensure!(socket.recv(&mut [0; 16]).is_err(), "passed after {sent}");
                sent += 1;
            }
            Ok(sent)
        });
        let mut changes = || -> Result<()> {
            for round in 0..80_u16 {
                // Ranges stand in rules, single ports in sets.
                let range = json!({"protocol": "UDP", "port": 1000, "endPort": 1001 + round});
                cluster.policy("p", into_b("a", &json!([dns()[0], range])))?;
                let plan = cluster.enforce()?;
                ensure!(!plan.write.is_empty(), "round {round} changed no chain");
            }
            Ok(())
        };
        let changed = changes();
        stop.store(true, Ordering::Relaxed);
        let flows = flows.join().expect("no panic")?;
        let strangers = strangers.join().expect("no panic")?;
        changed?;
        Ok((flows, strangers))
    })?;
    ensure!(
        allowed >= 20 && forbidden >= 20,
        "{allowed} and {forbidden}"
    );
    Ok(())
}

fn a_pod_made_again_under_its_name_inherits_no_rights_and_gets_its_own(
    backend: Backend,
) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let (a, b) = (cluster.pod("a", A)?, cluster.pod("b", B)?);
    let _server = b.serve(Protocol::Udp, 53)?;
    cluster.policy("p", into_b("a", &dns()))?;
    cluster.enforce()?;
    assert_eq!(probe(&a, &b, Protocol::Udp, 53), Outcome::Reached);
    // The name comes back with another address; the old address goes to a pod without rights.
    a.delete()?;
    let again = cluster.pod("a", C)?;
    let heir = cluster.pod("heir", A)?;
    cluster.enforce()?;
    assert_eq!(probe(&again, &b, Protocol::Udp, 53), Outcome::Reached);
    assert_eq!(probe(&heir, &b, Protocol::Udp, 53), Outcome::Dropped);
    Ok(())
}
