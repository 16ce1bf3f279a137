//! The daemon is killed two hundred times on a full node, behind its steps and at any moment, and
//! started again each time on what that left; a packet each millisecond that policy allows in every
//! state of the cluster, and one that it forbids.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use selvage_tests::{Node, Place as _, run};
use serde_json::json;

use crate::agent::Agent;
use crate::cluster::{Pod, Size, local_pod, object, policy};
use crate::figures::Row;
use crate::ipset::{self, Entry};
use crate::lab::{Lab, PATIENCE};
use crate::process::{pause, wait_for};
use crate::replay::Kind;
use crate::rules::{Backend, Chains};
use crate::seed::Seed;
use crate::ticks::{Arrived, joined, receive, stream};

const KILLS: usize = 200;

/// As many pods on the node as ever, in a cluster that is read in a moment: two hundred starts.
const SIZE: Size = Size {
    namespaces: 50,
    pods: 2_000,
    local: 110,
    policies: 500,
};

const SPACE: &str = "bench";
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 127, 0, 1);
const FRIEND: Ipv4Addr = Ipv4Addr::new(10, 127, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 127, 0, 3);
const ALLOWED: SocketAddrV4 = SocketAddrV4::new(SERVER, 9998);
const FORBIDDEN: SocketAddrV4 = SocketAddrV4::new(SERVER, 9999);

/// What differs between the two states of the cluster.
const PEERS: usize = 200;
const SUBJECTS: usize = 8;

/// Passed last in a start: flows are looked at once rules are in force.
const LAST: &str = "flows-cut";

/// A daemon that did not come to where it shall kill itself is killed after so long.
const LATEST: Duration = Duration::from_secs(3);

/// After what a start takes, random kills go on for so long.
const BEYOND: Duration = Duration::from_millis(300);

/// Measures `policy/kills-forbidden-packets` and `policy/kills-allowed-lost`.
///
/// *Errors*: a start after a kill does not come to what a clean start comes to.
pub fn measure(program: &Path, backend: Backend, node: &Node) -> Result<Vec<Row>> {
    let pods = [
        ("server", SERVER),
        ("friend", FRIEND),
        ("stranger", STRANGER),
    ];
    let [server, friend, stranger] = pods.map(|(name, address)| node.pod(SPACE, name, address));
    let (server, friend, stranger) = (server?, friend?, stranger?);
    let lab = Lab::new(program, backend, SIZE)?;
    let space = object("Namespace", "v1", "", SPACE, json!({}), json!({}));
    lab.server.store().put(Kind::Namespaces, space);
    for (name, address) in pods {
        let pod = local_pod(SPACE, name, &json!({"app": name}), Some(address));
        lab.server.store().put(Kind::Pods, pod);
    }
    let open = json!({
        "podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}],
    });
    lab.server
        .store()
        .put(Kind::Policies, policy(SPACE, "open", open));
    let world = World::new(&lab)?;
    let (allowed, forbidden) = (Arrived::default(), Arrived::default());
    let stop = AtomicBool::new(false);
    let (sent, killed) = std::thread::scope(|scope| -> Result<_> {
        let (here, stopped) = (server.netns(), &stop);
        let heard = [(ALLOWED, &allowed), (FORBIDDEN, &forbidden)]
            .map(|(at, arrived)| scope.spawn(move || receive(here, at, false, arrived, stopped)));
        // Nobody answers, so that conntrack calls neither established: each packet is judged.
        let flows = [(&friend, FRIEND, ALLOWED), (&stranger, STRANGER, FORBIDDEN)];
        let sending = flows
            .map(|(pod, from, to)| scope.spawn(move || stream(pod.netns(), from, to, stopped)));
        let killed = world.kill(&lab);
        stop.store(true, Ordering::Relaxed);
        let [sent, forbidden_sent] = sending.map(joined);
        let [unheard, unwanted] = heard.map(joined);
        ensure!(forbidden_sent? > 1_000, "no forbidden packet was sent");
        let lost = sent?.saturating_sub(allowed.count() + unheard?);
        Ok(((lost, forbidden.count() + unwanted?), killed?))
    })?;
    let (lost, passed) = sent;
    let row = |what: &str, value: usize| {
        let name = format!("policy/kills-{what}");
        Row::plain(name, value as f64, "packets").at_most(0.0)
    };
    eprintln!(
        "{} kills behind {} steps, {} at random moments: {:?}",
        killed.behind.values().sum::<usize>(),
        killed.behind.len(),
        killed.random,
        killed.behind
    );
    let kills = killed.random + killed.behind.values().sum::<usize>();
    Ok(vec![
        row("forbidden-packets", passed),
        row("allowed-lost", lost),
        Row::plain("policy/kills", kills as f64, "kills").at_least(KILLS as f64),
    ])
}

