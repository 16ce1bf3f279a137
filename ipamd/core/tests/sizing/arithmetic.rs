//! AWS's arithmetic with single addresses.

use selvage_ipamd_core::cloud::Operation;
use selvage_ipamd_core::fake::Ec2;
use selvage_ipamd_core::ids::EniId;
use selvage_ipamd_core::plan::Targets;

use crate::node::{Node, targets};

#[test]
fn the_pool_has_the_size_that_awss_arithmetic_gives() {
    // (targets, pods) -> (interfaces, addresses, free), on a c5.large: 3 interfaces with 9 pod addresses each.
    for (name, targets, pods, want) in [
        ("default, no pods", targets(1, None, None), 0, (1, 9, 9)),
        ("default, one pod", targets(1, None, None), 1, (2, 18, 17)),
        ("default, nine pods", targets(1, None, None), 9, (2, 18, 9)),
        ("default, ten pods", targets(1, None, None), 10, (3, 27, 17)),
        ("default, full", targets(1, None, None), 27, (3, 27, 0)),
        (
            "no warm interface, no pods",
            targets(0, None, None),
            0,
            (1, 9, 9),
        ),
        (
            "no warm interface, eight pods",
            targets(0, None, None),
            8,
            (1, 9, 1),
        ),
        (
            "no warm interface, nine pods",
            targets(0, None, None),
            9,
            (2, 18, 9),
        ),
        (
            "two warm interfaces",
            targets(2, None, None),
            0,
            (2, 18, 18),
        ),
        ("warm addresses", targets(1, 2, None), 0, (1, 2, 2)),
        ("warm addresses, pods", targets(1, 2, None), 5, (1, 7, 2)),
        (
            "warm addresses over two",
            targets(1, 2, None),
            8,
            (2, 10, 2),
        ),
        ("minimum", targets(1, None, 6), 0, (1, 6, 6)),
        ("minimum, pods below", targets(1, None, 6), 4, (1, 6, 2)),
        ("both, minimum wins", targets(1, 2, 12), 3, (2, 12, 9)),
        ("both, warm wins", targets(1, 2, 6), 6, (1, 8, 2)),
        (
            "one interface at most",
            Targets {
                max_enis: Some(1),
                ..targets(1, None, None)
            },
            9,
            (1, 9, 0),
        ),
        (
            "pods at most",
            Targets {
                max_pods: Some(9),
                ..targets(1, None, None)
            },
            5,
            (1, 9, 4),
        ),
    ] {
        let mut node = Node::new(Ec2::with_limits(3, 10), targets);
        node.settle();
        node.add_many(pods);
        assert_eq!(node.sizes(), want, "{name}");
    }
}

#[test]
fn pods_fill_the_primary_interface_and_then_the_fullest_so_that_others_drain() {
    let mut node = Node::new(Ec2::small(), Targets::default());
    node.settle();
    node.add_many(8);
    let count = |node: &Node, eni: &str| {
        let eni = node.pool.eni(&EniId::new(eni)).unwrap();
        eni.assigned()
    };
    assert_eq!(
        [
            count(&node, "eni-0"),
            count(&node, "eni-1"),
            count(&node, "eni-2")
        ],
        [3, 3, 2]
    );
    // Room on all three: the primary first, then the fuller of the others.
    node.del(1);
    node.del(4);
    node.del(5);
    node.wait(30);
    assert!(node.add());
    assert_eq!(count(&node, "eni-0"), 3);
    assert!(node.add());
    assert_eq!([count(&node, "eni-1"), count(&node, "eni-2")], [1, 3]);
}

#[test]
fn an_empty_interface_is_given_back_after_its_addresses_have_rested_and_no_sooner() {
    let mut node = Node::new(Ec2::small(), Targets::default());
    node.settle();
    node.add_many(4);
    assert_eq!(node.sizes().0, 3);
    for pod in 1..=4 {
        node.del(pod);
    }
    node.settle();
    assert_eq!(node.sizes().0, 3, "they rest, and the interfaces are young");
    node.wait(61);
    node.settle();
    assert_eq!(node.sizes().0, 3, "it was all in use a minute ago");
    node.wait(660);
    node.settle();
    assert_eq!(node.sizes().0, 2, "one at a time");
    assert_eq!(
        node.ec2.calls(Operation::DeleteEni),
        0,
        "it is being detached"
    );
    node.wait(10);
    node.settle();
    assert_eq!(node.ec2.enis().len(), 2);
    node.wait(19);
    assert_eq!(node.tick(), []);
    node.wait(1);
    node.settle();
    assert_eq!(node.sizes(), (1, 3, 3), "the primary interface stays");
    node.wait(10);
    node.settle();
    assert_eq!(node.ec2.enis().len(), 1, "and nothing is left in EC2");
}

#[test]
fn with_a_warm_address_target_single_addresses_are_given_back_but_never_one_that_rests() {
    let mut node = Node::new(Ec2::with_limits(3, 10), targets(1, 2, None));
    node.settle();
    node.add_many(6);
    assert_eq!(node.sizes(), (1, 8, 2));
    for pod in 1..=6 {
        node.del(pod);
    }
    node.settle();
    assert_eq!(node.sizes(), (1, 8, 2), "six rest");
    node.wait(31);
    node.settle();
    assert_eq!(node.sizes(), (1, 8, 8), "they were in use a moment ago");
    node.wait(720);
    node.settle();
    assert_eq!(node.sizes(), (1, 2, 2));
}

#[test]
fn an_interface_that_we_did_not_make_is_used_and_never_removed() {
    let mut node = Node::new(Ec2::small(), Targets::default());
    node.ec2.attach_by_hand(1, 3);
    node.ec2.attach_by_hand(2, 3);
    node.pool.reconcile(&node.ec2.enis(), node.now);
    node.settle();
    assert_eq!(node.sizes(), (3, 6, 6));
    node.wait(1000);
    node.settle();
    assert_eq!(node.sizes(), (3, 6, 6), "though it is more than is wanted");
}

#[test]
fn a_subnet_with_few_addresses_is_emptied_one_by_one_and_then_left_alone_for_two_minutes() {
    let mut node = Node::new(Ec2::with_limits(3, 10), Targets::default());
    node.ec2.set_free_left(Some(3));
    node.settle();
    assert_eq!(node.sizes(), (1, 3, 3));
    let calls = |node: &Node| {
        node.ec2.calls(Operation::AssignAddresses) + node.ec2.calls(Operation::CreateEni)
    };
    let before = calls(&node);
    node.wait(119);
    node.settle();
    assert_eq!(calls(&node), before);
    node.ec2.set_free_left(None);
    node.wait(31);
    node.settle();
    assert_eq!(node.sizes(), (1, 9, 9));
}
