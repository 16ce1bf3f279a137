//! What is forbidden ends and stays ended, and what is allowed loses nothing: real flows through
//! rules like the compiled ones, on both backends, in both families.

mod sctp;
mod talk;
mod world;

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use selvage_netfilter::Backend;
use selvage_netfilter::conntrack::{Cutter, Entry, Report, Scope};
use selvage_policy_core::ruleset::{Family, SetKind, guard_set};
use selvage_tests::{Place, run};

use talk::{Flow, Speaker, pass};
use world::World;

const PATIENCE: Duration = Duration::from_secs(10);

/// How long the answering side of a UDP flow must not speak first in these tests, from when it last
/// tried.
const GUARD: Duration = Duration::from_secs(2);

/// Ports that are forbidden after the change; the others stay allowed.
const FORBIDDEN: std::ops::RangeInclusive<u16> = 9000..=9099;

/// The policy changes: rules first, then the cutter.
fn forbid(world: &World, cutter: &mut Cutter) -> Result<Report> {
    world.forbid(&FORBIDDEN)?;
    let forbidden = |entry: &Entry| {
        let seen = entry.seen();
        seen.source == world.client_address
            && seen.destination == world.server_address
            && seen
                .destination_port
                .is_some_and(|port| FORBIDDEN.contains(&port))
    };
    let both = BTreeSet::from([world.server_address]);
    Ok(cutter.cut(Scope::Addresses(&both), &forbidden)?)
}

fn tcp(backend: Backend, family: Family) -> Result<()> {
    let world = World::new(backend, family)?;
    let mut cutter = Cutter::open(GUARD, PATIENCE)?;
    let direct = |port| SocketAddr::new(world.server_address, port);
    world.service(80, 9005)?;
    let service = SocketAddr::new(world.service_address, 80);
    let forbidden = [
        (
            "pushes",
            Flow::tcp(&world, direct(9001), 9001, Speaker::Server)?,
        ),
        (
            "uploads",
            Flow::tcp(&world, direct(9002), 9002, Speaker::Client)?,
        ),
        (
            "talks",
            Flow::tcp(&world, direct(9003), 9003, Speaker::Both)?,
        ),
        (
            "is idle, server first",
            Flow::tcp(&world, direct(9004), 9004, Speaker::ServerLater)?,
        ),
        (
            "pushes by a Service",
            Flow::tcp(&world, service, 9005, Speaker::Server)?,
        ),
        (
            "is idle, client first",
            Flow::tcp(&world, direct(9006), 9006, Speaker::ClientLater)?,
        ),
    ];
    let allowed = [
        Flow::tcp(&world, direct(8001), 8001, Speaker::Both)?,
        Flow::tcp(&world, direct(8002), 8002, Speaker::ServerLater)?,
    ];
    pass(Duration::from_millis(300));
    let report = forbid(&world, &mut cutter)?;
    assert_eq!((report.cut.len(), report.unfinished), (6, 0), "{report:?}");
    // What had arrived is read by then.
    pass(Duration::from_millis(200));
    // Longer than the guard of UDP lasts: TCP's is a rule.
    for what in ["at once", "for good"] {
        let before: Vec<u64> = forbidden.iter().map(|(_, flow)| flow.arrived()).collect();
        let going = allowed.each_ref().map(Flow::arrived);
        let forbidden_flows = forbidden.iter().map(|(_, flow)| flow);
        forbidden_flows.chain(&allowed).for_each(Flow::speak);
        pass(Duration::from_millis(1300));
        for ((name, flow), before) in forbidden.iter().zip(before) {
            assert_eq!(flow.arrived(), before, "{what}: a flow that {name} goes on");
        }
        for (flow, going) in allowed.iter().zip(going) {
            assert!(
                flow.arrived() > going + 100,
                "{what}: an allowed flow was cut"
            );
        }
    }
    for (name, flow) in forbidden {
        let went = flow.finish()? > 0;
        assert_eq!(went, !name.contains("idle"), "a flow that {name}");
    }
    for flow in allowed {
        flow.finish()?;
    }
    Ok(())
}

