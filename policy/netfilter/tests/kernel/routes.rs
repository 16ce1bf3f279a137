//! The watch on host routes, beside `ip`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use selvage_netfilter::routes::{RouteChange, RouteWatch};
use selvage_tests::{assert_isolated, run, run_with_input};

const PATIENCE: Duration = Duration::from_secs(10);

fn change(interface: &str, addresses: &[&str]) -> RouteChange {
    RouteChange {
        interface: interface.to_owned(),
        addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
    }
}

fn veth(name: &str) -> Result<()> {
    run(&format!("ip link add {name} type veth peer name p{name}"))?;
    run(&format!("ip link set {name} up")).map(drop)
}

fn routes(words: &[&str]) -> Result<()> {
    for route in words {
        run(&format!("ip route {route}"))?;
    }
    Ok(())
}

/// What is told now; what the kernel has done, it has said.
fn told(watch: &mut RouteWatch) -> Result<Vec<RouteChange>> {
    Ok(watch.changes(Instant::now())?)
}

#[test]
fn the_whole_state_comes_first_and_only_host_routes_through_our_interfaces_are_in_it() -> Result<()>
{
    assert_isolated()?;
    for name in ["enia", "enib", "vlanc", "ens6", "enid"] {
        veth(name)?;
    }
    routes(&[
        "add 10.40.0.1/32 dev enia",
        "add 10.40.0.2/32 dev enia table 20",
        "add 10.40.8.0/24 dev enia",
        "add fd00::1/128 dev enia",
        "add 10.40.0.3/32 dev vlanc",
        "add 10.40.0.4/32 dev ens6",
        "add blackhole 10.40.0.5/32",
    ])?;
    // Local and link-local addresses of the node's own end are no pod's.
    run("ip addr add 169.254.1.1/32 dev enib")?;
    let (mut watch, all) = RouteWatch::open(&["eni", "vlan"], PATIENCE)?;
    assert_eq!(
        all,
        [
            change("enia", &["10.40.0.1", "10.40.0.2", "fd00::1"]),
            change("vlanc", &["10.40.0.3"]),
        ]
    );
    assert_eq!(told(&mut watch)?, []);
    Ok(())
}

#[test]
fn every_way_that_a_route_comes_or_goes_is_told() -> Result<()> {
    assert_isolated()?;
    veth("enia")?;
    veth("enib")?;
    let (mut watch, all) = RouteWatch::open(&["eni"], PATIENCE)?;
    assert_eq!(all, []);
    let mut after = |what: &str, expected: &[RouteChange]| -> Result<()> {
        run(what)?;
        assert_eq!(told(&mut watch)?, expected, "{what}");
        Ok(())
    };
    after(
        "ip route add 10.40.0.1/32 dev enia",
        &[change("enia", &["10.40.0.1"])],
    )?;
    after(
        "ip route add fd00::1/128 dev enia",
        &[change("enia", &["10.40.0.1", "fd00::1"])],
    )?;
    after("ip route add 10.40.0.1/32 dev enia table 7", &[])?;
    after("ip route del 10.40.0.1/32 dev enia", &[])?;
    after(
        "ip route del 10.40.0.1/32 dev enia table 7",
        &[change("enia", &["fd00::1"])],
    )?;
    after(
        "ip route add 10.40.0.2/32 dev enia",
        &[change("enia", &["10.40.0.2", "fd00::1"])],
    )?;
    // Replacing says nothing of the route that goes.
    after(
        "ip route replace 10.40.0.2/32 dev enib",
        &[change("enia", &["fd00::1"]), change("enib", &["10.40.0.2"])],
    )?;
    after(
        "ip -6 route replace fd00::1/128 dev enib",
        &[
            change("enia", &[]),
            change("enib", &["10.40.0.2", "fd00::1"]),
        ],
    )?;
    // Nor does a link that goes down of its IPv4 routes.
    after("ip link set enib down", &[change("enib", &[])])?;
    after("ip link set enib up", &[])?;
    after(
        "ip route add 10.40.0.2/32 dev enib",
        &[change("enib", &["10.40.0.2"])],
    )?;
    after("ip link del enib", &[change("enib", &[])])?;
    Ok(())
}

