//! What NetworkPolicy says is what packets meet, on both iptables backends.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use selvage_netfilter::Backend;
use selvage_policy_core::plan::Plan;
use selvage_tests::{
    Outcome, Pod, Protocol, connect, probe, probe_at, run, run_with_input, send_from,
};
use serde_json::{Value, json};

use crate::cluster::Cluster;

const A: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 11);
const B: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 12);
const C: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 13);
const D: Ipv4Addr = Ipv4Addr::new(10, 40, 0, 14);

/// Two tests of each function, one a backend.
macro_rules! on_both_backends {
    ($($name:ident),* $(,)?) => {
        mod nft {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name(selvage_netfilter::Backend::Nft) })*
        }
        mod legacy {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name(selvage_netfilter::Backend::Legacy) })*
        }
    };
}
pub(crate) use on_both_backends;

on_both_backends![
    default_deny_drops_what_comes_from_pods_and_lets_the_node_probe,
    only_the_allowed_peer_reaches_only_the_allowed_port,
    egress_is_judged_at_the_backend_of_a_service,
    a_flow_that_is_still_allowed_survives_a_change_of_rules,
    an_unknown_pod_interface_gets_nothing_through_and_other_machines_do,
    a_pod_cannot_use_anothers_address,
    an_isolated_pod_reaches_itself_through_its_service,
    strangers_rules_see_allowed_packets_and_cannot_revive_dropped_ones,
    a_restart_finds_everything_right_and_rewrites_nothing,
    a_new_peer_is_a_new_member_and_no_rule_is_written,
    cleanup_opens_what_was_closed,
];

fn deny_ingress(app: &str) -> Value {
    json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"]})
}

fn allow_ingress(app: &str, from: &str, protocol: &str, port: u16) -> Value {
    json!({
        "podSelector": {"matchLabels": {"app": app}},
        "policyTypes": ["Ingress"],
        "ingress": [{
            "from": [{"podSelector": {"matchLabels": {"app": from}}}],
            "ports": [{"protocol": protocol, "port": port}],
        }],
    })
}

fn nat(backend: Backend, rules: &str) -> Result<()> {
    let text = format!("*nat\n{rules}COMMIT\n");
    run_with_input(&format!("iptables-{backend}-restore --noflush"), &text).map(drop)
}

pub(crate) fn service(backend: Backend, vip: SocketAddrV4, to: &Pod, port: u16) -> Result<()> {
    let (address, from, to) = (vip.ip(), vip.port(), to.address());
    nat(
        backend,
        &format!(
            "-A PREROUTING -d {address} -p tcp --dport {from} -j DNAT --to-destination {to}:{port}\n"
        ),
    )
}

fn default_deny_drops_what_comes_from_pods_and_lets_the_node_probe(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let (a, b) = (cluster.pod("a", A)?, cluster.pod("b", B)?);
    let _servers = [
        a.serve(Protocol::Tcp, 80)?,
        b.serve(Protocol::Tcp, 80)?,
        b.serve(Protocol::Udp, 80)?,
    ];
    cluster.enforce()?;
    assert_eq!(probe(&a, &b, Protocol::Tcp, 80), Outcome::Reached);
    cluster.policy("deny", deny_ingress("b"))?;
    cluster.enforce()?;
    assert_eq!(probe(&a, &b, Protocol::Tcp, 80), Outcome::Dropped);
    assert_eq!(probe(&a, &b, Protocol::Udp, 80), Outcome::Dropped);
    assert_eq!(probe(&b, &a, Protocol::Tcp, 80), Outcome::Reached);
    assert_eq!(
        probe(&cluster.node, &b, Protocol::Tcp, 80),
        Outcome::Reached
    );
    Ok(())
}

fn only_the_allowed_peer_reaches_only_the_allowed_port(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let (a, b, c) = (
        cluster.pod("a", A)?,
        cluster.pod("b", B)?,
        cluster.pod("c", C)?,
    );
    let _servers = [
        b.serve(Protocol::Tcp, 80)?,
        b.serve(Protocol::Tcp, 81)?,
        b.serve(Protocol::Udp, 80)?,
        b.serve(Protocol::Udp, 53)?,
    ];
    cluster.policy("web", allow_ingress("b", "a", "TCP", 80))?;
    cluster.policy("dns", allow_ingress("b", "c", "UDP", 53))?;
    cluster.enforce()?;
    for (from, protocol, port, expected) in [
        (&a, Protocol::Tcp, 80, Outcome::Reached),
        (&a, Protocol::Tcp, 81, Outcome::Dropped),
        (&a, Protocol::Udp, 80, Outcome::Dropped),
        (&a, Protocol::Udp, 53, Outcome::Dropped),
        (&c, Protocol::Tcp, 80, Outcome::Dropped),
        (&c, Protocol::Udp, 53, Outcome::Reached),
    ] {
        assert_eq!(
            probe(from, &b, protocol, port),
            expected,
            "{} {protocol:?} {port}",
            from.address()
        );
    }
    Ok(())
}

