//! What ADD, DEL and CHECK do to a node, seen by packets first and by `ip` second. The plugin is the built
//! binary; ipamd is played (fixture/ipamd.rs); the kernel is real.

#[path = "kernel/check.rs"]
mod check;
#[path = "kernel/del.rs"]
mod del;
#[path = "fixture/ipamd.rs"]
mod ipamd;
#[path = "kernel/ipv6.rs"]
mod ipv6;
#[path = "fixture/node.rs"]
mod node;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ipamd::Ipamd;
use node::{Node, Sandbox, finish, run};
use selvage_cni::apply::{Host, WireError};
use selvage_cni::lease::Lease;
use selvage_cni::plan::{HostFacts, Step, plan_address, plan_veth};
use selvage_cni::request::{self, AddRequest};
use selvage_nodenet::rule::{Family, Rule};
use selvage_nodenet::{NetNs, TableId};
use serde_json::{Value, json};

/// An address of the primary interface, which uses main.
const FIRST: (&str, i32, i32) = ("10.40.1.7", 0, 254);
/// An address of the third interface, with a table of its own.
const SECOND: (&str, i32, i32) = ("10.40.1.8", 2, 3);
/// Of pod default/web-0.
const VETH: &str = "eni0d7763386da";
/// Of pod default/nginx.
const OTHER_VETH: &str = "enic440f455693";
/// The host itself.
const HOST: &str = "10.40.0.10";

/// Whether a connection to that address is made, by the calling thread's network.
fn talk(to: SocketAddr) -> bool {
    TcpStream::connect_timeout(&to, Duration::from_secs(1))
        .and_then(|mut stream| stream.write_all(b"hello"))
        .is_ok()
}

/// The address from which the listener hears the word.
fn heard(listener: &TcpListener) -> String {
    let (mut stream, from) = listener.accept().unwrap();
    let mut word = String::new();
    stream.read_to_string(&mut word).unwrap();
    assert_eq!(word, "hello");
    from.ip().to_string()
}

fn listen(sandbox: &Sandbox, address: &str) -> TcpListener {
    let bind = || TcpListener::bind((address, 0)).unwrap();
    sandbox.open().run(bind).unwrap()
}

/// The rules that the kernel did not make itself, as `ip rule` shows them.
fn rules() -> Vec<String> {
    let own = ["0:", "32766:", "32767:"];
    let shown = run("ip", &["rule", "show"]);
    let ours = |line: &&str| !own.iter().any(|own| line.starts_with(own));
    let text = |line: &str| line.replace('\t', " ");
    shown.lines().filter(ours).map(text).collect()
}

/// The routes of the host's main table.
fn routes() -> Vec<String> {
    let shown = run("ip", &["-4", "route", "show"]);
    // "linkdown" goes a moment after the carrier comes.
    let text = |line: &str| line.trim().trim_end_matches(" linkdown").to_owned();
    shown.lines().map(text).collect()
}

/// A node that is a router with an address.
fn router() -> Node {
    let node = Node::new();
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    run(
        "ip",
        &["address", "add", &format!("{HOST}/32"), "dev", "lo"],
    );
    node
}

/// A DEL as containerd sends it: the first with the result and the namespace, the later ones without.
fn del(node: &Node, sandbox: &Sandbox, result: Option<&str>, netns: bool) -> node::Ended {
    let mut config = node.config("1.1.0");
    if let Some(result) = result {
        config["prevResult"] = serde_json::from_str(result).unwrap();
    }
    let args = sandbox.args();
    let mut variables = sandbox.variables("DEL", &args);
    if !netns {
        variables[2].1 = "";
    }
    node.plugin(&variables, &config.to_string())
}

#[test]
fn a_pod_talks_to_its_host_and_to_another_pod() {
    let node = router();
    let _ipamd = Ipamd::start(&[FIRST, SECOND]);
    let (one, two) = (
        node.sandbox("cni-1", "web-0"),
        node.sandbox("cni-2", "nginx"),
    );
    node.add(&one).ok();
    node.add(&two).ok();
    let host = TcpListener::bind((HOST, 0)).unwrap();
    let (inside_one, inside_two) = (listen(&one, FIRST.0), listen(&two, SECOND.0));
    let at = |listener: &TcpListener| listener.local_addr().unwrap();

    assert!(talk(at(&inside_one)), "host to pod");
    assert_eq!(heard(&inside_one), HOST);
    assert!(one.open().run(|| talk(at(&host))).unwrap(), "pod to host");
    assert_eq!(heard(&host), FIRST.0);
    assert!(
        one.open().run(|| talk(at(&inside_two))).unwrap(),
        "pod to pod"
    );
    assert_eq!(heard(&inside_two), FIRST.0);
    // Its own table leads nowhere: rule 512 comes before 1536.
    run(
        "ip",
        &["route", "add", "unreachable", "default", "table", "3"],
    );
    assert!(
        two.open().run(|| talk(at(&inside_one))).unwrap(),
        "pod to pod, back"
    );
    assert_eq!(heard(&inside_one), SECOND.0);
}

