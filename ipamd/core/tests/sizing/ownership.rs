//! Whose interfaces are whose, and when none may come or go.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use selvage_ipamd_core::action::Action;
use selvage_ipamd_core::cause::Cause;
use selvage_ipamd_core::cloud::{EniKind, Operation, SeenEni};
use selvage_ipamd_core::fake::{self, Ec2, Fault};
use selvage_ipamd_core::ids::{EniId, SecurityGroupId};
use selvage_ipamd_core::limits::Mode;
use selvage_ipamd_core::plan::Targets;
use selvage_ipamd_core::pool::{EniConfig, Pool, Provisioning, Settings};

use crate::node::{Node, targets};

fn changes(node: &Node) -> u64 {
    [
        Operation::CreateEni,
        Operation::AttachEni,
        Operation::KeepWithInstance,
        Operation::AssignAddresses,
        Operation::AssignIpv6,
        Operation::UnassignAddresses,
        Operation::DetachEni,
        Operation::DeleteEni,
        Operation::TagEni,
    ]
    .iter()
    .map(|operation| node.ec2.calls(*operation))
    .sum()
}

#[test]
fn efa_and_trunk_interfaces_take_a_place_and_are_never_touched() {
    for kind in [EniKind::Efa, EniKind::Trunk] {
        let ec2 = Ec2::small();
        let id = ec2.attach_foreign(1, kind);
        let before = ec2.enis().into_iter().find(|eni| eni.id == id);
        let mut node = Node::new(ec2, Targets::default());
        node.settle();
        while node.add() {
            node.settle();
        }
        assert_eq!(
            node.pods, 7,
            "two interfaces with three addresses, {kind:?}"
        );
        for pod in 1..=6 {
            node.del(pod);
        }
        for _ in 0..10 {
            node.wait(100);
            node.settle();
        }
        let after = node.ec2.enis().into_iter().find(|eni| eni.id == id);
        assert_eq!(after, before);
    }
}

#[test]
fn an_untagged_interface_is_used_and_tagged_unless_the_settings_forbid_it() {
    for (manage_untagged, enis, free) in [(true, 2, 3), (false, 1, 3)] {
        let ec2 = Ec2::small();
        ec2.attach_by_hand(1, 3);
        let settings = Settings {
            manage_untagged,
            cluster: "ours".into(),
            ..fake::settings()
        };
        let mut node = Node::with(ec2, Targets::default(), settings);
        node.settle();
        assert_eq!((node.sizes().0, node.sizes().2), (enis, free));
        let by_hand = &node.ec2.enis()[1];
        assert_eq!(by_hand.tags.len(), if manage_untagged { 3 } else { 0 });
        assert_eq!(node.ec2.enis()[0].tags.len(), 3, "the primary one too");
        node.wait(1000);
        node.settle();
        assert_eq!(
            node.ec2.enis().len(),
            2,
            "tagged or not, we did not make it"
        );
    }
}

#[test]
fn an_adopted_interface_is_not_removed_by_the_next_process_either() {
    let ec2 = Ec2::small();
    ec2.attach_by_hand(1, 3);
    ec2.attach_by_hand(2, 3);
    let mut node = Node::new(ec2, Targets::default());
    node.settle();
    let tagged = |node: &Node| {
        node.ec2
            .enis()
            .iter()
            .filter(|e| !e.tags.is_empty())
            .count()
    };
    assert!(tagged(&node) >= 2);
    let mut node = Node::new(node.ec2, Targets::default());
    node.wait(5000);
    node.settle();
    assert_eq!(node.ec2.enis().len(), 3, "though it is more than is wanted");
}

#[test]
fn on_an_unschedulable_node_interfaces_stay_and_pods_that_wait_get_what_those_can_take() {
    let targets = Targets {
        warm_ips: Some(1),
        ..Targets::default()
    };
    let mut node = Node::new(Ec2::small(), targets);
    node.settle();
    node.pool.set_unschedulable(true);
    assert!(node.add());
    let before = changes(&node);
    node.settle();
    assert_eq!(changes(&node), before, "nobody waits");
    assert!(!node.add());
    node.settle();
    assert!(node.add(), "a daemon's pod tolerates the taint");
    node.waiting = 1;
    node.settle();
    assert!(node.add());
    node.waiting = 1;
    node.settle();
    assert_eq!(node.ec2.calls(Operation::CreateEni), 0);
    assert_eq!(node.cause(), Cause::Unschedulable);
    node.pool.set_unschedulable(false);
    node.settle();
    assert!(node.add());
}