fn egress_is_judged_at_the_backend_of_a_service(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let (a, b, c) = (
        cluster.pod("a", A)?,
        cluster.pod("b", B)?,
        cluster.pod("c", C)?,
    );
    let _servers = [b.serve(Protocol::Tcp, 8080)?, c.serve(Protocol::Tcp, 8080)?];
    let to_b = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 1), 80);
    let to_c = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 2), 80);
    service(backend, to_b, &b, 8080)?;
    service(backend, to_c, &c, 8080)?;
    cluster.policy(
        "out",
        json!({
            "podSelector": {"matchLabels": {"app": "a"}},
            "policyTypes": ["Egress"],
            "egress": [{
                "to": [{"podSelector": {"matchLabels": {"app": "b"}}}],
                "ports": [{"port": 8080}],
            }],
        }),
    )?;
    cluster.enforce()?;
    assert_eq!(probe_at(&a, Protocol::Tcp, to_b), Outcome::Reached);
    assert_eq!(probe_at(&a, Protocol::Tcp, to_c), Outcome::Dropped);
    assert_eq!(probe_at(&b, Protocol::Tcp, to_c), Outcome::Reached);
    Ok(())
}

fn a_flow_that_is_still_allowed_survives_a_change_of_rules(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let (a, b) = (cluster.pod("a", A)?, cluster.pod("b", B)?);
    let c = cluster.pod("c", C)?;
    let _server = b.serve(Protocol::Tcp, 80)?;
    cluster.policy("a", allow_ingress("b", "a", "TCP", 80))?;
    cluster.enforce()?;
    let mut flow = connect(&a, SocketAddrV4::new(B, 80))?;
    assert!(flow.passes()?);
    cluster.policy("c", allow_ingress("b", "c", "TCP", 80))?;
    let Plan { write, delete, .. } = cluster.enforce()?;
    assert!(!write.is_empty() && !delete.is_empty(), "chains changed");
    assert!(flow.passes()?);
    assert_eq!(probe(&c, &b, Protocol::Tcp, 80), Outcome::Reached);
    Ok(())
}

fn an_unknown_pod_interface_gets_nothing_through_and_other_machines_do(
    backend: Backend,
) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let a = cluster.pod("a", A)?;
    let unknown = cluster.node.endpoint("eni0123456789a", B)?;
    let machine = cluster.node.endpoint("ens6", C)?;
    let _servers = [
        a.serve(Protocol::Tcp, 80)?,
        unknown.serve(Protocol::Tcp, 80)?,
        machine.serve(Protocol::Tcp, 80)?,
    ];
    cluster.enforce()?;
    assert_eq!(probe(&unknown, &a, Protocol::Tcp, 80), Outcome::Dropped);
    assert_eq!(
        probe(&unknown, &machine, Protocol::Tcp, 80),
        Outcome::Dropped
    );
    assert_eq!(probe(&a, &unknown, Protocol::Tcp, 80), Outcome::Dropped);
    assert_eq!(
        probe(&machine, &unknown, Protocol::Tcp, 80),
        Outcome::Dropped
    );
    assert_eq!(probe(&machine, &a, Protocol::Tcp, 80), Outcome::Reached);
    assert_eq!(probe(&a, &machine, Protocol::Tcp, 80), Outcome::Reached);
    Ok(())
}

fn a_pod_cannot_use_anothers_address(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let (a, b) = (cluster.pod("a", A)?, cluster.pod("b", B)?);
    let _c = cluster.pod("c", C)?;
    let server = b.serve(Protocol::Udp, 80)?;
    cluster.policy("c", allow_ingress("b", "c", "UDP", 80))?;
    cluster.policy("a", allow_ingress("b", "a", "UDP", 80))?;
    cluster.enforce()?;
    send_from(&a, C, SocketAddrV4::new(B, 80))?;
    send_from(&a, Ipv4Addr::new(10, 40, 9, 9), SocketAddrV4::new(B, 80))?;
    assert_eq!(probe(&a, &b, Protocol::Udp, 80), Outcome::Reached);
    assert_eq!(server.sources(), [A]);
    Ok(())
}