#[test]
fn what_a_pod_sends_leaves_by_the_table_of_its_own_interface() {
    let node = router();
    let _ipamd = Ipamd::start(&[FIRST, SECOND]);
    let (one, two) = (
        node.sandbox("cni-1", "web-0"),
        node.sandbox("cni-2", "nginx"),
    );
    node.add(&one).ok();
    node.add(&two).ok();
    // Two ways out of the node: each a namespace that answers for the same address outside.
    for (name, table) in [("out-254", "254"), ("out-3", "3")] {
        run("ip", &["netns", "add", name]);
        run(
            "ip",
            &[
                "link", "add", name, "type", "veth", "peer", "name", "in", "netns", name,
            ],
        );
        run("ip", &["link", "set", name, "up"]);
        run(
            "ip",
            &["route", "add", "198.51.100.10", "dev", name, "table", table],
        );
        run("ip", &["-n", name, "link", "set", "in", "up"]);
        run(
            "ip",
            &[
                "-n",
                name,
                "address",
                "add",
                "198.51.100.10/32",
                "dev",
                "in",
            ],
        );
        run(
            "ip",
            &["-n", name, "route", "add", "10.40.0.0/16", "dev", "in"],
        );
        // Links without a router behind them: each side answers for what the other asks.
        run(
            "ip",
            &[
                "netns",
                "exec",
                name,
                "sysctl",
                "-qw",
                "net.ipv4.conf.in.proxy_arp=1",
            ],
        );
        run(
            "sysctl",
            &["-qw", &format!("net.ipv4.conf.{name}.proxy_arp=1")],
        );
        run(
            "sysctl",
            &["-qw", &format!("net.ipv4.conf.{name}.rp_filter=0")],
        );
    }
    run("sysctl", &["-qw", "net.ipv4.conf.all.rp_filter=0"]);
    let outside = |name: &str| {
        let netns = selvage_nodenet::NetNs::open(format!("/run/netns/{name}").as_ref()).unwrap();
        netns
            .run(|| TcpListener::bind(("198.51.100.10", 80)).unwrap())
            .unwrap()
    };
    let (primary, secondary) = (outside("out-254"), outside("out-3"));
    let at = SocketAddr::from((Ipv4Addr::new(198, 51, 100, 10), 80));
    assert!(one.open().run(|| talk(at)).unwrap());
    assert_eq!(heard(&primary), FIRST.0);
    assert!(two.open().run(|| talk(at)).unwrap());
    assert_eq!(heard(&secondary), SECOND.0);
}

#[test]
fn the_node_shows_what_aws_would_show() {
    let node = Node::new();
    let _ipamd = Ipamd::start(&[FIRST, SECOND]);
    let (one, two) = (
        node.sandbox("cni-1", "web-0"),
        node.sandbox("cni-2", "nginx"),
    );
    node.add(&one).ok();
    node.add(&two).ok();
    let shown: BTreeSet<_> = rules().into_iter().collect();
    let expected = [
        "1536: from 10.40.1.8 lookup 3",
        "512: from all to 10.40.1.7 lookup main",
        "512: from all to 10.40.1.8 lookup main",
    ];
    assert_eq!(shown, expected.map(String::from).into());
    assert_eq!(
        routes(),
        [
            format!("10.40.1.7 dev {VETH} scope link"),
            format!("10.40.1.8 dev {OTHER_VETH} scope link"),
        ]
    );
    let inside = one.ip(&["-4", "route", "show"]);
    let inside: Vec<_> = inside.lines().map(str::trim).collect();
    assert_eq!(
        inside,
        [
            "default via 169.254.1.1 dev eth0",
            "169.254.1.1 dev eth0 scope link"
        ]
    );
    let links: Value = serde_json::from_str(&run("ip", &["-j", "link", "show", VETH])).unwrap();
    let mac = links[0]["address"].as_str().unwrap();
    assert_eq!(links[0]["mtu"], 9001);
    let neighbour = one.ip(&["neighbour", "show", "nud", "permanent"]);
    assert_eq!(
        neighbour.trim(),
        format!("169.254.1.1 dev eth0 lladdr {mac} PERMANENT")
    );
    assert!(
        one.ip(&["-4", "-o", "address"])
            .contains("inet 10.40.1.7/32 scope global eth0")
    );
    for (name, value) in [
        ("accept_ra", "0"),
        ("accept_redirects", "1"),
        ("forwarding", "0"),
    ] {
        let key = format!("/proc/sys/net/ipv6/conf/{VETH}/{name}");
        assert_eq!(
            std::fs::read_to_string(&key).unwrap().trim(),
            value,
            "{key}"
        );
    }
}

