//! Random histories of pods, failures, lost replies, lagging reads, crashes and thefts, against what must always hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;
use selvage_ipamd_core::cloud::{Operation, TAG_INSTANCE};
use selvage_ipamd_core::fake::{self, Ec2, Fault};
use selvage_ipamd_core::ids::{PodKey, PodName, Timestamp};
use selvage_ipamd_core::plan::{Targets, plan};
use selvage_ipamd_core::pool::{Entry, Pool, Settings};

const COOLDOWN: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
enum Event {
    Add,
    AddAgain(usize),
    Del(usize),
    Wait(u64),
    Tick,
    TickBackwards,
    CrashMidTick,
    Restart,
    Survey,
    Fault(Operation, Fault),
    Lag(u32),
    FreeLeft(Option<u32>),
    TakeAddress(usize),
    TakeEni(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop::sample::select(vec![
        Operation::CreateEni,
        Operation::AttachEni,
        Operation::KeepWithInstance,
        Operation::AssignAddresses,
        Operation::UnassignAddresses,
        Operation::DetachEni,
        Operation::DeleteEni,
        Operation::DescribeEnis,
    ])
}

fn fault() -> impl Strategy<Value = Fault> {
    prop::sample::select(vec![
        Fault::Throttle,
        Fault::Lost,
        Fault::Broken,
        Fault::Refuse("SomethingNew"),
        Fault::Refuse("PrivateIpAddressLimitExceeded"),
        Fault::Refuse("AttachmentLimitExceeded"),
        Fault::Refuse("InvalidNetworkInterfaceID.NotFound"),
        Fault::Refuse("UnauthorizedOperation"),
    ])
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => Just(Event::Add),
        1 => any::<usize>().prop_map(Event::AddAgain),
        5 => any::<usize>().prop_map(Event::Del),
        4 => (1u64..90).prop_map(Event::Wait),
        10 => Just(Event::Tick),
        3 => Just(Event::TickBackwards),
        1 => Just(Event::CrashMidTick),
        1 => Just(Event::Restart),
        2 => Just(Event::Survey),
        4 => (operation(), fault()).prop_map(|(o, f)| Event::Fault(o, f)),
        1 => prop::option::of(0u32..6).prop_map(Event::FreeLeft),
    ]
}

fn event_with_thefts() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => event(),
        1 => (1u32..3).prop_map(Event::Lag),
        1 => any::<usize>().prop_map(Event::TakeAddress),
        1 => any::<usize>().prop_map(Event::TakeEni),
    ]
}

fn targets() -> impl Strategy<Value = Targets> {
    prop_oneof![
        (0u32..3).prop_map(|warm_enis| Targets {
            warm_enis,
            ..Targets::default()
        }),
        (prop::option::of(0u32..5), prop::option::of(1u32..9)).prop_map(
            |(warm_ips, minimum_ips)| Targets {
                warm_ips,
                minimum_ips,
                ..Targets::default()
            }
        ),
        Just(Targets {
            max_enis: Some(2),
            max_pods: Some(5),
            ..Targets::default()
        }),
    ]
}

struct World {
    ec2: Ec2,
    pool: Pool,
    targets: Targets,
    now: Timestamp,
    starts: u64,
    serial: u32,
    /// Pods on the node, by our own book.
    pods: BTreeMap<PodKey, Ipv4Addr>,
    /// When an address was last let go.
    freed: BTreeMap<Ipv4Addr, Timestamp>,
    /// Somebody took things away, or reads lie: what EC2 holds is no longer ours alone to say.
    disturbed: bool,
}

impl World {
    fn new(targets: Targets) -> Self {
        let ec2 = Ec2::small();
        let pool = Pool::new(&ec2.instance(), settings(1));
        let mut world = World {
            ec2,
            pool,
            targets,
            now: Timestamp::from_unix(Duration::from_secs(1_000_000)),
            starts: 1,
            serial: 0,
            pods: BTreeMap::new(),
            freed: BTreeMap::new(),
            disturbed: false,
        };
        world.survey();
        world
    }

    fn survey(&mut self) {
        // Reads that fail or lag are part of the game; a failed one is simply not taken in.
        let probe = selvage_ipamd_core::action::Action::Describe {
            eni: self.ec2.instance().primary_eni,
        };
        if self.ec2.carry_out(&probe).cloud_error().is_none() {
            self.pool.reconcile(&self.ec2.enis(), self.now);
        }
    }

