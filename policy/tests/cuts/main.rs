//! What a change of policy forbids is ended by the shipped binary and stays ended, whatever the
//! protocol, whoever speaks, and by whatever address the server was reached; what it allows loses
//! nothing. Needs namespaces: run it with `cargo nextest`.

#[path = "../kills/agent.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod agent;
#[path = "../kills/apiserver.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod apiserver;
#[path = "../../netfilter/tests/kernel/cutter/sctp.rs"]
mod sctp;
#[path = "../../netfilter/tests/kernel/cutter/talk.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod talk;
mod world;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use selvage_netfilter::Backend;
use selvage_policy_core::ruleset::Family;
use selvage_tests::run;

use agent::eventually;
use sctp::Association;
use talk::{Flow, Speaker, pass};
use world::World;

/// Flows of TCP that will be forbidden: how each is, and by which port.
fn tcp_flows(world: &World) -> Result<Vec<(&'static str, Flow)>> {
    let direct = |port| SocketAddr::new(world.server_address, port);
    world.service(80, 9005)?;
    let service = SocketAddr::new(world.service_address, 80);
    let flows = [
        ("pushes", direct(9001), 9001, Speaker::Server),
        ("uploads in bulk", direct(9002), 9002, Speaker::Client),
        ("talks", direct(9003), 9003, Speaker::Both),
        (
            "is idle, server first",
            direct(9004),
            9004,
            Speaker::ServerLater,
        ),
        ("pushes by a Service", service, 9005, Speaker::Server),
        (
            "is idle, client first",
            direct(9006),
            9006,
            Speaker::ClientLater,
        ),
    ];
    let open = |(name, to, port, speaker)| Ok((name, Flow::tcp(world, to, port, speaker)?));
    flows.into_iter().map(open).collect()
}

fn udp_flows(world: &World) -> Result<Vec<(&'static str, Flow)>> {
    let direct = |port| SocketAddr::new(world.server_address, port);
    world.service(53, 9013)?;
    let service = SocketAddr::new(world.service_address, 53);
    let flows = [
        ("pushes", direct(9011), 9011, Speaker::Server),
        ("uploads", direct(9012), 9012, Speaker::Client),
        ("talks by a Service", service, 9013, Speaker::Both),
    ];
    let open = |(name, to, port, speaker)| Ok((name, Flow::udp(world, to, port, speaker)?));
    flows.into_iter().map(open).collect()
}

fn sctp_associations(world: &World) -> Result<Vec<(&'static str, Association)>> {
    let all = [
        ("pushes", 9021, Speaker::Server),
        ("uploads", 9022, Speaker::Client),
    ];
    let open = |(name, port, speaker)| Ok((name, Association::open(world, port, speaker)?));
    all.into_iter().map(open).collect()
}

/// Nothing arrives any more, although everybody speaks.
fn ended(what: &str, flows: &[(&str, Flow)]) -> Result<()> {
    let before: Vec<u64> = flows.iter().map(|(_, flow)| flow.arrived()).collect();
    flows.iter().for_each(|(_, flow)| flow.speak());
    pass(Duration::from_millis(1300));
    for ((name, flow), before) in flows.iter().zip(before) {
        ensure!(
            flow.arrived() == before,
            "{what}: a flow that {name} goes on"
        );
    }
    Ok(())
}

fn no_association(what: &str, all: &[(&str, Association)]) -> Result<()> {
    for (name, it) in all {
        ensure!(
            it.talk(20)? == 0,
            "{what}: an association that {name} goes on"
        );
        ensure!(
            it.heartbeats()? == 0,
            "{what}: a heartbeat of one that {name} revives it"
        );
        ensure!(
            it.talk(20)? == 0,
            "{what}: an association that {name} is back"
        );
    }
    Ok(())
}

fn what_a_change_forbids_is_cut(backend: Backend, family: Family) -> Result<()> {
    let world = World::new(backend, family)?;
    let (tcp, udp, sctp) = (
        tcp_flows(&world)?,
        udp_flows(&world)?,
        sctp_associations(&world)?,
    );
    let to = |port| SocketAddr::new(world.server_address, port);
    let talking = Flow::tcp(&world, to(8001), 8001, Speaker::Both)?;
    let datagrams = Flow::udp(&world, to(8002), 8002, Speaker::Both)?;
    let association = Association::open(&world, 8003, Speaker::Both)?;
    for (name, it) in &sctp {
        ensure!(it.talk(20)? > 0, "an association that {name} never went");
    }
    pass(Duration::from_millis(300));
    world.forbid();
    let all = (tcp.len() + udp.len() + sctp.len()) as u64;
    let mut cut = 0;
    eventually("every forbidden flow is cut", || {
        let counter = "selvage_policy_cut_flows_total{why=\"forbidden\"}";
        cut = world.agent.counted(counter)?;
        Ok((cut >= all).then_some(()))
    })
    .with_context(|| format!("{cut} of {all}: {}", world.agent.log().unwrap_or_default()))?;
    ensure!(cut == all, "{cut} flows were cut of {all}");
    // What had arrived is read by then.
    pass(Duration::from_millis(200));
    let went = talking.arrived();
    ended("UDP", &udp)?;
    ended("TCP", &tcp)?;
    no_association("at once", &sctp)?;
    ensure!(talking.arrived() > went + 1000, "an allowed flow was cut");
    ensure!(
        association.talk(20)? == 40,
        "an allowed association was cut"
    );
    let sent = datagrams.sent();
    ensure!(sent > 500, "{sent} datagrams are no test");
    ensure!(datagrams.lost()? == 0, "of {sent} allowed datagrams");
    for (name, flow) in udp {
        ensure!(flow.finish()? > 0, "a flow that {name} never went");
    }
    // As if it all had been idle for longer than any timer of the guards lasts: there is one alone.
    let guard = match family {
        Family::V4 => "selvage-cut4",
        Family::V6 => "selvage-cut6",
    };
    run(&format!("ipset flush {guard}"))?;
    ended("after the guards' time", &tcp)?;
    no_association("after the guards' time", &sctp)?;
    // Allowed again, neither is taken up in the middle.
    world.allow();
    eventually("the server is open", || {
        let opened = Flow::udp(&world, to(9031), 9031, Speaker::Both);
        Ok(opened.ok().map(Flow::finish))
    })??;
    ended("allowed again", &tcp)?;
    for (name, flow) in tcp {
        let went = flow.finish()? > 0;
        ensure!(went != name.contains("idle"), "a flow that {name}");
    }
    talking.finish().map(drop)
}

#[test]
fn the_agent_cuts_what_a_change_forbids_of_every_protocol_for_good_on_nft() -> Result<()> {
    what_a_change_forbids_is_cut(Backend::Nft, Family::V4)
}

#[test]
fn the_agent_cuts_what_a_change_forbids_of_every_protocol_for_good_on_legacy() -> Result<()> {
    what_a_change_forbids_is_cut(Backend::Legacy, Family::V4)
}

#[test]
fn the_agent_cuts_what_a_change_forbids_of_every_protocol_for_good_on_nft_over_ipv6() -> Result<()>
{
    what_a_change_forbids_is_cut(Backend::Nft, Family::V6)
}

#[test]
fn the_agent_cuts_what_a_change_forbids_of_every_protocol_for_good_on_legacy_over_ipv6()
-> Result<()> {
    what_a_change_forbids_is_cut(Backend::Legacy, Family::V6)
}
