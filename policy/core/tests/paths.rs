//! The same state by every path: whatever the order of events, however often they come, and
//! whichever relists interrupt them, the kernel is led to what a fresh start would make.

#[path = "support/cluster.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::select;
use selvage_policy_core::compile::compile;
use selvage_policy_core::index::{Delta, Event, Index, MemberChanges, Resource};
use selvage_policy_core::model::{NamespaceName, PodKey, PodUid, PolicyKey};
use selvage_policy_core::ruleset::{Family, Ruleset};
use serde_json::{Value, json};

type Name = (String, String);

#[derive(Debug, Clone)]
enum Step {
    Namespace(Value),
    Pod(Value),
    Policy(Value),
    Routes(Value),
    DeleteNamespace(&'static str),
    DeletePod(&'static str, &'static str),
    DeletePolicy(&'static str, &'static str),
    /// A watch begins anew; what the predicate's bits name was deleted while it was away.
    Relist(Resource, u16),
    /// The last event again.
    Again,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let namespaces = || select(&cluster::NAMESPACES[..]);
    let resources = vec![
        Resource::Pods,
        Resource::Namespaces,
        Resource::Policies,
        Resource::Routes,
    ];
    let step = prop_oneof![
        3 => cluster::namespace().prop_map(Step::Namespace),
        10 => cluster::pod().prop_map(Step::Pod),
        6 => cluster::policy().prop_map(Step::Policy),
        4 => cluster::routes().prop_map(Step::Routes),
        1 => namespaces().prop_map(Step::DeleteNamespace),
        4 => (namespaces(), select(&cluster::PODS[..]))
            .prop_map(|(namespace, name)| Step::DeletePod(namespace, name)),
        2 => (namespaces(), select(&cluster::POLICIES[..]))
            .prop_map(|(namespace, name)| Step::DeletePolicy(namespace, name)),
        2 => (select(resources), any::<u16>())
            .prop_map(|(resource, gone)| Step::Relist(resource, gone)),
        2 => Just(Step::Again),
    ];
    prop::collection::vec(step, 1..40)
}

/// What the API server holds.
#[derive(Debug, Default)]
struct Truth {
    namespaces: BTreeMap<Name, Value>,
    pods: BTreeMap<Name, Value>,
    policies: BTreeMap<Name, Value>,
    routes: BTreeMap<Name, Value>,
}

fn name(object: &Value) -> Name {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or("").to_owned();
    (text("namespace"), text("name"))
}

fn pod_deleted((namespace, name): &Name, object: &Value) -> Event {
    let key = PodKey {
        namespace: NamespaceName::new(namespace.as_str()),
        name: name.clone(),
    };
    Event::PodDeleted(
        key,
        PodUid::new(object["metadata"]["uid"].as_str().unwrap()),
    )
}

impl Truth {
    /// Takes a step, and says which events a watch would tell of it.
    fn take(&mut self, step: &Step, last: &[Event]) -> Vec<Event> {
        match step {
            Step::Namespace(object) => {
                self.namespaces.insert(name(object), object.clone());
                vec![cluster::namespace_applied(object)]
            }
            Step::Pod(object) => {
                self.pods.insert(name(object), object.clone());
                vec![cluster::pod_applied(object)]
            }
            Step::Policy(object) => {
                self.policies.insert(name(object), object.clone());
                vec![cluster::policy_applied(object)]
            }
            Step::Routes(object) => {
                self.routes.insert(name(object), object.clone());
                vec![cluster::routes_applied(object)]
            }
            Step::DeleteNamespace(namespace) => {
                self.namespaces
                    .remove(&(String::new(), (*namespace).to_owned()));
                vec![Event::NamespaceDeleted(NamespaceName::new(*namespace))]
            }
            Step::DeletePod(namespace, name) => {
                let name = ((*namespace).to_owned(), (*name).to_owned());
                match self.pods.remove(&name) {
                    Some(object) => vec![pod_deleted(&name, &object)],
                    None => vec![pod_deleted(&name, &json!({"metadata": {"uid": "u0"}}))],
                }
            }
            Step::DeletePolicy(namespace, name) => {
                self.policies
                    .remove(&((*namespace).to_owned(), (*name).to_owned()));
                vec![Event::PolicyDeleted(PolicyKey {
                    namespace: NamespaceName::new(*namespace),
                    name: (*name).to_owned(),
                })]
            }
            Step::Relist(resource, gone) => {
                let (objects, applied): (_, fn(&Value) -> Event) = match resource {
                    Resource::Pods => (&mut self.pods, cluster::pod_applied),
                    Resource::Namespaces => (&mut self.namespaces, cluster::namespace_applied),
                    Resource::Policies => (&mut self.policies, cluster::policy_applied),
                    Resource::Routes => (&mut self.routes, cluster::routes_applied),
                };
                let mut number = 0;
                objects.retain(|_, _| {
                    number += 1;
                    gone & (1 << number) == 0
                });
                let mut events = vec![Event::RelistStarted(*resource)];
                events.extend(objects.values().map(applied));
                events.push(Event::RelistDone(*resource));
                events
            }
            Step::Again => last.to_vec(),
        }
    }

