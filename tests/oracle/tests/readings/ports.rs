//! Ports: numbers, ranges, names, and protocols alone.

use serde_json::{Value, json};

use crate::world::World;

fn ports(ports: Value) -> World {
    World::new().into_a(json!({"ports": ports}))
}

fn named(name: &str, protocol: &str, number: u16) -> Value {
    json!({"name": name, "protocol": protocol, "containerPort": number})
}

#[test]
fn no_ports_are_all_ports_and_all_protocols() {
    for none in [Value::Null, json!([])] {
        ports(none).allows(&[
            "y/a > x/a TCP 1",
            "y/a > x/a UDP 65535",
            "y/a > x/a SCTP 9",
            "y/a > x/a ICMP",
        ]);
    }
}

#[test]
fn a_rule_with_ports_does_not_open_what_has_none() {
    ports(json!([{"protocol": "TCP"}, {"protocol": "UDP"}, {"protocol": "SCTP"}]))
        .allows(&["y/a > x/a TCP 1", "y/a > x/a UDP 1", "y/a > x/a SCTP 1"])
        .forbids(&["y/a > x/a ICMP"]);
}

#[test]
fn a_port_without_a_protocol_is_tcps() {
    ports(json!([{"port": 80}]))
        .allows(&["y/a > x/a TCP 80"])
        .forbids(&["y/a > x/a UDP 80", "y/a > x/a SCTP 80"]);
}

#[test]
fn a_protocol_without_a_port_is_all_its_ports() {
    ports(json!([{"protocol": "UDP"}]))
        .allows(&["y/a > x/a UDP 1", "y/a > x/a UDP 65535"])
        .forbids(&["y/a > x/a TCP 80", "y/a > x/a SCTP 80"]);
}

#[test]
fn an_empty_port_is_all_of_tcp_and_nothing_else() {
    ports(json!([{}]))
        .allows(&["y/a > x/a TCP 1", "y/a > x/a TCP 65535"])
        .forbids(&["y/a > x/a UDP 80", "y/a > x/a ICMP"]);
}

#[test]
fn a_number_need_not_be_declared_by_a_container() {
    ports(json!([{"port": 4711}]))
        .allows(&["y/a > x/a TCP 4711"])
        .forbids(&["y/a > x/a TCP 4712"]);
}

#[test]
fn a_protocol_opens_no_other_and_isolates_all() {
    for (protocol, open) in [
        ("SCTP", "y/a > x/a SCTP 80"),
        ("UDP", "y/a > x/a UDP 80"),
        ("TCP", "y/a > x/a TCP 80"),
    ] {
        let all = ["y/a > x/a SCTP 80", "y/a > x/a UDP 80", "y/a > x/a TCP 80"];
        let others: Vec<&str> = all.into_iter().filter(|flow| *flow != open).collect();
        ports(json!([{"protocol": protocol, "port": 80}]))
            .allows(&[open])
            .forbids(&others);
    }
}

#[test]
fn a_range_includes_both_its_ends() {
    for protocol in ["TCP", "UDP", "SCTP"] {
        let flow = |port: u16| format!("y/a > x/a {protocol} {port}");
        let world = ports(json!([{"protocol": protocol, "port": 80, "endPort": 90}]));
        for port in [80, 85, 90] {
            world.allows(&[&flow(port)]);
        }
        world.forbids(&[&flow(79), &flow(91)]);
        let world = ports(json!([{"protocol": protocol, "port": 80, "endPort": 80}]));
        world.allows(&[&flow(80)]).forbids(&[&flow(79), &flow(81)]);
    }
    ports(json!([{"port": 1, "endPort": 65535}]))
        .allows(&["y/a > x/a TCP 1", "y/a > x/a TCP 65535"]);
}

#[test]
fn a_port_that_is_not_understood_voids_its_rule_and_no_other() {
    for bad in [
        json!({"port": 0}),
        json!({"port": 65536}),
        json!({"port": -1}),
        json!({"port": 81, "endPort": 80}),
        json!({"endPort": 80}),
        json!({"port": "http", "endPort": 90}),
        json!({"port": 80, "endPort": 65536}),
        json!({"port": 80, "protocol": "ICMP"}),
        json!({"protocol": ""}),
        json!({"port": "80"}),
    ] {
        let world = ports(json!([bad, {"port": 81}]));
        world.forbids(&["y/a > x/a TCP 80", "y/a > x/a TCP 81", "y/a > x/a ICMP"]);
        world
            .into_a(json!({"ports": [{"port": 82}]}))
            .allows(&["y/a > x/a TCP 82"]);
    }
}

#[test]
fn forty_ports_and_ranges_of_one_peer_are_all_open() {
    let entries: Vec<Value> = (0..40_u32)
        .map(|n| match n % 2 {
            0 => json!({"port": 1000 + 10 * n}),
            _ => json!({"port": 1000 + 10 * n, "endPort": 1004 + 10 * n}),
        })
        .collect();
    let world = ports(json!(entries));
    for n in 0..40 {
        let flow = |port: u32| format!("y/a > x/a TCP {port}");
        world.allows(&[&flow(1000 + 10 * n)]);
        world.forbids(&[&flow(1005 + 10 * n)]);
        if n % 2 == 1 {
            world.allows(&[&flow(1004 + 10 * n)]);
        }
    }
}

