//! Random histories of pods, failures, lost replies, lagging reads, crashes and thefts, against what must always hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;
use selvage_ipamd_core::cloud::{EniFacts, EniKind, Operation, TAG_INSTANCE};
use selvage_ipamd_core::fake::{self, Ec2, Fault};
use selvage_ipamd_core::ids::{EniId, PodKey, PodName, SubnetId, Timestamp};
use selvage_ipamd_core::limits::Mode;
use selvage_ipamd_core::plan::{Targets, plan};
use selvage_ipamd_core::pool::{EniConfig, Pool, Settings};

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
    /// While EC2 does not answer.
    RestartAlone,
    Survey,
    Fault(Operation, Fault),
    Lag(u32),
    FreeLeft(Option<u32>),
    Fragment(bool),
    Exclude(bool),
    Configure(Option<usize>),
    Unschedulable(bool),
    TakeBlock(usize),
    TakeEni(usize),
}

/// What kind of node it is.
#[derive(Debug, Clone)]
struct Kind {
    mode: Mode,
    custom_networking: bool,
    /// An EFA or a trunk sits on it.
    foreign: Option<EniKind>,
}

fn kind() -> impl Strategy<Value = Kind> {
    let modes = prop_oneof![
        4 => Just((Mode::Addresses, false)),
        4 => Just((Mode::Prefixes, false)),
        2 => Just((Mode::Addresses, true)),
        2 => Just((Mode::Prefixes, true)),
        1 => Just((Mode::Ipv6, false)),
    ];
    let foreign = prop_oneof![
        3 => Just(None),
        1 => Just(Some(EniKind::Efa)),
        1 => Just(Some(EniKind::Trunk)),
    ];
    (modes, foreign).prop_map(|((mode, custom_networking), foreign)| Kind {
        mode,
        custom_networking,
        foreign,
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    prop::sample::select(vec![
        Operation::CreateEni,
        Operation::AttachEni,
        Operation::KeepWithInstance,
        Operation::AssignAddresses,
        Operation::AssignIpv6,
        Operation::UnassignAddresses,
        Operation::DescribeSubnets,
        Operation::TagEni,
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
        Fault::Refuse("InsufficientCidrBlocks"),
        Fault::Refuse("InsufficientFreeAddressesInSubnet"),
        Fault::Refuse("InvalidSubnetID.NotFound"),
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
        1 => Just(Event::RestartAlone),
        2 => Just(Event::Survey),
        4 => (operation(), fault()).prop_map(|(o, f)| Event::Fault(o, f)),
        1 => prop::option::of(0u32..40).prop_map(Event::FreeLeft),
        1 => any::<bool>().prop_map(Event::Fragment),
        1 => any::<bool>().prop_map(Event::Exclude),
        1 => prop::option::of(0usize..2).prop_map(Event::Configure),
        1 => any::<bool>().prop_map(Event::Unschedulable),
    ]
}

fn event_with_thefts() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => event(),
        1 => (1u32..3).prop_map(Event::Lag),
        1 => any::<usize>().prop_map(Event::TakeBlock),
        1 => any::<usize>().prop_map(Event::TakeEni),
    ]
}

fn targets() -> impl Strategy<Value = Targets> {
    prop_oneof![
        (0u32..3).prop_map(|warm| Targets {
            warm_enis: warm,
            warm_prefixes: warm,
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
    kind: Kind,
    ec2: Ec2,
    pool: Pool,
    targets: Targets,
    now: Timestamp,
    starts: u64,
    serial: u32,
    /// Pods on the node, by our own book.
    pods: BTreeMap<PodKey, IpAddr>,
    /// When an address was last let go.
    freed: BTreeMap<IpAddr, Timestamp>,
    /// Pods that got no address since the last tick.
    waiting: u32,
    config: Option<usize>,
    unschedulable: bool,
    /// The EFA or trunk, as it was.
    foreign: Option<EniFacts>,
    /// Somebody took things away, or reads lie: what EC2 holds is no longer ours alone to say.
    disturbed: bool,
}

const SUBNETS: [&str; 2] = ["subnet-1", "subnet-2"];
const OFFERED: (&str, &str) = ("kubernetes.io/role/cni", "1");
const EXCLUDED: (&str, &str) = ("kubernetes.io/role/cni", "0");

impl World {
    fn new(kind: Kind, targets: Targets) -> Self {
        let ec2 =
            Ec2::small().with_subnet(SUBNETS[1], "10.40.16.0/20".parse().unwrap(), &[OFFERED]);
        let foreign = kind.foreign.map(|kind| ec2.attach_foreign(2, kind));
        let foreign = foreign.and_then(|id| ec2.enis().into_iter().find(|eni| eni.id == id));
        let pool = Pool::new(&ec2.instance(), settings(&kind, 1));
        let mut world = World {
            kind,
            ec2,
            pool,
            targets,
            now: Timestamp::from_unix(Duration::from_secs(1_000_000)),
            starts: 1,
            serial: 0,
            pods: BTreeMap::new(),
            freed: BTreeMap::new(),
            waiting: 0,
            config: Some(1),
            unschedulable: false,
            foreign,
            disturbed: false,
        };
        world.tell();
        world.survey();
        world
    }

    /// Tells the pool what the cluster says.
    fn tell(&mut self) {
        let config = self.config.map(|which| EniConfig {
            name: "a".into(),
            subnet_id: SubnetId::new(SUBNETS[which]),
            security_groups: Vec::new(),
        });
        self.pool
            .set_eni_config(config.ok_or("there is none".to_owned()));
        self.pool.set_unschedulable(self.unschedulable);
    }

    /// Blocks of all interfaces, with theirs.
    fn blocks(&self) -> BTreeMap<IpNet, EniId> {
        let enis = self.ec2.enis();
        enis.into_iter()
            .flat_map(|eni| {
                let id = eni.id.clone();
                eni.blocks().into_iter().map(move |net| (net, id.clone()))
            })
            .collect()
    }

    /// What our calls have given back was nobody's and had rested.
    fn check_given_back(&self, before: &BTreeMap<IpNet, EniId>) {
        let after = self.blocks();
        for net in before.keys().filter(|net| !after.contains_key(net)) {
            // Only where our book is EC2's can a block be one that we gave away.
            if self.disturbed {
                continue;
            }
            for (key, address) in &self.pods {
                assert!(!net.contains(address), "{net} went with {address} of {key}");
            }
            for (address, freed) in &self.freed {
                assert!(
                    !net.contains(address) || self.now >= *freed + COOLDOWN,
                    "{net} went while {address} rested"
                );
            }
        }
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
        let before = self.blocks();
        let waiting = std::mem::take(&mut self.waiting);
        let actions = plan(&self.pool, &self.targets, &limits, waiting, self.now);
        let busy: BTreeSet<_> = actions.iter().filter_map(|a| a.eni().cloned()).collect();
        let named = actions.iter().filter(|a| a.eni().is_some()).count();
        assert_eq!(busy.len(), named, "two actions for one interface");
        for action in &actions {
            let foreign = self.foreign.as_ref().map(|eni| &eni.id);
            assert!(
                foreign.is_none() || action.eni() != foreign,
                "{action}: it is none of ours"
            );
        }
        for action in &actions {
            self.pool.begin(action, self.now);
        }
        let again = plan(&self.pool, &self.targets, &limits, waiting, self.now);
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
        self.check_given_back(&before);
    }

    fn restart(&mut self, alone: bool) {
        let entries = self.pool.entries();
        let resting = self.pool.cooling(self.now);
        self.starts += 1;
        self.pool = Pool::new(&self.ec2.instance(), settings(&self.kind, self.starts));
        self.tell();
        if alone {
            self.pool.begin_with(&self.ec2.seen(), &entries, self.now);
        } else {
            self.pool.reconcile(&self.ec2.enis(), self.now);
        }
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
                for action in plan(&self.pool, &self.targets, &limits, self.waiting, self.now) {
                    self.pool.begin(&action, self.now);
                    self.ec2.carry_out(&action);
                }
                self.restart(false);
            }
            Event::Restart => self.restart(false),
            Event::RestartAlone => self.restart(true),
            Event::Survey => self.survey(),
            Event::Fault(operation, fault) => self.ec2.fail_next(operation, &[fault]),
            Event::Lag(count) => {
                self.disturbed = true;
                self.ec2.lag_reads(count);
            }
            Event::FreeLeft(count) => self.ec2.set_free_left(count),
            Event::Fragment(fragmented) => {
                for subnet in SUBNETS {
                    self.ec2.fragment(subnet, fragmented);
                }
            }
            Event::Exclude(excluded) => {
                let tags = if excluded { vec![EXCLUDED] } else { vec![] };
                self.ec2.tag_subnet(SUBNETS[0], &tags);
            }
            Event::Configure(which) => {
                self.config = which;
                self.tell();
            }
            Event::Unschedulable(unschedulable) => {
                self.unschedulable = unschedulable;
                self.tell();
            }
            Event::TakeBlock(which) => {
                self.disturbed = true;
                let foreign = self.foreign.as_ref().map(|eni| eni.id.clone());
                let mut all = self.blocks();
                all.retain(|_, eni| foreign.as_ref() != Some(eni));
                if let Some((net, eni)) = pick(&all, which) {
                    self.ec2.take_block(&eni, net);
                }
            }
            Event::TakeEni(which) => {
                self.disturbed = true;
                let enis = self.ec2.enis();
                let eni = &enis[which % enis.len()];
                let foreign = self.foreign.as_ref().is_some_and(|f| f.id == eni.id);
                if eni.id != self.ec2.instance().primary_eni && !foreign {
                    self.ec2.take_eni(&eni.id);
                }
            }
        }
    }

    fn add(&mut self, key: PodKey) {
        let Ok(assignment) = self.pool.assign(&key, &pod(), self.now) else {
            self.waiting += 1;
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
                .find(|e| e.blocks().iter().any(|net| net.contains(&address)));
            let holder = holder.unwrap_or_else(|| panic!("{address} is not ours in EC2"));
            assert!(holder.attachment.is_some(), "{address} is not attached");
            assert!(
                holder.attachment.as_ref().unwrap().delete_on_termination,
                "{} serves and would outlive the instance",
                holder.id
            );
        }
        if self.kind.custom_networking {
            let primary = self.ec2.instance().primary_eni;
            let primary = self.pool.eni(&primary).unwrap();
            assert_eq!(primary.slots().count(), 0, "the primary interface serves");
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
        for block in self.pool.enis().flat_map(|e| e.blocks()) {
            assert!(seen.insert(block.net()), "{} is twice", block.net());
            for (address, _) in block.slots() {
                assert!(block.net().contains(&address), "{address} {}", block.net());
            }
        }
        let truth = self.ec2.enis();
        let unchanged = self.foreign.as_ref().is_none_or(|eni| truth.contains(eni));
        assert!(unchanged, "somebody changed {:?}", self.foreign);
        if self.kind.custom_networking {
            let id = self.ec2.instance().primary_eni;
            let primary = truth.iter().find(|eni| eni.id == id).unwrap();
            assert_eq!(primary.blocks().len(), 0, "{id} is for the host alone");
        }
        let stats = self.pool.stats(self.now);
        assert!(stats.assigned + stats.cooling <= stats.total, "{stats:?}");
    }

    /// All is well from here on: the pool must come to agree with EC2 and to hold what it should.
    fn settle(&mut self) {
        self.ec2.heal();
        self.ec2.tag_subnet(SUBNETS[0], &[]);
        self.config = Some(1);
        self.unschedulable = false;
        self.tell();
        for _ in 0..25 {
            for _ in 0..8 {
                self.tick(false);
                self.now = self.now + Duration::from_secs(3);
            }
            self.now = self.now + Duration::from_secs(130);
            self.pool.reconcile(&self.ec2.enis(), self.now);
            self.check();
        }
        let mut truth = self.ec2.enis();
        truth.retain(|eni| self.foreign.as_ref().is_none_or(|f| f.id != eni.id));
        let instance = self.ec2.instance().instance_id;
        for eni in &truth {
            let held = self.pool.eni(&eni.id);
            let held = held.unwrap_or_else(|| panic!("{} is lost to us", eni.id));
            let ours: BTreeSet<_> = held.blocks().map(|block| block.net()).collect();
            assert_eq!(ours, eni.blocks(), "{}", eni.id);
            assert!(held.stage().is_ready(), "{} is {:?}", eni.id, held.stage());
            let attachment = eni.attachment.as_ref().unwrap();
            assert!(attachment.delete_on_termination, "{}", eni.id);
            let tagged = eni.tags.get(TAG_INSTANCE) == Some(&instance.to_string());
            // Who may not tag the primary one leaves it so.
            assert!(tagged || held.is_primary(), "{} lacks its tag", eni.id);
            let in_use = held.assigned() > 0;
            assert!(
                self.pool.serves(held) || held.is_primary() || in_use,
                "{} serves nobody and stays",
                eni.id
            );
        }
        assert_eq!(truth.len(), self.pool.enis().count());
        self.check_size();
    }

    fn check_size(&self) {
        let limits = self.ec2.instance_limits();
        let stats = self.pool.stats(self.now);
        let serving: Vec<_> = self.pool.enis().filter(|e| self.pool.serves(e)).collect();
        let others = self.pool.enis().count() - serving.len() + self.foreign.iter().count();
        let enis = self.targets.enis(&limits) - u32::try_from(others).unwrap();
        let full = u32::try_from(serving.len()).unwrap() >= enis
            && serving
                .iter()
                .all(|e| e.places_taken() >= limits.places_per_eni());
        let total: u32 = serving
            .iter()
            .map(|e| e.total())
            .fold(0, u32::saturating_add);
        let enough = match (
            self.kind.mode,
            self.targets.warm_ips,
            self.targets.minimum_ips,
        ) {
            (Mode::Ipv6, ..) => serving.iter().any(|e| e.total() > 0),
            (Mode::Addresses, None, None) => {
                stats.available >= (self.targets.warm_enis * limits.places_per_eni()).max(1)
            }
            (Mode::Prefixes, None, None) => {
                stats.available >= (self.targets.warm_prefixes * 16).max(1)
            }
            (Mode::Addresses | Mode::Prefixes, warm, minimum) => {
                stats.available >= warm.unwrap_or(0) && total >= minimum.unwrap_or(0)
            }
        };
        let max_pods = self
            .targets
            .max_pods
            .is_some_and(|pods| stats.total >= pods);
        assert!(enough || full || max_pods, "{stats:?} {:?}", self.targets);
    }
}

fn settings(kind: &Kind, seed: u64) -> Settings {
    Settings {
        mode: kind.mode,
        custom_networking: kind.custom_networking,
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

fn run(kind: Kind, targets: Targets, events: Vec<Event>) {
    let mut world = World::new(kind, targets);
    for event in events {
        world.apply(event);
        world.check();
    }
    world.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn an_address_is_never_given_twice_or_too_early_and_none_is_lost(
        kind in kind(),
        targets in targets(),
        events in prop::collection::vec(event(), 0..120),
    ) {
        run(kind, targets, events);
    }

    #[test]
    fn thefts_and_lagging_reads_never_give_an_address_twice_and_the_pool_recovers(
        kind in kind(),
        targets in targets(),
        events in prop::collection::vec(event_with_thefts(), 0..120),
    ) {
        run(kind, targets, events);
    }
}