    fn index(&self) -> Index {
        let all =
            |objects: &BTreeMap<Name, Value>| -> Vec<Value> { objects.values().cloned().collect() };
        let mut index = cluster::index(
            &all(&self.namespaces),
            &all(&self.pods),
            &all(&self.policies),
        );
        for object in self.routes.values() {
            index.apply(cluster::routes_applied(object));
        }
        index
    }
}

/// What a daemon would have in the kernel.
struct Mirror {
    rulesets: Vec<Ruleset>,
}

impl Mirror {
    fn compiled(index: &mut Index) -> Self {
        Self {
            rulesets: vec![compile(index, Family::V4), compile(index, Family::V6)],
        }
    }

    /// Does what a delta says, and insists that it says nothing needless.
    fn follow(&mut self, delta: Delta, index: &mut Index) {
        let changes = match delta.recompile {
            true => None,
            false => index.take_member_changes(),
        };
        let Some(changes) = changes else {
            *self = Self::compiled(index);
            let then = index.take_member_changes();
            assert_eq!(
                then,
                Some(MemberChanges::new()),
                "the compiled sets hold them"
            );
            return;
        };
        assert!(
            delta.members || changes.is_empty(),
            "nothing was said to change"
        );
        for (name, change) in changes {
            let set = self
                .rulesets
                .iter_mut()
                .find_map(|ruleset| ruleset.sets.get_mut(&name))
                .expect("a delta is about a set that was compiled");
            for member in &change.add {
                assert!(set.members.insert(*member), "{member} was in {name}");
            }
            for member in &change.remove {
                assert!(set.members.remove(member), "{member} was not in {name}");
            }
            assert!(!(change.add.is_empty() && change.remove.is_empty()));
            assert_eq!(set.members, change.members, "{name}");
        }
    }
}

type Local = (PodKey, String, BTreeSet<IpAddr>);

fn locals(index: &Index) -> Vec<Local> {
    index
        .enforced_pods()
        .map(|local| {
            let addresses = local.addresses.into_owned();
            (
                local.pod.key.clone(),
                local.interface.to_string(),
                addresses,
            )
        })
        .collect()
}

fn local_addresses(index: &Index) -> BTreeSet<IpAddr> {
    locals(index)
        .into_iter()
        .flat_map(|(_, _, addresses)| addresses)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn deltas_lead_to_what_a_fresh_start_compiles(
        (steps, patience) in (steps(), 1..4_usize)
    ) {
        let mut truth = Truth::default();
        let mut index = Index::new(cluster::settings());
        let mut mirror = Mirror::compiled(&mut index);
        let mut last = Vec::new();
        let mut waiting = Delta::default();
        for (number, step) in steps.iter().enumerate() {
            let events = truth.take(step, &last);
            for event in &events {
                let before = local_addresses(&index);
                let delta = index.apply(event.clone());
                let gone: BTreeSet<IpAddr> =
                    before.difference(&local_addresses(&index)).copied().collect();
                prop_assert_eq!(&delta.left, &gone, "addresses that left, {:?}", event);
                waiting.recompile |= delta.recompile;
                waiting.members |= delta.members;
                // As many events as one likes share what follows.
                if patience == 1 {
                    mirror.follow(std::mem::take(&mut waiting), &mut index);
                }
            }
            // What a relist removed must not be told again.
            last = if matches!(step, Step::Relist(..)) {
                Vec::new()
            } else {
                events
            };
            if number % patience != 0 {
                continue;
            }
            mirror.follow(std::mem::take(&mut waiting), &mut index);
            let fresh = Mirror::compiled(&mut truth.index());
            prop_assert_eq!(&mirror.rulesets, &fresh.rulesets, "after {:?}", step);
            prop_assert_eq!(locals(&index), locals(&truth.index()), "after {:?}", step);
        }
    }

    #[test]
    fn the_order_of_events_about_different_objects_leaves_no_trace(
        (objects, order) in (
            prop::collection::vec(cluster::namespace(), 1..5),
            prop::collection::vec(cluster::pod(), 1..10),
            prop::collection::vec(cluster::policy(), 1..5),
            prop::collection::vec(cluster::routes(), 0..5),
        )
            .prop_flat_map(|(namespaces, pods, policies, routes)| {
                let mut truth = Truth::default();
                let steps = namespaces.into_iter().map(Step::Namespace)
                    .chain(pods.into_iter().map(Step::Pod))
                    .chain(policies.into_iter().map(Step::Policy))
                    .chain(routes.into_iter().map(Step::Routes));
                for step in steps {
                    truth.take(&step, &[]);
                }
                let events: Vec<Event> =
                    truth.namespaces.values().map(cluster::namespace_applied)
                    .chain(truth.pods.values().map(cluster::pod_applied))
                    .chain(truth.policies.values().map(cluster::policy_applied))
                    .chain(truth.routes.values().map(cluster::routes_applied))
                    .collect();
                (Just(events.clone()), Just(events).prop_shuffle())
            })
    ) {
        let mut one = Index::new(cluster::settings());
        let mut other = Index::new(cluster::settings());
        for event in objects {
            one.apply(event);
        }
        for event in order {
            other.apply(event.clone());
            // Compiling in between must not matter either.
            let _ = compile(&mut other, Family::V4);
        }
        prop_assert_eq!(
            Mirror::compiled(&mut one).rulesets,
            Mirror::compiled(&mut other).rulesets
        );
    }
}

fn web(node: &str, name: &str, address: &str) -> Event {
    cluster::pod_applied(&json!({
        "metadata": {"name": name, "namespace": "n0", "labels": {"a": "x"}, "uid": "u0"},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    }))
}

/// A pod of this node that its namespace's pods may reach, and nobody else.
fn open_to_its_namespace() -> Index {
    let mut index = Index::new(cluster::settings());
    index.apply(web(cluster::NODE, "p0", "10.0.0.1"));
    index.apply(cluster::policy_applied(&json!({
        "metadata": {"name": "q", "namespace": "n0"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]},
    })));
    index
}

