//! A million pods come and go, each with a name of its own: what the daemon and the kernel hold does
//! not grow. Looked at after 200,000 events and after a million, the cluster the same each time.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use selvage_tests::run;

use crate::agent::Agent;
use crate::cluster::{Pod, Size};
use crate::figures::Row;
use crate::lab::Lab;
use crate::process::{pause, wait_for};
use crate::replay::Kind;
use crate::rules::{Backend, Chains};
use crate::seed::Seed;

/// A cluster small enough that a million events are many for each of its pods.
const SIZE: Size = Size {
    namespaces: 50,
    pods: 2_000,
    local: 110,
    policies: 500,
};

/// Events, when it is looked at first and last.
const FIRST: usize = 200_000;
const LAST: usize = 1_000_000;

/// Events at once; the server forgets those of long ago, and the daemon must not have to list anew.
const TOGETHER: usize = 20_000;

/// Pods that came and have not gone yet.
const THERE: usize = 500;

/// Addresses that they have, one after the other.
const ADDRESSES: u32 = 30_000;
const FIRST_ADDRESS: u32 = u32::from_be_bytes([10, 90, 0, 1]);

/// What was freed is free by then, and a look at everything has been.
const SETTLE: Duration = Duration::from_secs(6);

const PATIENCE: Duration = Duration::from_secs(60);

const BAR_PERCENT: f64 = 1.0;

/// What there is of everything.
#[derive(Debug, Clone, Copy)]
struct Held {
    heap: u64,
    members: u64,
    rules: u64,
    kernel: u64,
}

/// Measures `policy/growth-…`.
///
/// *Errors*: the daemon does not keep up, or listed anew.
pub fn measure(program: &Path, backend: Backend) -> Result<Vec<Row>> {
    let lab = Lab::new(program, backend, SIZE)?;
    let mut launch = lab.launch()?;
    launch.flags = vec!["--resync-seconds=5".to_owned()];
    let mut agent = launch.start()?;
    agent.in_force(PATIENCE)?;
    let mut churn = Churn::new(&lab);
    let began = Instant::now();
    churn.until(&lab, &agent, FIRST)?;
    let first = held(&agent, backend)?;
    churn.until(&lab, &agent, LAST)?;
    let last = held(&agent, backend)?;
    let took = began.elapsed();
    eprintln!(
        "{} events in {took:?}: {first:?}, then {last:?}",
        churn.events
    );
    let lists = metric("selvage_policy_watch_lists_total{resource=\"pods\"}")?;
    ensure!(lists <= 1.0, "pods were listed {lists} times");
    let row = |what: &str, before: u64, after: u64| {
        let growth = 100.0 * (after as f64 / before as f64 - 1.0);
        Row::plain(format!("policy/growth-{what}"), growth, "%").at_most(BAR_PERCENT)
    };
    Ok(vec![
        row("heap", first.heap, last.heap),
        row("members", first.members, last.members),
        row("rules", first.rules, last.rules),
        row("kernel-memory", first.kernel, last.kernel),
    ])
}

/// Pods that come and go.
struct Churn {
    seed: Seed,
    /// What they are like.
    models: Vec<Pod>,
    there: VecDeque<Pod>,
    events: usize,
    /// Events that the daemon had heard of before.
    heard_before: f64,
}

impl Churn {
    fn new(lab: &Lab) -> Self {
        Self {
            seed: Seed::new(5),
            models: lab.cluster.remote().cloned().collect(),
            there: VecDeque::new(),
            events: 0,
            heard_before: 0.0,
        }
    }

    /// Goes on until so many events have been, takes the last pods away, and waits until the daemon
    /// has heard of it all.
    fn until(&mut self, lab: &Lab, agent: &Agent, events: usize) -> Result<()> {
        let store = lab.server.store();
        while self.events + self.there.len() < events {
            self.heard_before = heard()?;
            let sent = self.events;
            while self.events - sent < TOGETHER && self.events + self.there.len() < events {
                if self.there.len() >= THERE
                    && let Some(gone) = self.there.pop_front()
                {
                    store.delete_unstamped(Kind::Pods, &gone.namespace, &gone.name)?;
                } else {
                    let number = u32::try_from(self.events)?;
                    let address = Ipv4Addr::from(FIRST_ADDRESS + number % ADDRESSES);
                    let model = self.seed.pick(&self.models);
                    let pod = model.twin(format!("churned-{number}"), address);
                    store.put_unstamped(Kind::Pods, pod.object());
                    self.there.push_back(pod);
                }
                self.events += 1;
            }
            self.caught_up(agent, self.events - sent)?;
        }
        self.heard_before = heard()?;
        let left = self.there.len();
        for gone in self.there.drain(..) {
            store.delete_unstamped(Kind::Pods, &gone.namespace, &gone.name)?;
        }
        self.events += left;
        self.caught_up(agent, left)?;
        pause(SETTLE);
        Ok(())
    }

    fn caught_up(&self, agent: &Agent, events: usize) -> Result<()> {
        let wanted = self.heard_before + events as f64;
        wait_for("the daemon to catch up", PATIENCE, || {
            pause(Duration::from_millis(20));
            Ok((heard()? >= wanted).then_some(()))
        })
        .with_context(|| format!("pid {}, {} events", agent.pid(), self.events))
    }
}

/// How many objects the watch on pods has brought.
fn heard() -> Result<f64> {
    metric("selvage_policy_watch_events_total{resource=\"pods\"}")
}

fn metric(name: &str) -> Result<f64> {
    let mut stream = TcpStream::connect(("127.0.0.1", 9095))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.with_context(|| format!("no metric {name}"))?;
    Ok(value.trim().parse()?)
}

fn held(agent: &Agent, backend: Backend) -> Result<Held> {
    let path = format!("/proc/{}/status", agent.pid());
    let status = std::fs::read_to_string(path)?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let heap = line.context("no RssAnon in status")?;
    // The tool's, and so the kernel's own account of each set.
    let sets = run("ipset list -terse")?;
    let sum = |field: &str| -> Result<u64> {
        let values = sets.lines().filter_map(|line| line.strip_prefix(field));
        values.map(|value| Ok(value.trim().parse::<u64>()?)).sum()
    };
    Ok(Held {
        heap: heap.trim().trim_end_matches(" kB").trim().parse()?,
        members: sum("Number of entries:")?,
        rules: Chains::read(backend)?.rules() as u64,
        kernel: sum("Size in memory:")?,
    })
}