    fn tick(&mut self, backwards: bool) {
        let limits = self.ec2.instance_limits();
        let actions = plan(&self.pool, &self.targets, &limits, self.now);
        let busy: BTreeSet<_> = actions.iter().filter_map(|a| a.eni().cloned()).collect();
        let named = actions.iter().filter(|a| a.eni().is_some()).count();
        assert_eq!(busy.len(), named, "two actions for one interface");
        for action in &actions {
            self.pool.begin(action, self.now);
        }
        let again = plan(&self.pool, &self.targets, &limits, self.now);
        for action in &again {
            assert!(
                action.eni().is_none_or(|eni| !busy.contains(eni)),
                "{action} while another action of it is under way"
            );
        }
        let mut outcomes: Vec<_> = actions.iter().map(|a| self.ec2.carry_out(a)).collect();
        if backwards {
            outcomes.reverse();
        }
        for outcome in outcomes {
            self.pool.apply(outcome, self.now);
        }
    }

    fn restart(&mut self) {
        let entries: Vec<Entry> = self
            .pool
            .leases()
            .into_iter()
            .map(|l| Entry {
                key: l.key,
                pod: l.pod,
                address: l.address,
                since: l.since,
            })
            .collect();
        let resting = self.pool.cooling(self.now);
        self.starts += 1;
        self.pool = Pool::new(&self.ec2.instance(), settings(self.starts));
        self.pool.reconcile(&self.ec2.enis(), self.now);
        self.pool.restore(&entries, &resting).unwrap();
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Add => {
                self.serial += 1;
                let key = key(self.serial);
                self.add(key);
            }
            Event::AddAgain(which) => {
                let asking = pick(&self.pods, which);
                // One whose address is on no interface (any more) would get another.
                if let Some((key, address)) = asking.filter(|(k, _)| self.pool.lease(k).is_some()) {
                    let again = self.pool.assign(&key, &pod(), self.now).unwrap();
                    assert_eq!((again.lease.address, again.new), (address, false));
                }
            }
            Event::Del(which) => {
                if let Some((key, address)) = pick(&self.pods, which) {
                    let released = self.pool.release(&key, self.now);
                    assert_eq!(released.map(|r| r.lease.address), Some(address), "{key}");
                    assert_eq!(self.pool.release(&key, self.now), None);
                    self.pods.remove(&key);
                    self.freed.insert(address, self.now);
                }
            }
            Event::Wait(seconds) => self.now = self.now + Duration::from_secs(seconds),
            Event::Tick => self.tick(false),
            Event::TickBackwards => self.tick(true),
            Event::CrashMidTick => {
                let limits = self.ec2.instance_limits();
                for action in plan(&self.pool, &self.targets, &limits, self.now) {
                    self.pool.begin(&action, self.now);
                    self.ec2.carry_out(&action);
                }
                self.restart();
            }
            Event::Restart => self.restart(),
            Event::Survey => self.survey(),
            Event::Fault(operation, fault) => self.ec2.fail_next(operation, &[fault]),
            Event::Lag(count) => {
                self.disturbed = true;
                self.ec2.lag_reads(count);
            }
            Event::FreeLeft(count) => self.ec2.set_free_left(count),
            Event::TakeAddress(which) => {
                self.disturbed = true;
                let all: BTreeMap<_, _> = self
                    .ec2
                    .enis()
                    .into_iter()
                    .flat_map(|e| {
                        e.secondary_addresses
                            .into_iter()
                            .map(move |a| (a, e.id.clone()))
                    })
                    .collect();
                if let Some((address, eni)) = pick(&all, which) {
                    self.ec2.take_address(&eni, address);
                }
            }
            Event::TakeEni(which) => {
                self.disturbed = true;
                let enis = self.ec2.enis();
                let eni = &enis[which % enis.len()];
                if eni.id != self.ec2.instance().primary_eni {
                    self.ec2.take_eni(&eni.id);
                }
            }
        }
    }

    fn add(&mut self, key: PodKey) {
        let Ok(assignment) = self.pool.assign(&key, &pod(), self.now) else {
            return;
        };
        let address = assignment.lease.address;
        assert!(assignment.new);
        assert!(
            !self.pods.values().any(|a| *a == address),
            "{address} given to two pods"
        );
        if let Some(freed) = self.freed.get(&address) {
            assert!(
                self.now >= *freed + COOLDOWN,
                "{address} given again after {:?}",
                self.now.since(*freed)
            );
        }
        if !self.disturbed {
            let truth = self.ec2.enis();
            let holder = truth
                .iter()
                .find(|e| e.secondary_addresses.contains(&address));
            let holder = holder.unwrap_or_else(|| panic!("{address} is not ours in EC2"));
            assert!(holder.attachment.is_some(), "{address} is not attached");
            assert!(
                holder.attachment.as_ref().unwrap().delete_on_termination,
                "{} serves and would outlive the instance",
                holder.id
            );
        }
        self.pods.insert(key, address);
    }

    fn check(&self) {
        let leases: BTreeMap<_, _> = self
            .pool
            .leases()
            .into_iter()
            .map(|l| (l.key, l.address))
            .collect();
        assert_eq!(leases, self.pods, "the pool's book is not the node's");
        let mut seen = BTreeSet::new();
        for (address, _) in self.pool.enis().flat_map(|e| e.slots()) {
            assert!(seen.insert(address), "{address} is on two interfaces");
        }
        let stats = self.pool.stats(self.now);
        assert!(stats.assigned + stats.cooling <= stats.total, "{stats:?}");
    }

    /// All is well from here on: the pool must come to agree with EC2 and to hold what it should.
    fn settle(&mut self) {
        self.ec2.heal();
        for _ in 0..40 {
            for _ in 0..8 {
                self.tick(false);
                self.now = self.now + Duration::from_secs(3);
            }
            self.now = self.now + Duration::from_secs(70);
            self.pool.reconcile(&self.ec2.enis(), self.now);
            self.check();
        }
        let truth = self.ec2.enis();
        let instance = self.ec2.instance().instance_id;
        for eni in &truth {
            let held = self.pool.eni(&eni.id);
            let held = held.unwrap_or_else(|| panic!("{} is lost to us", eni.id));
            let ours: BTreeSet<_> = held.slots().map(|(a, _)| a).collect();
            assert_eq!(ours, eni.secondary_addresses, "{}", eni.id);
            assert!(held.stage().is_ready(), "{} is {:?}", eni.id, held.stage());
            let attachment = eni.attachment.as_ref().unwrap();
            assert!(attachment.delete_on_termination, "{}", eni.id);
            let tagged = eni.tags.get(TAG_INSTANCE) == Some(&instance.to_string());
            assert!(tagged || held.is_primary());
        }
        assert_eq!(truth.len(), self.pool.enis().count());
        let limits = self.ec2.instance_limits();
        let stats = self.pool.stats(self.now);
        let full = stats.total >= limits.pod_addresses_per_eni() * self.targets.enis(&limits);
        let enough = match (self.targets.warm_ips, self.targets.minimum_ips) {
            (None, None) => {
                stats.available >= (self.targets.warm_enis * limits.pod_addresses_per_eni()).max(1)
            }
            (warm, minimum) => {
                stats.available >= warm.unwrap_or(0) && stats.total >= minimum.unwrap_or(0)
            }
        };
        let max_pods = self
            .targets
            .max_pods
            .is_some_and(|pods| stats.total >= pods);
        assert!(enough || full || max_pods, "{stats:?} {:?}", self.targets);
    }
}