#[test]
fn a_pod_elsewhere_that_comes_or_goes_changes_members_and_no_chain() {
    let mut index = Index::new(cluster::settings());
    index.apply(web(cluster::NODE, "p0", "10.0.0.1"));
    index.apply(cluster::policy_applied(&json!({
        "metadata": {"name": "q", "namespace": "n0"},
        "spec": {
            "podSelector": {},
            "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80}, {"port": 81, "endPort": 90}]}],
        },
    })));
    let before = compile(&mut index, Family::V4);
    let come = index.apply(web("there", "p1", "10.0.0.2"));
    assert!(!come.recompile);
    let changes = index.take_member_changes().unwrap();
    assert_eq!(changes.len(), 2, "one set of ports, one of the range");
    let after = compile(&mut index, Family::V4);
    assert_eq!(before.chains, after.chains);
    assert_ne!(before.sets, after.sets);
    let key = PodKey {
        namespace: NamespaceName::new("n0"),
        name: "p1".to_owned(),
    };
    let later = PodUid::new("u1");
    let ignored = index.apply(Event::PodDeleted(key.clone(), later));
    assert!(ignored.is_empty(), "the end of another pod of that name");
    let gone = index.apply(Event::PodDeleted(key, PodUid::new("u0")));
    assert!(!gone.recompile);
    assert_eq!(compile(&mut index, Family::V4), before);
}

