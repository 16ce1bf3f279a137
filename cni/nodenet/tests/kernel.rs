//! Against a real kernel, in a fresh network namespace (tests/netns-runner).

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use rustix::io::Errno;
use selvage_nodenet::link::Veth;
use selvage_nodenet::route::Route;
use selvage_nodenet::rule::{Direction, Family, Rule};
use selvage_nodenet::sysctl::Key;
use selvage_nodenet::{
    Error, Event, LinkIndex, Mac, Monitor, NetNs, Socket, TableId, addr, link, neigh, route, rule,
    sysctl,
};

const HOST_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
const POD_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 2]);
const POD: &str = "10.40.1.7/32";
const GATEWAY: &str = "169.254.1.1";

/// A socket in the test's own namespace; fails at once in the machine's.
fn host() -> Socket {
    let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
    let machines = std::env::var_os("SELVAGE_HOST_NETNS").expect("run by tests/netns-runner");
    assert_ne!(
        ours,
        PathBuf::from(machines),
        "this is the machine's network"
    );
    Socket::open().unwrap()
}

/// A new, empty network namespace.
fn namespace() -> NetNs {
    std::thread::spawn(|| {
        #[expect(
            deprecated,
            reason = "the sound form is unsafe, and NEWNET shares no files"
        )]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).unwrap();
        NetNs::current().unwrap()
    })
    .join()
    .unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A veth named `host` here, and its peer `eth0` in `pod`; gives the sockets' view of both.
fn veth(here: &mut Socket, pod: &NetNs) -> (Socket, LinkIndex, LinkIndex) {
    let home = NetNs::current().unwrap();
    let mut there = pod.open_socket(&home).unwrap();
    let veth = Veth {
        name: "eth0".into(),
        mac: POD_MAC,
        peer_name: "host".into(),
        peer_mac: HOST_MAC,
        mtu: 9001,
    };
    there.run_one(link::create_veth(&veth, &home)).unwrap();
    let inner = link::find(&mut there, "eth0").unwrap().unwrap();
    let outer = link::find(here, "host").unwrap().unwrap();
    (there, outer.index, inner.index)
}

#[test]
fn a_veth_is_born_with_one_end_in_each_namespace() {
    let mut here = host();
    let pod = namespace();
    let (mut there, outer, _) = veth(&mut here, &pod);
    let eth0 = link::find(&mut there, "eth0").unwrap().unwrap();
    assert_eq!(
        (eth0.mac, eth0.mtu, eth0.up, eth0.kind.as_deref()),
        (Some(POD_MAC), 9001, false, Some("veth"))
    );
    // What makes a look at the other namespace unnecessary.
    assert_eq!(eth0.peer, Some(outer));
    let outer = link::find(&mut here, "host").unwrap().unwrap();
    assert_eq!((outer.mac, outer.mtu), (Some(HOST_MAC), 9001));
    assert_eq!(link::find(&mut here, "eth0").unwrap(), None);
    assert_eq!(
        link::find_by_mac(&mut here, HOST_MAC).unwrap(),
        Some(outer.clone())
    );
    here.run_one(link::remove(outer.index)).unwrap();
    assert_eq!(link::find(&mut there, "eth0").unwrap(), None);
    assert!(!here.run_one(link::remove(outer.index)).unwrap().changed);
}

#[test]
fn a_pod_wired_with_these_requests_talks_to_its_host() {
    let mut here = host();
    let pod = namespace();
    let (mut there, outer, inner) = veth(&mut here, &pod);
    let gateway = IpNet::from(ip(GATEWAY));
    there
        .run_all(&[
            link::set_up(inner),
            route::add(&Route::on_link(TableId::MAIN, gateway, inner)),
            route::add(&Route::default_via(TableId::MAIN, ip(GATEWAY), inner)),
            addr::ensure(inner, net(POD)),
            neigh::replace(inner, ip(GATEWAY), HOST_MAC),
        ])
        .unwrap();
    let lo = LinkIndex::new(1).unwrap();
    here.run_all(&[
        link::set_up(outer),
        route::replace(&Route::on_link(TableId::MAIN, net(POD), outer)),
        addr::ensure(lo, net("10.40.0.10/32")),
    ])
    .unwrap();
    let listener = TcpListener::bind("10.40.0.10:0").unwrap();
    let at: SocketAddr = listener.local_addr().unwrap();
    let heard = pod
        .run(|| {
            let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(5)).unwrap();
            stream.write_all(b"hello").unwrap();
            stream.local_addr().unwrap().ip()
        })
        .unwrap();
    assert_eq!(heard, net(POD).addr());
    let mut text = String::new();
    let (mut stream, from) = listener.accept().unwrap();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), from.ip()), ("hello", net(POD).addr()));
    let neighbours = neigh::list(&mut there, inner, ip(GATEWAY)).unwrap();
    let gateway = neighbours.iter().find(|n| n.ip == ip(GATEWAY)).unwrap();
    assert!(gateway.permanent && gateway.mac == HOST_MAC);
}

