//! The member budget: what is laid out apart for its sake means the same, and what is near the
//! limit stays as it is.

#[path = "support/cluster.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod cluster;

use std::net::IpAddr;

use proptest::prelude::*;
use selvage_policy_core::compile::compile;
use selvage_policy_core::eval::{Packet, Verdict, eval};
use selvage_policy_core::index::{Event, Index};
use selvage_policy_core::model::{PodKey, PodUid};
use selvage_policy_core::ruleset::{Chain, Family, Protocol, Ruleset};
use selvage_policy_core::verdict::Flow;
use serde_json::{Value, json};

fn compiled(index: &mut Index) -> Vec<Ruleset> {
    vec![compile(index, Family::V4), compile(index, Family::V6)]
}

/// What becomes of every packet between a pod of the node and any address, on any port that
/// policies speak of.
fn verdicts(rulesets: &[Ruleset], interfaces: &[String]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let ports = protocols
        .into_iter()
        .flat_map(|protocol| [79, 80, 81, 82, 83, 90].map(|port| Some((protocol, port))));
    let ports: Vec<_> = ports.chain([None]).collect();
    for (addresses, ruleset) in [&cluster::V4[..], &cluster::V6[..]].iter().zip(rulesets) {
        let addresses: Vec<IpAddr> = addresses.iter().map(|it| it.parse().unwrap()).collect();
        for interface in interfaces {
            for peer in &addresses {
                for port in &ports {
                    let (here, there) = (interface.as_str(), "eth0");
                    let own = addresses[0];
                    let from = Packet::first(here, there, own, *peer, *port);
                    let to = Packet::first(there, here, *peer, own, *port);
                    verdicts.push(eval(ruleset, &from));
                    verdicts.push(eval(ruleset, &to));
                }
            }
        }
    }
    verdicts
}

fn interfaces(index: &Index) -> Vec<String> {
    let pods = index.enforced_pods();
    pods.map(|pod| pod.interface.to_string()).collect()
}

