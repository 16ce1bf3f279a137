//! Prefix delegation: targets, packing, fragmented subnets, a change of mode.

use std::time::Duration;

use selvage_ipamd_core::action::Action;
use selvage_ipamd_core::cloud::{Operation, Want};
use selvage_ipamd_core::fake::{self, Ec2, Fault};
use selvage_ipamd_core::ids::EniId;
use selvage_ipamd_core::limits::Mode;
use selvage_ipamd_core::plan::Targets;
use selvage_ipamd_core::pool::Settings;

use crate::node::{Node, targets};

fn prefixes(warm_prefixes: u32) -> Targets {
    Targets {
        warm_prefixes,
        ..Targets::default()
    }
}

#[test]
fn the_pool_has_as_many_prefixes_as_awss_arithmetic_gives() {
    // (targets, pods) -> (interfaces, addresses, free), on a c5.large: 3 interfaces with 9 places each.
    for (name, targets, pods, want) in [
        ("default, no pods", prefixes(1), 0, (1, 16, 16)),
        ("default, one pod", prefixes(1), 1, (1, 32, 31)),
        ("default, 16 pods", prefixes(1), 16, (1, 32, 16)),
        ("default, 17 pods", prefixes(1), 17, (1, 48, 31)),
        ("none warm, no pods", prefixes(0), 0, (1, 16, 16)),
        ("none warm, 15 pods", prefixes(0), 15, (1, 16, 1)),
        ("none warm, 16 pods", prefixes(0), 16, (1, 32, 16)),
        ("three warm", prefixes(3), 0, (1, 48, 48)),
        ("warm addresses", targets(1, 5, None), 0, (1, 16, 16)),
        (
            "warm addresses, 11 pods",
            targets(1, 5, None),
            11,
            (1, 16, 5),
        ),
        (
            "warm addresses, 12 pods",
            targets(1, 5, None),
            12,
            (1, 32, 20),
        ),
        ("minimum", targets(1, None, 20), 0, (1, 32, 32)),
        ("both, minimum wins", targets(1, 2, 33), 3, (1, 48, 45)),
        (
            "pods at most",
            Targets {
                max_pods: Some(20),
                ..prefixes(2)
            },
            1,
            (1, 32, 31),
        ),
        ("a second interface", prefixes(9), 1, (2, 160, 159)),
    ] {
        let mut node = Node::with_prefixes(Ec2::with_limits(3, 10), targets);
        node.settle();
        node.add_many(pods);
        assert_eq!(node.sizes(), want, "{name}");
    }
}

#[test]
fn pods_fill_the_fullest_prefix_so_that_others_drain_and_go_back() {
    let mut node = Node::with_prefixes(Ec2::with_limits(3, 10), prefixes(1));
    node.settle();
    node.add_many(40);
    assert_eq!(node.sizes(), (1, 64, 24));
    for pod in 10..=35 {
        node.del(pod);
    }
    node.wait(31);
    for _ in 0..7 {
        assert!(node.add());
    }
    let mut counts: Vec<u32> = node
        .pool
        .enis()
        .flat_map(|eni| eni.blocks())
        .map(|block| block.assigned())
        .collect();
    counts.sort_unstable();
    assert_eq!(counts, [0, 0, 5, 16], "the first prefix was filled up");
    node.wait(800);
    node.settle();
    assert_eq!(node.sizes(), (1, 48, 27), "one is spare, one has gone");
}

#[test]
fn a_prefix_with_an_address_that_rests_is_not_given_back() {
    let settings = Settings {
        mode: Mode::Prefixes,
        cooldown: Duration::from_secs(7200),
        ..fake::settings()
    };
    let mut node = Node::with(Ec2::with_limits(3, 10), prefixes(1), settings);
    node.settle();
    node.add_many(1);
    assert_eq!(node.sizes(), (1, 32, 31));
    // Nothing in it serves any more, and all but one address could go.
    node.ec2
        .tag_subnet("subnet-1", &[("kubernetes.io/role/cni", "0")]);
    node.wait(50_000);
    node.del(1);
    node.settle();
    let held = |node: &Node| node.ec2.enis()[0].prefixes.len();
    assert_eq!(held(&node), 1, "the one without a pod has gone");
    node.wait(7199);
    node.settle();
    assert_eq!(held(&node), 1);
    node.wait(1);
    node.settle();
    assert_eq!(held(&node), 0);
}

#[test]
fn pods_that_wait_get_all_their_prefixes_in_one_call() {
    let mut node = Node::with_prefixes(Ec2::with_limits(3, 10), prefixes(1));
    node.settle();
    let before = node.ec2.calls(Operation::AssignAddresses);
    for _ in 0..70 {
        node.add();
    }
    assert_eq!(node.waiting, 54);
    let actions = node.tick();
    let wants: Vec<Want> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Assign { want, .. } => Some(*want),
            _ => None,
        })
        .collect();
    assert_eq!(wants, [Want::Prefixes(5)], "54 wait and 16 are to be free");
    assert_eq!(node.ec2.calls(Operation::AssignAddresses), before + 1);
}

