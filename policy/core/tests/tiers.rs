//! Tiers before and after NetworkPolicy: ordered rules that accept, deny and pass say in chains what
//! they say in words, rule by rule and folded into a bounded number of rules (ADR 4).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::select;
use selvage_policy_core::compile::stage::{Decision, Stage, chains};
use selvage_policy_core::eval::{Packet, Verdict, eval};
use selvage_policy_core::ruleset::{
    BaseChain, ChainName, Family, Hook, Match, Member, Protocol, Ruleset, Set, SetKind, SetName,
    Side,
};

const PEERS: [&str; 4] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];
const PACKETS: [Option<(Protocol, u16)>; 5] = [
    Some((Protocol::Tcp, 80)),
    Some((Protocol::Tcp, 81)),
    Some((Protocol::Tcp, 82)),
    Some((Protocol::Udp, 80)),
    None,
];

/// From coarse to fine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Traffic {
    Any,
    Protocol(Protocol),
    Port(Protocol, u16),
}

impl Traffic {
    fn covers(self, other: Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Protocol(one), Self::Protocol(other) | Self::Port(other, _)) => one == other,
            _ => self == other,
        }
    }

    fn of(packet: Option<(Protocol, u16)>) -> Self {
        packet.map_or(Self::Any, |(protocol, port)| Self::Port(protocol, port))
    }
}

#[derive(Debug, Clone)]
struct Ordered {
    peers: BTreeSet<IpAddr>,
    traffic: Traffic,
    decision: Decision,
}

#[derive(Debug, Clone)]
struct Tier {
    rules: Vec<Ordered>,
    otherwise: Decision,
}

fn decision() -> impl Strategy<Value = Decision> {
    select(vec![Decision::Accept, Decision::Deny, Decision::Pass])
}

fn tiers() -> impl Strategy<Value = Vec<Tier>> {
    let peers = prop::collection::btree_set(
        select(&PEERS[..]).prop_map(|address| address.parse().unwrap()),
        1..=3,
    );
    let traffic = select(vec![
        Traffic::Any,
        Traffic::Protocol(Protocol::Tcp),
        Traffic::Protocol(Protocol::Udp),
        Traffic::Port(Protocol::Tcp, 80),
        Traffic::Port(Protocol::Tcp, 81),
        Traffic::Port(Protocol::Udp, 80),
    ]);
    let rule = (peers, traffic, decision()).prop_map(|(peers, traffic, decision)| Ordered {
        peers,
        traffic,
        decision,
    });
    let tier = (prop::collection::vec(rule, 0..8), decision())
        .prop_map(|(rules, otherwise)| Tier { rules, otherwise });
    prop::collection::vec(tier, 1..=3)
}

/// In words: the first rule of a tier that is about a packet decides, or else hands on.
fn read(tiers: &[Tier], peer: IpAddr, packet: Option<(Protocol, u16)>) -> Verdict {
    for tier in tiers {
        let about = |rule: &&Ordered| {
            rule.peers.contains(&peer) && rule.traffic.covers(Traffic::of(packet))
        };
        let first = tier.rules.iter().find(about);
        match first.map_or(tier.otherwise, |rule| rule.decision) {
            Decision::Accept => return Verdict::Passed,
            Decision::Deny => return Verdict::Dropped,
            Decision::Pass => {}
        }
    }
    Verdict::Passed
}

/// Chains under construction, and the sets they need.
#[derive(Default)]
struct Built {
    stages: Vec<Stage>,
    sets: BTreeMap<SetName, Set>,
}

impl Built {
    fn stage(&mut self, otherwise: Decision) {
        let name = format!("selvage-stage-{}", self.stages.len());
        self.stages.push(Stage {
            chain: ChainName::new(&name).unwrap(),
            rules: Vec::new(),
            otherwise,
        });
    }

