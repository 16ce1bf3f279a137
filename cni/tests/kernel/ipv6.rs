//! ADD and DEL of IPv6 pods.

use super::*;

#[test]
fn an_ipv6_pod_talks_to_its_host_and_to_another_pod() {
    let node = Node::new();
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    run(
        "ip",
        &[
            "address",
            "add",
            &format!("{HOST_V6}/128"),
            "dev",
            "lo",
            "nodad",
        ],
    );
    let _ipamd = Ipamd::start(&[SIXTH, SEVENTH]);
    let (one, two) = (
        node.sandbox("cni-1", "web-0"),
        node.sandbox("cni-2", "nginx"),
    );
    // As a runtime leaves it that thinks of IPv4 alone.
    let off = "net.ipv6.conf.all.disable_ipv6=1";
    run("ip", &["netns", "exec", "cni-1", "sysctl", "-qw", off]);
    let result = node.add(&one).ok();
    assert!(
        result.contains(r#""address":"fd00:40:1::7/128""#),
        "{result}"
    );
    node.add(&two).ok();
    let at = |listener: &TcpListener| listener.local_addr().unwrap();
    let host = TcpListener::bind((HOST_V6, 0)).unwrap();
    // The address can be used the moment that ADD ends.
    let (inside_one, inside_two) = (listen(&one, SIXTH.0), listen(&two, SEVENTH.0));
    assert!(talk(at(&inside_one)), "host to pod");
    assert_eq!(heard(&inside_one), HOST_V6);
    assert!(one.open().run(|| talk(at(&host))).unwrap(), "pod to host");
    assert_eq!(heard(&host), SIXTH.0);
    assert!(
        one.open().run(|| talk(at(&inside_two))).unwrap(),
        "pod to pod"
    );
    assert_eq!(heard(&inside_two), SIXTH.0);

    let inside = one.ip(&["-6", "route", "show", "default"]);
    assert!(
        inside.starts_with("default via fe80::1 dev eth0"),
        "{inside}"
    );
    assert_eq!(
        one.ip(&["-4", "route", "show"]),
        "",
        "no IPv4 that leads nowhere"
    );
    let neighbour = one.ip(&["-6", "neighbour", "show", "nud", "permanent"]);
    assert!(
        neighbour.starts_with("fe80::1 dev eth0 lladdr "),
        "{neighbour}"
    );
    let shown = run("ip", &["-6", "rule", "show"]);
    for rule in [
        "512:\tfrom all to fd00:40:1::7 lookup main",
        "1536:\tfrom fd00:40:1::8 lookup 2",
    ] {
        assert!(shown.contains(rule), "{shown}");
    }
    assert!(!shown.contains("from fd00:40:1::7"), "{shown}");

    let mut config = node.config("1.1.0");
    config["prevResult"] = serde_json::from_str(&result).unwrap();
    assert_eq!(node.command("CHECK", &one, &config).ok(), "");
    run("ip", &["-6", "route", "delete", SIXTH.0]);
    let (_, _, details) = node.command("CHECK", &one, &config).error();
    assert!(details.contains("no route fd00:40:1::7/128"), "{details}");

    node.del(&two).ok();
    // Without the daemon, by what ADD told.
    drop(_ipamd);
    del(&node, &one, Some(&result), true).ok();
    let shown = run("ip", &["-6", "rule", "show"]);
    assert!(!shown.contains("fd00:40:1"), "{shown}");
    assert_eq!(run("ip", &["-6", "route", "show", SEVENTH.0]), "");
}

#[test]
fn an_ipv6_pod_with_a_default_route_already_is_refused_and_gives_its_lease_back() {
    let node = Node::new();
    let ipamd = Ipamd::start(&[SIXTH]);
    let sandbox = node.sandbox("cni-1", "web-0");
    sandbox.ip(&["link", "set", "lo", "up"]);
    sandbox.ip(&[
        "-6", "route", "add", "default", "dev", "lo", "metric", "1024",
    ]);
    let (code, msg, details) = node.add(&sandbox).error();
    assert_eq!(code, 5, "{msg}: {details}");
    assert!(msg.contains("default/web-0 with fd00:40:1::7"), "{msg}");
    assert!(details.contains("::/0"), "{details}");
    assert_eq!(ipamd.state.lock().unwrap().dels[0].reason, "SetupNSFailed");
}
