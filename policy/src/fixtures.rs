//! A small cluster that several tests tell of.

use selvage_policy_core::convert;
use selvage_policy_core::index::{Event, Index, Settings};
use selvage_policy_core::model::NodeName;
use selvage_policy_core::ruleset::{Family, VethPrefix};
use serde_json::{from_value, json};

/// The index of node-1, before it has heard of anything.
pub(crate) fn empty() -> Index {
    Index::new(Settings {
        node: NodeName::new("node-1"),
        prefix: VethPrefix::default(),
        families: [Family::V4, Family::V6].into(),
        source_check: true,
        drop_invalid: true,
        deny_log: None,
    })
}

/// Namespace `shop` on node-1: `web-0` and `web-1` under policies `a` to `e`, which let in the
/// namespace's pods on port 80, and `cart-0` under none.
pub(crate) fn shop() -> Index {
    let mut index = empty();
    let namespace = json!({"metadata": {"name": "shop"}});
    index.apply(Event::NamespaceApplied(convert::namespace(
        from_value(namespace).unwrap(),
    )));
    for (name, app, address) in [
        ("web-0", "web", "10.0.0.1"),
        ("web-1", "web", "10.0.0.2"),
        ("cart-0", "cart", "10.0.0.3"),
    ] {
        let pod = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": app}},
            "spec": {"nodeName": "node-1"}, "status": {"podIPs": [{"ip": address}]},
        });
        index.apply(Event::PodApplied(convert::pod(from_value(pod).unwrap())));
    }
    for name in ["a", "b", "c", "d", "e"] {
        let policy = from_value(json!({
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}},
                     "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}]},
        }))
        .unwrap();
        index.apply(Event::PolicyApplied(convert::policy(&policy).0));
    }
    index
}