fn add_request(node: &Node, sandbox: &Sandbox) -> AddRequest {
    let environment = request::Environment {
        command: "ADD".into(),
        container_id: sandbox.id.clone(),
        netns: sandbox.netns.to_str().unwrap().into(),
        if_name: "eth0".into(),
        args: sandbox.args(),
    };
    let config = node.config("1.1.0").to_string();
    match request::parse(&environment, config.as_bytes()).request {
        Ok(request::Request::Add(add)) => add,
        other => panic!("{other:?}"),
    }
}

/// A step that the kernel refuses: no link has so long a name.
fn impossible() -> Step {
    let mut rule = Rule::new(Family::V4, 100, TableId::MAIN);
    rule.incoming = Some("a-name-that-is-too-long".into());
    Step::AddRule(rule)
}

fn whole_plan(add: &AddRequest, lease: &Lease, facts: &HostFacts) -> Vec<Step> {
    let mut steps = plan_veth(add, facts);
    steps.extend(plan_address(add, facts, lease));
    steps
}

#[test]
fn an_add_that_fails_after_any_step_leaves_nothing() {
    let node = Node::new();
    let sandbox = node.sandbox("cni-1", "web-0");
    let add = add_request(&node, &sandbox);
    let lease = Lease::new(Ipv4Addr::new(10, 40, 1, 8), 3, 2);
    let mut host = Host::open().unwrap();
    let mut pod = host.enter(sandbox.open()).unwrap().unwrap();
    let before = (node.state(), sandbox.state());
    let whole = whole_plan(&add, &lease, &host.facts(&add.host_veth).unwrap());
    for steps in 0..=whole.len() {
        let mut steps = whole[..steps].to_vec();
        steps.push(impossible());
        let result = host.run(&mut pod, &steps);
        assert!(matches!(result, Err(WireError::Net(_))));
        drop(result);
        let left = (node.state(), sandbox.state());
        assert_eq!(left, before, "after {:?}", &steps[steps.len() - 2..]);
    }
}

#[test]
fn an_add_that_was_killed_after_any_step_does_not_stand_in_the_way_of_the_next() {
    let node = Node::new();
    let lease = Lease::new(Ipv4Addr::new(10, 40, 1, 8), 3, 2);
    let mut host = Host::open().unwrap();
    let mut expected = None;
    let mut count = 0;
    while count <= 20 {
        let killed = node.sandbox(&format!("cni-{count}-killed"), "web-0");
        let sandbox = node.sandbox(&format!("cni-{count}"), "web-0");
        let add = add_request(&node, &sandbox);
        let facts = host.facts(&add.host_veth).unwrap();
        let whole = whole_plan(&add, &lease, &facts);
        let steps = &whole[..count.min(whole.len())];
        let mut pod = host.enter(killed.open()).unwrap().unwrap();
        host.run(&mut pod, steps).unwrap().commit();
        let mut pod = host.enter(sandbox.open()).unwrap().unwrap();
        host.wire(&mut pod, &add, &lease).unwrap().commit();
        let state = (rules(), routes(), sandbox.ip(&["-4", "route", "show"]));
        assert_eq!(
            expected.get_or_insert(state.clone()),
            &state,
            "after {steps:?}"
        );
        count += 1;
        if steps.len() == whole.len() {
            return;
        }
    }
    panic!("a plan has no more than 20 steps");
}

