//! A NetworkPolicy whose JSON does not have the shape of one: what can be read of it is kept, and
//! what cannot allows nothing.

use selvage_policy_core::api::{
    LabelSelector, LabelSelectorRequirement, Metadata, NetworkPolicy, NetworkPolicySpec,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::object::Unreadable;

/// The policy as far as it can be read, and the problem for people.
///
/// An unreadable subject becomes one that conversion rejects, so that all pods of the namespace
/// are isolated; unreadable directions become both; an unreadable rule is left out.
pub(super) fn policy(unreadable: &Unreadable) -> (NetworkPolicy, String) {
    let head = &unreadable.head;
    let spec = unreadable.json.get("spec").unwrap_or(&Value::Null);
    let field = |name: &str| spec.get(name).unwrap_or(&Value::Null);
    let metadata = Metadata {
        name: head.name.clone().unwrap_or_default(),
        namespace: head.namespace.clone().unwrap_or_default(),
        uid: head.uid.clone().unwrap_or_default(),
        ..Metadata::default()
    };
    let problem = format!(
        "policy {}/{}: {}; what cannot be read of it allows nothing",
        metadata.namespace, metadata.name, unreadable.error
    );
    let both = || vec!["Ingress".to_owned(), "Egress".to_owned()];
    let policy_types = match read::<Vec<String>>(field("policyTypes")) {
        Some(types) if !types.is_empty() => types,
        // Absent, the default depends on there being egress rules, readable or not.
        Some(_) if field("egress").is_null() && spec.is_object() => vec!["Ingress".to_owned()],
        Some(_) | None => both(),
    };
    let spec = NetworkPolicySpec {
        pod_selector: read(field("podSelector"))
            .filter(|_| spec.is_object())
            .unwrap_or_else(nobody_knows_whom),
        policy_types,
        ingress: readable_items(field("ingress")),
        egress: readable_items(field("egress")),
    };
    (NetworkPolicy { metadata, spec }, problem)
}

/// `null` and absent are the default; the wrong type is nothing.
fn read<T: DeserializeOwned + Default>(value: &Value) -> Option<T> {
    match value {
        Value::Null => Some(T::default()),
        present => T::deserialize(present).ok(),
    }
}

fn readable_items<T: DeserializeOwned>(list: &Value) -> Vec<T> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .filter_map(|item| T::deserialize(item).ok())
        .collect()
}

/// A selector that conversion does not understand: no operator is empty.
fn nobody_knows_whom() -> LabelSelector {
    LabelSelector {
        match_expressions: vec![LabelSelectorRequirement::default()],
        ..LabelSelector::default()
    }
}

#[cfg(test)]
mod tests {
    use selvage_policy_core::convert;
    use selvage_policy_core::model::Labels;
    use serde_json::json;

    use super::super::object::Head;
    use super::*;

    fn salvaged(spec: Value) -> (selvage_policy_core::model::Policy, String) {
        let head = Head {
            name: Some("strange".to_owned()),
            namespace: Some("shop".to_owned()),
            ..Head::default()
        };
        let unreadable = Unreadable {
            head,
            error: "invalid type".to_owned(),
            json: json!({"spec": spec}),
        };
        let (policy, problem) = policy(&unreadable);
        (convert::policy(&policy).0, problem)
    }

    #[test]
    fn an_unreadable_rule_allows_nothing_and_the_others_hold() {
        let (policy, problem) = salvaged(json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": 7}, {"from": [{"podSelector": {}}]}],
        }));
        assert_eq!(policy.ingress.unwrap().len(), 1);
        assert!(policy.egress.is_none());
        assert!(!policy.subject.matches(&Labels::default()));
        assert!(problem.contains("shop/strange"), "{problem}");
    }

    #[test]
    fn an_unreadable_subject_isolates_the_namespace_and_allows_nothing() {
        for spec in [
            json!(7),
            json!({"podSelector": "all", "ingress": [{}], "egress": [{}]}),
        ] {
            let (policy, _) = salvaged(spec.clone());
            assert!(policy.subject.matches(&Labels::default()), "{spec}");
            assert_eq!(policy.ingress, Some([].into()), "{spec}");
            assert_eq!(policy.egress, Some([].into()), "{spec}");
        }
    }

    #[test]
    fn unreadable_directions_are_both() {
        let (policy, _) = salvaged(json!({"podSelector": {}, "policyTypes": "Ingress"}));
        assert!(policy.ingress.is_some() && policy.egress.is_some());
        let (policy, _) = salvaged(json!({"podSelector": {}, "egress": "all"}));
        assert_eq!(policy.egress, Some([].into()));
    }
}
