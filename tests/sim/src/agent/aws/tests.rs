//! Each rule of the restatement that is not arithmetic (`warm`) or bookkeeping (`store`), on one node.

use std::time::Duration;

use selvage_ipamd_core::ids::Timestamp;
use selvage_ipamd_core::limits::Limits;

use super::warm::Targets;
use super::{Aws, Event};
use crate::agent::{Agent, Effect, Io};
use crate::ec2::{Ask, Ec2};
use crate::machine::{Machine, NodeId, PodId};
use crate::queue::Queue;
use crate::quota::Api;

const NODE: NodeId = NodeId(0);
const SUBNET: &str = "10.0.0.0/24";

struct One {
    agent: Aws,
    ec2: Ec2,
    queue: Queue<Event>,
    now: Timestamp,
    ready: bool,
    granted: u32,
    refused: u32,
    pods: u32,
}

impl One {
    /// A node of three interfaces with nine pod addresses each, whose agent has just begun.
    fn boot(targets: &Targets) -> Self {
        Self::boot_on(targets, |_| ())
    }

    fn boot_on(targets: &Targets, prepare: impl FnOnce(&mut Ec2)) -> Self {
        let machine = Machine {
            subnet: 0,
            limits: Limits::new(3, 10).unwrap(),
        };
        let now = Timestamp::from_unix(Duration::from_secs(1_000_000));
        let mut ec2 = Ec2::new(&[SUBNET.parse().unwrap()], &[machine], 7, now);
        ec2.start(NODE, now);
        prepare(&mut ec2);
        let mut one = Self {
            agent: Aws::new(targets, NODE, machine, 7),
            ec2,
            queue: Queue::default(),
            now,
            ready: false,
            granted: 0,
            refused: 0,
            pods: 0,
        };
        one.act(|agent, io| agent.start(io));
        one
    }

    /// The same, after its start.
    fn settled(targets: &Targets) -> Self {
        let mut one = Self::boot(targets);
        one.pass(20);
        assert!(one.ready);
        one.ec2.quotas.log.clear();
        one
    }

