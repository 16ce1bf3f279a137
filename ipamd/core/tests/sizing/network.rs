//! Where interfaces are made: custom networking, subnets by tag, subnets that are full.

use selvage_ipamd_core::action::Action;
use selvage_ipamd_core::cause::Cause;
use selvage_ipamd_core::cloud::Operation;
use selvage_ipamd_core::fake::{self, Ec2};
use selvage_ipamd_core::ids::{SecurityGroupId, SubnetId};
use selvage_ipamd_core::plan::Targets;
use selvage_ipamd_core::pool::{EniConfig, Settings};

use crate::node::Node;

const OFFERED: (&str, &str) = ("kubernetes.io/role/cni", "1");
const EXCLUDED: (&str, &str) = ("kubernetes.io/role/cni", "0");

fn small() -> Ec2 {
    Ec2::small()
}

fn subnets(node: &Node) -> Vec<String> {
    let enis = node.ec2.enis();
    let mut subnets: Vec<_> = enis.iter().map(|eni| eni.subnet_id.to_string()).collect();
    subnets.sort();
    subnets
}

fn config(subnet: &str) -> Result<EniConfig, String> {
    Ok(EniConfig {
        name: "us-west-2a".into(),
        subnet_id: SubnetId::new(subnet),
        security_groups: vec![SecurityGroupId::new("sg-pods")],
    })
}

fn custom(ec2: Ec2) -> Node {
    let settings = Settings {
        custom_networking: true,
        ..fake::settings()
    };
    Node::with(ec2, Targets::default(), settings)
}

fn with_pods_subnets() -> Ec2 {
    small()
        .with_subnet("subnet-a", "10.40.16.0/20".parse().unwrap(), &[])
        .with_subnet("subnet-b", "10.40.32.0/20".parse().unwrap(), &[])
}

#[test]
fn under_custom_networking_the_primary_interface_serves_no_pods() {
    for subnet in ["subnet-a", "subnet-1"] {
        let mut node = custom(with_pods_subnets());
        node.pool.set_eni_config(config(subnet));
        node.settle();
        assert_eq!(node.sizes(), (2, 3, 3), "{subnet}");
        let enis = node.ec2.enis();
        assert!(enis[0].blocks().is_empty(), "{subnet}");
        assert_eq!(enis[1].subnet_id.as_str(), subnet);
        for _ in 0..3 {
            assert!(node.add());
        }
        assert!(!node.add());
        let made = node.tick().into_iter().find_map(|action| match action {
            Action::Create(request) => Some(request),
            _ => None,
        });
        assert_eq!(
            made.unwrap().security_groups,
            [SecurityGroupId::new("sg-pods")]
        );
    }
}

#[test]
fn without_an_eniconfig_nothing_grows_and_the_cause_says_what_is_missing() {
    let mut node = custom(with_pods_subnets());
    node.pool
        .set_eni_config(Err("ENIConfig us-west-2a does not exist".into()));
    node.settle();
    assert_eq!(node.ec2.enis().len(), 1);
    assert!(!node.add());
    let cause = node.cause();
    assert_eq!(
        cause.to_string(),
        "custom networking is on and this node has no ENIConfig: ENIConfig us-west-2a does not exist"
    );
    assert_eq!(cause.may_pass_in(), None);
    node.pool.set_eni_config(config("subnet-a"));
    node.settle();
    assert!(node.add());
    // Gone again: who serves goes on.
    node.pool.set_eni_config(Err("it has gone".into()));
    assert!(node.add());
}

#[test]
fn an_eniconfig_of_another_zone_makes_no_interface_that_could_not_be_attached() {
    let mut node = custom(with_pods_subnets());
    node.pool.set_eni_config(config("subnet-of-another-zone"));
    node.settle();
    assert_eq!(node.ec2.calls(Operation::CreateEni), 0);
    assert!(!node.add());
    assert_eq!(
        node.cause(),
        Cause::EniConfigElsewhere {
            name: "us-west-2a".into(),
            subnet: SubnetId::new("subnet-of-another-zone"),
        }
    );
}

#[test]
fn another_eniconfig_moves_new_interfaces_and_not_running_pods() {
    let mut node = custom(with_pods_subnets());
    node.pool.set_eni_config(config("subnet-a"));
    node.settle();
    assert!(node.add());
    let before = node.pool.leases();
    node.pool.set_eni_config(config("subnet-b"));
    node.settle();
    assert_eq!(subnets(&node), ["subnet-1", "subnet-a", "subnet-b"]);
    assert_eq!(node.pool.leases(), before);
    assert!(node.add());
    let inside = |node: &Node, subnet: &str| {
        let enis = node.pool.enis();
        let there = enis.filter(|eni| eni.subnet_id().as_str() == subnet);
        there.map(|eni| eni.assigned()).sum::<u32>()
    };
    assert_eq!(
        (inside(&node, "subnet-a"), inside(&node, "subnet-b")),
        (1, 1)
    );
    node.del(1);
    for _ in 0..3 {
        node.wait(61);
        node.settle();
    }
    let left = subnets(&node);
    assert!(!left.iter().any(|subnet| subnet == "subnet-a"), "{left:?}");
}

