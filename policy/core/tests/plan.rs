//! Plans on a model of the kernel: every step finds what it needs, a crash between any two is
//! mended, and nothing that both the old and the new state allow is cut in between.

#[path = "support/cluster.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod cluster;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use selvage_policy_core::compile::compile;
use selvage_policy_core::eval::{Packet, Verdict, eval};
use selvage_policy_core::observe::{ChainState, HookState, Observed, SetState};
use selvage_policy_core::plan::{Plan, plan};
use selvage_policy_core::render::render;
use selvage_policy_core::ruleset::{
    Action, BaseChain, Chain, ChainName, Family, Hook, Match, Member, MemberSet, Protocol, Ruleset,
    Set, SetKind, SetName, VethPrefix, guard_set,
};
use serde_json::{Value, json};

/// The kernel, as far as plans go: it refuses what the real one refuses.
#[derive(Debug, Clone)]
struct Kernel {
    chains: BTreeMap<ChainName, Chain>,
    hooks: Vec<Hook>,
    sets: BTreeMap<SetName, Set>,
}

#[derive(Debug, Clone)]
enum Step {
    Create(SetName, Set),
    Add(SetName, Member),
    Batch(BTreeMap<ChainName, Chain>, BTreeSet<Hook>),
    Remove(SetName, Member),
    Sweep(Vec<Hook>, BTreeSet<ChainName>),
    Destroy(SetName),
}

fn steps(plan: &Plan) -> Vec<Step> {
    let mut steps = Vec::new();
    let destroy = |names: &BTreeSet<SetName>| names.iter().cloned().map(Step::Destroy).collect();
    let members = |sets: &BTreeMap<SetName, BTreeSet<Member>>,
                   step: fn(SetName, Member) -> Step| {
        sets.iter()
            .flat_map(|(name, members)| members.iter().map(|member| step(name.clone(), *member)))
            .collect::<Vec<_>>()
    };
    steps.extend::<Vec<Step>>(destroy(&plan.clear));
    for (name, set) in &plan.create {
        steps.push(Step::Create(name.clone(), set.clone()));
    }
    steps.extend(members(&plan.add, Step::Add));
    let rendered = render(plan);
    if rendered.apply.is_some() {
        steps.push(Step::Batch(plan.write.clone(), plan.hook.clone()));
    }
    steps.extend(members(&plan.remove, Step::Remove));
    if !(plan.unhook.is_empty() && plan.delete.is_empty()) {
        steps.push(Step::Sweep(plan.unhook.clone(), plan.delete.clone()));
    }
    steps.extend::<Vec<Step>>(destroy(&plan.destroy));
    steps
}

impl Kernel {
    fn empty() -> Self {
        Self {
            chains: BTreeMap::new(),
            hooks: Vec::new(),
            sets: BTreeMap::new(),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Create(name, set) => {
                let before = self.sets.insert(name.clone(), set);
                assert!(before.is_none(), "{name} exists");
            }
            Step::Add(name, member) => {
                let set = self.sets.get_mut(&name).expect("the set exists");
                assert!(set.members.insert(member), "{member} is in {name}");
            }
            Step::Batch(chains, hooks) => {
                self.chains.extend(chains);
                for hook in hooks {
                    self.hooks.insert(0, hook);
                }
                self.check_references();
            }
            Step::Remove(name, member) => {
                let set = self.sets.get_mut(&name).expect("the set exists");
                assert!(set.members.remove(&member), "{member} is not in {name}");
            }
            Step::Sweep(hooks, chains) => {
                for hook in hooks {
                    let at = self.hooks.iter().position(|found| *found == hook);
                    self.hooks.remove(at.expect("the hook exists"));
                }
                for name in chains {
                    self.chains.remove(&name).expect("the chain exists");
                }
                self.check_references();
            }
            Step::Destroy(name) => {
                self.sets.remove(&name).expect("the set exists");
                self.check_references();
            }
        }
    }

    fn check_references(&self) {
        for hook in &self.hooks {
            assert!(self.chains.contains_key(&hook.target), "{hook:?}");
        }
        for rule in self.chains.values().flat_map(Chain::rules) {
            match &rule.action {
                Action::Jump(chain) | Action::Goto(chain) => {
                    assert!(self.chains.contains_key(chain), "{chain} is missing");
                }
                Action::Renew { set, .. } => {
                    let there = self.sets.get(set).map(|set| set.kind);
                    assert_eq!(there, Some(SetKind::Guard), "{set} is missing");
                }
                Action::Return | Action::Drop | Action::Log { .. } => {}
            }
            for condition in &rule.matches {
                if let Match::Set { set, kind, .. } = condition {
                    assert_eq!(self.sets.get(set).map(|set| set.kind), Some(*kind));
                }
            }
        }
    }