#[test]
fn an_interface_that_is_renamed_takes_its_addresses_to_its_new_name() -> Result<()> {
    assert_isolated()?;
    veth("tmp0")?;
    run("ip route add 10.40.0.1/32 dev tmp0")?;
    let (mut watch, all) = RouteWatch::open(&["eni"], PATIENCE)?;
    assert_eq!(all, []);
    run("ip link set tmp0 name enia")?;
    assert_eq!(told(&mut watch)?, [change("enia", &["10.40.0.1"])]);
    run("ip link set enia name enib")?;
    let moved = [change("enia", &[]), change("enib", &["10.40.0.1"])];
    assert_eq!(told(&mut watch)?, moved);
    run("ip link set enib name tmp0")?;
    assert_eq!(told(&mut watch)?, [change("enib", &[])]);
    Ok(())
}

#[test]
fn leaving_a_bridge_is_not_the_end_of_an_interface() -> Result<()> {
    assert_isolated()?;
    veth("enia")?;
    run("ip route add 10.40.0.1/32 dev enia")?;
    let (mut watch, _) = RouteWatch::open(&["eni"], PATIENCE)?;
    run("ip link add br0 type bridge")?;
    run("ip link set enia master br0")?;
    run("ip link set enia nomaster")?;
    assert_eq!(told(&mut watch)?, []);
    Ok(())
}

#[test]
fn an_overrun_loses_nothing_that_is_still_true() -> Result<()> {
    assert_isolated()?;
    veth("enia")?;
    veth("enib")?;
    run("ip route add 10.40.0.1/32 dev enib")?;
    let (mut watch, _) = RouteWatch::open(&["eni"], PATIENCE)?;
    let mut batch = String::new();
    let mut expected = BTreeSet::new();
    for number in 0..20_000_u32 {
        let address = IpAddr::from((0x0a50_0000 + number).to_be_bytes());
        batch += &format!("route add {address}/32 dev enia\n");
        if number % 2 == 0 {
            batch += &format!("route del {address}/32 dev enia\n");
        } else {
            expected.insert(address);
        }
    }
    batch += "link del enib\n";
    run_with_input("ip -batch -", &batch)?;
    let mut last = Vec::new();
    loop {
        let more = told(&mut watch)?;
        if more.is_empty() {
            break;
        }
        last = more;
    }
    assert!(watch.overruns() > 0, "the buffer held everything");
    let whole = RouteChange {
        interface: "enia".to_owned(),
        addresses: expected,
    };
    assert_eq!(last, [whole, change("enib", &[])]);
    Ok(())
}

#[test]
fn its_descriptor_is_readable_when_there_is_something_and_waiting_ends_at_the_deadline()
-> Result<()> {
    assert_isolated()?;
    veth("enia")?;
    let (mut watch, _) = RouteWatch::open(&["eni"], PATIENCE)?;
    let readable = |watch: &RouteWatch| -> Result<bool> {
        let mut one = [PollFd::from_borrowed_fd(watch.as_fd(), PollFlags::IN)];
        Ok(poll(&mut one, Some(&Timespec::default()))? > 0)
    };
    assert!(!readable(&watch)?);
    // What it hears of and is none of its business does not end the waiting.
    run("ip link set enia mtu 1400")?;
    run("ip route add 10.40.8.0/24 dev enia")?;
    let deadline = Instant::now() + Duration::from_millis(50);
    assert_eq!(watch.changes(deadline)?, []);
    assert!(Instant::now() >= deadline);
    run("ip route add 10.40.0.1/32 dev enia")?;
    assert!(readable(&watch)?);
    let far = Instant::now() + PATIENCE;
    assert_eq!(watch.changes(far)?, [change("enia", &["10.40.0.1"])]);
    assert!(Instant::now() < far);
    Ok(())
}