fn udp(backend: Backend, family: Family) -> Result<()> {
    let world = World::new(backend, family)?;
    let mut cutter = Cutter::open(GUARD, PATIENCE)?;
    let direct = |port| SocketAddr::new(world.server_address, port);
    world.service(53, 9003)?;
    let service = SocketAddr::new(world.service_address, 53);
    let forbidden = [
        (
            "pushes",
            Flow::udp(&world, direct(9001), 9001, Speaker::Server)?,
        ),
        (
            "uploads",
            Flow::udp(&world, direct(9002), 9002, Speaker::Client)?,
        ),
        (
            "pushes by a Service",
            Flow::udp(&world, service, 9003, Speaker::Both)?,
        ),
    ];
    let allowed = Flow::udp(&world, direct(8001), 8001, Speaker::Both)?;
    pass(Duration::from_millis(300));
    let report = forbid(&world, &mut cutter)?;
    assert_eq!((report.cut.len(), report.unfinished), (3, 0), "{report:?}");
    assert_eq!(report.guarded, 3);
    pass(Duration::from_millis(200));
    let before: Vec<u64> = forbidden.iter().map(|(_, flow)| flow.arrived()).collect();
    // Who goes on speaking does so in vain, however long.
    pass(GUARD + Duration::from_millis(1000));
    for ((name, flow), before) in forbidden.into_iter().zip(before) {
        assert!(before > 0, "a flow that {name} never went");
        assert_eq!(flow.arrived(), before, "a flow that {name} goes on");
        flow.finish()?;
    }
    let sent = allowed.sent();
    assert!(sent > 500, "{sent} datagrams are no test");
    assert_eq!(allowed.lost()?, 0, "of {sent} allowed datagrams");
    // A new flow of the client's that is allowed is not in the guard's way.
    Flow::udp(&world, direct(8002), 8002, Speaker::Both)?
        .finish()
        .map(drop)
}

fn sctp(backend: Backend, family: Family) -> Result<()> {
    let world = World::new(backend, family)?;
    let mut cutter = Cutter::open(GUARD, PATIENCE)?;
    let cut = [
        (
            "pushes",
            sctp::Association::open(&world, 9001, Speaker::Server)?,
        ),
        (
            "uploads",
            sctp::Association::open(&world, 9002, Speaker::Client)?,
        ),
    ];
    let allowed = sctp::Association::open(&world, 8001, Speaker::Both)?;
    for (_, it) in &cut {
        assert!(it.talk(20)? > 0, "it never went");
    }
    assert_eq!(allowed.talk(20)?, 40, "both ways");
    let report = forbid(&world, &mut cutter)?;
    assert_eq!((report.cut.len(), report.unfinished), (2, 0), "{report:?}");
    for (name, it) in &cut {
        assert_eq!(it.talk(20)?, 0, "an association that {name} goes on");
        assert_eq!(
            it.heartbeats()?,
            0,
            "a heartbeat of one that {name} revives it"
        );
        assert_eq!(it.talk(20)?, 0, "an association that {name} is back");
    }
    assert_eq!(allowed.talk(20)?, 40, "an allowed association was cut");
    Ok(())
}

#[test]
fn a_forbidden_tcp_flow_ends_whoever_speaks_and_stays_ended_on_nft() -> Result<()> {
    tcp(Backend::Nft, Family::V4)
}

#[test]
fn a_forbidden_tcp_flow_ends_whoever_speaks_and_stays_ended_on_nft_over_ipv6() -> Result<()> {
    tcp(Backend::Nft, Family::V6)
}

#[test]
fn a_forbidden_tcp_flow_ends_whoever_speaks_and_stays_ended_on_legacy() -> Result<()> {
    tcp(Backend::Legacy, Family::V4)
}

#[test]
fn a_forbidden_tcp_flow_ends_whoever_speaks_and_stays_ended_on_legacy_over_ipv6() -> Result<()> {
    tcp(Backend::Legacy, Family::V6)
}

#[test]
fn a_forbidden_tcp_flow_ends_also_where_the_kernel_picks_up_no_flow_in_the_middle() -> Result<()> {
    selvage_tests::assert_isolated()?;
    std::fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", "0")?;
    tcp(Backend::Nft, Family::V4)
}

#[test]
fn a_forbidden_udp_flow_ends_whoever_speaks_and_allowed_ones_lose_no_datagram_on_nft() -> Result<()>
{
    udp(Backend::Nft, Family::V4)
}

#[test]
fn a_forbidden_udp_flow_ends_whoever_speaks_and_allowed_ones_lose_no_datagram_on_nft_over_ipv6()
-> Result<()> {
    udp(Backend::Nft, Family::V6)
}