#[test]
fn without_provisioning_what_is_attached_is_used_and_nothing_is_asked_for() {
    for (provisioning, setting) in [
        (
            Provisioning::AttachedOnly,
            "DISABLE_NETWORK_RESOURCE_PROVISIONING",
        ),
        (Provisioning::MetadataOnly, "ENABLE_IMDS_ONLY_MODE"),
    ] {
        let ec2 = Ec2::small();
        ec2.attach_by_hand(1, 3);
        let before = ec2.enis();
        let settings = Settings {
            provisioning,
            ..fake::settings()
        };
        let mut node = Node::with(ec2, Targets::default(), settings);
        node.settle();
        for _ in 0..3 {
            assert!(node.add());
        }
        assert!(!node.add());
        node.settle();
        assert_eq!(node.cause(), Cause::NotProvisioned { setting });
        for pod in 1..=3 {
            node.del(pod);
        }
        node.wait(4000);
        node.settle();
        assert_eq!(node.ec2.enis(), before);
        assert_eq!(node.ec2.calls(Operation::DescribeSubnets), 0);
    }
}

#[test]
fn metadata_alone_tells_enough_to_serve() {
    let ec2 = Ec2::small();
    ec2.attach_by_hand(1, 3);
    let settings = Settings {
        provisioning: Provisioning::MetadataOnly,
        ..fake::settings()
    };
    let mut node = Node::with(ec2, Targets::default(), settings);
    let told = node.ec2.enis();
    let facts: Vec<_> = told.iter().map(|eni| seen(eni).facts()).collect();
    node.pool = Pool::new(&node.ec2.instance(), node.pool.settings().clone());
    node.pool.reconcile(&facts, node.now);
    node.settle();
    assert!(node.add());
}

#[test]
fn what_metadata_told_first_is_completed_by_what_ec2_tells_later() {
    let mut node = Node::new(Ec2::small(), Targets::default());
    node.settle();
    assert!(node.add());
    node.settle();
    assert_eq!(node.ec2.enis().len(), 2);
    let leases = node.pool.leases();
    let facts: Vec<_> = node
        .ec2
        .enis()
        .iter()
        .map(|eni| seen(eni).facts())
        .collect();
    node.pool = Pool::new(&node.ec2.instance(), node.pool.settings().clone());
    node.pool.reconcile(&facts, node.now);
    node.restore(&leases);
    node.settle();
    assert!(node.add());
    node.del(1);
    node.del(2);
    node.wait(600);
    node.settle();
    assert_eq!(node.ec2.enis().len(), 2, "nobody knows yet that we made it");
    node.pool.reconcile(&node.ec2.enis(), node.now);
    for _ in 0..3 {
        node.wait(60);
        node.settle();
    }
    assert_eq!(node.ec2.enis().len(), 1);
}

fn seen(eni: &selvage_ipamd_core::cloud::EniFacts) -> SeenEni {
    let attachment = eni.attachment.as_ref().unwrap();
    SeenEni {
        id: eni.id.clone(),
        mac: eni.mac,
        device_index: attachment.device_index,
        card: attachment.card,
        subnet_id: eni.subnet_id.clone(),
        subnet: eni.subnet,
        primary_address: eni.primary_address,
        addresses: eni
            .secondary_addresses
            .iter()
            .copied()
            .chain([eni.primary_address])
            .collect(),
        prefixes: eni.prefixes.clone(),
        ipv6_addresses: eni.ipv6_addresses.clone(),
        ipv6_prefixes: eni.ipv6_prefixes.clone(),
    }
}

/// Free addresses of an interface, and the interface.
fn free_on(node: &Node, device_index: u16) -> (EniId, Vec<IpAddr>) {
    let eni = node
        .pool
        .enis()
        .find(|eni| eni.device_index() == Some(device_index))
        .unwrap();
    let free = eni.blocks().filter(|block| block.free(node.now) == 1);
    (eni.id().clone(), free.map(|b| b.net().addr()).collect())
}

/// Every address that is given out from now on, with no more asked for.
fn given(node: &mut Node) -> BTreeSet<IpAddr> {
    let before: BTreeSet<IpAddr> = node.pool.leases().iter().map(|l| l.address).collect();
    while node.add() {}
    let now = node.pool.leases().into_iter().map(|l| l.address);
    now.filter(|address| !before.contains(address)).collect()
}

