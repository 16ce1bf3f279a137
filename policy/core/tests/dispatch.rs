//! From an interface to its pod's rules, on a full node.

#[path = "support/cluster.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod cluster;

use selvage_policy_core::compile::compile;
use selvage_policy_core::eval::{Packet, Verdict, eval};
use selvage_policy_core::ruleset::{Family, Ruleset, VethPrefix};
use serde_json::json;

/// Pods of which every third is isolated in both directions.
fn node_with(pods: usize) -> Ruleset {
    let pods: Vec<_> = (0..pods)
        .map(|number| {
            let app = if number % 3 == 0 { "closed" } else { "open" };
            json!({
                "metadata": {"name": format!("p{number}"), "namespace": "n0", "labels": {"app": app}},
                "spec": {"nodeName": cluster::NODE},
            })
        })
        .collect();
    let policy = json!({
        "metadata": {"name": "q", "namespace": "n0"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "closed"}},
            "policyTypes": ["Ingress", "Egress"],
        },
    });
    compile(&mut cluster::index(&[], &pods, &[policy]), Family::V4)
}

fn verdict(ruleset: &Ruleset, in_interface: &str, out_interface: &str) -> Verdict {
    eval(
        ruleset,
        &Packet::first(
            in_interface,
            out_interface,
            "10.0.0.1".parse().unwrap(),
            "10.0.0.2".parse().unwrap(),
            None,
        ),
    )
}

#[test]
fn every_pod_gets_its_own_verdict_however_many_there_are() {
    for pods in [0, 1, 8, 9, 40, 110, 300] {
        let ruleset = node_with(pods);
        for number in 0..pods {
            let veth = VethPrefix::default().veth("n0", &format!("p{number}"));
            let veth = veth.to_string();
            let want = match number % 3 {
                0 => Verdict::Dropped,
                _ => Verdict::Passed,
            };
            assert_eq!(
                verdict(&ruleset, &veth, "ens5"),
                want,
                "from {number} of {pods}"
            );
            assert_eq!(
                verdict(&ruleset, "ens5", &veth),
                want,
                "to {number} of {pods}"
            );
            assert_eq!(
                verdict(&ruleset, &veth, &veth),
                Verdict::Passed,
                "{number} of {pods} to itself"
            );
            let longer = format!("{veth}0");
            assert_eq!(verdict(&ruleset, &longer, "ens5"), Verdict::Dropped);
        }
        for stranger in ["eni", "eni0", "enifffffffffff"] {
            assert_eq!(verdict(&ruleset, stranger, "ens5"), Verdict::Dropped);
            assert_eq!(verdict(&ruleset, "ens5", stranger), Verdict::Dropped);
        }
        assert_eq!(
            verdict(&ruleset, "ens5", "ens6"),
            Verdict::Passed,
            "not ours"
        );
    }
}

#[test]
fn no_chain_is_longer_than_a_full_split_however_many_pods_there_are() {
    let ruleset = node_with(600);
    for (name, chain) in &ruleset.chains {
        // Four guards in a root, 16 ways on, two rules each at most, and the end.
        assert!(chain.rules().len() <= 37, "{name}: {}", chain.rules().len());
    }
}

#[test]
fn a_pod_more_rewrites_a_branch_and_not_the_tree() {
    let (before, after) = (node_with(110), node_with(111));
    let changed = after
        .chains
        .iter()
        .filter(|(name, chain)| before.chains.get(*name) != Some(*chain))
        .count();
    assert!((1..=4).contains(&changed), "{changed} chains");
}