    fn observed(&self) -> Observed {
        Observed {
            chains: self
                .chains
                .iter()
                .map(|(name, chain)| {
                    let state = ChainState {
                        marker: Some(chain.marker()),
                        rules: chain.rules_in_kernel(),
                    };
                    (name.clone(), state)
                })
                .collect(),
            hooks: self
                .hooks
                .iter()
                .enumerate()
                .map(|(position, hook)| HookState {
                    base: hook.base,
                    target: hook.target.clone(),
                    position,
                    shadowed: false,
                })
                .collect(),
            sets: self
                .sets
                .iter()
                .map(|(name, set)| {
                    let state = SetState::Known {
                        kind: set.kind,
                        members: set.members.clone(),
                    };
                    (name.clone(), state)
                })
                .collect(),
        }
    }

    fn ruleset(&self) -> Ruleset {
        Ruleset {
            family: Family::V4,
            hooks: self.hooks.iter().cloned().collect(),
            chains: self.chains.clone(),
            sets: self.sets.clone(),
        }
    }

    fn holding(want: &Ruleset) -> Self {
        let mut kernel = Self::empty();
        for step in steps(&plan(want, &kernel.observed())) {
            kernel.take(step);
        }
        kernel
    }
}

type Objects = (Vec<Value>, Vec<Value>, Vec<Value>);

fn objects() -> impl Strategy<Value = Objects> {
    (
        prop::collection::vec(cluster::namespace(), 0..5),
        prop::collection::vec(cluster::pod(), 0..10),
        prop::collection::vec(cluster::policy(), 0..6),
    )
}

fn compiled((namespaces, pods, policies): &Objects) -> Ruleset {
    compile(&mut cluster::index(namespaces, pods, policies), Family::V4)
}

/// Packets between all that can be named, on some ports.
fn packets() -> Vec<Packet> {
    let mut ends = vec![("ens5".to_owned(), "198.51.100.10")];
    for namespace in cluster::NAMESPACES {
        for (pod, address) in cluster::PODS.iter().zip(cluster::V4) {
            let veth = VethPrefix::default().veth(namespace, pod);
            ends.push((veth.to_string(), address));
        }
    }
    let mut packets = Vec::new();
    for (in_interface, source) in &ends {
        for (out_interface, destination) in &ends {
            for port in [Some((Protocol::Tcp, 80)), Some((Protocol::Udp, 82)), None] {
                packets.push(Packet::first(
                    in_interface.as_str(),
                    out_interface.as_str(),
                    source.parse().unwrap(),
                    destination.parse().unwrap(),
                    port,
                ));
            }
        }
    }
    packets
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_plan_leads_from_any_state_to_any_other_and_then_there_is_nothing_to_do(
        old in objects(), new in objects()
    ) {
        let (old, new) = (compiled(&old), compiled(&new));
        let mut kernel = Kernel::holding(&old);
        prop_assert!(plan(&old, &kernel.observed()).is_empty());
        for step in steps(&plan(&new, &kernel.observed())) {
            kernel.take(step);
        }
        prop_assert_eq!(kernel.ruleset(), new.clone());
        prop_assert!(plan(&new, &kernel.observed()).is_empty());
        for step in steps(&plan(&Ruleset::empty(Family::V4), &kernel.observed())) {
            kernel.take(step);
        }
        prop_assert_eq!(kernel.ruleset(), Ruleset::empty(Family::V4));
    }

    #[test]
    fn a_crash_between_any_two_steps_is_mended_by_the_next_plan(
        old in objects(), new in objects()
    ) {
        let (old, new) = (compiled(&old), compiled(&new));
        let mut kernel = Kernel::holding(&old);
        for step in steps(&plan(&new, &kernel.observed())) {
            kernel.take(step);
            let mut restarted = kernel.clone();
            for step in steps(&plan(&new, &restarted.observed())) {
                restarted.take(step);
            }
            prop_assert_eq!(restarted.ruleset(), new.clone());
        }
    }

    #[test]
    fn what_old_and_new_both_allow_is_allowed_at_every_step_between(
        old in objects(), new in objects()
    ) {
        let (old, new) = (compiled(&old), compiled(&new));
        let mut kernel = Kernel::holding(&old);
        let passes = |ruleset: &Ruleset, packet: &Packet| eval(ruleset, packet) == Verdict::Passed;
        let packets: Vec<Packet> = packets()
            .into_iter()
            .filter(|packet| passes(&old, packet) && passes(&new, packet))
            .collect();
        for step in steps(&plan(&new, &kernel.observed())) {
            kernel.take(step.clone());
            let between = kernel.ruleset();
            for packet in &packets {
                prop_assert!(passes(&between, packet), "cut after {step:?}: {packet:?}");
            }
        }
    }
}

fn one_pod(policies: &[Value]) -> Ruleset {
    let pod = json!({
        "metadata": {"name": "p0", "namespace": "n0", "labels": {"a": "x"}},
        "spec": {"nodeName": cluster::NODE},
    });
    compile(&mut cluster::index(&[], &[pod], policies), Family::V4)
}

fn isolated() -> Ruleset {
    one_pod(&[json!({
        "metadata": {"name": "q", "namespace": "n0"},
        "spec": {"ingress": [{"from": [{"podSelector": {}}]}]},
    })])
}