#[test]
fn interfaces_are_made_in_the_offered_subnet_with_the_most_room() {
    let mut node = Node::new(
        small()
            .with_subnet("subnet-tiny", "10.40.64.0/28".parse().unwrap(), &[OFFERED])
            .with_subnet("subnet-large", "10.40.80.0/19".parse().unwrap(), &[OFFERED])
            .with_subnet("subnet-private", "10.41.0.0/16".parse().unwrap(), &[])
            .with_subnet(
                "subnet-of-others",
                "10.42.0.0/16".parse().unwrap(),
                &[OFFERED, ("cni.networking.k8s.aws/cluster/theirs", "1")],
            )
            .with_subnet(
                "subnet-empty-tag",
                "10.43.0.0/16".parse().unwrap(),
                &[("kubernetes.io/role/cni", "")],
            ),
        Targets {
            warm_enis: 2,
            ..Targets::default()
        },
    );
    node.pool = {
        let settings = Settings {
            cluster: "ours".into(),
            ..fake::settings()
        };
        let mut pool = selvage_ipamd_core::pool::Pool::new(&node.ec2.instance(), settings);
        pool.reconcile(&node.ec2.enis(), node.now);
        pool
    };
    node.settle();
    assert_eq!(subnets(&node), ["subnet-1", "subnet-large"]);
}

#[test]
fn a_subnet_that_is_full_stops_nobody_else() {
    let mut node = Node::new(
        small().with_subnet("subnet-tiny", "10.40.64.0/28".parse().unwrap(), &[OFFERED]),
        Targets::default(),
    );
    node.ec2.fragment("subnet-1", false);
    // The primary's subnet is refused by EC2: a subnet of 16 with 5 reserved has room for two interfaces of 4.
    node.settle();
    node.add_many(4);
    assert_eq!(subnets(&node), ["subnet-1", "subnet-1", "subnet-1"]);
}

#[test]
fn when_one_subnet_refuses_the_next_is_asked_at_once() {
    let mut node = Node::new(
        small().with_subnet("subnet-next", "10.40.64.0/24".parse().unwrap(), &[OFFERED]),
        Targets {
            warm_enis: 2,
            ..Targets::default()
        },
    );
    node.ec2.fail_next(
        Operation::CreateEni,
        &[selvage_ipamd_core::fake::Fault::Refuse(
            "InsufficientFreeAddressesInSubnet",
        )],
    );
    node.settle();
    assert_eq!(subnets(&node), ["subnet-1", "subnet-next"]);
    assert_eq!(node.ec2.calls(Operation::CreateEni), 2);
}

#[test]
fn an_excluded_subnet_gives_no_new_addresses_and_drains() {
    let mut node = Node::new(
        small().with_subnet("subnet-next", "10.40.64.0/24".parse().unwrap(), &[OFFERED]),
        Targets::default(),
    );
    node.settle();
    assert!(node.add());
    node.ec2.tag_subnet("subnet-1", &[EXCLUDED]);
    // Noticed at the next look, at the latest within half a day.
    node.wait(43_300);
    node.settle();
    assert_eq!(node.sizes().2, 3);
    assert!(node.add());
    let enis = node.ec2.enis();
    assert_eq!(enis[0].secondary_addresses.len(), 1, "the pod's stays");
    assert_eq!(enis[1].subnet_id.as_str(), "subnet-next");
    node.del(1);
    node.wait(40);
    node.settle();
    assert!(node.ec2.enis()[0].blocks().is_empty());
    node.ec2.tag_subnet("subnet-next", &[EXCLUDED]);
    node.wait(43_300);
    node.settle();
    while node.add() {}
    node.tick();
    assert_eq!(node.cause(), Cause::SubnetsExcluded);
}

#[test]
fn without_leave_to_describe_subnets_the_primary_interfaces_subnet_is_used() {
    let mut node = Node::new(
        small().with_subnet("subnet-next", "10.40.64.0/18".parse().unwrap(), &[OFFERED]),
        Targets {
            warm_enis: 2,
            ..Targets::default()
        },
    );
    node.ec2.fail_always(
        Operation::DescribeSubnets,
        selvage_ipamd_core::fake::Fault::Refuse("UnauthorizedOperation"),
    );
    node.settle();
    assert_eq!(subnets(&node), ["subnet-1", "subnet-1"]);
    assert_eq!(node.ec2.calls(Operation::DescribeSubnets), 1);
}

#[test]
fn a_look_at_the_subnets_that_ec2_throttles_is_repeated_before_anything_grows() {
    let ec2 = small();
    ec2.tag_subnet("subnet-1", &[EXCLUDED]);
    let mut node = Node::new(ec2, Targets::default());
    let throttle = selvage_ipamd_core::fake::Fault::Throttle;
    node.ec2
        .fail_next(Operation::DescribeSubnets, &[throttle, throttle]);
    node.settle();
    assert_eq!(node.ec2.calls(Operation::DescribeSubnets), 3);
    assert!(node.ec2.enis()[0].blocks().is_empty());
}

#[test]
fn without_discovery_other_subnets_are_left_alone() {
    let settings = Settings {
        subnet_discovery: false,
        ..fake::settings()
    };
    let targets = Targets {
        warm_enis: 2,
        ..Targets::default()
    };
    let ec2 = small().with_subnet("subnet-next", "10.40.64.0/18".parse().unwrap(), &[OFFERED]);
    let mut node = Node::with(ec2, targets, settings);
    node.settle();
    assert_eq!(subnets(&node), ["subnet-1", "subnet-1"]);
}

#[test]
fn subnets_are_looked_at_again_before_an_interface_is_made_and_not_before_one_is_filled() {
    let mut node = Node::new(
        Ec2::with_limits(3, 10),
        Targets {
            warm_ips: Some(3),
            ..Targets::default()
        },
    );
    node.settle();
    let looks = |node: &Node| node.ec2.calls(Operation::DescribeSubnets);
    node.wait(4000);
    assert!(node.add());
    node.settle();
    assert_eq!((node.sizes(), looks(&node)), ((1, 4, 3), 1));
    for _ in 0..6 {
        assert!(node.add());
        node.settle();
        node.wait(61);
    }
    assert_eq!((node.ec2.enis().len(), looks(&node)), (2, 2));
}