#[test]
fn in_a_batch_each_request_gets_its_own_answer_and_the_kernels_words() {
    let mut here = host();
    let nowhere = LinkIndex::new(4_000).unwrap();
    let lo = LinkIndex::new(1).unwrap();
    let rule = Rule::new(Family::V4, 512, TableId::MAIN).to(net(POD));
    let results = here
        .run(&[
            rule::ensure(&rule),
            route::add(&Route::on_link(TableId::MAIN, net(POD), nowhere)),
            rule::ensure(&rule),
            link::get("lo"),
            route::add(&Route::default_via(TableId::MAIN, ip(GATEWAY), lo)),
            addr::ensure(lo, net("10.40.0.10/32")),
        ])
        .unwrap();
    let [first, no_link, again, lo_found, no_gateway, address] = &results[..] else {
        panic!("one answer for each request: {results:?}");
    };
    assert!(first.as_ref().unwrap().changed);
    let error = no_link.as_ref().unwrap_err();
    assert_eq!(error.errno(), Some(Errno::NODEV));
    assert_eq!(
        error.to_string(),
        "add route 10.40.1.7/32 table 254: No such device (os error 19)"
    );
    assert!(!again.as_ref().unwrap().changed);
    assert_eq!(lo_found.as_ref().unwrap().messages.len(), 1);
    let error = no_gateway.as_ref().unwrap_err().to_string();
    assert!(
        error.contains("(Nexthop has invalid gateway)"),
        "the kernel's extended acknowledgement is lost: {error}"
    );
    assert!(address.as_ref().unwrap().changed);
}

#[test]
fn a_rule_is_there_once_however_often_it_is_ensured() {
    let mut here = host();
    let rules = [
        Rule::new(Family::V4, 512, TableId::MAIN).to(net(POD)),
        Rule::new(Family::V4, 1024, TableId::MAIN).mark(0x80, 0x80),
        Rule::new(Family::V4, 1536, TableId(3)).from(net(POD)),
        Rule::new(Family::V4, 1536, TableId(10_102)).from(net(POD)),
    ];
    for _ in 0..2 {
        let requests: Vec<_> = rules.iter().map(rule::ensure).collect();
        here.run_all(&requests).unwrap();
    }
    let ours = |socket: &mut Socket| -> Vec<Rule> {
        let all = rule::list(socket, Family::V4).unwrap();
        let ours = |rule: &Rule| (1..32766).contains(&rule.priority);
        all.into_iter().filter(ours).collect()
    };
    assert_eq!(ours(&mut here), rules);
    assert!(here.run_one(rule::remove(&rules[1])).unwrap().changed);
    assert!(!here.run_one(rule::remove(&rules[1])).unwrap().changed);
    let from = Direction::From(net(POD));
    assert_eq!(rule::remove_every(&mut here, 1536, from).unwrap(), 2);
    assert_eq!(rule::remove_every(&mut here, 1536, from).unwrap(), 0);
    assert_eq!(ours(&mut here), rules[..1]);
}