#[test]
fn an_address_that_two_pods_share_leaves_with_the_second() {
    let mut index = open_to_its_namespace();
    let before = compile(&mut index, Family::V4);
    let deltas = [
        (web("there", "p1", "10.0.0.2"), 1, "first in"),
        (web("there", "p2", "10.0.0.2"), 0, "second in"),
        (
            web("there", "p1", "10.0.0.1"),
            0,
            "first moves to another known address",
        ),
        (web("there", "p2", "10.0.0.1"), 1, "second moves away"),
    ];
    for (event, sets, message) in deltas {
        let delta = index.apply(event);
        assert!(!delta.recompile, "{message}");
        let changes = index.take_member_changes().unwrap();
        assert_eq!(changes.len(), sets, "{message}");
    }
    assert_eq!(compile(&mut index, Family::V4), before);
}

#[test]
fn a_pod_is_in_the_chains_once_it_is_bound_and_stays_there_while_it_gets_its_address() {
    let mut index = Index::new(cluster::settings());
    let mut pod = json!({
        "metadata": {"name": "p0", "namespace": "n0", "uid": "u0"},
        "spec": {},
        "status": {"phase": "Pending"},
    });
    index.apply(cluster::pod_applied(&pod));
    let unbound = compile(&mut index, Family::V4);
    pod["spec"]["nodeName"] = json!(cluster::NODE);
    assert!(index.apply(cluster::pod_applied(&pod)).recompile);
    let bound = compile(&mut index, Family::V4);
    assert_ne!(bound, unbound);
    pod["status"] = json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]});
    assert!(index.apply(cluster::pod_applied(&pod)).is_empty());
    assert_eq!(compile(&mut index, Family::V4), bound);
    pod["status"]["phase"] = json!("Succeeded");
    assert!(index.apply(cluster::pod_applied(&pod)).recompile);
    assert_eq!(compile(&mut index, Family::V4), unbound);
}

#[test]
fn a_family_without_pods_has_no_sets_of_pods_until_the_first_has_an_address_of_it() {
    let mut index = Index::new(cluster::settings());
    index.apply(web(cluster::NODE, "p0", "10.0.0.1"));
    index.apply(cluster::policy_applied(&json!({
        "metadata": {"name": "q", "namespace": "n0"},
        "spec": {
            "podSelector": {},
            "ingress": [
                {"from": [{"podSelector": {}}]},
                {"from": [{"ipBlock": {"cidr": "2001:db8::/32"}}], "ports": [{"port": 81, "endPort": 90}]},
                {"ports": [{"port": 80}]},
            ],
        },
    })));
    let sets = |index: &mut Index, family| {
        let sets = compile(index, family).sets.into_values();
        let members = sets.map(|set| set.members.len());
        // The guard's is there in any case.
        let mut members: Vec<usize> = members.collect();
        members.sort_unstable();
        members
    };
    // Of everyone's port there are two halves; the block is IPv6's, and its set is there in both.
    assert_eq!(sets(&mut index, Family::V4), [0, 0, 1, 2]);
    assert_eq!(sets(&mut index, Family::V6), [0, 1, 2]);
    let without = compile(&mut index, Family::V6);

    let first = index.apply(web("there", "p1", "2001:db8::1"));
    assert!(first.recompile, "rules and sets come with it");
    assert_eq!(sets(&mut index, Family::V6), [0, 1, 1, 2]);
    let second = index.apply(web("there", "p2", "2001:db8::2"));
    assert!(!second.recompile);
    assert_eq!(index.take_member_changes().unwrap().len(), 1);
    for (pod, recompile) in [("p1", false), ("p2", true)] {
        let key = PodKey {
            namespace: NamespaceName::new("n0"),
            name: pod.to_owned(),
        };
        let gone = index.apply(Event::PodDeleted(key, PodUid::new("u0")));
        assert_eq!(gone.recompile, recompile, "{pod}");
    }
    assert_eq!(compile(&mut index, Family::V6), without);
}

