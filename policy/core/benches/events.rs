//! What one event costs, from the index to the plan for the kernel, at the size that a change must
//! not feel: 110 local pods, 10,000 pods in 200 namespaces, 2,000 policies; or with `large` behind
//! it, 100,000 pods and 10,000 policies. Prints one line of JSON: medians and 99th percentiles in
//! milliseconds, and how much memory the process has grown by, in megabytes.
//!
//! ```console
//! $ cargo bench -p selvage-policy-core --bench events -- large
//! ```
//!
//! With `policies` or `storm` behind it: more rounds, and of nothing but policies, or of a hundred pods of
//! other nodes at a time, for a profiler.
//!
//! With `many`: what one policy with very many rules, peers, exceptions or ranges costs, from its
//! JSON to the plan; twice as many should cost twice as much.
#![expect(
    clippy::disallowed_methods,
    reason = "a bench looks at the clock, and at its own memory"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Instant;

use selvage_policy_core::compile::compile;
use selvage_policy_core::index::{Event, Index, Settings};
use selvage_policy_core::model::{NodeName, PodKey, PodUid, PolicyKey, Pool};
use selvage_policy_core::observe::{ChainState, HookState, Observed, SetState};
use selvage_policy_core::plan::plan;
use selvage_policy_core::ruleset::{Family, Ruleset, VethPrefix};
use selvage_policy_core::{api, convert};
use serde_json::{Map, Value, json};

const NAMESPACES: u64 = 200;
const LOCAL: u64 = 110;
const NODE: &str = "n1";
const ROUNDS: u64 = 40;
const PEERS: u64 = 400;

/// Events that share one question for members, as in a storm; and how many storms.
const TOGETHER: u64 = 100;
const STORMS: u64 = 20;

/// SplitMix64.
struct Seed(u64);