/// What is in each set, but for guards, whose members come and go by themselves.
type Sets = BTreeMap<String, BTreeSet<Entry>>;

fn sets() -> Result<Sets> {
    let sets = ipset::saved()?.into_iter();
    let ours = sets.filter(|(_, set)| set.kind.starts_with("hash:net"));
    Ok(ours
        .map(|(name, set)| (name, set.entries.into_iter().collect()))
        .collect())
}

/// The cluster's two states, what each makes of the node, and how a start goes.
struct World {
    peers: Vec<Pod>,
    subjects: Vec<Pod>,
    sets: [Sets; 2],
    rules: [Chains; 2],
    /// Failpoints, and how often a start passes each before its rules are in force.
    steps: Vec<String>,
    /// How long a start takes.
    start: Duration,
}

/// How the daemon died.
#[derive(Default)]
struct Killed {
    behind: BTreeMap<String, usize>,
    random: usize,
}

impl World {
    fn new(lab: &Lab) -> Result<Self> {
        let mut world = Self {
            peers: lab.cluster.remote().take(PEERS).cloned().collect(),
            subjects: lab.cluster.local().take(SUBJECTS).cloned().collect(),
            sets: Default::default(),
            rules: Default::default(),
            steps: Vec::new(),
            start: Duration::ZERO,
        };
        for state in [1, 0] {
            world.turn(lab, state)?;
            lab.cleanup()?;
            let up = lab.up()?;
            pause(BEYOND);
            world.sets[state] = sets()?;
            world.rules[state] = Chains::read(lab.backend)?;
            drop(up);
        }
        // From one state to the other, with everything in the way that ever is.
        world.turn(lab, 1)?;
        world.litter(lab, 1)?;
        let mut agent = launch(lab, None)?;
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        loop {
            let line = agent.says("failpoint", PATIENCE)?;
            let name = line.fields["failpoint"].as_str().unwrap_or_default();
            *counts.entry(name.to_owned()).or_default() += 1;
            if name == LAST {
                world.start = line.when - agent.started;
                break;
            }
        }
        eprintln!("a start takes {:?} and passes {counts:?}", world.start);
        world.steps = counts
            .into_iter()
            // Many times the same step is no other place: the first, one in the middle, the last.
            .flat_map(|(name, times)| {
                let some = BTreeSet::from([1, times.div_ceil(2), times]);
                some.into_iter().map(move |time| format!("{name}:{time}"))
            })
            .collect();
        Ok(world)
    }

