//! How few calls it takes: what waits is asked for at once, and a pool that breathes does not call with each breath.

use selvage_ipamd_core::action::Action;
use selvage_ipamd_core::bucket::Bucket;
use selvage_ipamd_core::cause::Cause;
use selvage_ipamd_core::cloud::{Budget, Operation, Want};
use selvage_ipamd_core::fake::{Ec2, Fault};
use selvage_ipamd_core::plan::{Targets, plan};
use selvage_ipamd_core::pool::Settings;

use crate::node::{Node, targets};

#[test]
fn for_many_pods_several_interfaces_are_made_at_once() {
    let mut node = Node::new(Ec2::with_limits(8, 10), Targets::default());
    node.settle();
    for _ in 0..40 {
        node.add();
    }
    assert_eq!(node.waiting, 31);
    let wants: Vec<Want> = node
        .tick()
        .iter()
        .filter_map(|action| match action {
            Action::Create(request) => Some(request.want),
            _ => None,
        })
        .collect();
    // 31 wait, 9 are to be free.
    assert_eq!(wants, [Want::Addresses(9); 4]);
    node.settle();
    assert_eq!(node.sizes(), (5, 45, 36));
}

#[test]
fn where_pods_come_at_a_pace_those_of_the_next_minute_are_asked_for_too() {
    let mut node = Node::new(Ec2::with_limits(4, 30), targets(1, 2, None));
    node.settle();
    let before = node.ec2.calls(Operation::AssignAddresses);
    for _ in 0..24 {
        assert!(node.add());
        node.settle();
        node.wait(5);
    }
    let calls = node.ec2.calls(Operation::AssignAddresses) - before;
    assert!(calls <= 8, "{calls} calls for 24 pods that came one by one");
    node.wait(800);
    node.settle();
    assert_eq!(node.sizes(), (1, 26, 2), "what did not come is given back");
}

#[test]
fn jobs_that_come_every_ten_minutes_find_their_addresses_there() {
    let mut node = Node::new(Ec2::with_limits(4, 30), targets(1, 2, None));
    node.settle();
    let run = |node: &mut Node| {
        let first = node.pods + 1;
        for _ in 0..10 {
            if !node.add() {
                node.settle();
                assert!(node.add());
            }
        }
        node.settle();
        node.wait(60);
        for pod in first..=node.pods {
            if node.pool.lease(&crate::node::key(pod)).is_some() {
                node.del(pod);
            }
        }
        for _ in 0..54 {
            node.settle();
            node.wait(10);
        }
    };
    // What was asked for ahead of the first ones, and nobody used, goes with the second or third.
    run(&mut node);
    run(&mut node);
    run(&mut node);
    let before =
        node.ec2.calls(Operation::AssignAddresses) + node.ec2.calls(Operation::UnassignAddresses);
    for _ in 0..5 {
        run(&mut node);
    }
    let after =
        node.ec2.calls(Operation::AssignAddresses) + node.ec2.calls(Operation::UnassignAddresses);
    assert_eq!(after - before, 0);
    node.wait(800);
    node.settle();
    assert_eq!(
        node.sizes(),
        (1, 2, 2),
        "at rest there are no more than asked for"
    );
}

#[test]
fn no_more_calls_are_begun_than_the_bucket_allows_and_urgent_ones_come_first() {
    let mut node = Node::new(Ec2::with_limits(8, 10), Targets::default());
    node.settle();
    for _ in 0..60 {
        node.add();
    }
    let mut bucket = Bucket::new(1);
    for _ in 0..9 {
        bucket.take(Budget::Change, node.now);
    }
    *node.pool.bucket_mut() = bucket;
    let actions = plan(
        &node.pool,
        &node.targets,
        &node.limits,
        node.waiting,
        node.now,
    );
    assert_eq!(actions.len(), 1, "{actions:?}");
    assert!(matches!(actions[0], Action::Create(_)));
    node.pool.bucket_mut().take(Budget::Change, node.now);
    assert_eq!(
        plan(
            &node.pool,
            &node.targets,
            &node.limits,
            node.waiting,
            node.now
        ),
        []
    );
    assert!(
        matches!(node.cause(), Cause::Paced { .. }),
        "{:?}",
        node.cause()
    );
}

#[test]
fn one_complaint_of_ec2_slows_every_call_of_its_kind() {
    let mut node = Node::new(Ec2::with_limits(8, 10), Targets::default());
    node.settle();
    for _ in 0..60 {
        node.add();
    }
    node.ec2.fail_next(Operation::CreateEni, &[Fault::Throttle]);
    let begun = node.tick().len();
    assert!(begun > 1);
    assert_eq!(node.tick(), []);
    let cause = node.cause();
    assert!(
        matches!(cause, Cause::Refilling { .. } | Cause::Throttled { .. }),
        "{cause:?}"
    );
    node.wait(5);
    assert_ne!(node.tick(), []);
}

#[test]
fn of_many_nodes_that_start_together_some_fill_their_interface_and_the_others_make_one() {
    let mut making = 0;
    for seed in 0..20 {
        let settings = Settings {
            seed,
            ..Settings::default()
        };
        let mut node = Node::with(Ec2::with_limits(4, 10), Targets::default(), settings);
        node.pool.bucket_mut().share(1000, node.now);
        let makes = node.pool.bucket().begins_with_eni();
        making += u32::from(makes);
        node.wait(1000);
        // Not settled: that would bring a bucket of a node that starts alone.
        for _ in 0..8 {
            node.tick();
        }
        let (made, filled) = (
            node.ec2.calls(Operation::CreateEni),
            node.ec2.calls(Operation::AssignAddresses),
        );
        let one_way = if makes { (1, 0) } else { (0, 1) };
        assert_eq!((made, filled), one_way, "seed {seed}");
        assert_eq!(node.pool.stats(node.now).available, 9, "seed {seed}");
    }
    assert!((5..=15).contains(&making), "{making} of 20");
}