#[test]
fn a_young_address_that_was_shown_and_no_longer_is_serves_no_new_pod_until_it_is_again() {
    let mut node = Node::new(Ec2::small(), Targets::default());
    node.settle();
    let before = node.ec2.enis();
    let (eni, free) = free_on(&node, 0);
    node.wait(5);
    // Metadata shows all but two, which are too new; then EC2 loses one that was shown and one that was not.
    let mut first: Vec<SeenEni> = before.iter().map(seen).collect();
    first[0].addresses.remove(&as_v4(free[1]));
    first[0].addresses.remove(&as_v4(free[2]));
    assert!(
        !node.pool.differs(&first, node.now),
        "what is new comes late"
    );
    node.ec2.take_block(&eni, free[0].into());
    node.ec2.take_block(&eni, free[1].into());
    let then: Vec<SeenEni> = node.ec2.enis().iter().map(seen).collect();
    assert!(node.pool.differs(&then, node.now), "one has vanished");
    let changes = node.pool.reconcile(&node.ec2.enis(), node.now);
    assert!(changes.is_empty(), "{changes:?}: it may be a late answer");

    let mut other = node.pool.clone();
    let given_now = given(&mut node);
    assert!(!given_now.contains(&free[0]), "{given_now:?}");
    assert!(given_now.contains(&free[1]), "nothing is known against it");

    std::mem::swap(&mut node.pool, &mut other);
    node.pool.reconcile(&before, node.now);
    assert!(given(&mut node).contains(&free[0]), "it is shown again");
}

#[test]
fn a_young_interface_that_was_taken_away_serves_no_new_pod() {
    let mut node = Node::new(Ec2::small(), Targets::default());
    node.settle();
    assert!(node.add());
    node.settle();
    let (eni, free) = free_on(&node, 1);
    assert!(!free.is_empty());
    node.wait(5);
    node.pool.reconcile(&node.ec2.enis(), node.now);
    node.ec2.take_eni(&eni);
    node.pool.reconcile(&node.ec2.enis(), node.now);
    let given = given(&mut node);
    assert!(!given.is_empty());
    assert!(
        free.iter().all(|address| !given.contains(address)),
        "{given:?}"
    );
    let cause = node.cause().to_string();
    assert!(cause.contains("being refilled"), "{cause}");
}

#[test]
fn what_we_took_away_ourselves_is_not_missed() {
    let mut node = Node::new(Ec2::small(), Targets::default());
    node.settle();
    assert!(node.add());
    node.settle();
    node.wait(120);
    let all: Vec<SeenEni> = node.ec2.enis().iter().map(seen).collect();
    assert_eq!(all.len(), 2);
    assert!(!node.pool.differs(&all, node.now));
    node.del(1);
    node.wait(600);
    let mut done = false;
    while !done {
        done = matches!(node.tick()[..], [Action::Detach { .. }]);
    }
    // Metadata has forgotten it; it is still to be deleted.
    assert!(!node.pool.differs(&all[..1], node.now));
}

#[test]
fn what_is_missing_is_made_good_before_it_is_given_up() {
    let mut node = Node::new(Ec2::small(), targets(0, 1, 2));
    node.settle();
    assert_eq!(node.sizes(), (1, 2, 2));
    node.wait(5);
    node.pool.reconcile(&node.ec2.enis(), node.now);
    let (eni, free) = free_on(&node, 0);
    node.ec2.take_block(&eni, free[0].into());
    node.pool.reconcile(&node.ec2.enis(), node.now);
    let actions = node.tick();
    assert!(
        matches!(actions[..], [Action::Assign { .. }]),
        "{actions:?}"
    );
    // Which the same one is; it can be given out before a description shows it.
    assert_eq!(node.sizes(), (1, 2, 2));
}

fn as_v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => panic!("{v6}"),
    }
}

#[test]
fn an_ipv6_node_asks_for_one_prefix_and_lives_on_it() {
    let settings = Settings {
        mode: Mode::Ipv6,
        ..fake::settings()
    };
    let mut node = Node::with(Ec2::small(), Targets::default(), settings);
    node.settle();
    assert_eq!(node.ec2.calls(Operation::AssignIpv6), 1);
    for _ in 0..300 {
        assert!(node.add());
    }
    node.settle();
    let eni = &node.ec2.enis()[0];
    assert_eq!(eni.ipv6_prefixes.len(), 1);
    assert_eq!(
        (node.ec2.enis().len(), eni.secondary_addresses.len()),
        (1, 0)
    );
    let first = node.pool.leases().iter().map(|l| l.address).min().unwrap();
    let prefix = eni.ipv6_prefixes.first().unwrap();
    assert_eq!(first, prefix.network(), "the first address is given too");
}

#[test]
fn an_ipv6_prefix_that_vanishes_is_noticed_and_made_good() {
    let settings = Settings {
        mode: Mode::Ipv6,
        ..fake::settings()
    };
    let mut node = Node::with(Ec2::small(), Targets::default(), settings);
    node.settle();
    assert!(node.add());
    let eni = node.ec2.enis().remove(0);
    let prefix = *eni.ipv6_prefixes.first().unwrap();
    node.ec2.take_block(&eni.id, prefix.into());
    node.wait(100);
    let changes = node.pool.reconcile(&node.ec2.enis(), node.now);
    assert_eq!(changes.lost_blocks, [prefix.into()]);
    assert_eq!(changes.orphaned.len(), 1);
    node.settle();
    assert!(node.add());
    node.del(1);
}

