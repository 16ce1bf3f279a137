//! Interfaces that a dead node has left behind: made for pods, attached to nothing, old enough.
//!
//! One sweeper for a cluster asks [`Cloud::find_loose_enis`](crate::cloud::Cloud::find_loose_enis) every hour or so and
//! carries out what [`find_leaked`] says. A node that lives looks after its own interfaces.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::cloud::{DESCRIPTION, LooseEni, TAG_CREATED, TAG_INSTANCE};
use crate::ids::{EniId, InstanceId, Timestamp};

/// Between its making and its attaching an interface is loose for some seconds; while EC2 throttles, for minutes.
const MIN_AGE: Duration = Duration::from_secs(300);

/// What is to be done with loose interfaces, in order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sweep {
    /// To be deleted.
    pub delete: Vec<EniId>,
    /// Nobody knows how old they are: to be given [`TAG_CREATED`] with the present moment, and looked at the next time.
    pub tag: Vec<EniId>,
}

/// Sorts out who is leaked. Interfaces of the instances `alive` are left to them.
///
/// Leaked is what carries the tag of an instance, has a description as AWS's agent and ours give it, and was made more
/// than five minutes ago. A date that cannot be read counts as none.
pub fn find_leaked(loose: &[LooseEni], alive: &BTreeSet<InstanceId>, now: Timestamp) -> Sweep {
    let mut sweep = Sweep::default();
    for eni in loose {
        let Some(instance) = eni.tags.get(TAG_INSTANCE) else {
            continue;
        };
        if !eni.description.starts_with(DESCRIPTION)
            || alive.contains(&InstanceId::new(instance.as_str()))
        {
            continue;
        }
        let created = eni.tags.get(TAG_CREATED);
        match created.and_then(|text| Timestamp::parse_rfc3339(text)) {
            None => sweep.tag.push(eni.id.clone()),
            Some(created) if now.since(created) > MIN_AGE => sweep.delete.push(eni.id.clone()),
            Some(_) => {}
        }
    }
    sweep.delete.sort();
    sweep.tag.sort();
    sweep
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn only_old_interfaces_of_dead_instances_that_an_agent_made_are_deleted() {
        let now = Timestamp::parse_rfc3339("2026-01-31T09:05:00Z").unwrap();
        let loose = |id: &str, instance: Option<&str>, description: &str, created: Option<&str>| {
            let mut tags = BTreeMap::new();
            tags.extend(instance.map(|i| (TAG_INSTANCE.to_owned(), i.to_owned())));
            tags.extend(created.map(|c| (TAG_CREATED.to_owned(), c.to_owned())));
            LooseEni {
                id: EniId::new(id),
                description: description.into(),
                tags,
            }
        };
        let old = Some("2026-01-31T08:59:59Z");
        let found = [
            loose("eni-leaked", Some("i-dead"), "aws-K8S-i-dead", old),
            loose(
                "eni-of-aws",
                Some("i-gone"),
                "aws-K8S-i-gone",
                Some("2026-01-31T10:59:59+02:00"),
            ),
            loose(
                "eni-young",
                Some("i-dead"),
                "aws-K8S-i-dead",
                Some("2026-01-31T09:00:00Z"),
            ),
            loose("eni-undated", Some("i-dead"), "aws-K8S-i-dead", None),
            loose(
                "eni-garbled",
                Some("i-dead"),
                "aws-K8S-i-dead",
                Some("yesterday"),
            ),
            loose("eni-alive", Some("i-alive"), "aws-K8S-i-alive", old),
            loose("eni-by-hand", Some("i-dead"), "my own", old),
            loose("eni-stranger", None, "aws-K8S-i-dead", old),
        ];
        let alive = BTreeSet::from([InstanceId::new("i-alive")]);
        let ids = |ids: &[&str]| ids.iter().map(|id| EniId::new(*id)).collect::<Vec<_>>();
        assert_eq!(
            find_leaked(&found, &alive, now),
            Sweep {
                delete: ids(&["eni-leaked", "eni-of-aws"]),
                tag: ids(&["eni-garbled", "eni-undated"]),
            }
        );
    }
}
