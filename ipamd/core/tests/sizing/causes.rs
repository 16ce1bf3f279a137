//! What is said when the pool is empty.

use std::time::Duration;

use selvage_ipamd_core::action::Action;
use selvage_ipamd_core::cause::Cause;
use selvage_ipamd_core::cloud::Operation;
use selvage_ipamd_core::fake::{Ec2, Fault};
use selvage_ipamd_core::plan::Targets;

use crate::node::Node;

#[test]
fn the_cause_of_an_empty_pool_is_the_one_that_holds() {
    let empty = |ec2: Ec2, targets: Targets| {
        let mut node = Node::new(ec2, targets);
        node.settle();
        while node.add() {}
        node.tick();
        node
    };
    let full = empty(Ec2::with_limits(1, 3), Targets::default()).cause();
    assert_eq!(
        full.to_string(),
        "every address is in use: 1 interfaces with 2 pod addresses each are the limit"
    );
    assert_eq!(full.may_pass_in(), None);

    let mut resting = empty(Ec2::with_limits(1, 3), Targets::default());
    resting.del(1);
    resting.wait(10);
    let cause = resting.cause();
    assert_eq!(cause.may_pass_in(), Some(Duration::from_secs(20)));
    assert!(
        cause
            .to_string()
            .contains("1 rest after their pods, the first for 20 s")
    );

    let mut taken = Node::new(Ec2::with_limits(1, 3), Targets::default());
    taken.settle();
    taken.wait(10);
    let eni = taken.ec2.enis().remove(0);
    taken.pool.reconcile(&taken.ec2.enis(), taken.now);
    let address = *eni.secondary_addresses.first().unwrap();
    taken.ec2.take_address(&eni.id, address);
    taken.pool.reconcile(&taken.ec2.enis(), taken.now);
    assert!(taken.add() && !taken.add());
    let cause = taken.cause();
    assert_eq!(cause.may_pass_in(), Some(Duration::from_secs(50)));
    assert!(
        cause
            .to_string()
            .contains("EC2 no longer shows 1 of this node's"),
        "{cause}"
    );

    let ec2 = Ec2::small();
    ec2.fail_always(Operation::CreateEni, Fault::Throttle);
    let cause = empty(ec2, Targets::default()).cause();
    assert!(matches!(cause, Cause::Throttled { .. }), "{cause:?}");

    let ec2 = Ec2::small();
    ec2.fail_always(
        Operation::CreateEni,
        Fault::Refuse("AttachmentLimitExceeded"),
    );
    let cause = empty(ec2, Targets::default()).cause();
    assert!(matches!(cause, Cause::NoRoomForEni { .. }), "{cause:?}");

    let ec2 = Ec2::small();
    ec2.fail_always(Operation::CreateEni, Fault::Refuse("Odd"));
    let cause = empty(ec2, Targets::default()).cause();
    assert!(
        cause.to_string().starts_with("CreateNetworkInterface: Odd"),
        "{cause}"
    );

    let pods = Targets {
        max_pods: Some(3),
        ..Targets::default()
    };
    let cause = empty(Ec2::small(), pods).cause();
    assert_eq!(cause, Cause::MaxPods { pods: 3 });

    let mut node = Node::new(Ec2::small(), Targets::default());
    node.settle();
    while node.add() {}
    let cause = node.cause();
    assert!(matches!(cause, Cause::Refilling { .. }), "{cause:?}");
    assert_eq!(cause.may_pass_in(), Some(Duration::ZERO));
}

#[test]
fn a_retry_that_is_under_way_does_not_hide_why_the_last_try_failed() {
    let ec2 = Ec2::small();
    ec2.fail_always(Operation::CreateEni, Fault::Refuse("Odd"));
    let mut node = Node::new(ec2, Targets::default());
    node.settle();
    while node.add() {}
    node.tick();
    node.wait(60);
    let cause = node.cause();
    assert!(matches!(cause, Cause::Refilling { .. }), "{cause:?}");
    assert!(
        cause
            .to_string()
            .contains("(the last try: CreateNetworkInterface: Odd"),
        "{cause}"
    );
}

#[test]
fn who_comes_while_another_call_about_the_only_interface_is_under_way_waits() {
    let mut node = Node::with_prefixes(Ec2::with_limits(3, 10), Targets::default());
    node.settle();
    while node.add() {}
    let eni = node.ec2.enis().remove(0).id;
    let tag = Action::Tag {
        eni,
        tags: [("key".to_owned(), "value".to_owned())].into(),
    };
    node.pool.begin(&tag, node.now);
    let cause = node.cause();
    assert_eq!(cause.may_pass_in(), Some(Duration::ZERO), "{cause}");
    assert!(
        cause.to_string().contains("can take more in a moment"),
        "{cause}"
    );
    let outcome = node.ec2.carry_out(&tag);
    node.pool.apply(outcome, node.now);
    node.settle();
    assert!(node.add());
}