    fn rule(
        &mut self,
        traffic: Traffic,
        kind: SetKind,
        members: BTreeSet<Member>,
        decision: Decision,
    ) {
        let set = SetName::new(&format!("selvage-s-{}", self.sets.len())).unwrap();
        let members = members.into_iter().collect();
        self.sets.insert(set.clone(), Set { kind, members });
        let mut matches = Vec::new();
        if let Traffic::Protocol(protocol) = traffic {
            matches.push(Match::Protocol(protocol));
        }
        matches.push(Match::Set {
            set,
            kind,
            peer: Side::Source,
        });
        self.stages
            .last_mut()
            .unwrap()
            .rules
            .push((matches, decision));
    }

    fn ruleset(self) -> Ruleset {
        let entry = self.stages[0].chain.clone();
        Ruleset {
            family: Family::V4,
            hooks: [Hook {
                base: BaseChain::Forward,
                target: entry,
            }]
            .into(),
            chains: chains(self.stages).into_iter().collect(),
            sets: self.sets,
        }
    }
}

fn shape(traffic: Traffic) -> (SetKind, Option<(Protocol, u16)>) {
    match traffic {
        Traffic::Any | Traffic::Protocol(_) => (SetKind::Net, None),
        Traffic::Port(protocol, port) => (SetKind::NetPort, Some((protocol, port))),
    }
}

/// A rule for each rule.
fn one_by_one(tiers: &[Tier]) -> Ruleset {
    let mut built = Built::default();
    for tier in tiers {
        built.stage(tier.otherwise);
        for rule in &tier.rules {
            let (kind, port) = shape(rule.traffic);
            let peers = rule.peers.iter();
            let members = peers
                .map(|peer| Member {
                    net: (*peer).into(),
                    port,
                })
                .collect();
            built.rule(rule.traffic, kind, members, rule.decision);
        }
    }
    built.ruleset()
}

/// As ADR 4 says: what is decided about each peer and kind of traffic is worked out beforehand,
/// finest kind first, and each decision has one set for each kind.
fn folded(tiers: &[Tier]) -> Ruleset {
    let mut built = Built::default();
    for tier in tiers {
        built.stage(tier.otherwise);
        let kinds: BTreeSet<Traffic> = tier.rules.iter().map(|rule| rule.traffic).collect();
        let mut sets: BTreeMap<(std::cmp::Reverse<Traffic>, Decision), BTreeSet<Member>> =
            BTreeMap::new();
        for kind in kinds {
            // All single ports share their sets.
            let place = match kind {
                Traffic::Port(..) => Traffic::Port(Protocol::Sctp, u16::MAX),
                coarse => coarse,
            };
            for peer in PEERS.map(|peer| peer.parse::<IpAddr>().unwrap()) {
                let about =
                    |rule: &&Ordered| rule.peers.contains(&peer) && rule.traffic.covers(kind);
                if let Some(rule) = tier.rules.iter().find(about) {
                    let member = Member {
                        net: peer.into(),
                        port: shape(kind).1,
                    };
                    let place = (std::cmp::Reverse(place), rule.decision);
                    sets.entry(place).or_default().insert(member);
                }
            }
        }
        for ((kind, decision), members) in sets {
            built.rule(kind.0, shape(kind.0).0, members, decision);
        }
    }
    built.ruleset()
}

proptest! {
    #[test]
    fn ordered_rules_in_tiers_mean_in_chains_what_they_mean_in_words(tiers in tiers()) {
        let (one_by_one, folded) = (one_by_one(&tiers), folded(&tiers));
        for chain in folded.chains.values() {
            // Three decisions on single ports, on two protocols, on everything; and the end.
            prop_assert!(chain.rules().len() <= 3 * 4 + 1);
        }
        for peer in PEERS.map(|peer| peer.parse::<IpAddr>().unwrap()) {
            for port in PACKETS {
                let want = read(&tiers, peer, port);
                let packet = Packet::first("ens5", "eni0", peer, "10.0.0.9".parse().unwrap(), port);
                prop_assert_eq!(eval(&one_by_one, &packet), want, "{} {:?}", peer, port);
                prop_assert_eq!(eval(&folded, &packet), want, "folded: {} {:?}", peer, port);
            }
        }
    }
}