#[test]
fn an_address_that_rests_does_not_count_as_one_that_a_pod_can_have() {
    let mut node = Node::new(Ec2::with_limits(4, 4), Targets::default());
    node.settle();
    for _ in 0..3 {
        assert!(node.add());
    }
    node.settle();
    node.wait(600);
    assert_eq!(node.tick(), []);
    assert_eq!(node.sizes(), (2, 6, 3));
    node.del(1);
    assert!(node.add());
    node.settle();
    assert_eq!(node.sizes(), (3, 9, 5), "two were free, and one rested");
}

#[test]
fn what_was_asked_for_pods_to_come_is_not_given_back_before_they_had_time_to() {
    let mut node = Node::with_prefixes(Ec2::with_limits(4, 15), Targets::default());
    node.settle();
    // A pod a second: more are asked for than the target is.
    for _ in 0..22 {
        assert!(node.add());
        node.settle();
        node.wait(1);
    }
    let (_, held, free) = node.sizes();
    assert!(free > 32, "{free} of {held}");
    node.wait(600);
    node.settle();
    assert_eq!(node.sizes(), (1, held, free));
    node.wait(200);
    node.settle();
    assert_eq!(node.sizes(), (1, 48, 26), "they did not come");
}

#[test]
fn while_pods_come_and_most_of_what_is_warm_is_free_no_more_is_asked_for() {
    let mut node = Node::with_prefixes(Ec2::with_limits(4, 15), Targets::default());
    node.settle();
    let asked = |node: &Node| node.ec2.calls(Operation::AssignAddresses);
    let before = asked(&node);
    for _ in 0..4 {
        assert!(node.add());
        node.settle();
        node.wait(4);
    }
    assert_eq!(
        asked(&node),
        before,
        "they are still coming, and 12 of 16 are free"
    );
    node.wait(1);
    node.settle();
    assert_eq!(asked(&node), before + 1, "they are there");
    assert_eq!(node.sizes(), (1, 32, 28));
    for _ in 0..17 {
        assert!(node.add());
    }
    node.settle();
    assert!(
        asked(&node) > before + 1,
        "11 of 16 are free: too few to wait"
    );
}

#[test]
fn where_a_subnet_has_refused_what_is_short_is_asked_for_at_once() {
    let mut node = Node::with_prefixes(Ec2::with_limits(4, 15), Targets::default());
    node.settle();
    node.ec2.fragment("subnet-1", true);
    node.add_many(1);
    let asked = |node: &Node| node.ec2.calls(Operation::AssignAddresses);
    let before = asked(&node);
    node.wait(3600);
    assert!(node.add());
    node.settle();
    assert_eq!(asked(&node), before + 1);
}

#[test]
fn a_subnet_that_refuses_is_asked_more_seldom_by_a_node_that_has_a_free_address() {
    let mut node = Node::with_prefixes(Ec2::with_limits(4, 15), Targets::default());
    node.settle();
    node.ec2.fragment("subnet-1", true);
    let asked = |node: &Node| node.ec2.calls(Operation::AssignAddresses);
    let within = |node: &mut Node, minutes: u64| {
        let before = asked(node);
        for _ in 0..6 * minutes {
            node.settle();
            node.wait(10);
        }
        asked(node) - before
    };
    node.add_many(2);
    // After two, four, eight and sixteen minutes, each longer by up to a quarter.
    let patient = within(&mut node, 60);
    assert!((4..=6).contains(&patient), "{patient} calls in an hour");
    // The last free address goes: from now on somebody may need what the subnet has.
    for _ in 0..14 {
        assert!(node.add());
    }
    let before = asked(&node);
    node.settle();
    assert_eq!(
        asked(&node),
        before + 1,
        "at once: the pause of those in need is over"
    );
    let needy = within(&mut node, 60);
    assert!((24..=30).contains(&needy), "{needy} calls in an hour");
    // And what it gives ends the patience.
    node.ec2.fragment("subnet-1", false);
    within(&mut node, 3);
    assert!(node.sizes().2 > 0, "{:?}", node.sizes());
    node.ec2.fragment("subnet-1", true);
    for _ in 0..node.sizes().2 - 1 {
        assert!(node.add());
    }
    let again = within(&mut node, 5);
    assert!((2..=3).contains(&again), "{again} calls in five minutes");
}

#[test]
fn nothing_is_given_back_while_more_is_on_its_way() {
    let mut node = Node::new(Ec2::with_limits(3, 4), targets(1, 2, 3));
    node.settle();
    assert_eq!(node.sizes(), (1, 3, 3));
    assert!(node.add() && node.add());
    let planned = |node: &Node| {
        let Node {
            pool,
            targets,
            limits,
            ..
        } = node;
        plan(pool, targets, limits, 0, node.now)
    };
    let actions = planned(&node);
    let [Action::Create(request)] = actions.as_slice() else {
        panic!("the first interface is full: {actions:?}");
    };
    assert!(
        request.want.count() > 1,
        "more than lacks, for pods to come"
    );
    node.pool.begin(&actions[0], node.now);
    assert_eq!(planned(&node), []);
}
