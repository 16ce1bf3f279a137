//! Many ranges of ports: a packet meets the rules that are near its port, and they mean what the
//! ranges say.

#[path = "support/cluster.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod cluster;

use proptest::prelude::*;
use selvage_policy_core::compile::compile;
use selvage_policy_core::eval::{Packet, Verdict, eval};
use selvage_policy_core::index::{Event, Index, Settings};
use selvage_policy_core::ruleset::{Action, ChainName, Family, Match, Protocol, Ruleset};
use selvage_policy_core::{api, convert};
use serde_json::{Value, json};

/// A range, which peer is allowed on it, and in which protocol.
type Allowed = (u16, u16, u8, Protocol);

fn peer(number: u8) -> String {
    format!("192.168.0.{number}")
}

/// A pod of the node's, and one policy that allows each of these.
fn ruleset(allowed: &[Allowed], budget: usize) -> Ruleset {
    let mut index = Index::new(Settings {
        deny_log: Some(95),
        ..cluster::settings()
    })
    .with_member_budget(budget);
    index.apply(cluster::pod_applied(&json!({
        "metadata": {"name": "web", "namespace": "n0", "uid": "u"},
        "spec": {"nodeName": cluster::NODE}, "status": {"podIPs": [{"ip": "10.0.0.1"}]},
    })));
    let rules: Vec<Value> = allowed
        .iter()
        .map(|(first, last, number, protocol)| {
            json!({
                "from": [{"ipBlock": {"cidr": format!("{}/32", peer(*number))}}],
                "ports": [{"protocol": protocol.to_string().to_uppercase(), "port": first, "endPort": last}],
            })
        })
        .collect();
    let policy: api::NetworkPolicy = serde_json::from_value(json!({
        "metadata": {"name": "ranges", "namespace": "n0"},
        "spec": {"podSelector": {}, "ingress": rules},
    }))
    .unwrap();
    let (policy, problems) = convert::policy(&policy);
    assert!(problems.is_empty(), "{problems:?}");
    index.apply(Event::PolicyApplied(policy));
    compile(&mut index, Family::V4)
}

fn judged(ruleset: &Ruleset, from: u8, protocol: Protocol, port: u16) -> Verdict {
    let interface = "enif4e2f5c6a3b";
    let interface = ruleset
        .chains
        .values()
        .flat_map(|chain| chain.rules())
        .find_map(|rule| match rule.matches.first() {
            Some(Match::Out(out)) if !out.to_string().ends_with('+') => Some(out.to_string()),
            _ => None,
        })
        .unwrap_or(interface.to_owned());
    let (source, own) = (peer(from).parse().unwrap(), "10.0.0.1".parse().unwrap());
    let packet = Packet::first("eth0", interface, source, own, Some((protocol, port)));
    eval(ruleset, &packet)
}

/// How many rules a packet to a port meets at most, from a profile's chain on.
fn met(ruleset: &Ruleset, chain: &ChainName, protocol: Protocol, port: u16) -> usize {
    let mut met = 0;
    for rule in ruleset.chains[chain].rules() {
        met += 1;
        if let (Action::Goto(next), [Match::Ports(of, ports)]) = (&rule.action, &rule.matches[..])
            && *of == protocol
            && ports.contains(port)
        {
            return met + self::met(ruleset, next, protocol, port);
        }
    }
    met
}

fn profile(ruleset: &Ruleset) -> ChainName {
    let mut names = ruleset.chains.keys();
    names
        .find(|name| name.as_str().starts_with("selvage-i-"))
        .unwrap()
        .clone()
}

fn allowed() -> impl Strategy<Value = Vec<Allowed>> {
    let width = prop_oneof![0..20_u16, 0..2_000_u16];
    let protocol = prop_oneof![4 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp)];
    let one = (1..3_000_u16, width, 1..6_u8, protocol);
    let one = one.prop_map(|(first, width, peer, protocol)| (first, first + width, peer, protocol));
    prop::collection::vec(one, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn many_ranges_open_the_ports_that_they_say_and_no_others(
        allowed in allowed(), budget in prop_oneof![Just(0_usize), Just(1_000_000)],
    ) {
        let ruleset = ruleset(&allowed, budget);
        let edges = allowed.iter().flat_map(|(first, last, ..)| [first - 1, *first, *last, last + 1]);
        for port in edges.filter(|port| *port > 0).collect::<std::collections::BTreeSet<_>>() {
            for protocol in Protocol::ALL {
                for from in 1..6 {
                    let open = allowed.iter().any(|(first, last, peer, of)| {
                        *peer == from && *of == protocol && (*first..=*last).contains(&port)
                    });
                    let want = if open { Verdict::Passed } else { Verdict::Dropped };
                    prop_assert_eq!(judged(&ruleset, from, protocol, port), want, "{} {} {}", from, protocol, port);
                }
            }
        }
    }
}

#[test]
fn rules_that_a_packet_meets_do_not_grow_with_ranges() {
    let ranges = |number: u16| -> Vec<Allowed> {
        (0..number)
            .map(|it| (1 + 10 * it, 30 + 10 * it, 1 + (it % 5) as u8, Protocol::Tcp))
            .collect()
    };
    for number in [100, 1_000, 5_000] {
        let ruleset = ruleset(&ranges(number), 1_000_000);
        let profile = profile(&ruleset);
        let most = (1..u16::MAX).step_by(7);
        let most = most.map(|port| met(&ruleset, &profile, Protocol::Tcp, port));
        let most = most.max().unwrap();
        assert!(most <= 80, "{number} ranges: {most} rules");
        let rules: usize = ruleset.chains.values().map(|it| it.rules().len()).sum();
        assert!(
            rules < 3 * usize::from(number) + 100,
            "{number} ranges: {rules} rules in all"
        );
    }
}

#[test]
fn what_is_denied_below_a_profiles_chain_is_logged_under_its_name() {
    let ranges: Vec<Allowed> = (0..200)
        .map(|it| (1 + 10 * it, 10 + 10 * it, 1, Protocol::Tcp))
        .collect();
    let ruleset = ruleset(&ranges, 1_000_000);
    let profile = profile(&ruleset);
    let below = ruleset.chains.iter();
    let below: Vec<_> = below
        .filter(|(name, _)| name.as_str().starts_with("selvage-r-"))
        .collect();
    assert!(below.len() > 1, "{} chains", below.len());
    for (name, chain) in below {
        let [.., log, drop] = chain.rules() else {
            panic!("{name} is empty")
        };
        assert!(
            matches!(&log.action, Action::Log { chain, .. } if *chain == profile),
            "{name}: {log:?}"
        );
        assert_eq!(drop.action, Action::Drop, "{name}");
    }
}