fn an_isolated_pod_reaches_itself_through_its_service(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let (a, b) = (cluster.pod("a", A)?, cluster.pod("b", B)?);
    let _server = b.serve(Protocol::Tcp, 80)?;
    let vip = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 1), 80);
    service(backend, vip, &b, 80)?;
    // As kube-proxy does: without it the pod would answer itself past the node.
    nat(
        backend,
        &format!("-A POSTROUTING -s {B} -d {B} -j MASQUERADE\n"),
    )?;
    cluster.policy(
        "deny",
        json!({
            "podSelector": {"matchLabels": {"app": "b"}},
            "policyTypes": ["Ingress", "Egress"],
        }),
    )?;
    cluster.enforce()?;
    assert_eq!(probe_at(&b, Protocol::Tcp, vip), Outcome::Reached);
    assert_eq!(probe_at(&a, Protocol::Tcp, vip), Outcome::Dropped);
    Ok(())
}

fn strangers_rules_see_allowed_packets_and_cannot_revive_dropped_ones(
    backend: Backend,
) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let (a, b) = (cluster.pod("a", A)?, cluster.pod("b", B)?);
    let _servers = [80, 81, 82].map(|port| b.serve(Protocol::Tcp, port));
    run_with_input(
        &format!("iptables-{backend}-restore --noflush"),
        "*mangle\n-A FORWARD -p tcp --dport 81 -j DROP\n-A FORWARD -j ACCEPT\nCOMMIT\n\
         *filter\n-A FORWARD -j ACCEPT\nCOMMIT\n",
    )?;
    for port in [80, 81] {
        let spec = allow_ingress("b", "a", "TCP", port);
        cluster.policy(&format!("a-{port}"), spec)?;
    }
    cluster.enforce()?;
    assert_eq!(probe(&a, &b, Protocol::Tcp, 80), Outcome::Reached);
    assert_eq!(probe(&a, &b, Protocol::Tcp, 81), Outcome::Dropped);
    assert_eq!(probe(&a, &b, Protocol::Tcp, 82), Outcome::Dropped);
    Ok(())
}

fn a_restart_finds_everything_right_and_rewrites_nothing(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let (a, b) = (cluster.pod("a", A)?, cluster.pod("b", B)?);
    let _server = b.serve(Protocol::Udp, 80)?;
    cluster.policy("a", allow_ingress("b", "a", "UDP", 80))?;
    cluster.policy("deny", deny_ingress("a"))?;
    cluster.enforce()?;
    // UDP: a connection that is being closed would still be counted while the counters are read.
    assert_eq!(probe(&a, &b, Protocol::Udp, 80), Outcome::Reached);
    // A rule that is written again has another handle, and counts from 0 again.
    let trace = || match backend {
        Backend::Nft => run("nft -a list table ip mangle"),
        Backend::Legacy => run("iptables-legacy-save -c -t mangle")
            .map(|text| text.lines().filter(|line| !line.starts_with('#')).collect()),
    };
    let before = trace()?;
    assert!(before.contains("selvage-forward"));
    cluster.restart()?;
    let todo = cluster.enforce()?;
    assert!(todo.is_empty(), "{todo:?}");
    assert_eq!(trace()?, before);
    Ok(())
}

fn a_new_peer_is_a_new_member_and_no_rule_is_written(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let b = cluster.pod("b", B)?;
    let _server = b.serve(Protocol::Tcp, 80)?;
    cluster.policy("d", allow_ingress("b", "d", "TCP", 80))?;
    cluster.enforce()?;
    // On another node, as far as the cluster knows: reached through an interface of the node's.
    let d = cluster.node.endpoint("ens6", D)?;
    assert_eq!(probe(&d, &b, Protocol::Tcp, 80), Outcome::Dropped);
    let delta = cluster.announce_elsewhere("d", D)?;
    assert!(!delta.recompile, "{delta:?}");
    let changes = cluster.index.take_member_changes();
    let changes = changes.unwrap_or_default();
    cluster.kernel.sets().change_members(&changes, &mut || {})?;
    assert_eq!(probe(&d, &b, Protocol::Tcp, 80), Outcome::Reached);
    let todo = cluster.enforce()?;
    assert!(todo.is_empty(), "{todo:?}");
    Ok(())
}

fn cleanup_opens_what_was_closed(backend: Backend) -> Result<()> {
    let mut cluster = Cluster::new(backend)?;
    let (a, b) = (cluster.pod("a", A)?, cluster.pod("b", B)?);
    let _server = b.serve(Protocol::Tcp, 80)?;
    cluster.policy("deny", deny_ingress("b"))?;
    cluster.enforce()?;
    assert_eq!(probe(&a, &b, Protocol::Tcp, 80), Outcome::Dropped);
    let cleaned = cluster.kernel.cleanup();
    assert!(cleaned.left.is_empty(), "{:?}", cleaned.left);
    assert_eq!(probe(&a, &b, Protocol::Tcp, 80), Outcome::Reached);
    assert!(!run(&format!("iptables-{backend}-save"))?.contains("selvage"));
    assert_eq!(run("ipset list -n")?, "");
    Ok(())
}