#[test]
fn where_a_subnet_has_no_prefix_waiting_pods_get_single_addresses_and_no_more() {
    let mut node = Node::with_prefixes(Ec2::with_limits(3, 10), prefixes(1));
    node.ec2.fragment("subnet-1", true);
    node.settle();
    assert_eq!(node.sizes(), (1, 0, 0));
    for _ in 0..3 {
        node.add();
    }
    node.settle();
    assert_eq!(node.sizes(), (1, 3, 3));
    for _ in 0..3 {
        assert!(node.add());
    }
    node.settle();
    assert_eq!(node.sizes(), (1, 3, 0), "nobody waits");
    // The pods go: their addresses stay for the next ones while there is no prefix.
    for pod in 4..=6 {
        node.del(pod);
    }
    node.wait(60);
    node.settle();
    assert_eq!(node.sizes(), (1, 3, 3));
    node.ec2.fragment("subnet-1", false);
    node.wait(400);
    node.settle();
    node.wait(31);
    node.settle();
    assert_eq!(node.sizes(), (1, 16, 16), "a prefix came, and they went");
}

#[test]
fn a_fragmented_subnet_is_asked_for_prefixes_once_in_two_minutes() {
    let mut node = Node::with_prefixes(Ec2::with_limits(3, 10), prefixes(4));
    node.ec2.fragment("subnet-1", true);
    node.settle();
    let calls = |node: &Node| {
        node.ec2.calls(Operation::AssignAddresses) + node.ec2.calls(Operation::CreateEni)
    };
    let before = calls(&node);
    node.wait(119);
    node.settle();
    assert_eq!(calls(&node), before);
}

#[test]
fn addresses_from_before_a_change_of_mode_are_drained_not_cut() {
    let mut node = Node::new(Ec2::with_limits(3, 10), Targets::default());
    node.settle();
    for _ in 0..4 {
        assert!(node.add());
    }
    let leases = node.pool.leases();
    // The daemon starts again with prefixes.
    let settings = Settings {
        mode: Mode::Prefixes,
        ..fake::settings()
    };
    let mut node = Node {
        pods: 4,
        ..Node::with(node.ec2, prefixes(1), settings)
    };
    node.restore(&leases);
    node.settle();
    node.wait(31);
    node.settle();
    assert_eq!(node.pool.leases().len(), 4);
    let primary = EniId::new("eni-0");
    let kinds = |node: &Node| {
        let eni = node.pool.eni(&primary).unwrap();
        let prefixes = eni.blocks().filter(|block| block.is_prefix()).count();
        (eni.blocks().count() - prefixes, prefixes)
    };
    assert_eq!(kinds(&node), (4, 1), "the free single ones made room");
    assert!(node.add());
    let newest = node.pool.leases().into_iter().max_by_key(|l| l.since);
    let newest = newest.map(|lease| lease.address).unwrap();
    assert!(!leases.iter().any(|lease| lease.address == newest));
    for pod in 1..=4 {
        node.del(pod);
    }
    for _ in 0..4 {
        node.wait(60);
        node.settle();
    }
    assert_eq!(kinds(&node).0, 0);
}

#[test]
fn prefixes_from_before_a_change_of_mode_serve_last_and_go() {
    let mut node = Node::with_prefixes(Ec2::with_limits(3, 10), prefixes(1));
    node.settle();
    assert!(node.add());
    let leases = node.pool.leases();
    let mut node = Node {
        pods: 1,
        ..Node::new(node.ec2, Targets::default())
    };
    node.restore(&leases);
    node.settle();
    assert!(node.add());
    let addresses: Vec<_> = node.pool.leases().iter().map(|l| l.address).collect();
    let primary = node.pool.eni(&EniId::new("eni-0")).unwrap();
    let prefix = primary.blocks().find(|block| block.is_prefix()).unwrap();
    let within = addresses
        .iter()
        .filter(|address| prefix.net().contains(*address));
    assert_eq!(within.count(), 1, "the new pod got a single address");
    node.del(1);
    for _ in 0..3 {
        node.wait(60);
        node.settle();
    }
    let enis = node.ec2.enis();
    assert!(enis.iter().all(|eni| eni.prefixes.is_empty()), "{enis:?}");
}

#[test]
fn an_interface_that_cannot_take_what_we_think_is_looked_up_and_taken_as_it_is() {
    let mut node = Node::with_prefixes(Ec2::with_limits(3, 10), prefixes(1));
    node.ec2.fail_next(
        Operation::AssignAddresses,
        &[Fault::Refuse("PrivateIpAddressLimitExceeded")],
    );
    node.settle();
    node.wait(2);
    node.settle();
    assert_eq!(node.ec2.calls(Operation::DescribeEnis), 1);
    assert_eq!(node.sizes(), (1, 16, 16));
}
