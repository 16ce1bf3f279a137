//! Peers by address.

use serde_json::{Value, json};

use crate::world::World;

fn from(blocks: Value) -> World {
    let peers: Vec<Value> = blocks
        .as_array()
        .unwrap()
        .iter()
        .map(|block| json!({"ipBlock": block}))
        .collect();
    World::new().into_a(json!({"from": peers}))
}

#[test]
fn an_exception_holds_for_its_own_peer_and_no_other() {
    let except = json!({"cidr": "10.0.0.0/16", "except": ["10.0.2.0/24"]});
    let world = from(json!([except]));
    world
        .allows(&["z/a > x/a TCP 80"])
        .forbids(&["y/a > x/a TCP 80"]);
    from(json!([except, {"cidr": "10.0.2.1/32"}]))
        .allows(&["y/a > x/a TCP 80"])
        .forbids(&["y/b > x/a TCP 80"]);
    let world = world.into_a(json!({"from": [{"ipBlock": {"cidr": "10.0.2.2/31"}}]}));
    world
        .allows(&["y/b > x/a TCP 80"])
        .forbids(&["y/a > x/a TCP 80"]);
}

#[test]
fn an_exception_that_is_no_part_of_its_block_voids_the_rule() {
    for except in [
        "10.0.0.0/16",
        "10.0.0.0/8",
        "192.168.0.0/24",
        "fd00::/64",
        "10.0.2.0",
    ] {
        let world = from(json!([{"cidr": "10.0.0.0/16", "except": [except]}]));
        world.forbids(&["y/a > x/a TCP 80", "z/a > x/a TCP 80"]);
    }
}

#[test]
fn nested_and_overlapping_exceptions_are_taken_away_together() {
    let except = ["10.0.2.0/24", "10.0.2.1/32", "10.0.2.0/23", "10.0.3.3/32"];
    let world = from(json!([{"cidr": "10.0.0.0/8", "except": except}]));
    world.forbids(&["y/a > x/a TCP 80", "y/b > x/a TCP 80", "z/a > x/a TCP 80"]);
    world
        .allows(&["x/b > x/a TCP 80", "10.9.9.9 > x/a TCP 80"])
        .forbids(&["11.0.0.1 > x/a TCP 80"]);
}

#[test]
fn host_bits_of_a_block_do_not_count() {
    let world = from(json!([{"cidr": "10.0.2.77/24", "except": ["10.0.2.3/31"]}]));
    world.allows(&["y/a > x/a TCP 80"]).forbids(&[
        "y/b > x/a TCP 80",
        "y/c > x/a TCP 80",
        "z/a > x/a TCP 80",
    ]);
}

#[test]
fn a_block_of_everything_is_everything_of_its_family_pods_and_nodes_too() {
    let world = from(json!([{"cidr": "0.0.0.0/0"}]));
    world.allows(&[
        "y/a > x/a TCP 80",
        "node-b > x/a TCP 80",
        "1.0.0.1 > x/a ICMP",
        "254.1.2.3 > x/a UDP 1",
    ]);
    world.forbids(&["y/a@6 > x/a@6 TCP 80", "2001:db8::1 > x/a@6 TCP 80"]);
    let world = from(json!([{"cidr": "::/0"}]));
    world.allows(&[
        "y/a@6 > x/a@6 TCP 80",
        "2001:db8::1 > x/a@6 TCP 80",
        "100::1 > x/a@6 ICMP",
    ]);
    world.forbids(&["y/a > x/a TCP 80", "1.0.0.1 > x/a TCP 80"]);
}

#[test]
fn blocks_are_about_addresses_whoever_has_them() {
    let world = World::new().out_of_a(json!({"to": [{"ipBlock": {"cidr": "10.0.2.1/32"}}]}));
    world
        .allows(&["x/a > y/a TCP 80", "x/a > 10.0.2.1 TCP 80"])
        .forbids(&["x/a > y/b TCP 80"]);
}

#[test]
fn nested_blocks_with_exceptions_of_their_own_are_united() {
    // The longest match would say no to 10.0.2.1: it is excepted from the narrower block alone.
    let world = from(json!([
        {"cidr": "10.0.0.0/16"},
        {"cidr": "10.0.2.0/24", "except": ["10.0.2.1/32"]},
    ]));
    world.allows(&["y/a > x/a TCP 80", "y/b > x/a TCP 80"]);
    let ports =
        |block: Value, port: u16| json!({"from": [{"ipBlock": block}], "ports": [{"port": port}]});
    let world = World::new()
        .into_a(ports(json!({"cidr": "10.0.0.0/16"}), 80))
        .into_a(ports(
            json!({"cidr": "10.0.2.0/24", "except": ["10.0.2.1/32"]}),
            81,
        ));
    world
        .allows(&["y/a > x/a TCP 80", "y/b > x/a TCP 81"])
        .forbids(&["y/a > x/a TCP 81"]);
}

#[test]
fn duplicate_and_overlapping_blocks_are_united() {
    let world =
        from(json!([{"cidr": "10.0.2.0/25"}, {"cidr": "10.0.2.0/24"}, {"cidr": "10.0.2.0/25"}]));
    world
        .allows(&["y/a > x/a TCP 80", "10.0.2.200 > x/a TCP 80"])
        .forbids(&["z/a > x/a TCP 80"]);
}

#[test]
fn a_block_that_is_not_understood_opens_nothing_and_other_rules_hold() {
    for cidr in [
        "10.0.2.0",
        "10.0.2/24",
        "10.0.2.0/33",
        "fd00::/129",
        "",
        "y",
    ] {
        let world = from(json!([{"cidr": cidr}, {"cidr": "10.0.0.0/8"}]));
        world.forbids(&["y/a > x/a TCP 80", "z/a > x/a TCP 80"]);
        let world = world.into_a(json!({"from": [{"ipBlock": {"cidr": "10.0.3.0/24"}}]}));
        world
            .allows(&["z/a > x/a TCP 80"])
            .forbids(&["y/a > x/a TCP 80"]);
    }
}

#[test]
fn an_ipv6_address_is_the_same_however_it_is_written() {
    for cidr in [
        "FD00:0:0:0:0:0:2:1/128",
        "fd00::0002:0001/128",
        "fd00::2:1/128",
    ] {
        let world = from(json!([{"cidr": cidr}]));
        world
            .allows(&["y/a@6 > x/a@6 TCP 80"])
            .forbids(&["y/b@6 > x/a@6 TCP 80"]);
    }
    let ips = json!([{"ip": "FD00::0002:1"}]);
    let world = from(json!([{"cidr": "fd00::2:1/128"}])).pod("y/a", "/status/podIPs", ips);
    world.allows(&["y/a@6 > x/a@6 TCP 80"]);
}

#[test]
fn a_block_of_the_other_family_is_no_match_and_no_error() {
    let world = from(json!([{"cidr": "fd00::/16"}, {"cidr": "10.0.2.0/24"}]));
    world
        .allows(&["y/a > x/a TCP 80", "y/a@6 > x/a@6 TCP 80"])
        .forbids(&["z/a > x/a TCP 80"]);
    let world = from(json!([{"cidr": "fd00::/16"}]));
    world.forbids(&["y/a > x/a TCP 80"]);
}