#[test]
fn a_named_port_of_ingress_is_each_subjects_own_number() {
    let world = World::new()
        .policy(json!({"podSelector": {}, "ingress": [{"ports": [{"port": "web"}]}]}))
        .pod(
            "x/a",
            "/spec/containers",
            json!([{"ports": [named("web", "TCP", 80)]}]),
        )
        .pod(
            "x/b",
            "/spec/containers",
            json!([{"ports": [named("web", "TCP", 8080)]}]),
        );
    world.allows(&["y/a > x/a TCP 80", "y/a > x/b TCP 8080"]);
    world.forbids(&[
        "y/a > x/a TCP 8080",
        "y/a > x/b TCP 80",
        "y/a > x/c TCP 80",
        "y/a > x/c TCP 8080",
    ]);
}

#[test]
fn a_named_port_of_egress_is_each_peers_own_number() {
    let world = World::new()
        .out_of_a(json!({"to": [{"namespaceSelector": {}}], "ports": [{"port": "web"}]}))
        .pod(
            "y/a",
            "/spec/containers",
            json!([{"ports": [named("web", "TCP", 80)]}]),
        )
        .pod(
            "y/b",
            "/spec/containers",
            json!([{"ports": [named("web", "TCP", 8080)]}]),
        )
        .pod(
            "x/a",
            "/spec/containers",
            json!([{"ports": [named("web", "TCP", 9)]}]),
        );
    world.allows(&["x/a > y/a TCP 80", "x/a > y/b TCP 8080"]);
    world.forbids(&[
        "x/a > y/a TCP 8080",
        "x/a > y/b TCP 80",
        "x/a > y/b TCP 9",
        "x/a > z/a TCP 80",
    ]);
}

#[test]
fn a_named_port_of_another_protocol_is_not_meant() {
    let world = ports(json!([{"port": "web"}])).pod(
        "x/a",
        "/spec/containers",
        json!([{"ports": [named("web", "UDP", 80)]}]),
    );
    world.forbids(&["y/a > x/a TCP 80", "y/a > x/a UDP 80"]);
}

#[test]
fn a_name_under_two_protocols_is_resolved_in_each() {
    let dns = json!([{"ports": [named("dns", "TCP", 53), named("dns", "UDP", 5353)]}]);
    let world = ports(json!([{"port": "dns"}, {"port": "dns", "protocol": "UDP"}])).pod(
        "x/a",
        "/spec/containers",
        dns.clone(),
    );
    world.allows(&["y/a > x/a TCP 53", "y/a > x/a UDP 5353"]);
    world.forbids(&["y/a > x/a TCP 5353", "y/a > x/a UDP 53"]);
    let world =
        ports(json!([{"port": "dns", "protocol": "UDP"}])).pod("x/a", "/spec/containers", dns);
    world
        .allows(&["y/a > x/a UDP 5353"])
        .forbids(&["y/a > x/a TCP 53"]);
}

#[test]
fn a_name_that_several_containers_use_is_all_their_numbers() {
    let two = json!([{"ports": [named("web", "TCP", 80)]}, {"ports": [named("web", "TCP", 81)]}]);
    let world = ports(json!([{"port": "web"}])).pod("x/a", "/spec/containers", two);
    world
        .allows(&["y/a > x/a TCP 80", "y/a > x/a TCP 81"])
        .forbids(&["y/a > x/a TCP 82"]);
}

#[test]
fn addresses_that_are_no_pods_have_no_named_ports() {
    let web = json!([{"ports": [named("web", "TCP", 80)]}]);
    let world = World::new()
        .out_of_a(json!({"ports": [{"port": "web"}]}))
        .pod("z/a", "/spec/containers", web.clone());
    world
        .allows(&["x/a > z/a TCP 80"])
        .forbids(&["x/a > 8.8.8.8 TCP 80", "x/a > y/a TCP 80"]);
    let block = json!({"ipBlock": {"cidr": "0.0.0.0/0"}});
    let world = World::new()
        .out_of_a(json!({"to": [block], "ports": [{"port": "web"}]}))
        .pod("z/a", "/spec/containers", web);
    world.forbids(&["x/a > z/a TCP 80", "x/a > 8.8.8.8 TCP 80"]);
}

#[test]
fn sidecars_have_named_ports_and_init_containers_that_end_have_none() {
    let port = named("web", "TCP", 80);
    let sidecar = json!([{"restartPolicy": "Always", "ports": [port]}]);
    let world = ports(json!([{"port": "web"}]));
    let world = world.pod("x/a", "/spec/initContainers", sidecar);
    world
        .allows(&["y/a > x/a TCP 80"])
        .forbids(&["y/a > x/a TCP 81"]);
    let world = world.pod("x/a", "/spec/initContainers", json!([{"ports": [port]}]));
    world.forbids(&["y/a > x/a TCP 80"]);
}