impl Seed {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).expect("an index")]
    }

    fn selector(&mut self) -> Value {
        match self.below(100) {
            0..50 => json!({"matchLabels": {"app": format!("app{}", self.below(50))}}),
            50..70 => json!({"matchLabels": {"tier": self.pick(&["fe", "be", "db"])}}),
            70..85 => {
                let values = [0; 3].map(|_| format!("app{}", self.below(50)));
                json!({"matchExpressions": [{"key": "app", "operator": "In", "values": values}]})
            }
            _ => {
                json!({"matchExpressions": [{"key": "version", "operator": "NotIn", "values": ["v0"]}]})
            }
        }
    }

    fn peer(&mut self) -> Value {
        match self.below(100) {
            0..35 => json!({"podSelector": self.selector()}),
            35..60 => {
                json!({"namespaceSelector": {"matchLabels": {"team": format!("t{}", self.below(20))}}})
            }
            60..85 => json!({
                "namespaceSelector": {"matchLabels": {"env": self.pick(&["prod", "dev", "stage"])}},
                "podSelector": self.selector(),
            }),
            _ => {
                let (second, third) = (16 + self.below(16), self.below(256));
                json!({"ipBlock": {
                    "cidr": format!("172.{second}.{third}.0/24"),
                    "except": [format!("172.{second}.{third}.{}/28", 16 * self.below(15))],
                }})
            }
        }
    }

    fn port(&mut self) -> Value {
        let protocol = self.pick(&["TCP", "TCP", "TCP", "UDP"]);
        match self.below(100) {
            0..60 => {
                json!({"protocol": protocol, "port": self.pick(&[80, 443, 8080, 5432, 6379, 9090, 53])})
            }
            60..85 => {
                let start = 20_000 + self.below(10_000);
                json!({"protocol": protocol, "port": start, "endPort": start + 1 + self.below(199)})
            }
            _ => json!({"protocol": "TCP", "port": "web"}),
        }
    }

    fn rules(&mut self, key: &str) -> Value {
        let rule = |seed: &mut Self| {
            let peers: Vec<Value> = (0..=seed.below(3)).map(|_| seed.peer()).collect();
            let ports: Vec<Value> = (0..=seed.below(3)).map(|_| seed.port()).collect();
            json!({key: peers, "ports": ports})
        };
        (0..=self.below(2)).map(|_| rule(self)).collect()
    }

    fn policy(&mut self, number: u64) -> Value {
        let mut spec = Map::new();
        let all = self.below(100) < 20;
        spec.insert(
            "podSelector".to_owned(),
            if all { json!({}) } else { self.selector() },
        );
        let ingress = self.below(100) < 80;
        if ingress {
            spec.insert("ingress".to_owned(), self.rules("from"));
        }
        if !ingress || self.below(100) < 40 {
            spec.insert("egress".to_owned(), self.rules("to"));
            let types = if ingress {
                json!(["Ingress", "Egress"])
            } else {
                json!(["Egress"])
            };
            spec.insert("policyTypes".to_owned(), types);
        }
        json!({"metadata": {"namespace": namespace(number), "name": format!("policy-{number:05}")}, "spec": spec})
    }

    fn pod(&mut self, number: u64, node: &str) -> Value {
        json!({
            "metadata": {
                "namespace": namespace(number), "name": format!("pod-{number:05}"), "uid": format!("{:032x}", number),
                "labels": {
                    "app": format!("app{}", self.below(50)), "tier": self.pick(&["fe", "be", "db"]),
                    "version": format!("v{}", self.below(4)), "pod-template-hash": format!("{:09x}", self.below(1 << 33)),
                },
            },
            "spec": {"nodeName": node, "containers": [{"ports": [
                {"name": "web", "containerPort": self.pick(&[80, 8080, 8443])}, {"name": "metrics", "containerPort": 9100},
            ]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": Ipv4Addr::from_bits(0x0a40_000a + u32::try_from(number).expect("few"))}]},
        })
    }
}

fn namespace(number: u64) -> String {
    format!("ns-{:03}", number % NAMESPACES)
}

fn team(number: u64, team: u64) -> Event {
    let environment = ["prod", "dev", "stage"][usize::try_from(number % 3).expect("small")];
    let labels = json!({"team": format!("t{team}"), "env": environment});
    let object: api::Namespace =
        serde_json::from_value(json!({"metadata": {"name": namespace(number), "labels": labels}}))
            .expect("well formed");
    Event::NamespaceApplied(convert::namespace(object))
}

fn pod(object: &Value) -> Event {
    let object: api::Pod = serde_json::from_value(object.clone()).expect("well formed");
    Event::PodApplied(convert::pod(object))
}

fn gone(object: &Value) -> Event {
    let text = |key: &str| object["metadata"][key].as_str().expect("text").to_owned();
    let Event::PodApplied(pod) = pod(object) else {
        unreachable!("made so")
    };
    Event::PodDeleted(
        PodKey {
            name: text("name"),
            ..pod.key
        },
        PodUid::new(text("uid")),
    )
}

fn policy(object: &Value) -> Event {
    let object: api::NetworkPolicy = serde_json::from_value(object.clone()).expect("well formed");
    Event::PolicyApplied(convert::policy(&object).0)
}

fn as_observed(ruleset: Ruleset) -> Observed {
    let chains = ruleset.chains.iter().map(|(name, chain)| {
        (
            name.clone(),
            ChainState {
                marker: Some(chain.marker()),
                rules: chain.rules_in_kernel(),
            },
        )
    });
    let hooks = ruleset.hooks.iter().map(|hook| HookState {
        base: hook.base,
        target: hook.target.clone(),
        position: 0,
        shadowed: false,
    });
    Observed {
        chains: chains.collect(),
        hooks: hooks.collect(),
        sets: ruleset
            .sets
            .into_iter()
            .map(|(name, set)| {
                (
                    name,
                    SetState::Known {
                        kind: set.kind,
                        members: set.members,
                    },
                )
            })
            .collect(),
    }
}

/// Resident memory in kilobytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("a Linux");
    text.split(' ')
        .nth(1)
        .expect("two numbers")
        .parse::<u64>()
        .expect("a number")
        * 4
}

/// An index, and what a daemon remembers of the kernel.
struct Node {
    index: Index,
    known: Vec<Observed>,
    figures: BTreeMap<&'static str, Vec<f64>>,
    /// Members of sets that the plans wrote, so that a share of the cost can be told from the kernel's.
    written: BTreeMap<&'static str, usize>,
}

impl Node {
    /// Takes in an event, and does all that is done before the kernel is asked.
    fn take(&mut self, what: &'static str, event: Event) {
        let started = Instant::now();
        let delta = self.index.apply(event);
        let mut written = 0;
        if delta.recompile {
            let families = [Family::V4, Family::V6];
            let mut known = Vec::new();
            for (family, have) in families.into_iter().zip(&self.known) {
                let ruleset = compile(&mut self.index, family);
                let plan = plan(&ruleset, have);
                written += plan
                    .create
                    .values()
                    .map(|set| set.members.len())
                    .sum::<usize>();
                written += plan
                    .add
                    .values()
                    .chain(plan.remove.values())
                    .map(BTreeSet::len)
                    .sum::<usize>();
                known.push(as_observed(ruleset));
            }
            self.known = known;
        } else {
            written += self.follow();
        }
        self.note(what, started, written);
    }

    /// Takes in many events of pods of other nodes, and asks for members once.
    fn take_together(&mut self, what: &'static str, events: Vec<Event>) {
        let started = Instant::now();
        for event in events {
            assert!(!self.index.apply(event).recompile, "no chain is concerned");
        }
        let written = self.follow();
        self.note(what, started, written);
    }

    /// Does what is done for members before the kernel is asked, and says how many are written.
    fn follow(&mut self) -> usize {
        let changes = self.index.take_member_changes().expect("below the budget");
        for (set, change) in &changes {
            let mut sets = self
                .known
                .iter_mut()
                .filter_map(|known| known.sets.get_mut(set));
            let Some(SetState::Known { members, .. }) = sets.next() else {
                unreachable!("compiled")
            };
            members.clone_from(&change.members);
        }
        let changes = changes.values();
        changes
            .map(|change| change.add.len() + change.remove.len())
            .sum()
    }

    fn note(&mut self, what: &'static str, started: Instant, written: usize) {
        self.figures
            .entry(what)
            .or_default()
            .push(started.elapsed().as_secs_f64() * 1e3);
        *self.written.entry(what).or_default() += written;
    }
}

/// One policy on one pod: what it says, and milliseconds to read, compile and plan it.
fn one_policy(what: &str, ingress: &[Value]) -> Value {
    let mut index = new_index();
    index.apply(pod(&Seed(1).pod(0, NODE)));
    let object = json!({
        "metadata": {"namespace": namespace(0), "name": "many"},
        "spec": {"podSelector": {}, "ingress": ingress},
    });
    let started = Instant::now();
    index.apply(policy(&object));
    let ruleset = compile(&mut index, Family::V4);
    let plan = plan(&ruleset, &Observed::default());
    let took = started.elapsed().as_secs_f64() * 1e3;
    let members: usize = plan.create.values().map(|set| set.members.len()).sum();
    let rules: usize = plan.write.values().map(|chain| chain.rules().len()).sum();
    json!({"what": what, "ms": took, "members": members, "rules": rules})
}

fn many() {
    let address = |number: u32| Ipv4Addr::from_bits(0xac10_0000 + 2 * number);
    let block = |number: u32| json!({"ipBlock": {"cidr": format!("{}/32", address(number))}});
    let port = json!({"port": 80});
    for number in [5_000, 10_000, 20_000] {
        let rules: Vec<Value> = (0..number)
            .map(|it| json!({"from": [block(it)], "ports": [port]}))
            .collect();
        println!(
            "{}",
            one_policy(&format!("{number} rules of a block each"), &rules)
        );
        let peers: Vec<Value> = (0..number).map(block).collect();
        let rule = json!({"from": peers, "ports": [port]});
        println!(
            "{}",
            one_policy(&format!("{number} peers of a rule"), &[rule])
        );
        let holes: Vec<String> = (0..number)
            .map(|it| format!("{}/32", address(it)))
            .collect();
        let rule =
            json!({"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": holes}}], "ports": [port]});
        println!(
            "{}",
            one_policy(&format!("{number} exceptions of a block"), &[rule])
        );
        let ranges: Vec<Value> = (0..number)
            .map(|it| json!({"from": [block(it)], "ports": [{"port": 1 + 3 * it, "endPort": 5 + 3 * it}]}))
            .collect();
        println!(
            "{}",
            one_policy(&format!("{number} ranges of ports"), &ranges)
        );
    }
}