#[test]
fn a_table_holds_the_routes_that_were_set_and_no_others() {
    let mut here = host();
    let pod = namespace();
    let (_there, outer, _) = veth(&mut here, &pod);
    here.run_one(link::set_up(outer)).unwrap();
    let table = TableId(10_102);
    assert_eq!(route::list(&mut here, table, ip(GATEWAY)).unwrap(), []);
    let wanted = [
        Route::default_via(table, ip("10.40.0.1"), outer),
        Route::on_link(table, net("10.40.0.1/32"), outer),
    ];
    for _ in 0..2 {
        here.run_all(&[route::replace(&wanted[1]), route::replace(&wanted[0])])
            .unwrap();
    }
    assert_eq!(route::list(&mut here, table, ip(GATEWAY)).unwrap(), wanted);
    let error = here.run_one(route::add(&wanted[1])).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EXIST));
    for (changed, link) in [(false, LinkIndex::new(1)), (true, None), (false, None)] {
        let request = route::remove(table, wanted[0].destination, link);
        assert_eq!(here.run_one(request).unwrap().changed, changed, "{link:?}");
    }
    assert_eq!(
        route::list(&mut here, table, ip(GATEWAY)).unwrap(),
        wanted[1..]
    );
}

#[test]
fn flushing_a_link_leaves_what_it_shall_keep_and_every_other_link() {
    let mut here = host();
    let pod = namespace();
    let (_there, outer, _) = veth(&mut here, &pod);
    let lo = LinkIndex::new(1).unwrap();
    let own = net("10.40.0.10/20");
    here.run_all(&[
        link::set_up(outer),
        addr::ensure(outer, own),
        addr::ensure(outer, net("10.40.0.11/20")),
        addr::ensure(outer, net("10.40.0.12/32")),
        addr::ensure(outer, net("2001:db8::9/64")),
        addr::ensure(lo, net("10.40.0.13/32")),
    ])
    .unwrap();
    let gone = addr::flush_global(&mut here, outer, Family::V4, &[own]).unwrap();
    assert_eq!(gone, [net("10.40.0.11/20"), net("10.40.0.12/32")]);
    let left = |socket: &mut Socket, link| -> Vec<IpNet> {
        let all = addr::list(socket, Some(link)).unwrap();
        let global = all
            .iter()
            .filter(|a| a.global && !a.net.addr().is_loopback());
        global.map(|address| address.net).collect()
    };
    assert_eq!(left(&mut here, outer), [own, net("2001:db8::9/64")]);
    assert_eq!(left(&mut here, lo), [net("10.40.0.13/32")]);
}

#[test]
fn more_requests_than_fit_in_a_send_and_more_rules_than_fit_in_an_answer_all_count() {
    let mut here = host();
    let rules: Vec<_> = (1..=500)
        .map(|n| Rule::new(Family::V4, 512, TableId(n)).to(net(POD)))
        .collect();
    let requests: Vec<_> = rules.iter().map(rule::ensure).collect();
    let replies = here.run_all(&requests).unwrap();
    assert!(replies.len() == 500 && replies.iter().all(|reply| reply.changed));
    let seen = rule::list(&mut here, Family::V4).unwrap();
    assert_eq!(seen[1..=500], rules);
    // Every one of them refused, and each refusal told.
    let replies = here.run_all(&requests).unwrap();
    assert!(replies.iter().all(|reply| !reply.changed));
}

#[test]
fn work_in_a_namespace_leaves_the_caller_where_it_was() {
    let mut here = host();
    let home = NetNs::current().unwrap();
    let pod = namespace();
    assert!(!pod.is(&home).unwrap());
    assert!(
        pod.run(|| NetNs::current().unwrap().is(&pod).unwrap())
            .unwrap()
    );
    let mut there = pod.open_socket(&home).unwrap();
    assert!(NetNs::current().unwrap().is(&home).unwrap());
    here.run_one(link::set_mtu(LinkIndex::new(1).unwrap(), 4000))
        .unwrap();
    assert_eq!(link::find(&mut here, "lo").unwrap().unwrap().mtu, 4000);
    assert_eq!(link::find(&mut there, "lo").unwrap().unwrap().mtu, 65536);
}