#[test]
fn only_what_is_wrong_is_written() {
    let want = isolated();
    let right = Kernel::holding(&want).observed();
    assert!(plan(&want, &right).is_empty());

    let chain = ChainName::new("selvage-to").unwrap();
    let wrong: [(&str, ChainState); 3] = [
        (
            "a rule more",
            ChainState {
                rules: right.chains[&chain].rules + 1,
                ..right.chains[&chain].clone()
            },
        ),
        (
            "no marker",
            ChainState {
                marker: None,
                ..right.chains[&chain].clone()
            },
        ),
        (
            "another's marker",
            right.chains[&ChainName::new("selvage-from").unwrap()].clone(),
        ),
    ];
    for (message, state) in wrong {
        let mut have = right.clone();
        have.chains.insert(chain.clone(), state);
        let plan = plan(&want, &have);
        assert_eq!(plan.write.keys().collect::<Vec<_>>(), [&chain], "{message}");
        assert!(plan.hook.is_empty() && plan.create.is_empty(), "{message}");
    }
}

#[test]
fn a_hook_is_inserted_when_missing_kept_when_behind_others_and_deleted_when_double() {
    let want = one_pod(&[]);
    let right = Kernel::holding(&want).observed();

    let mut missing = right.clone();
    missing.hooks.retain(|hook| hook.base != BaseChain::Forward);
    let text = render(&plan(&want, &missing)).apply.unwrap();
    assert_eq!(text, "*mangle\n-I FORWARD -j selvage-forward\nCOMMIT\n");

    let mut behind = right.clone();
    for hook in &mut behind.hooks {
        hook.position += 3;
    }
    assert!(plan(&want, &behind).is_empty());

    let mut double = right.clone();
    double.hooks.extend(right.hooks);
    let rendered = render(&plan(&want, &double));
    assert_eq!(rendered.apply, None);
    assert_eq!(rendered.whole, None);
    let bases = plan(&want, &double).unhook.into_iter();
    let bases: Vec<BaseChain> = bases.map(|hook| hook.base).collect();
    assert_eq!(bases.len(), 2);
    assert!(bases.contains(&BaseChain::Forward) && bases.contains(&BaseChain::Prerouting));
}

#[test]
fn what_is_left_over_is_emptied_and_deleted_in_the_batch_that_writes_unless_a_jump_goes_first() {
    let mut have = Kernel::holding(&one_pod(&[])).observed();
    let rendered = render(&plan(&Ruleset::empty(Family::V4), &have));
    assert_eq!(
        (rendered.apply, rendered.whole),
        (None, None),
        "jumps lead there"
    );
    have.hooks.clear();
    let mut want = Ruleset::empty(Family::V4);
    let kept = have.chains.keys().next().unwrap().clone();
    let chain = one_pod(&[]).chains[&kept].clone();
    want.chains.insert(kept.clone(), chain);
    have.chains.get_mut(&kept).unwrap().marker = None;
    let rendered = render(&plan(&want, &have));
    let (apply, whole) = (rendered.apply.unwrap(), rendered.whole.unwrap());
    assert!(!apply.contains("-X "), "{apply}");
    let deleted = ["forward", "from", "source", "to"].map(|it| format!("selvage-{it}"));
    let mut want = apply.replace("COMMIT\n", "");
    let declared = format!(":{kept} - [0:0]\n");
    let flushed = deleted.each_ref().map(|name| format!(":{name} - [0:0]\n"));
    want = want.replace(&declared, &(declared.clone() + &flushed.concat()));
    want += &deleted.map(|name| format!("-X {name}\n")).concat();
    assert_eq!(whole, want + "COMMIT\n");
}

#[test]
fn a_set_of_a_strange_type_makes_way_before_ours_is_created() {
    let want = isolated();
    let mut have = Observed::default();
    let name = want.sets.keys().next().unwrap().clone();
    let other = SetState::Known {
        kind: SetKind::NetPort,
        members: MemberSet::new(),
    };
    for strange in [SetState::Foreign, other] {
        have.sets.insert(name.clone(), strange);
        let plan = plan(&want, &have);
        assert!(plan.clear.contains(&name) && plan.create.contains_key(&name));
        assert!(!plan.destroy.contains(&name));
    }
}

#[test]
fn what_a_guard_holds_is_nobodys_business_and_a_missing_one_is_made() {
    let want = compiled(&(Vec::new(), Vec::new(), Vec::new()));
    let mut kernel = Kernel::holding(&want);
    let name = guard_set(Family::V4);
    let cut = Member {
        net: "10.0.0.1/32".parse().unwrap(),
        port: Some((Protocol::Udp, 53)),
    };
    kernel.sets.get_mut(&name).unwrap().members.insert(cut);
    assert!(plan(&want, &kernel.observed()).is_empty());
    kernel.sets.remove(&name);
    let missing = plan(&want, &kernel.observed());
    assert_eq!(missing.create.keys().collect::<Vec<_>>(), [&name]);
    kernel.sets.insert(
        name.clone(),
        Set {
            kind: SetKind::Net,
            members: MemberSet::new(),
        },
    );
    assert_eq!(plan(&want, &kernel.observed()).clear, [name].into());
}