    fn act(&mut self, act: impl FnOnce(&mut Aws, &mut Io<'_, Event>)) {
        let mut io = Io {
            now: self.now,
            node: NODE,
            machine: self.agent.machine,
            ec2: &mut self.ec2,
            starting: 0,
            effects: Vec::new(),
        };
        act(&mut self.agent, &mut io);
        for effect in io.effects {
            match effect {
                Effect::Wake(at, event) => self.queue.put(at, event),
                Effect::Granted(..) => self.granted += 1,
                Effect::Refused(_) => self.refused += 1,
                Effect::Ready => self.ready = true,
            }
        }
    }

    fn pass(&mut self, seconds: u64) {
        let until = self.now + Duration::from_secs(seconds);
        while let Some((at, event)) = self.queue.take() {
            if at > until {
                self.queue.put(at, event);
                break;
            }
            self.now = at;
            self.act(|agent, io| agent.wake(event, io));
        }
        self.now = until;
    }

    fn add(&mut self, pods: u32) {
        for _ in 0..pods {
            let pod = PodId(self.pods);
            self.pods += 1;
            self.act(|agent, io| agent.add(pod, io));
        }
    }

    fn del(&mut self, pods: std::ops::Range<u32>) {
        for pod in pods {
            self.act(|agent, io| agent.del(PodId(pod), io));
        }
    }

    fn calls(&self) -> Vec<Api> {
        self.ec2.quotas.log.iter().map(|(_, api)| *api).collect()
    }

    fn count(&self, api: Api) -> usize {
        self.calls().iter().filter(|called| **called == api).count()
    }

    fn primary(&self) -> selvage_ipamd_core::ids::EniId {
        let views = self.ec2.truth(NODE, self.now);
        let first = |v: &&crate::ec2::View| v.attachment.as_ref().is_some_and(|a| a.1 == 0);
        views.iter().find(first).unwrap().id.clone()
    }
}

fn by_addresses(warm_ips: u32, minimum_ips: u32) -> Targets {
    Targets {
        warm_ips,
        minimum_ips,
        ..Targets::default()
    }
}

#[test]
fn section_4_4_the_start_describes_tags_checks_the_subnet_increases_once_and_serves() {
    let mut one = One::boot(&Targets::default());
    one.pass(5);
    assert!(one.ready);
    assert_eq!(
        one.calls(),
        [
            Api::DescribeNetworkInterfaces,
            Api::CreateTags,
            Api::DescribeSubnets,
            Api::AssignPrivateIpAddresses,
        ]
    );
    assert_eq!(
        one.agent.store.stats().total,
        9,
        "all places of the primary interface"
    );
}

#[test]
fn section_4_4_it_serves_even_if_the_first_increase_fails() {
    let mut one = One::boot_on(&Targets::default(), |ec2| {
        ec2.quotas.close(Api::AssignPrivateIpAddresses);
    });
    one.pass(30);
    assert!(one.ready);
    one.add(1);
    assert_eq!(one.refused, 1);
}

#[test]
fn section_4_1_tags_that_cannot_be_written_in_five_tries_end_the_process_which_starts_again() {
    let mut one = One::boot_on(&Targets::default(), |ec2| ec2.quotas.close(Api::CreateTags));
    one.pass(600);
    let describes = one.count(Api::DescribeNetworkInterfaces);
    assert!(describes > 2, "it is started again");
    let tags = one.count(Api::CreateTags);
    assert!(
        tags >= (describes - 1) * 5 * 3,
        "five tries of three attempts each: {tags}"
    );
    assert!(!one.ready);
}

#[test]
fn section_4_6_a_throttled_call_is_attempted_three_times() {
    let mut one = One::settled(&Targets::default());
    one.ec2.quotas.close(Api::CreateNetworkInterface);
    one.add(1);
    one.pass(60);
    let rounds = one.count(Api::DescribeSubnets);
    let creates = one.count(Api::CreateNetworkInterface);
    assert!(rounds > 3, "it tries again each round");
    assert!(
        creates > (rounds - 1) * 3 && creates <= rounds * 3,
        "{creates} in {rounds} rounds"
    );
}

#[test]
fn section_4_6_an_interface_is_made_by_five_calls_and_shown_before_it_serves() {
    let mut one = One::settled(&Targets::default());
    one.add(1);
    one.pass(40);
    assert_eq!(
        one.calls(),
        [
            Api::DescribeSubnets,
            Api::CreateNetworkInterface,
            Api::DescribeInstances,
            Api::AttachNetworkInterface,
            Api::ModifyNetworkInterfaceAttribute,
        ]
    );
    assert_eq!(one.agent.store.stats().total, 18);
}

#[test]
fn section_4_1_one_interface_a_round() {
    let targets = Targets {
        warm_enis: 3,
        ..Targets::default()
    };
    let mut one = One::boot(&targets);
    one.pass(60);
    let log = one.ec2.quotas.log.iter();
    let creates = log.filter(|(_, api)| *api == Api::CreateNetworkInterface);
    let at: Vec<Timestamp> = creates.map(|(at, _)| *at).collect();
    assert_eq!(at.len(), 2, "the primary and two more are three");
    assert!(at[1].since(at[0]) > Duration::from_secs(5));
}

#[test]
fn section_4_5_in_interface_mode_the_primary_is_filled_whole_before_another_is_made() {
    let mut one = One::boot(&Targets::default());
    one.pass(30);
    let calls = one.calls();
    assert!(calls.contains(&Api::AssignPrivateIpAddresses), "{calls:?}");
    assert!(!calls.contains(&Api::CreateNetworkInterface), "{calls:?}");
}

#[test]
fn section_4_5_with_address_targets_it_asks_for_what_is_short() {
    let mut one = One::settled(&by_addresses(2, 0));
    assert_eq!(one.agent.store.stats().total, 2);
    one.add(2);
    one.pass(10);
    assert_eq!(one.calls(), [Api::AssignPrivateIpAddresses]);
    assert_eq!(one.agent.store.stats().total, 4);
}

#[test]
fn section_4_5_the_interface_limit_is_kept() {
    let mut one = One::settled(&Targets::default());
    one.add(1);
    one.pass(60);
    one.add(17);
    one.pass(60);
    one.add(9);
    one.ec2.quotas.log.clear();
    one.pass(60);
    assert_eq!(one.granted, 27);
    assert_eq!(one.calls(), [], "three interfaces are the limit");
}

#[test]
fn section_4_5_a_node_that_takes_no_pods_changes_nothing() {
    let mut one = One::settled(&Targets::default());
    one.act(|agent, io| agent.cordon(io));
    one.add(5);
    one.pass(600);
    assert_eq!(one.calls(), []);
}

#[test]
fn section_4_1_decreases_are_half_a_minute_apart() {
    let mut one = One::settled(&by_addresses(2, 0));
    one.add(2);
    one.pass(10);
    one.add(2);
    one.pass(10);
    one.ec2.quotas.log.clear();
    one.del(0..2);
    one.pass(6);
    assert_eq!(
        one.calls(),
        [Api::UnassignPrivateIpAddresses],
        "cooling or not"
    );
    one.del(2..4);
    one.pass(20);
    assert_eq!(one.count(Api::UnassignPrivateIpAddresses), 1);
    one.pass(15);
    assert_eq!(one.count(Api::UnassignPrivateIpAddresses), 2);
}

#[test]
fn section_4_6_a_free_interface_is_described_detached_and_after_a_pause_deleted() {
    let mut one = One::settled(&Targets::default());
    one.add(9);
    one.pass(40);
    one.del(0..9);
    one.ec2.quotas.log.clear();
    one.pass(90);
    let log = &one.ec2.quotas.log;
    let calls = one.calls();
    assert_eq!(
        calls[..3],
        [
            Api::DescribeNetworkInterfaces,
            Api::DetachNetworkInterface,
            Api::DeleteNetworkInterface,
        ]
    );
    assert!(log[2].0.since(log[1].0) >= Duration::from_secs(2));
    assert!(
        calls[3..]
            .iter()
            .all(|api| *api == Api::DeleteNetworkInterface),
        "{calls:?}"
    );
    assert_eq!(one.agent.store.stats().total, 9);
}

#[test]
fn section_4_6_an_interface_that_cannot_be_attached_is_deleted() {
    let mut one = One::settled(&Targets::default());
    // Two by hand, that the store does not know yet.
    for index in [1, 2] {
        let what = (0, Ask::Addresses(0));
        let (_, made) = one.ec2.create(NODE, what, "", Default::default(), one.now);
        let (_, attached) = one.ec2.attach(&made.unwrap().id, index, one.now);
        attached.unwrap();
    }
    one.ec2.quotas.log.clear();
    one.add(1);
    one.pass(12);
    assert_eq!(
        one.calls()[3..5],
        [Api::AttachNetworkInterface, Api::DeleteNetworkInterface]
    );
}

#[test]
fn section_4_1_nothing_is_asked_of_any_subnet_for_two_minutes_after_one_had_not_enough() {
    let mut one = One::settled(&Targets::default());
    one.ec2.occupy(0, 300);
    one.add(1);
    one.pass(10);
    assert_eq!(one.count(Api::CreateNetworkInterface), 1);
    one.pass(105);
    assert_eq!(one.count(Api::CreateNetworkInterface), 1);
    one.pass(25);
    assert_eq!(one.count(Api::CreateNetworkInterface), 2);
}

#[test]
fn section_4_5_where_many_are_refused_one_is_asked_for() {
    let mut one = One::boot_on(&Targets::default(), |ec2| {
        // Three are left.
        ec2.occupy(0, 247);
    });
    one.pass(10);
    assert_eq!(one.calls()[3..5], [Api::AssignPrivateIpAddresses; 2]);
    assert!(
        one.agent.store.stats().total > 0,
        "the second one brought one"
    );
}

#[test]
fn section_4_12_an_interface_that_is_full_already_is_imported() {
    let mut one = One::settled(&by_addresses(2, 0));
    let primary = one.primary();
    let (_, given) = one.ec2.assign(&primary, Ask::Addresses(7), one.now);
    given.unwrap();
    one.ec2.quotas.log.clear();
    one.add(1);
    one.pass(8);
    assert_eq!(
        one.calls()[..2],
        [
            Api::AssignPrivateIpAddresses,
            Api::DescribeNetworkInterfaces
        ]
    );
}

#[test]
fn section_4_10_a_difference_to_metadata_is_looked_at_after_a_minute_and_verified_with_one_call() {
    let mut one = One::settled(&by_addresses(2, 0));
    let primary = one.primary();
    let (_, given) = one.ec2.assign(&primary, Ask::Addresses(1), one.now);
    given.unwrap();
    one.ec2.quotas.log.clear();
    one.pass(30);
    assert_eq!(one.calls(), []);
    one.pass(45);
    let calls = one.calls();
    assert_eq!(
        calls.first(),
        Some(&Api::DescribeNetworkInterfaces),
        "{calls:?}"
    );
    assert_eq!(one.count(Api::DescribeNetworkInterfaces), 1);
}

#[test]
fn section_4_10_without_a_difference_ec2_is_not_asked() {
    let mut one = One::settled(&Targets::default());
    one.pass(1800);
    assert_eq!(one.calls(), []);
}

#[test]
fn section_4_1_each_node_looks_for_leaked_interfaces_each_hour() {
    let mut one = One::settled(&Targets::default());
    one.pass(3 * 3600);
    assert_eq!(one.calls(), [Api::DescribeNetworkInterfaces; 3]);
}

#[test]
fn section_4_2_a_pod_is_refused_at_once_when_nothing_is_free() {
    let mut one = One::settled(&by_addresses(1, 0));
    one.add(2);
    assert_eq!((one.granted, one.refused), (1, 1));
}

#[test]
fn section_4_5_prefixes_are_asked_for_one_at_a_time_with_a_warm_target_of_one() {
    let targets = Targets {
        prefixes: true,
        ..Targets::default()
    };
    let mut one = One::settled(&targets);
    assert_eq!(one.agent.store.stats().total, 16);
    one.add(1);
    one.pass(10);
    assert_eq!(one.calls(), [Api::AssignPrivateIpAddresses]);
    assert_eq!(one.agent.store.stats().total, 32);
}