fn objects() -> impl Strategy<Value = Vec<Event>> {
    (
        prop::collection::vec(cluster::namespace(), 1..4),
        prop::collection::vec(cluster::policy(), 1..6),
        prop::collection::vec(cluster::pod(), 1..12),
        prop::collection::vec(cluster::policy(), 0..3),
    )
        .prop_map(|(namespaces, policies, pods, more)| {
            let namespaces = namespaces.iter().map(cluster::namespace_applied);
            let policies = policies.iter().map(cluster::policy_applied);
            let pods = pods.iter().map(cluster::pod_applied);
            let more = more.iter().map(cluster::policy_applied);
            namespaces.chain(policies).chain(pods).chain(more).collect()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn profiles_laid_out_apart_pass_the_packets_that_they_pass_folded(
        (events, budget) in (objects(), 0..40_usize)
    ) {
        let mut roomy = Index::new(cluster::settings());
        let mut tight = Index::new(cluster::settings()).with_member_budget(budget);
        let mut kernel = compiled(&mut tight);
        for event in events {
            roomy.apply(event.clone());
            let delta = tight.apply(event);
            let changes = match delta.recompile {
                true => None,
                false => tight.take_member_changes(),
            };
            if changes.is_none() {
                kernel = compiled(&mut tight);
            }
            for (name, change) in changes.into_iter().flatten() {
                let sets = kernel.iter_mut().find_map(|ruleset| ruleset.sets.get_mut(&name));
                let set = sets.expect("a delta is about a set that was compiled");
                for member in change.add {
                    prop_assert!(set.members.insert(member), "{member} was in {name}");
                }
                for member in change.remove {
                    prop_assert!(set.members.remove(&member), "{member} was not in {name}");
                }
            }
            let interfaces = interfaces(&roomy);
            let folded = compiled(&mut roomy);
            prop_assert_eq!(verdicts(&kernel, &interfaces), verdicts(&folded, &interfaces));
            let held: usize = kernel.iter().flat_map(|it| it.sets.values()).map(|it| it.members.len()).sum();
            let in_use = tight.member_use();
            prop_assert_eq!(in_use.used, held);
            prop_assert!(held <= budget || in_use.apart == in_use.profiles);
        }
        prop_assert_eq!(roomy.member_use().apart, 0);
        let (tight, roomy) = (tight.judge(), roomy.judge());
        for source in cluster::V4 {
            for destination in cluster::V4 {
                for port in 79..84 {
                    let (from, to) = (source.parse().unwrap(), destination.parse().unwrap());
                    let flow = Flow::new(from, to, 6, Some(port));
                    prop_assert_eq!(tight.verdict(&flow), roomy.verdict(&flow));
                }
            }
        }
    }
}

fn pod(namespace: &str, node: &str, number: u8) -> Value {
    json!({
        "metadata": {"name": format!("p{number}"), "namespace": namespace, "uid": "u"},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIPs": [{"ip": format!("10.0.0.{number}")}]},
    })
}

/// Whether rules are to be written for it.
fn come(index: &mut Index, number: u8) -> bool {
    let event = cluster::pod_applied(&pod("n1", "there", number));
    assert!(
        !index.apply(event).recompile,
        "not before members are counted"
    );
    index.take_member_changes().is_none()
}

fn go(index: &mut Index, number: u8) -> bool {
    let Event::PodApplied(pod) = cluster::pod_applied(&pod("n1", "there", number)) else {
        unreachable!("made so");
    };
    let key = PodKey { ..pod.key };
    index.apply(Event::PodDeleted(key, PodUid::new("u")));
    index.take_member_changes().is_none()
}

/// A pod that two ports are open on to the pods of another namespace, with room for 20 members.
fn two_ports() -> Index {
    let mut index = Index::new(cluster::settings()).with_member_budget(20);
    let labels = json!({"metadata": {"name": "n1", "labels": {"a": "x"}}});
    index.apply(cluster::namespace_applied(&labels));
    index.apply(cluster::pod_applied(&pod("n0", cluster::NODE, 100)));
    index.apply(cluster::policy_applied(&json!({
        "metadata": {"name": "q", "namespace": "n0"},
        "spec": {
            "podSelector": {},
            "ingress": [{
                "from": [{"namespaceSelector": {"matchLabels": {"a": "x"}}}],
                "ports": [{"port": 80}, {"port": 443}],
            }],
        },
    })));
    let _ = compiled(&mut index);
    index
}

#[test]
fn a_profile_is_laid_out_apart_above_the_budget_and_folded_again_well_below_it() {
    let mut index = two_ports();
    for number in 1..=10 {
        assert!(!come(&mut index, number), "20 members are in the budget");
    }
    assert_eq!(index.member_use().used, 20);
    assert!(come(&mut index, 11), "22 are not");
    let _ = compiled(&mut index);
    let in_use = index.member_use();
    assert_eq!((in_use.used, in_use.profiles, in_use.apart), (11, 1, 1));
    for number in [11, 10, 9, 8] {
        assert!(!go(&mut index, number));
        let after = compiled(&mut index);
        let again = compiled(&mut index);
        let apart = usize::from(number != 8);
        assert_eq!(index.member_use().apart, apart, "{} peers left", number - 1);
        assert_eq!(after, again, "what is asked twice is answered once");
    }
    for number in 8..=10 {
        assert!(
            !come(&mut index, number),
            "folded, it stays so up to the budget"
        );
    }
}

#[test]
fn who_would_go_beyond_the_budget_at_the_start_never_fills_the_folded_sets() {
    let mut index = two_ports();
    for number in 1..=30 {
        index.apply(cluster::pod_applied(&pod("n1", "there", number)));
    }
    let mut fresh = two_ports();
    for number in 1..=30 {
        fresh.apply(cluster::pod_applied(&pod("n1", "there", number)));
    }
    assert_eq!(compiled(&mut index), compiled(&mut fresh));
    assert_eq!(index.member_use().used, 30, "one set, for both ports");
}

#[test]
fn ports_side_by_side_share_a_rule_where_a_profile_is_laid_out_apart() {
    let mut index = Index::new(cluster::settings()).with_member_budget(0);
    index.apply(cluster::pod_applied(&pod("n0", cluster::NODE, 100)));
    let ports: Vec<Value> = [80, 81, 82, 90].map(|port| json!({"port": port})).into();
    index.apply(cluster::policy_applied(&json!({
        "metadata": {"name": "q", "namespace": "n0"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}], "ports": ports}]},
    })));
    let ruleset = compile(&mut index, Family::V4);
    let profile = |(name, chain): (&_, &Chain)| {
        let name: &selvage_policy_core::ruleset::ChainName = name;
        name.as_str()
            .starts_with("selvage-i-")
            .then(|| chain.rules().len())
    };
    let rules: Vec<usize> = ruleset.chains.iter().filter_map(profile).collect();
    assert_eq!(rules, [3], "80 to 82, 90, and the drop");
}
