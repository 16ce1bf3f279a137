//! The shipped binary against the real kernel: killed between any two steps, cut off from the API
//! server, started beside what another version left. Needs namespaces: run it with `cargo nextest`.

#[allow(dead_code, reason = "each test binary uses its part")]
mod agent;
mod apiserver;
mod packets;

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use selvage_netfilter::{Backend, Kernel};
use selvage_policy::cleanup::cleanup;
use selvage_policy::failpoint::Failpoint;
use selvage_policy_core::observe::Observed;
use selvage_policy_core::ruleset::Family;
use selvage_tests::{Node, Outcome, Pod, Protocol, probe, run, run_with_input};
use serde_json::{Value, json};

use agent::{DEADLINE, Home, eventually, pass};
use apiserver::{ApiServer, Kind};
use packets::Traffic;

/// Two tests of each function over IPv4, one a backend, and two more over IPv6 of those that come
/// first.
macro_rules! on_both_backends {
    ($($both:ident),*; $($name:ident),*) => {
        mod nft { super::tests!(Nft, V4: $($both),* $(, $name)*); }
        mod legacy { super::tests!(Legacy, V4: $($both),* $(, $name)*); }
        mod nft_over_ipv6 { super::tests!(Nft, V6: $($both),*); }
        mod legacy_over_ipv6 { super::tests!(Legacy, V6: $($both),*); }
    };
}

macro_rules! tests {
    ($backend:ident, $family:ident: $($name:ident),*) => {
        $(#[test] fn $name() -> anyhow::Result<()> {
            super::$name(selvage_netfilter::Backend::$backend, selvage_policy_core::ruleset::Family::$family)
        })*
    };
}
use tests;

on_both_backends![
    a_kill_between_any_two_steps_opens_nothing_loses_nothing_and_the_next_start_converges,
    a_kill_at_any_moment_opens_nothing_loses_nothing_and_the_next_start_converges;
    a_kill_while_the_rules_move_to_this_backend_opens_nothing_and_loses_nothing,
    a_pod_that_a_wedged_watch_does_not_tell_of_is_asked_for_when_its_interface_is_there,
    an_api_server_that_is_away_changes_nothing_even_across_a_restart,
    a_first_start_beside_an_older_versions_rules_replaces_them_without_a_gap
];

/// A pod's last byte says who it is, in each family.
fn address(family: Family, node: u8, last: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 40, node, last).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, node.into(), last.into()).into(),
    }
}

fn pod(name: &str, node: u8, last: u8) -> Value {
    let app = name.split('-').next();
    let [v4, v6] = [Family::V4, Family::V6].map(|family| address(family, node - 1, last));
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": app}},
        "spec": {"nodeName": format!("node-{node}")},
        "status": {"podIPs": [{"ip": v4}, {"ip": v6}]},
    })
}