#[test]
fn what_is_not_a_network_namespace_is_named_and_not_entered() {
    host();
    let folder = tempfile::tempdir().unwrap();
    let left_behind = folder.path().join("cni-1");
    std::fs::write(&left_behind, "").unwrap();
    let error = NetNs::open(&left_behind).unwrap_err();
    assert!(matches!(error, Error::NotNamespace { .. }), "{error}");
    let error = NetNs::open(&folder.path().join("cni-2")).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::NOENT));
    let mount = NetNs::open(Path::new("/proc/self/ns/mnt")).unwrap();
    let error = mount.run(|| ()).unwrap_err();
    assert!(matches!(error, Error::NotNamespace { .. }), "{error}");
}

#[test]
fn a_sysctl_is_written_once_and_a_missing_one_is_told_apart() {
    host();
    let forward = Key::new("net/ipv4/ip_forward");
    let now = sysctl::read(&forward).unwrap().unwrap();
    let other = if now == "0" { "1" } else { "0" };
    assert!(sysctl::ensure(&forward, other).unwrap());
    assert!(!sysctl::ensure(&forward, other).unwrap());
    assert_eq!(sysctl::read(&forward).unwrap().as_deref(), Some(other));
    let missing = Key::ipv4_of_link("no-such-link", "rp_filter");
    assert_eq!(sysctl::read(&missing).unwrap(), None);
    assert!(!sysctl::write(&missing, "1").unwrap());
    assert!(!sysctl::ensure_if_there(&missing, "1").unwrap());
    let error = sysctl::ensure(&missing, "1").unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
}

#[test]
fn a_pod_of_ipv6_wired_with_these_requests_talks_to_its_host_at_once() {
    let mut here = host();
    let pod = namespace();
    let (mut there, outer, inner) = veth(&mut here, &pod);
    let (own, gateway) = (net("2001:db8::7/128"), ip("fe80::1"));
    let lo = LinkIndex::new(1).unwrap();
    here.run_all(&[
        link::set_up(lo),
        link::set_up(outer),
        route::replace(&Route::on_link(TableId::MAIN, own, outer)),
        rule::ensure(&Rule::new(Family::V6, 512, TableId::MAIN).to(own)),
        addr::ensure_at_once(lo, net("2001:db8::1/128")),
    ])
    .unwrap();
    there.run_one(link::set_up(inner)).unwrap();
    for (socket, end) in [(&mut here, outer), (&mut there, inner)] {
        assert!(link::await_operational(socket, end, Duration::from_secs(5)).unwrap());
    }
    there
        .run_all(&[
            route::add(&Route::on_link(TableId::MAIN, IpNet::from(gateway), inner)),
            route::add(&Route::default_via(TableId::MAIN, gateway, inner)),
            addr::ensure_at_once(inner, own),
            neigh::replace(inner, gateway, HOST_MAC),
        ])
        .unwrap();
    let soon = Duration::ZERO;
    assert!(addr::await_usable(&mut there, inner, own.addr(), soon).unwrap());
    let listener = TcpListener::bind("[2001:db8::1]:0").unwrap();
    let at: SocketAddr = listener.local_addr().unwrap();
    let heard = pod.run(|| {
        let stream = TcpStream::connect_timeout(&at, Duration::from_secs(5)).unwrap();
        stream.local_addr().unwrap().ip()
    });
    assert_eq!(heard.unwrap(), own.addr());

    let main = route::list(&mut here, TableId::MAIN, gateway).unwrap();
    assert!(main.iter().any(|r| r.destination == own && r.link == outer));
    let rules = rule::list(&mut here, Family::V6).unwrap();
    assert!(rules.contains(&Rule::new(Family::V6, 512, TableId::MAIN).to(own)));
    let inside = route::list(&mut there, TableId::MAIN, gateway).unwrap();
    let default = Route::default_via(TableId::MAIN, gateway, inner);
    let found = |want: &Route| {
        inside.iter().any(|r| {
            (r.destination, r.gateway, r.link) == (want.destination, want.gateway, want.link)
        })
    };
    assert!(found(&default), "{inside:?}");
    let neighbours = neigh::list(&mut there, inner, gateway).unwrap();
    assert!(neighbours.iter().any(|n| n.ip == gateway && n.permanent));
    let gone = here
        .run_one(route::remove(TableId::MAIN, own, None))
        .unwrap();
    assert!(
        gone.changed,
        "the kernel finds the route by destination alone"
    );
}

