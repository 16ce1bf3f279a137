//! Pods of this node that policy isolates in part only: said on the pod.

use std::collections::BTreeMap;
use std::time::Duration;

use selvage_policy_core::index::Index;
use selvage_policy_core::model::PodUid;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Kind, Report, Reporter, Subject};
use crate::questions::Asker;

/// Time between two looks. It is about what a person should change, not about packets.
const LOOK: Duration = Duration::from_secs(10);

/// Reports until told to stop. This node alone knows its pods: nobody else says the same.
pub async fn watch(asker: Asker, reporter: Reporter, stop: CancellationToken) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = BTreeMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        // A loop that does not answer has other troubles.
        let Ok(found) = asker.ask(reports).await else {
            continue;
        };
        for report in news(&mut known, found) {
            if let [problem] = report.problems.as_slice() {
                let Subject {
                    namespace, name, ..
                } = &report.subject;
                warn!(namespace, name, problem, "pod is enforced in part");
            }
            reporter.report(report);
        }
    }
}

/// What is wrong, pod by pod. For a question to the loop.
fn reports(index: &mut Index) -> BTreeMap<PodUid, Report> {
    let unenforced = index.unenforced();
    let local = index.enforced_pods().filter_map(|local| {
        let what = unenforced.get(&local.pod.key)?;
        let report = Report {
            subject: Subject {
                kind: Kind::Pod,
                namespace: local.pod.key.namespace.to_string(),
                name: local.pod.key.name.clone(),
                uid: local.pod.uid.to_string(),
            },
            problems: vec![what.to_string()],
        };
        Some((local.pod.uid.clone(), report))
    });
    local.collect()
}

/// What differs from what is known, which then is what was found.
fn news(known: &mut BTreeMap<PodUid, Report>, found: BTreeMap<PodUid, Report>) -> Vec<Report> {
    let mut news: Vec<Report> = found
        .iter()
        .filter(|(uid, report)| known.get(*uid) != Some(report))
        .map(|(_, report)| report.clone())
        .collect();
    let gone = known.iter().filter(|(uid, _)| !found.contains_key(*uid));
    news.extend(gone.map(|(_, report)| Report {
        subject: report.subject.clone(),
        problems: Vec::new(),
    }));
    *known = found;
    news
}

#[cfg(test)]
mod tests {
    use selvage_policy_core::convert;
    use selvage_policy_core::index::Event;
    use serde_json::{from_value, json};

    use super::*;
    use crate::fixtures;

    #[test]
    fn a_pod_with_interfaces_beside_its_own_is_named_once_and_until_it_is_gone() {
        let mut index = fixtures::shop();
        let mut known = BTreeMap::new();
        assert!(news(&mut known, reports(&mut index)).is_empty());
        let pod: selvage_policy_core::api::Pod = from_value(json!({
            "metadata": {
                "name": "web-2", "namespace": "shop", "uid": "u", "labels": {"app": "web"},
                "annotations": {"k8s.v1.cni.cncf.io/networks": "storage"},
            },
            "spec": {"nodeName": "node-1"},
        }))
        .unwrap();
        let pod = convert::pod(pod);
        let (key, uid) = (pod.key.clone(), pod.uid.clone());
        index.apply(Event::PodApplied(pod));
        let said = news(&mut known, reports(&mut index));
        let [report] = said.as_slice() else {
            panic!("{said:?}");
        };
        assert_eq!(
            (report.subject.name.as_str(), report.subject.uid.as_str()),
            ("web-2", "u")
        );
        assert!(report.problems[0].contains("k8s.v1.cni.cncf.io/networks"));
        assert!(news(&mut known, reports(&mut index)).is_empty());
        index.apply(Event::PodDeleted(key, uid));
        let said = news(&mut known, reports(&mut index));
        assert!(matches!(said.as_slice(), [report] if report.problems.is_empty()));
    }
}
