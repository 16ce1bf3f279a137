//! What is enforced on this node, pod by pod: what `selvage-policy status` lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::support::ruleset::kind_name;
use selvage_policy_core::compile::compile;
use selvage_policy_core::index::{Index, Profile};
use selvage_policy_core::model::Direction;
use selvage_policy_core::ruleset::{Action, ChainName, Match, Ruleset, SetKind};
use serde::{Deserialize, Serialize};

/// Names of policies that a line of text has room for.
const NAMED_MAX: usize = 3;

/// What this node enforces, as compiled from what the API server said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforced {
    /// Pods of this node, by name.
    pub pods: Vec<PodReport>,
    /// What isolates them, by chain.
    pub profiles: Vec<ProfileReport>,
    /// Sets that the chains match on, by name.
    pub sets: Vec<SetReport>,
}

/// One pod of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReport {
    /// `namespace/name`.
    pub pod: String,
    /// The host end of its veth.
    pub interface: String,
    /// The chain that judges what may reach it; `None`: everything may.
    pub ingress: Option<String>,
    /// The chain that judges what it may reach; `None`: everything.
    pub egress: Option<String>,
}

/// Pods that the same policies isolate, in one direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileReport {
    /// Their chain, in each family.
    pub chain: String,
    /// `ingress` or `egress`.
    pub direction: String,
    /// How many pods share it.
    pub pods: u64,
    /// The policies, `namespace/name`.
    pub policies: Vec<String>,
    /// The sets that the chain matches on, all families.
    pub sets: BTreeSet<String>,
    /// Whether it is laid out apart, with more rules and fewer members, for the member budget's sake.
    pub apart: bool,
}

/// One set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetReport {
    /// Its name in the kernel.
    pub name: String,
    /// Its family, `ipv4` or `ipv6`.
    pub family: String,
    /// Its type in the kernel.
    pub kind: String,
    /// How many members it has.
    pub members: u64,
}

/// Compiles what should be enforced. For a question to the loop.
///
/// *Cost*: that of a compile, linear in the members of all sets: 10 ms at 100k.
#[must_use]
pub fn rulesets(index: &mut Index) -> Vec<Ruleset> {
    let families = index.settings().families.clone();
    families
        .into_iter()
        .map(|family| compile(index, family))
        .collect()
}

impl Enforced {
    /// Describes what is enforced. For a question to the loop.
    ///
    /// *Cost*: as [`rulesets`].
    #[must_use]
    pub fn of(index: &mut Index) -> Self {
        let rulesets = rulesets(index);
        let chains = judges(&rulesets);
        let isolations = index.local_pods().clone();
        let index = &*index;
        let mut profiles: BTreeMap<&ChainName, ProfileReport> = BTreeMap::new();
        let mut pods = Vec::new();
        for (pod, isolation) in &isolations {
            let interface = index.veth(pod).to_string();
            let mut judged_by = |profile: Option<&Profile>| {
                let profile = profile?;
                let chain = chains.get(&(interface.clone(), profile.direction))?;
                profiles
                    .entry(chain)
                    .or_insert_with(|| ProfileReport {
                        apart: index.is_apart(profile),
                        ..report(chain, profile, &rulesets)
                    })
                    .pods += 1;
                Some(chain.to_string())
            };
            pods.push(PodReport {
                pod: pod.to_string(),
                ingress: judged_by(isolation.profile(Direction::Ingress)),
                egress: judged_by(isolation.profile(Direction::Egress)),
                interface,
            });
        }
        Self {
            pods,
            profiles: profiles.into_values().collect(),
            sets: sets(&rulesets),
        }
    }
}

/// The chain that judges an interface in a direction: where its entry sends packets.
fn judges(rulesets: &[Ruleset]) -> BTreeMap<(String, Direction), &ChainName> {
    let rules = rulesets
        .iter()
        .flat_map(|ruleset| ruleset.chains.values())
        .flat_map(|chain| chain.rules());
    rules
        .filter_map(|rule| {
            let Action::Goto(chain) = &rule.action else {
                return None;
            };
            let at = rule.matches.iter().find_map(|condition| {
                if let Match::In(interface) = condition {
                    Some((interface.to_string(), Direction::Egress))
                } else if let Match::Out(interface) = condition {
                    Some((interface.to_string(), Direction::Ingress))
                } else {
                    None
                }
            })?;
            Some((at, chain))
        })
        .collect()
}

fn report(chain: &ChainName, profile: &Profile, rulesets: &[Ruleset]) -> ProfileReport {
    let mut sets = BTreeSet::new();
    for ruleset in rulesets {
        let mut ahead = vec![chain];
        while let Some(chain) = ahead.pop().and_then(|name| ruleset.chains.get(name)) {
            sets.extend(chain.sets().map(ToString::to_string));
            // A profile's chain branches into others where it has many rules about ports.
            ahead.extend(chain.rules().iter().filter_map(|rule| match &rule.action {
                Action::Jump(to) | Action::Goto(to) => Some(to),
                Action::Return | Action::Drop | Action::Log { .. } | Action::Renew { .. } => None,
            }));
        }
    }
    ProfileReport {
        chain: chain.to_string(),
        direction: profile.direction.to_string(),
        pods: 0,
        policies: profile.policies.iter().map(ToString::to_string).collect(),
        sets,
        apart: false,
    }
}