    /// Makes the cluster's state 0 or 1: other peers, other policies.
    fn turn(&self, lab: &Lab, state: usize) -> Result<()> {
        let store = lab.server.store();
        let half = self.peers.len() / 2;
        let (gone, there) = match state {
            0 => (&self.peers[..half], &self.peers[half..]),
            _ => (&self.peers[half..], &self.peers[..half]),
        };
        for pod in gone {
            // Gone already where the state is not another one.
            let _ = store.delete_unstamped(Kind::Pods, &pod.namespace, &pod.name);
        }
        for pod in there {
            store.put_unstamped(Kind::Pods, pod.object());
        }
        for (number, pod) in self.subjects.iter().enumerate() {
            let name = |state: usize| format!("turn-{state}");
            // A failed deletion is as above.
            let _ = store.delete_unstamped(Kind::Policies, &pod.namespace, &name(1 - state));
            let port = 4_000 + 100 * state + number;
            let spec = json!({
                "podSelector": {"matchLabels": {"app": pod.app()}}, "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"tier": "fe"}}}],
                    "ports": [{"protocol": "TCP", "port": port}]}],
            });
            let policy = policy(&pod.namespace, &name(state), spec);
            store.put_unstamped(Kind::Policies, policy);
        }
        Ok(())
    }

    /// What foreign hands and crashes leave: a second jump, and a set of another type under a name
    /// that a state wants.
    fn litter(&self, lab: &Lab, state: usize) -> Result<()> {
        let backend = lab.backend.as_str();
        run(&format!(
            "iptables-{backend} -w 5 -t mangle -A FORWARD -j selvage-forward"
        ))?;
        let there: BTreeSet<String> = ipset::headers()?.into_keys().collect();
        let mut wanted = self.sets[state].keys();
        match wanted.find(|name| !there.contains(*name)) {
            Some(name) => run(&format!("ipset create {name} bitmap:port range 1-2")).map(drop),
            None => Ok(()),
        }
    }

    fn kill(&self, lab: &Lab) -> Result<Killed> {
        let mut seed = Seed::new(11);
        let mut killed = Killed::default();
        for number in 0..KILLS {
            let state = number % 2;
            let step = (number % 4 < 2).then(|| seed.pick(&self.steps).clone());
            self.one(lab, state, step.as_deref(), &mut seed, &mut killed)
                .with_context(|| format!("kill {number}, {step:?}"))?;
        }
        self.ends_as_ever(lab)?;
        Ok(killed)
    }

    /// A start that does not come to its end, on what the one before it left.
    fn one(
        &self,
        lab: &Lab,
        state: usize,
        step: Option<&str>,
        seed: &mut Seed,
        killed: &mut Killed,
    ) -> Result<()> {
        if seed.chance(50) {
            self.litter(lab, state)?;
        }
        let Some(step) = step else {
            // Half of them change while the daemon runs.
            let meanwhile = seed.chance(50);
            if !meanwhile {
                self.turn(lab, state)?;
            }
            let agent = launch(lab, None)?;
            let length = u64::try_from((self.start + BEYOND).as_millis())?;
            let moment = agent.started + Duration::from_millis(seed.below(length));
            if meanwhile {
                pause(moment.saturating_duration_since(Instant::now()) / 2);
                self.turn(lab, state)?;
            }
            pause(moment.saturating_duration_since(Instant::now()));
            drop(agent);
            killed.random += 1;
            return Ok(());
        };
        self.turn(lab, state)?;
        let mut agent = launch(lab, Some(step))?;
        if agent.ended(self.start + LATEST)? {
            *killed.behind.entry(step.to_owned()).or_default() += 1;
        } else {
            // What the kill before left has less to do.
            killed.random += 1;
        }
        Ok(())
    }

    /// A last start comes to what a clean one came to.
    fn ends_as_ever(&self, lab: &Lab) -> Result<()> {
        self.turn(lab, 0)?;
        let _up = lab.up()?;
        wait_for("what a clean start comes to", PATIENCE, || {
            let same = sets()? == self.sets[0] && Chains::read(lab.backend)? == self.rules[0];
            Ok(same.then_some(()))
        })
    }
}

fn launch(lab: &Lab, failpoint: Option<&str>) -> Result<Agent> {
    let mut launch = lab.launch()?;
    "info,selvage_policy=debug".clone_into(&mut launch.log);
    launch.failpoint = failpoint.map(ToOwned::to_owned);
    launch.start()
}