/// Pods `of` may be reached by pods `from` and by nobody else.
fn allow(of: &str, from: &str) -> Value {
    json!({
        "metadata": {"name": format!("{from}-to-{of}"), "namespace": "shop"},
        "spec": {
            "podSelector": {"matchLabels": {"app": of}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": from}}}]}],
        },
    })
}

/// A cluster in two states. In both, `friend` may reach `web` and `stranger` may not.
struct World {
    server: ApiServer,
    home: Home,
    web: Pod,
    friend: Pod,
    stranger: Pod,
    _folder: tempfile::TempDir,
    node: Node,
    family: Family,
}

const WEB: u8 = 11;
const FRIEND: u8 = 12;
const STRANGER: u8 = 13;

impl World {
    fn new(family: Family) -> Result<Self> {
        let node = Node::new()?;
        let folder = tempfile::tempdir()?;
        let server = ApiServer::start()?;
        let home = Home {
            folder: folder.path().to_owned(),
            kubeconfig: server.kubeconfig(folder.path())?,
            families: match family {
                Family::V4 => "ipv4",
                Family::V6 => "ipv6",
            },
        };
        let make = |name: &str, last: u8| -> Result<Pod> {
            let pod = node.pod("shop", name, Ipv4Addr::new(10, 40, 0, last))?;
            match address(family, 0, last) {
                IpAddr::V4(_) => {}
                IpAddr::V6(address) => pod.add_ipv6(address)?,
            }
            Ok(pod)
        };
        server.set_all(Kind::Namespace, vec![json!({"metadata": {"name": "shop"}})]);
        Ok(Self {
            web: make("web-0", WEB)?,
            friend: make("friend-0", FRIEND)?,
            stranger: make("stranger-0", STRANGER)?,
            server,
            home,
            _folder: folder,
            node,
            family,
        })
    }

    /// What the kernel holds of ours in one backend.
    fn observed(&self, backend: Backend) -> Result<Observed> {
        Ok(Kernel::open(backend, DEADLINE)?.observe(self.family)?)
    }

    /// Packets from who may and from who may not.
    fn traffic(&self) -> Result<Traffic> {
        let own = |last| address(self.family, 0, last);
        Traffic::start(
            (&self.friend, own(FRIEND)),
            (&self.stranger, own(STRANGER)),
            (&self.web, own(WEB)),
        )
    }

    fn local_pods() -> Vec<Value> {
        vec![
            pod("web-0", 1, WEB),
            pod("friend-0", 1, FRIEND),
            pod("stranger-0", 1, STRANGER),
        ]
    }

    /// The state before: a peer and a policy that will be gone.
    fn before(&self) {
        let mut pods = Self::local_pods();
        pods.push(pod("friend-1", 2, 1));
        self.server.set_all(Kind::Pod, pods);
        self.server.set_all(
            Kind::NetworkPolicy,
            vec![allow("web", "friend"), allow("stranger", "web")],
        );
    }

    /// The state after: another peer, another policy.
    fn after(&self) {
        let mut pods = Self::local_pods();
        pods.push(pod("friend-2", 2, 2));
        self.server.set_all(Kind::Pod, pods);
        self.server.set_all(
            Kind::NetworkPolicy,
            vec![allow("web", "friend"), allow("friend", "web")],
        );
    }

    /// What foreign hands and crashes leave: a second jump, and a set of another type under a name
    /// that the state after wants.
    fn litter(&self, backend: Backend, wanted: &Observed) -> Result<()> {
        let tool = match self.family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        run(&format!(
            "{tool}-{backend} -w 5 -t mangle -A FORWARD -j selvage-forward"
        ))?;
        let there = self.observed(backend)?;
        let name = wanted
            .sets
            .keys()
            .find(|name| !there.sets.contains_key(*name));
        let name = name.map(ToString::to_string);
        let name = name.context("the state after has no set of its own")?;
        // One without a family, or one of the other.
        let shape = match self.family {
            Family::V4 => "bitmap:port range 1-2",
            Family::V6 => "hash:net family inet",
        };
        run(&format!("ipset create {name} {shape}")).map(drop)
    }

    /// An agent runs until its rules are in force and nothing else is there, and is killed.
    fn converge(&self, backend: Backend) -> Result<()> {
        let mut agent = self.home.start(backend, None)?;
        let sets = agent.until_ready()?.counts.sets;
        // The kernel lets go of sets a while after it let go of the rules that used them.
        eventually("no set too many", || {
            Ok((self.observed(backend)?.sets.len() as u64 == sets).then_some(()))
        })?;
        agent.kill()
    }
}

/// Passed last: flows are looked at once rules are in force.
const LAST: &str = "flows-cut";

/// How often each failpoint was passed before the rules were in force, and which of those behind.
fn count(passed: &[String]) -> BTreeMap<&str, u32> {
    let mut counts = BTreeMap::new();
    let mut in_force = false;
    for name in passed {
        let count = counts.entry(name.as_str()).or_default();
        *count = if in_force { 1.max(*count) } else { *count + 1 };
        in_force |= name == "converged";
    }
    counts
}

fn a_kill_between_any_two_steps_opens_nothing_loses_nothing_and_the_next_start_converges(
    backend: Backend,
    family: Family,
) -> Result<()> {
    kill_everywhere(family, backend, backend)
}

fn a_kill_while_the_rules_move_to_this_backend_opens_nothing_and_loses_nothing(
    backend: Backend,
    family: Family,
) -> Result<()> {
    kill_everywhere(family, backend.other(), backend)
}

/// From the state before in one backend to the state after in another, with a kill at each
/// failpoint, each time that it is passed.
fn kill_everywhere(family: Family, from: Backend, to: Backend) -> Result<()> {
    let world = World::new(family)?;
    world.after();
    world.converge(to)?;
    let wanted = world.observed(to)?;
    world.before();
    world.converge(from)?;

    let traffic = world.traffic()?;
    world.litter(from, &wanted)?;
    world.after();
    let mut agent = world.home.start(to, None)?;
    agent.until_ready()?;
    let passed = eventually("a look at flows", || {
        let passed = agent.passed()?;
        Ok(passed.iter().any(|name| name == LAST).then_some(passed))
    })?;
    agent.kill()?;
    let passed = count(&passed);
    println!("failpoints passed from {from} to {to}: {passed:?}");
    if from == to {
        let missed: Vec<&str> = Failpoint::ALL
            .into_iter()
            .map(Failpoint::as_str)
            .filter(|name| !passed.contains_key(name))
            .collect();
        ensure!(missed.is_empty(), "never passed: {missed:?}");
    }
    for (name, times) in &passed {
        for time in 1..=*times {
            let failpoint = format!("{name}:{time}");
            world.before();
            world.converge(from)?;
            world.litter(from, &wanted)?;
            world.after();
            world.home.start(to, Some(&failpoint))?.until_killed()?;
            world.converge(to)?;
            ensure!(world.observed(to)? == wanted, "{failpoint}: not converged");
            if from != to {
                ensure!(
                    world.observed(from)?.chains.is_empty(),
                    "{failpoint}: still in {from}"
                );
            }
        }
    }
    let outcome = traffic.end()?;
    println!("{outcome:?}");
    ensure!(
        outcome.allowed_sent > 1000 && outcome.forbidden_sent > 1000,
        "{outcome:?}"
    );
    ensure!(outcome.forbidden_passed == 0, "{outcome:?}");
    ensure!(outcome.allowed_lost == 0, "{outcome:?}");
    Ok(())
}

/// Kills that hit no particular place.
const MOMENTS: u32 = 25;

fn a_kill_at_any_moment_opens_nothing_loses_nothing_and_the_next_start_converges(
    backend: Backend,
    family: Family,
) -> Result<()> {
    let world = World::new(family)?;
    world.after();
    world.converge(backend)?;
    let wanted = world.observed(backend)?;
    world.before();
    world.converge(backend)?;
    let traffic = world.traffic()?;
    world.after();
    let began = Instant::now();
    let mut agent = world.home.start(backend, None)?;
    agent.until_ready()?;
    // A start, and as long again: what follows once rules are in force is over by then.
    let length = began.elapsed() * 2;
    agent.kill()?;
    let mut moments = Vec::new();
    for number in 0..MOMENTS {
        let random = u32::try_from(RandomState::new().hash_one(number) % 1_000)?;
        let moment = length * random / 1_000;
        moments.push(moment);
        world.before();
        // Half of them on what the kill before has left.
        if number % 2 == 0 {
            world.converge(backend)?;
            world.litter(backend, &wanted)?;
        }
        // A third of them change their mind once they run.
        let later = number % 3 == 0;
        if !later {
            world.after();
        }
        let agent = world.home.start(backend, None)?;
        pass(moment / 2);
        if later {
            world.after();
        }
        pass(moment / 2);
        agent.kill()?;
    }
    println!("killed after {moments:?}");
    world.after();
    world.converge(backend)?;
    ensure!(
        world.observed(backend)? == wanted,
        "not converged after {moments:?}"
    );
    let outcome = traffic.end()?;
    println!("{outcome:?}");
    ensure!(
        outcome.allowed_sent > 1000 && outcome.forbidden_sent > 1000,
        "{outcome:?}"
    );
    ensure!(outcome.forbidden_passed == 0, "{outcome:?}, {moments:?}");
    ensure!(outcome.allowed_lost == 0, "{outcome:?}, {moments:?}");
    Ok(())
}

fn an_api_server_that_is_away_changes_nothing_even_across_a_restart(
    backend: Backend,
    family: Family,
) -> Result<()> {
    let mut world = World::new(family)?;
    world.before();
    let mut agent = world.home.start(backend, None)?;
    agent.until_ready()?;
    let before = world.observed(backend)?;
    let traffic = world.traffic()?;

    world.server.go_away()?;
    // Across a look at everything, whatever else it does.
    agent.kill()?;
    let mut agent = world.home.start(backend, None)?;
    let report = agent.until("syncing", |report| !report.ready.ok)?;
    ensure!(report.ready.reason.contains("waiting for"), "{report}");
    ensure!(
        world.observed(backend)? == before,
        "an agent that knows nothing wrote"
    );

    world.after();
    world.server.come_back()?;
    agent.until_ready()?;
    ensure!(
        world.observed(backend)? != before,
        "what happened meanwhile counts"
    );
    let outcome = traffic.end()?;
    ensure!(outcome.forbidden_passed == 0, "{outcome:?}");
    ensure!(outcome.allowed_lost == 0, "{outcome:?}");
    agent.kill()?;
    let cleaned = cleanup(&world.home.run_dir(), &world.home.status_dir(), false)?;
    ensure!(cleaned.left.is_empty(), "{:?}", cleaned.left);
    Ok(())
}

/// Chains and sets of ours as no version of today writes them, in force.
fn older_version(backend: Backend) -> Result<()> {
    run("ipset create selvage-v0-friends hash:ip")?;
    run("ipset add selvage-v0-friends 10.40.0.12")?;
    let rules = "*mangle\n\
        :selvage-forward - [0:0]\n\
        :selvage-v0-to - [0:0]\n\
        -I FORWARD -j selvage-forward\n\
        -A selvage-forward -o eni+ -j selvage-v0-to\n\
        -A selvage-v0-to -m set --match-set selvage-v0-friends src -j RETURN\n\
        -A selvage-v0-to -j DROP\n\
        COMMIT\n";
    let restore = format!("iptables-{backend}-restore --noflush");
    run_with_input(&restore, rules).map(drop)
}

fn a_first_start_beside_an_older_versions_rules_replaces_them_without_a_gap(
    backend: Backend,
    family: Family,
) -> Result<()> {
    let world = World::new(family)?;
    world.after();
    world.converge(backend)?;
    let wanted = world.observed(backend)?;
    cleanup(&world.home.run_dir(), &world.home.status_dir(), false)?;

    older_version(backend)?;
    let traffic = world.traffic()?;
    world.converge(backend)?;
    ensure!(world.observed(backend)? == wanted, "something old is left");
    let outcome = traffic.end()?;
    ensure!(outcome.forbidden_sent > 0, "{outcome:?}");
    ensure!(outcome.forbidden_passed == 0, "{outcome:?}");
    ensure!(outcome.allowed_lost == 0, "{outcome:?}");
    Ok(())
}

fn a_pod_that_a_wedged_watch_does_not_tell_of_is_asked_for_when_its_interface_is_there(
    backend: Backend,
    family: Family,
) -> Result<()> {
    let world = World::new(family)?;
    world.before();
    let mut agent = world.home.start(backend, None)?;
    ensure!(agent.until_ready()?.counts.local_pods == 3);
    world.server.fall_silent();
    let mut pods = World::local_pods();
    pods.push(pod("web-1", 1, 14));
    world.server.set_all(Kind::Pod, pods);
    let late = world
        .node
        .pod("shop", "web-1", Ipv4Addr::new(10, 40, 0, 14))?;
    agent.until("the late pod", |report| report.counts.local_pods == 4)?;
    let _server = late.serve(Protocol::Tcp, 80)?;
    let reached = |from| probe(from, &late, Protocol::Tcp, 80);
    ensure!(reached(&world.friend) == Outcome::Reached);
    ensure!(reached(&world.stranger) == Outcome::Dropped);
    eventually("the watch begins anew", || {
        Ok(agent.log()?.contains("watch is wedged").then_some(()))
    })?;
    // What only a list can tell now.
    agent.until("the pods of a list", |report| report.counts.pods == 4)?;
    agent.kill()
}