fn sets(rulesets: &[Ruleset]) -> Vec<SetReport> {
    let mut all = Vec::new();
    for ruleset in rulesets {
        for (name, set) in &ruleset.sets {
            // A guard's members come and go by themselves.
            if set.kind == SetKind::Guard {
                continue;
            }
            all.push(SetReport {
                name: name.to_string(),
                family: ruleset.family.to_string(),
                kind: kind_name(set.kind).to_owned(),
                members: set.members.len() as u64,
            });
        }
    }
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all
}

impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = |chain: &Option<String>| chain.clone().unwrap_or_else(|| "open".to_owned());
        table(
            f,
            &["POD", "INTERFACE", "INGRESS", "EGRESS"],
            self.pods.iter().map(|pod| {
                let interface = pod.interface.clone();
                [
                    pod.pod.clone(),
                    interface,
                    open(&pod.ingress),
                    open(&pod.egress),
                ]
            }),
        )?;
        table(
            f,
            &["PROFILE", "PODS", "SETS", "LAYOUT", "POLICIES"],
            self.profiles.iter().map(|profile| {
                let layout = if profile.apart { "apart" } else { "folded" };
                [
                    profile.chain.clone(),
                    profile.pods.to_string(),
                    profile.sets.len().to_string(),
                    layout.to_owned(),
                    some(&profile.policies),
                ]
            }),
        )?;
        table(
            f,
            &["SET", "FAMILY", "TYPE", "MEMBERS"],
            self.sets.iter().map(|set| {
                let members = set.members.to_string();
                [
                    set.name.clone(),
                    set.family.clone(),
                    set.kind.clone(),
                    members,
                ]
            }),
        )
    }
}

/// The first names, and how many more there are.
fn some(names: &[String]) -> String {
    let mut text = names[..names.len().min(NAMED_MAX)].join(", ");
    if let Some(more) = names.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// Rows in columns as wide as they need, behind an empty line; nothing when there are none.
fn table<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    head: &[&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> fmt::Result {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned))
        .chain(rows)
        .collect();
    if rows.len() == 1 {
        return Ok(());
    }
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        write!(f, "\n{}", line.trim_end())?;
    }
    f.write_str("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn every_local_pod_is_listed_with_the_chain_that_judges_it() {
        let enforced = Enforced::of(&mut fixtures::shop());
        let pods: Vec<_> = enforced
            .pods
            .iter()
            .map(|pod| {
                (
                    pod.pod.as_str(),
                    pod.ingress.is_some(),
                    pod.egress.is_some(),
                )
            })
            .collect();
        assert_eq!(
            pods,
            [
                ("shop/cart-0", false, false),
                ("shop/web-0", true, false),
                ("shop/web-1", true, false)
            ]
        );
        assert_eq!(enforced.pods[1].interface, "enia4fc3c48bd8");
    }

    #[test]
    fn pods_under_the_same_policies_share_a_profile_whose_sets_are_counted() {
        let enforced = Enforced::of(&mut fixtures::shop());
        let [profile] = enforced.profiles.as_slice() else {
            panic!("{:?}", enforced.profiles);
        };
        assert_eq!(profile.pods, 2);
        assert_eq!(
            profile.policies,
            ["shop/a", "shop/b", "shop/c", "shop/d", "shop/e"]
        );
        assert_eq!(Some(&profile.chain), enforced.pods[1].ingress.as_ref());
        let members: Vec<_> = enforced
            .sets
            .iter()
            .filter(|set| profile.sets.contains(&set.name))
            .map(|set| (set.family.as_str(), set.members))
            .collect();
        // No pod has an address of IPv6: there is no set for them.
        assert_eq!(members, [("IPv4", 3)]);
    }

    #[test]
    fn a_profile_that_the_budget_has_no_room_for_is_shown_as_laid_out_apart() {
        let layouts = |index: &mut Index| -> Vec<bool> {
            let enforced = Enforced::of(index);
            enforced.profiles.iter().map(|it| it.apart).collect()
        };
        assert_eq!(layouts(&mut fixtures::shop()), [false]);
        let mut tight = fixtures::shop().with_member_budget(2);
        assert_eq!(layouts(&mut tight), [true]);
        let text = Enforced::of(&mut tight).to_string();
        assert!(text.contains("apart   shop/a, shop/b"), "{text}");
    }

    #[test]
    fn people_see_columns_and_the_first_policies() {
        let text = Enforced::of(&mut fixtures::shop()).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[1].starts_with("POD          INTERFACE       INGRESS"),
            "{text}"
        );
        assert!(
            lines[2].ends_with("open                        open"),
            "{text}"
        );
        assert!(text.contains("shop/a, shop/b, shop/c and 2 more"), "{text}");
        assert!(lines.iter().all(|line| !line.ends_with(' ')), "{text}");
    }
}
