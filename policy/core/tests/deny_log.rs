//! The rule that copies denied packets to whoever logs them.

#[path = "support/cluster.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod cluster;

use std::collections::BTreeSet;

use selvage_policy_core::compile::compile;
use selvage_policy_core::compile::drops::DropReason;
use selvage_policy_core::index::{Event, Index, Settings};
use selvage_policy_core::observe::Observed;
use selvage_policy_core::plan::plan;
use selvage_policy_core::render::render;
use selvage_policy_core::ruleset::{Action, Family, Ruleset};
use selvage_policy_core::{api, convert};
use serde_json::{from_value, json};

/// A pod that is isolated both ways, and one that isn't.
fn ruleset(deny_log: Option<u16>) -> Ruleset {
    let mut index = Index::new(Settings {
        deny_log,
        ..cluster::settings()
    });
    for name in ["closed", "open"] {
        let pod: api::Pod = from_value(json!({
            "metadata": {"name": name, "namespace": "n0", "uid": name, "labels": {"is": name}},
            "spec": {"nodeName": cluster::NODE}, "status": {"podIPs": [{"ip": "10.0.0.1"}]},
        }))
        .unwrap();
        index.apply(Event::PodApplied(convert::pod(pod)));
    }
    let policy = from_value(json!({
        "metadata": {"name": "deny", "namespace": "n0"},
        "spec": {"podSelector": {"matchLabels": {"is": "closed"}},
                 "ingress": [{"ports": [{"port": 80}]}], "egress": [{"ports": [{"port": 80}]}],
                 "policyTypes": ["Ingress", "Egress"]},
    }))
    .unwrap();
    index.apply(Event::PolicyApplied(convert::policy(&policy).0));
    compile(&mut index, Family::V4)
}

#[test]
fn what_is_dropped_is_logged_under_its_chains_name_and_nothing_else_is() {
    let (mut profiles, mut reasons) = (0, BTreeSet::new());
    for (name, chain) in &ruleset(Some(95)).chains {
        let logs: Vec<_> = chain
            .rules()
            .iter()
            .enumerate()
            .filter(|(_, rule)| matches!(rule.action, Action::Log { .. }))
            .collect();
        if let Some(reason) = DropReason::of_label(name.as_str()) {
            reasons.insert(reason);
        } else if name.as_str().starts_with("selvage-i-") || name.as_str().starts_with("selvage-e-")
        {
            profiles += 1;
        } else {
            assert!(logs.is_empty(), "{name} judges nobody");
            let drops = chain.rules().iter().filter(|it| it.action == Action::Drop);
            assert_eq!(drops.count(), 0, "{name} drops without a word");
            continue;
        }
        let [(position, rule)] = logs.as_slice() else {
            panic!("{name}: {logs:?}");
        };
        assert_eq!(position + 2, chain.rules().len(), "right before the DROP");
        let expected = Action::Log {
            group: 95,
            chain: name.clone(),
        };
        assert!(
            rule.matches.is_empty() && rule.action == expected,
            "{rule:?}"
        );
    }
    assert_eq!(profiles, 2);
    assert_eq!(reasons, DropReason::ALL.into());
}

#[test]
fn the_log_is_one_more_rule_in_the_restore_input_and_absent_when_off() {
    let text = |deny_log| {
        let plan = plan(&ruleset(deny_log), &Observed::default());
        render(&plan).apply.unwrap()
    };
    assert!(!text(None).contains("NFLOG"));
    let lines: Vec<String> = text(Some(95))
        .lines()
        .filter(|line| line.contains("NFLOG"))
        .map(str::to_owned)
        .collect();
    assert_eq!(lines.len(), 2 + DropReason::ALL.len());
    for line in lines {
        let chain = line.split(' ').nth(1).unwrap();
        let rule = format!("-A {chain} -j NFLOG --nflog-group 95 --nflog-prefix {chain}");
        assert_eq!(line, rule);
    }
}