#[test]
fn an_address_of_ipv6_that_somebody_on_the_link_has_is_never_usable() {
    let mut here = host();
    let pod = namespace();
    let (mut there, outer, inner) = veth(&mut here, &pod);
    let shared = net("2001:db8::9/64");
    here.run_one(link::set_up(outer)).unwrap();
    there.run_one(link::set_up(inner)).unwrap();
    assert!(link::await_operational(&mut here, outer, Duration::from_secs(5)).unwrap());
    here.run_one(addr::ensure_at_once(outer, shared)).unwrap();
    there.run_one(addr::ensure(inner, shared)).unwrap();
    let patience = Duration::from_secs(10);
    assert!(!addr::await_usable(&mut there, inner, shared.addr(), patience).unwrap());
}

#[test]
fn a_monitor_tells_what_others_do_in_order_and_then_nothing() {
    let mut here = host();
    let monitor = Monitor::open().unwrap();
    let pod = namespace();
    let (_there, outer, _) = veth(&mut here, &pod);
    let rule = Rule::new(Family::V4, 1536, TableId(3)).from(net(POD));
    let rule6 = Rule::new(Family::V6, 512, TableId::MAIN).to(net("2001:db8::7/128"));
    let route = Route::on_link(TableId(3), net(POD), outer);
    let other = Mac::new([2, 0, 0, 0, 0, 9]);
    let first = monitor.drain().unwrap();
    let born = first.iter().find_map(|event| match event {
        Event::Link(link) if link.index == outer => link.mac,
        _ => None,
    });
    assert_eq!(
        born,
        Some(HOST_MAC),
        "the first word of a veth is its own address"
    );
    here.run_all(&[link::set_up(outer), link::set_mac(outer, other)])
        .unwrap();
    let mac = |event: &Event| match event {
        Event::Link(link) if link.index == outer => link.mac,
        _ => None,
    };
    let told = monitor.drain().unwrap();
    assert_eq!(told.iter().filter_map(mac).next_back(), Some(other));
    here.run_all(&[
        addr::ensure(outer, net("10.40.0.13/32")),
        route::add(&route),
        rule::ensure(&rule),
        rule::ensure(&rule6),
        rule::remove(&rule6),
        rule::remove(&rule),
        route::remove(TableId(3), net(POD), None),
        addr::remove(outer, net("10.40.0.13/32")),
        link::remove(outer),
    ])
    .unwrap();
    let told: Vec<Event> = monitor.drain().unwrap();
    let at = |want: &Event| {
        told.iter()
            .position(|event| event == want)
            .unwrap_or_else(|| panic!("{want:?} is not among {told:?}"))
    };
    let order = [
        told.iter()
            .position(|e| matches!(e, Event::Address(a) if a.net == net("10.40.0.13/32")))
            .unwrap(),
        at(&Event::Route(route.clone())),
        at(&Event::Rule(rule.clone())),
        at(&Event::Rule(rule6.clone())),
        at(&Event::RuleGone(rule6)),
        at(&Event::RuleGone(rule)),
        at(&Event::RouteGone(route)),
        told.iter()
            .position(|e| matches!(e, Event::AddressGone(a) if a.net == net("10.40.0.13/32")))
            .unwrap(),
        at(&Event::LinkGone(outer)),
    ];
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(monitor.drain().unwrap(), []);
}

#[test]
fn a_monitor_that_missed_something_says_so() {
    let mut here = host();
    let monitor = Monitor::open().unwrap();
    let rules: Vec<_> = (1..=500)
        .map(|n| Rule::new(Family::V4, 512, TableId(n)).to(net(POD)))
        .collect();
    let add: Vec<_> = rules.iter().map(rule::ensure).collect();
    let remove: Vec<_> = rules.iter().map(rule::remove).collect();
    // 60,000 notifications: more than any buffer of ours holds.
    for _ in 0..60 {
        here.run_all(&add).unwrap();
        here.run_all(&remove).unwrap();
    }
    let told = monitor.drain().unwrap();
    assert!(told.contains(&Event::Overrun), "{} events", told.len());
    here.run_one(rule::ensure(&rules[0])).unwrap();
    assert_eq!(monitor.drain().unwrap(), [Event::Rule(rules[0].clone())]);
}