#[test]
fn a_policy_of_pods_elsewhere_asks_for_nothing() {
    let mut index = Index::new(cluster::settings());
    index.apply(web(cluster::NODE, "p0", "10.0.0.1"));
    let _ = compile(&mut index, Family::V4);
    for (namespace, selector) in [
        ("n0", json!({"matchLabels": {"a": "y"}})),
        ("n1", json!({})),
    ] {
        let delta = index.apply(cluster::policy_applied(&json!({
            "metadata": {"name": "q", "namespace": namespace},
            "spec": {"podSelector": selector, "ingress": [{"from": [{"podSelector": {}}]}]},
        })));
        assert!(delta.is_empty(), "{namespace}");
    }
}

#[test]
fn a_pod_replaced_under_its_name_is_noticed_without_a_delete() {
    let mut index = Index::new(cluster::settings());
    index.apply(web(cluster::NODE, "p0", "10.0.0.1"));
    let before = compile(&mut index, Family::V4);
    let mut later = json!({
        "metadata": {"name": "p0", "namespace": "n0", "labels": {"a": "x"}, "uid": "u1"},
        "spec": {"nodeName": cluster::NODE},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
    });
    assert!(index.apply(cluster::pod_applied(&later)).recompile);
    assert_eq!(compile(&mut index, Family::V4), before, "the same rules");
    later["spec"]["nodeName"] = json!("there");
    later["metadata"]["uid"] = json!("u2");
    let moved = index.apply(cluster::pod_applied(&later));
    assert!(moved.recompile && moved.left.contains(&"10.0.0.1".parse().unwrap()));
}

#[test]
fn a_peer_that_comes_and_goes_before_members_are_written_is_no_change() {
    let mut index = open_to_its_namespace();
    let before = compile(&mut index, Family::V4);
    let key = PodKey {
        namespace: NamespaceName::new("n0"),
        name: "p9".to_owned(),
    };
    for _ in 0..3 {
        assert!(index.apply(web("there", "p9", "10.0.0.3")).members);
        let moved = index.apply(web("there", "p9", "10.0.0.3"));
        assert!(moved.gone.is_empty());
        let went = index.apply(Event::PodDeleted(key.clone(), PodUid::new("u0")));
        assert!(went.members && went.left.is_empty());
        assert_eq!(went.gone, ["10.0.0.3".parse().unwrap()].into());
    }
    assert_eq!(index.take_member_changes(), Some(MemberChanges::new()));
    let other = json!({
        "metadata": {"name": "p9", "namespace": "n1", "uid": "u0"},
        "spec": {"nodeName": "there"},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.4"}]},
    });
    index.apply(cluster::pod_applied(&other));
    let key_of_other = PodKey {
        namespace: NamespaceName::new("n1"),
        ..key.clone()
    };
    let went = index.apply(Event::PodDeleted(key_of_other, PodUid::new("u0")));
    assert!(went.is_empty() && went.gone.is_empty(), "it was in no set");
    index.apply(web("there", "p9", "10.0.0.3"));
    let changes = index.take_member_changes().unwrap();
    assert_eq!(changes.values().map(|it| it.add.len()).sum::<usize>(), 1);
    index.apply(Event::PodDeleted(key.clone(), PodUid::new("u0")));
    assert_eq!(index.take_member_changes().map(|it| it.len()), Some(1));
    assert_eq!(compile(&mut index, Family::V4), before);
    // Nor where the sets have followed in between, because rules of the other family were compiled.
    index.apply(web("there", "p8", "2001:db8::8"));
    let _ = compile(&mut index, Family::V6);
    index.apply(web("there", "p9", "2001:db8::9"));
    let _ = compile(&mut index, Family::V4);
    index.apply(Event::PodDeleted(key, PodUid::new("u0")));
    assert_eq!(index.take_member_changes(), Some(MemberChanges::new()));
}