fn settings(seed: u64) -> Settings {
    Settings {
        seed,
        cooldown: COOLDOWN,
        ..fake::settings()
    }
}

fn key(serial: u32) -> PodKey {
    PodKey {
        network_name: "aws-cni".into(),
        container_id: format!("sandbox-{serial}"),
        if_name: "eth0".into(),
    }
}

fn pod() -> PodName {
    PodName {
        namespace: "default".into(),
        name: "web".into(),
    }
}

fn pick<K: Clone, V: Clone>(map: &BTreeMap<K, V>, which: usize) -> Option<(K, V)> {
    let index = which.checked_rem(map.len())?;
    map.iter().nth(index).map(|(k, v)| (k.clone(), v.clone()))
}

fn run(targets: Targets, events: Vec<Event>) {
    let mut world = World::new(targets);
    for event in events {
        world.apply(event);
        world.check();
    }
    world.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn an_address_is_never_given_twice_or_too_early_and_none_is_lost(
        targets in targets(),
        events in prop::collection::vec(event(), 0..120),
    ) {
        run(targets, events);
    }

    #[test]
    fn thefts_and_lagging_reads_never_give_an_address_twice_and_the_pool_recovers(
        targets in targets(),
        events in prop::collection::vec(event_with_thefts(), 0..120),
    ) {
        run(targets, events);
    }
}