#[test]
fn an_add_into_a_conflict_gives_the_lease_back_and_leaves_the_pod_as_it_was() {
    let node = Node::new();
    let ipamd = Ipamd::start(&[SECOND, SECOND, SECOND]);
    run(
        "ip",
        &[
            "link", "property", "add", "dev", "lo", "altname", OTHER_VETH,
        ],
    );
    let conflicts: [(&str, &str, &[&str], &str); 3] = [
        (
            "a route to the gateway",
            "web-0",
            &["route", "add", "169.254.1.1", "dev", "lo"],
            "add route 169.254.1.1/32 table 254: File exists",
        ),
        (
            "a default route",
            "web-0",
            &["route", "add", "default", "dev", "lo"],
            "add route 0.0.0.0/0 table 254: File exists",
        ),
        (
            "the veth's name taken as another name of another link",
            "nginx",
            &["link", "set", "lo", "up"],
            "File exists",
        ),
    ];
    for (number, (conflict, pod, command, says)) in conflicts.into_iter().enumerate() {
        let sandbox = node.sandbox(&format!("cni-{number}"), pod);
        sandbox.ip(&["link", "set", "lo", "up"]);
        sandbox.ip(command);
        let before = (node.state(), sandbox.state());
        let (code, msg, details) = node.add(&sandbox).error();
        assert_eq!(code, 5, "{conflict}: {msg}: {details}");
        assert!(
            msg.contains("default/") && msg.contains("10.40.1.8"),
            "{conflict}: {msg}"
        );
        assert!(details.contains(says), "{conflict}: {details}");
        assert_eq!((node.state(), sandbox.state()), before, "{conflict}");
        let state = ipamd.state.lock().unwrap();
        assert!(state.leases.is_empty(), "{conflict}");
        assert_eq!(state.dels[number].reason, "SetupNSFailed", "{conflict}");
    }
}

/// The plugin cannot tell a stranger's interface from what another ADD of this sandbox has made, whose lease is the same
/// one: were it given back, a pod's address would go to another.
#[test]
fn a_lease_is_kept_where_the_pod_has_an_interface_of_the_name_until_the_runtimes_del() {
    let node = Node::new();
    let ipamd = Ipamd::start(&[SECOND]);
    let sandbox = node.sandbox("cni-1", "web-0");
    sandbox.ip(&[
        "link", "add", "eth0", "type", "veth", "peer", "name", "else",
    ]);
    let before = (node.state(), sandbox.state());
    let (code, msg, details) = node.add(&sandbox).error();
    assert_eq!(code, 5, "{msg}: {details}");
    assert!(msg.contains("default/web-0 with 10.40.1.8"), "{msg}");
    assert_eq!(details, "the pod has an interface eth0 already");
    assert_eq!((node.state(), sandbox.state()), before);
    assert!(ipamd.state.lock().unwrap().dels.is_empty());
    node.del(&sandbox).ok();
    assert!(ipamd.state.lock().unwrap().leases.is_empty());
    assert_eq!((node.state(), sandbox.state()), before);
}

#[test]
fn a_sandbox_that_is_added_twice_is_wired_anew_with_what_it_has() {
    let node = router();
    let ipamd = Ipamd::start(&[FIRST]);
    ipamd.state.lock().unwrap().repeats = true;
    let sandbox = node.sandbox("cni-1", "web-0");
    let first = node.add(&sandbox).ok();
    let state = (rules(), routes());
    assert_eq!(node.add(&sandbox).ok(), first);
    assert_eq!((rules(), routes()), state);
    assert!(ipamd.state.lock().unwrap().dels.is_empty());
    let inside = listen(&sandbox, FIRST.0);
    assert!(talk(inside.local_addr().unwrap()));
}

#[test]
fn of_two_adds_of_one_sandbox_at_once_the_second_waits_and_both_have_the_same() {
    let node = router();
    let ipamd = Ipamd::start(&[FIRST, SECOND]);
    ipamd.state.lock().unwrap().repeats = true;
    let config = node.config("1.1.0");
    let sandbox = node.sandbox("cni-1", "web-0");
    let start = || node.start("ADD", &sandbox, &config);
    let mut first = None;
    for round in 0..10 {
        let both = [start(), start()].map(finish);
        for ended in &both {
            assert_eq!(ended.code, 0, "round {round}: {ended:?}");
            assert_eq!(
                *first.get_or_insert(ended.json()),
                ended.json(),
                "round {round}"
            );
        }
        assert!(ipamd.state.lock().unwrap().dels.is_empty(), "round {round}");
    }
    let inside = listen(&sandbox, FIRST.0);
    assert!(talk(inside.local_addr().unwrap()));

    let held = NetNs::open(&sandbox.netns).unwrap();
    held.hold(Duration::ZERO).unwrap();
    let other = NetNs::open(&sandbox.netns).unwrap();
    let error = other.hold(Duration::from_millis(20)).unwrap_err();
    assert!(error.to_string().contains("held by another"), "{error}");
    let mut waiting = start();
    // It would have ended long ago.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        assert!(waiting.try_wait().unwrap().is_none());
    }
    drop(held);
    assert_eq!(finish(waiting).code, 0);
}