#[test]
fn a_forbidden_udp_flow_ends_whoever_speaks_and_allowed_ones_lose_no_datagram_on_legacy()
-> Result<()> {
    udp(Backend::Legacy, Family::V4)
}

#[test]
fn a_forbidden_udp_flow_ends_whoever_speaks_and_allowed_ones_lose_no_datagram_on_legacy_over_ipv6()
-> Result<()> {
    udp(Backend::Legacy, Family::V6)
}

#[test]
fn a_forbidden_sctp_association_ends_and_no_heartbeat_revives_it_on_nft() -> Result<()> {
    sctp(Backend::Nft, Family::V4)
}

#[test]
fn a_forbidden_sctp_association_ends_and_no_heartbeat_revives_it_on_nft_over_ipv6() -> Result<()> {
    sctp(Backend::Nft, Family::V6)
}

#[test]
fn a_forbidden_sctp_association_ends_and_no_heartbeat_revives_it_on_legacy() -> Result<()> {
    sctp(Backend::Legacy, Family::V4)
}

#[test]
fn a_forbidden_sctp_association_ends_and_no_heartbeat_revives_it_on_legacy_over_ipv6() -> Result<()>
{
    sctp(Backend::Legacy, Family::V6)
}

#[test]
fn once_the_guards_time_is_over_the_answering_side_may_speak_first_again() -> Result<()> {
    let world = World::new(Backend::Nft, Family::V4)?;
    let mut cutter = Cutter::open(Duration::from_secs(1), PATIENCE)?;
    let to = SocketAddr::new(world.server_address, 9001);
    let flow = Flow::udp(&world, to, 9001, Speaker::Both)?;
    let (client, server) = flow.ends();
    assert_eq!(forbid(&world, &mut cutter)?.guarded, 1);
    flow.finish()?;
    let bound = |place: &selvage_tests::Pod, to: SocketAddr| -> Result<UdpSocket> {
        Ok(place.netns().run(|| UdpSocket::bind(to))??)
    };
    let there = bound(&world.client, client)?;
    let here = bound(&world.server, server)?;
    there.set_read_timeout(Some(Duration::from_millis(100)))?;
    let passes = || -> Result<bool> {
        here.send_to(b"unasked", client)?;
        Ok(there.recv(&mut [0; 8]).is_ok())
    };
    assert!(!passes()?, "the guard doesn't hold");
    pass(GUARD + Duration::from_millis(500));
    assert!(passes()?, "the guard never ends");
    Ok(())
}

#[test]
fn a_guard_is_filled_in_both_families_and_holds_as_many_as_there_are_flows() -> Result<()> {
    use selvage_netfilter::ipset::{IpSets, Unasked};
    selvage_tests::assert_isolated()?;
    let mut sets = IpSets::open(PATIENCE)?;
    for family in [Family::V4, Family::V6] {
        sets.create(&guard_set(family), family, SetKind::Guard, &BTreeSet::new())?;
    }
    let unasked = |server: &str, protocol, port, client: &str| Unasked {
        server: server.parse().unwrap(),
        protocol,
        port,
        client: client.parse().unwrap(),
    };
    let members = BTreeSet::from([
        unasked("10.40.0.1", 17, 53, "10.40.0.2"),
        unasked("10.40.0.1", 47, 0, "10.40.0.2"),
        unasked("fd00::1", 136, 65535, "fd00::2"),
    ]);
    sets.guard(&members, Duration::from_secs(100))?;
    sets.guard(&members, Duration::from_secs(500))?;
    let text = run("ipset save")?;
    let mut added: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("add ")?.split_once(" timeout "))
        .map(|(member, left)| {
            assert!(
                (490..=500).contains(&left.parse::<u32>().unwrap()),
                "{left}"
            );
            member.to_owned()
        })
        .collect();
    added.sort_unstable();
    assert_eq!(
        added,
        [
            "selvage-cut4 10.40.0.1,gre:0,10.40.0.2",
            "selvage-cut4 10.40.0.1,udp:53,10.40.0.2",
            "selvage-cut6 fd00::1,udplite:65535,fd00::2",
        ]
    );
    let flood: BTreeSet<Unasked> = (0..70_000_u32)
        .map(|number| {
            let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).to_string();
            unasked(&address, 17, 53, "10.40.0.2")
        })
        .collect();
    sets.guard(&flood, Duration::from_secs(100))?;
    let text = run("ipset list selvage-cut4 -terse")?;
    assert!(text.contains("Number of entries: 70002"), "{text}");
    Ok(())
}
