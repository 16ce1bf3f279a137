//! Policies that were not understood, wholly or in part: named once each, and counted.

use std::collections::{BTreeMap, BTreeSet};

use selvage_policy_core::convert::ProblemKind;
use selvage_policy_core::index::{Event, Resource};
use selvage_policy_core::model::PolicyKey;
use tracing::{info, warn};

use crate::source::Problem;

/// What was not understood, by policy.
#[derive(Debug, Default)]
pub(super) struct Rejected {
    policies: BTreeMap<PolicyKey, Rejection>,
}

#[derive(Debug)]
struct Rejection {
    problems: Vec<Problem>,
    /// Whether the relist under way has shown it again.
    seen: bool,
}

impl Rejected {
    /// Takes in an event and what in it was not understood; logs what is new.
    pub(super) fn note(&mut self, event: &Event, problems: Vec<Problem>) {
        match event {
            Event::PolicyApplied(policy) if problems.is_empty() => {
                if self.policies.remove(&policy.key).is_some() {
                    info!(policy = %policy.key, "policy is understood now");
                }
            }
            Event::PolicyApplied(policy) => {
                let known = self.policies.get(&policy.key);
                if known.is_none_or(|known| known.problems != problems) {
                    for Problem { kind, text } in &problems {
                        let kind = kind.as_str();
                        warn!(policy = %policy.key, kind, problem = text, "policy is not understood");
                    }
                }
                let rejection = Rejection {
                    problems,
                    seen: true,
                };
                self.policies.insert(policy.key.clone(), rejection);
            }
            Event::PolicyDeleted(key) => {
                self.policies.remove(key);
            }
            Event::RelistStarted(Resource::Policies) => {
                for rejection in self.policies.values_mut() {
                    rejection.seen = false;
                }
            }
            Event::RelistDone(Resource::Policies) => {
                self.policies.retain(|_, rejection| rejection.seen);
            }
            Event::RelistStarted(Resource::Pods | Resource::Namespaces | Resource::Routes)
            | Event::RelistDone(Resource::Pods | Resource::Namespaces | Resource::Routes)
            | Event::PodApplied(_)
            | Event::PodDeleted(..)
            | Event::NamespaceApplied(_)
            | Event::NamespaceDeleted(_)
            | Event::Routes { .. } => {}
        }
    }

    pub(super) fn len(&self) -> usize {
        self.policies.len()
    }

    /// How many policies have problems of each kind.
    pub(super) fn by_kind(&self) -> BTreeMap<ProblemKind, u64> {
        let mut counts = BTreeMap::new();
        for rejection in self.policies.values() {
            let kinds: BTreeSet<ProblemKind> = rejection
                .problems
                .iter()
                .map(|problem| problem.kind)
                .collect();
            for kind in kinds {
                *counts.entry(kind).or_default() += 1;
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use selvage_policy_core::api::{Metadata, NetworkPolicy};
    use selvage_policy_core::convert;

    use super::*;

    fn applied(name: &str) -> Event {
        let object = NetworkPolicy {
            metadata: Metadata {
                name: name.to_owned(),
                namespace: "shop".to_owned(),
                ..Metadata::default()
            },
            ..NetworkPolicy::default()
        };
        Event::PolicyApplied(convert::policy(&object).0)
    }

    #[test]
    fn a_rejected_policy_counts_until_it_is_mended_or_gone() {
        let mut rejected = Rejected::default();
        let problem = |kind| Problem {
            kind,
            text: "strange".to_owned(),
        };
        let strange = || {
            let kinds = [ProblemKind::Port, ProblemKind::Port, ProblemKind::Block];
            kinds.map(problem).to_vec()
        };
        rejected.note(&applied("a"), strange());
        rejected.note(&applied("a"), strange());
        rejected.note(&applied("b"), strange());
        rejected.note(&applied("c"), strange());
        assert_eq!(rejected.len(), 3);
        let counts: Vec<_> = rejected.by_kind().into_iter().collect();
        assert_eq!(counts, [(ProblemKind::Block, 3), (ProblemKind::Port, 3)]);
        rejected.note(&applied("a"), vec![]);
        assert_eq!(rejected.len(), 2, "mended");
        rejected.note(&Event::RelistStarted(Resource::Policies), vec![]);
        rejected.note(&applied("b"), strange());
        rejected.note(&Event::RelistDone(Resource::Pods), vec![]);
        assert_eq!(rejected.len(), 2, "the policies' relist goes on");
        rejected.note(&Event::RelistDone(Resource::Policies), vec![]);
        assert_eq!(rejected.len(), 1, "c was gone");
        let Event::PolicyApplied(policy) = applied("b") else {
            unreachable!()
        };
        rejected.note(&Event::PolicyDeleted(policy.key), vec![]);
        assert_eq!(rejected.len(), 0);
    }
}