#[test]
fn of_two_sandboxes_of_one_pod_at_once_each_is_whole_or_nothing() {
    let node = router();
    let ipamd = Ipamd::start(&[FIRST, SECOND]);
    let sandboxes = [
        node.sandbox("cni-1", "web-0"),
        node.sandbox("cni-2", "web-0"),
    ];
    let config = node.config("1.1.0");
    let both = sandboxes
        .each_ref()
        .map(|sandbox| node.start("ADD", sandbox, &config));
    let ended = both.map(finish);
    assert!(ended.iter().any(|ended| ended.code == 0), "{ended:?}");
    // The one that was added last has the veth; what failed holds nothing.
    let mut whole = 0;
    for (sandbox, ended) in sandboxes.iter().zip(&ended) {
        if ended.code != 0 {
            let held = ipamd.state.lock().unwrap().leases.contains_key(&sandbox.id);
            assert!(!held, "{ended:?}");
        } else if sandbox.state().contains("eth0") {
            let result = ended.json();
            let address = result["ips"][0]["address"].as_str().unwrap().to_owned();
            let inside = listen(sandbox, address.trim_end_matches("/32"));
            assert!(talk(inside.local_addr().unwrap()), "{address}");
            whole += 1;
        }
    }
    assert_eq!(whole, 1);
}

/// An address of the primary interface in an IPv6 cluster.
const SIXTH: (&str, i32, i32) = ("fd00:40:1::7", 0, 254);
/// The same, of a secondary interface.
const SEVENTH: (&str, i32, i32) = ("fd00:40:1::8", 1, 2);
/// The host itself.
const HOST_V6: &str = "fd00:40::10";

#[test]
fn what_an_earlier_holder_of_an_address_left_is_swept_away() {
    let node = router();
    let _ipamd = Ipamd::start(&[FIRST]);
    for table in ["5", "6"] {
        run(
            "ip",
            &[
                "rule", "add", "from", FIRST.0, "priority", "1536", "table", table,
            ],
        );
    }
    run("ip", &["route", "add", FIRST.0, "dev", "lo"]);
    let sandbox = node.sandbox("cni-1", "web-0");
    node.add(&sandbox).ok();
    assert_eq!(rules(), ["512: from all to 10.40.1.7 lookup main"]);
    assert_eq!(routes(), [format!("10.40.1.7 dev {VETH} scope link")]);
    let inside = listen(&sandbox, FIRST.0);
    assert!(talk(inside.local_addr().unwrap()));
}

#[test]
fn a_pod_made_again_under_its_name_gets_the_veth_of_the_new_sandbox() {
    let node = router();
    let _ipamd = Ipamd::start(&[FIRST, SECOND]);
    let (old, new) = (
        node.sandbox("cni-1", "web-0"),
        node.sandbox("cni-2", "web-0"),
    );
    node.add(&old).ok();
    node.add(&new).ok();
    assert!(
        !old.state().contains("eth0"),
        "the old sandbox still has a veth"
    );
    let inside = listen(&new, SECOND.0);
    assert!(talk(inside.local_addr().unwrap()));
    // The old sandbox's DEL comes after the new one's ADD.
    node.del(&old).ok();
    assert!(talk(inside.local_addr().unwrap()));
    assert_eq!(routes(), [format!("10.40.1.8 dev {VETH} scope link")]);
}

#[test]
fn thirty_pods_at_once_all_get_what_is_theirs() {
    let node = router();
    let pool: Vec<String> = (1..=30).map(|n| format!("10.40.2.{n}")).collect();
    let pool: Vec<_> = pool.iter().map(|a| (a.as_str(), 2, 3)).collect();
    let _ipamd = Ipamd::start(&pool);
    let sandboxes: Vec<_> = (0..30)
        .map(|n| node.sandbox(&format!("cni-{n}"), &format!("web-{n}")))
        .collect();
    let config = node.config("1.1.0");
    let running: Vec<_> = sandboxes
        .iter()
        .map(|sandbox| node.start("ADD", sandbox, &config))
        .collect();
    let mut addresses = BTreeSet::new();
    for (sandbox, child) in sandboxes.iter().zip(running) {
        let ended = finish(child);
        let result = ended.json();
        let address = result["ips"][0]["address"].as_str().unwrap().to_owned();
        ended.ok();
        let inside = listen(sandbox, address.trim_end_matches("/32"));
        assert!(talk(inside.local_addr().unwrap()), "{address}");
        addresses.insert(address);
    }
    assert_eq!(addresses.len(), 30);
    assert_eq!(rules().len(), 60);
    let ends: Vec<_> = sandboxes
        .iter()
        .map(|sandbox| node.start("DEL", sandbox, &config))
        .collect();
    for child in ends {
        finish(child).ok();
    }
    assert_eq!((rules().len(), routes().len()), (0, 0));
}