fn new_index() -> Index {
    Index::new(Settings {
        node: NodeName::new(NODE),
        prefix: VethPrefix::default(),
        families: [Family::V4, Family::V6].into(),
        source_check: true,
        drop_invalid: true,
        deny_log: None,
    })
}

fn main() {
    if std::env::args().any(|argument| argument == "many") {
        many();
        return;
    }
    let is_asked = |word: &str| std::env::args().any(|argument| argument == word);
    let large = is_asked("large");
    let (rounds, peers, storms) = match (is_asked("policies"), is_asked("storm")) {
        (true, _) => (5 * ROUNDS, 0, 0),
        (false, true) => (0, 0, 10 * STORMS),
        (false, false) => (ROUNDS, PEERS, STORMS),
    };
    let (pods, policies) = if large {
        (100_000, 10_000)
    } else {
        (10_000, 2_000)
    };
    let mut seed = Seed(1);
    let mut node = Node {
        index: new_index(),
        known: vec![Observed::default(); 2],
        figures: BTreeMap::new(),
        written: BTreeMap::new(),
    };
    let empty = resident();
    for number in 0..NAMESPACES {
        node.index.apply(team(number, number % 20));
    }
    let subjects: Vec<Value> = (0..policies).map(|number| seed.policy(number)).collect();
    let mut pool = Pool::default();
    for object in &subjects {
        let Event::PolicyApplied(policy) = policy(object) else {
            unreachable!("made so")
        };
        node.index
            .apply(Event::PolicyApplied(pool.share_policy(policy)));
    }
    let policies_in = resident();
    let place = |number: u64| {
        if number < LOCAL {
            NODE.to_owned()
        } else {
            format!("node-{:03}", number % 90)
        }
    };
    // Where the seed stood before each pod: it can be made again.
    let mut seeds = Vec::new();
    for number in 0..pods {
        seeds.push(seed.0);
        let Event::PodApplied(pod) = pod(&seed.pod(number, &place(number))) else {
            unreachable!("made so")
        };
        node.index.apply(Event::PodApplied(pool.share(pod)));
    }
    let pods_in = resident();
    let started = Instant::now();
    let rulesets = [Family::V4, Family::V6].map(|family| compile(&mut node.index, family));
    let cold = started.elapsed().as_secs_f64() * 1e3;
    let sets: usize = rulesets.iter().map(|ruleset| ruleset.sets.len()).sum();
    let members: usize = rulesets
        .iter()
        .flat_map(|ruleset| ruleset.sets.values())
        .map(|set| set.members.len())
        .sum();
    let chains: usize = rulesets.iter().map(|ruleset| ruleset.chains.len()).sum();
    let rules: usize = rulesets
        .iter()
        .flat_map(|ruleset| ruleset.chains.values())
        .map(|chain| chain.rules().len())
        .sum();
    node.known = rulesets.map(as_observed).into();
    let compiled = resident();
    for round in 0..rounds {
        // A namespace that has local pods, as all of the first 110 have.
        let number = (7 * round) % LOCAL;
        let mut object = subjects[usize::try_from(number).expect("small")].clone();
        object["spec"]["podSelector"] = json!({});
        node.take("policy_subject_widened", policy(&object));
        object["spec"]["ingress"] = json!([{"from": [{"ipBlock": {"cidr": format!("172.16.{round}.0/24")}}], "ports": [{"port": 80}]}]);
        node.take("policy_changed", policy(&object));
        object["metadata"]["name"] = json!("another");
        node.take("policy_created", policy(&object));
        let Event::PolicyApplied(known) = policy(&object) else {
            unreachable!("made so")
        };
        let key = PolicyKey {
            name: "another".to_owned(),
            ..known.key
        };
        node.take("policy_deleted", Event::PolicyDeleted(key));
        if peers == 0 {
            continue;
        }
        let object = seed.pod(pods + round, NODE);
        node.take("local_pod_came", pod(&object));
        node.take("local_pod_went", gone(&object));
        node.take("namespace_relabelled", team(number, (number + round) % 20));
    }
    for round in 0..peers {
        let object = seed.pod(pods + 1000 + round, "node-001");
        node.take("peer_pod_came", pod(&object));
        node.take("peer_pod_went", gone(&object));
    }
    // Half of them go, and those that went in the storm before come back.
    let mut back: Vec<Value> = Vec::new();
    for _ in 0..storms {
        let numbers = (0..TOGETHER / 2).map(|_| LOCAL + seed.below(pods - LOCAL));
        let objects: Vec<Value> = numbers
            .map(|number| {
                let before = seeds[usize::try_from(number).expect("a pod")];
                Seed(before).pod(number, &place(number))
            })
            .collect();
        let goes = objects.iter().map(gone);
        let events = goes.chain(back.iter().map(pod)).collect();
        node.take_together("hundred_peer_pods", events);
        back = objects;
    }
    let mut line = json!({
        "pods": pods, "policies": policies, "chains": chains, "rules": rules, "sets": sets, "members": members,
        "cold_compile_ms": cold, "MB_policies": (policies_in - empty) / 1024, "MB_pods": (pods_in - policies_in) / 1024,
        "MB_compiled": (compiled - pods_in) / 1024, "MB_in_the_end": resident() / 1024,
    });
    for (what, mut times) in node.figures {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[(times.len() as f64 * share) as usize];
        let round = |time: f64| (time * 1e3).round() / 1e3;
        line[what] = json!({"p50": round(at(0.5)), "p99": round(at(0.99)), "members": node.written[what] / times.len()});
    }
    println!("{line:#}");
}