#[test]
fn an_ipv6_node_whose_subnet_is_excluded_gets_an_interface_in_another() {
    let settings = Settings {
        mode: Mode::Ipv6,
        ..fake::settings()
    };
    let ec2 = Ec2::small().with_subnet(
        "subnet-next",
        "10.40.64.0/24".parse().unwrap(),
        &[("kubernetes.io/role/cni", "1")],
    );
    ec2.tag_subnet("subnet-1", &[("kubernetes.io/role/cni", "0")]);
    let mut node = Node::with(ec2, Targets::default(), settings);
    node.settle();
    assert!(node.add());
    let enis = node.ec2.enis();
    assert!(enis[0].ipv6_prefixes.is_empty());
    assert_eq!((enis.len(), enis[1].ipv6_prefixes.len()), (2, 1));
}

fn groups_of(node: &Node) -> Vec<String> {
    let enis = node.ec2.enis();
    let groups = enis.iter().map(|eni| {
        let groups: Vec<&str> = eni
            .security_groups
            .iter()
            .flatten()
            .map(SecurityGroupId::as_str)
            .collect();
        groups.join("+")
    });
    groups.collect()
}

/// A node whose pool has grown by an interface, beside one that somebody attached and one that is a stranger's.
fn of_three(settings: Settings) -> Node {
    let ec2 = Ec2::with_limits(4, 4);
    ec2.attach_by_hand(1, 3);
    ec2.attach_foreign(2, EniKind::Trunk);
    let mut node = Node::with(ec2, targets(0, 2, None), settings);
    node.settle();
    for _ in 0..6 {
        node.add();
        node.settle();
    }
    assert_eq!(node.ec2.enis().len(), 4);
    node
}

#[test]
fn interfaces_that_we_made_follow_the_primary_ones_security_groups_and_no_others() {
    let mut node = of_three(fake::settings());
    let wanted = ["sg-2", "sg-3"].map(SecurityGroupId::new);
    node.pool.set_security_groups(wanted.to_vec());
    node.settle();
    assert_eq!(groups_of(&node), ["sg-1", "sg-1", "sg-1", "sg-2+sg-3"]);
    assert_eq!(node.ec2.calls(Operation::RegroupEni), 1);
    // Whoever gives it others is undone, once that is told.
    let ours = node.ec2.enis().remove(3);
    let action = Action::Regroup {
        eni: ours.id,
        groups: [SecurityGroupId::new("sg-9")].into(),
    };
    node.ec2.carry_out(&action);
    node.settle();
    assert_eq!(groups_of(&node)[3], "sg-9");
    node.pool.reconcile(&node.ec2.enis(), node.now);
    node.settle();
    assert_eq!(groups_of(&node)[3], "sg-2+sg-3");
}

#[test]
fn groups_that_are_refused_are_asked_for_once_and_others_again() {
    let mut node = of_three(fake::settings());
    node.ec2.fail_always(
        Operation::RegroupEni,
        Fault::Refuse("InvalidGroup.NotFound"),
    );
    node.pool
        .set_security_groups(vec![SecurityGroupId::new("sg-gone")]);
    for _ in 0..3 {
        node.settle();
        node.wait(60);
        node.pool.reconcile(&node.ec2.enis(), node.now);
    }
    assert_eq!(node.ec2.calls(Operation::RegroupEni), 1);
    node.ec2.heal();
    node.pool
        .set_security_groups(vec![SecurityGroupId::new("sg-2")]);
    node.settle();
    assert_eq!(groups_of(&node)[3], "sg-2");
}

#[test]
fn a_change_of_groups_whose_reply_is_lost_is_made_again() {
    let mut node = of_three(fake::settings());
    node.ec2
        .fail_next(Operation::RegroupEni, &[Fault::Throttle, Fault::Lost]);
    node.pool
        .set_security_groups(vec![SecurityGroupId::new("sg-2")]);
    for _ in 0..5 {
        node.settle();
        node.wait(60);
    }
    assert_eq!(groups_of(&node)[3], "sg-2");
    assert_eq!(node.ec2.calls(Operation::RegroupEni), 3);
}

#[test]
fn under_custom_networking_what_is_attached_keeps_its_groups() {
    let settings = Settings {
        custom_networking: true,
        ..fake::settings()
    };
    let mut node = Node::with(Ec2::small(), targets(0, 2, None), settings);
    node.pool.set_eni_config(Ok(EniConfig {
        name: "default".into(),
        subnet_id: node.ec2.instance().subnet_id,
        security_groups: Vec::new(),
    }));
    node.settle();
    node.pool
        .set_security_groups(vec![SecurityGroupId::new("sg-2")]);
    node.settle();
    assert_eq!(node.ec2.enis().len(), 2);
    assert_eq!(node.ec2.calls(Operation::RegroupEni), 0);
}
