//! A policy is created, changed, deleted: from the event's last byte to the last write in the
//! kernel, beside one restore of the text that had to change.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{Pod, Size, policy};
use crate::figures::{Row, ms, percentile};
use crate::ipset::{self, Ipset, Set};
use crate::lab::Lab;
use crate::process::wait_for;
use crate::replay::{Kind, Object};
use crate::rules::{Backend, Chains, Texts, Writes};
use crate::twin::Twin;

/// Local pods that a policy comes to, one after the other.
const SUBJECTS: usize = 5;
const ROUNDS: usize = 12;

/// No new round after so long: on a slow machine there are fewer.
const BUDGET: Duration = Duration::from_secs(30);

/// The daemon leaves chains alone for a while after a write, so that a burst shares the next one;
/// what is measured here is no burst.
const APART: Duration = Duration::from_millis(120);

/// A silence that means that the daemon is done.
const QUIET: Duration = Duration::from_millis(60);

const PATIENCE: Duration = Duration::from_secs(30);

const BAR_P50: f64 = 1.5;
const BAR_P99: f64 = 3.0;

/// What happens to a policy, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Created,
    Changed,
    Deleted,
}

const STEPS: [Step; 3] = [Step::Created, Step::Changed, Step::Deleted];

impl Step {
    fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Deleted => "deleted",
        }
    }
}

/// What a step does to the kernel, the same each time.
struct Effect {
    /// Restore input that writes the chains it changes.
    texts: Texts,
    /// Sets that are gone after it.
    doomed: Vec<String>,
}

/// Measures `policy/policy-created-…`, `…-changed-…`, `…-deleted-…`.
///
/// *Errors*: something did not happen.
pub fn measure(program: &Path, backend: Backend) -> Result<Vec<Row>> {
    let lab = Lab::new(program, backend, Size::LOADED)?;
    let _up = lab.up()?;
    let twin = Twin::new("twin", backend)?;
    let mut sets = ipset::headers()?;
    twin.fill(&sets)?;
    twin.restore(&Chains::read(backend)?.texts())?;
    let mut watcher = Watcher {
        writes: Writes::hear(backend)?,
        ipset: Ipset::open()?,
    };
    let subjects: Vec<&Pod> = lab.cluster.local().take(SUBJECTS).collect();
    let mut effects: BTreeMap<(usize, Step), Effect> = BTreeMap::new();
    for (number, pod) in subjects.iter().enumerate() {
        for step in STEPS {
            let before = (Chains::read(backend)?, ipset::headers()?);
            act(&lab, pod, step)?;
            wait_for("rules to change", PATIENCE, || {
                let now = Chains::read(backend)?;
                Ok((now != before.0).then_some(()))
            })
            .with_context(|| format!("{}/{}: {}", pod.namespace, pod.name, step.word()))?;
            watcher.quiet()?;
            let after = (Chains::read(backend)?, ipset::headers()?);
            // The twin gets the sets that the text names.
            let new = after.1.iter().filter(|(name, _)| !sets.contains_key(*name));
            let new: BTreeMap<String, Set> =
                new.map(|(name, set)| (name.clone(), set.clone())).collect();
            twin.fill(&new)?;
            sets.extend(new);
            let effect = Effect {
                texts: after.0.changed(&before.0)?,
                doomed: before
                    .1
                    .into_keys()
                    .filter(|name| !after.1.contains_key(name))
                    .collect(),
            };
            effects.insert((number, step), effect);
        }
    }
    let mut figures: BTreeMap<Step, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    let began = Instant::now();
    for round in 0..ROUNDS {
        if round > 0 && began.elapsed() > BUDGET {
            break;
        }
        for (number, pod) in subjects.iter().enumerate() {
            for step in STEPS {
                let effect = &effects[&(number, step)];
                watcher.quiet()?;
                let ticket = act(&lab, pod, step)?;
                let done = watcher.done(&effect.doomed)?;
                let written = lab.server.store().written(ticket, PATIENCE)?;
                let (values, floors) = figures.entry(step).or_default();
                values.push(ms(done.saturating_duration_since(written)));
                floors.push(ms(twin.restore(&effect.texts)?));
            }
        }
    }
    eprintln!("{} rounds", figures[&Step::Created].0.len() / SUBJECTS);
    let lines = effects.values().map(|effect| {
        effect
            .texts
            .values()
            .map(|text| text.lines().count())
            .sum::<usize>()
    });
    eprintln!(
        "{} rules; restore text: {:?} to {:?} lines",
        Chains::read(backend)?.rules(),
        lines.clone().min(),
        lines.max()
    );
    let mut rows = Vec::new();
    for (step, (values, floors)) in &figures {
        for (percent, bar) in [(50.0, BAR_P50), (99.0, BAR_P99)] {
            let name = format!(
                "policy/policy-{}-{}-p{percent}",
                step.word(),
                backend.as_str()
            );
            // Over the usual floor: a floor's own worst round is no excuse.
            let floor = percentile(floors, 50.0);
            rows.push(Row::over(name, percentile(values, percent), floor, "ms").at_most(bar));
        }
    }
    Ok(rows)
}

fn act(lab: &Lab, pod: &Pod, step: Step) -> Result<crate::replay::Ticket> {
    let store = lab.server.store();
    match step {
        Step::Created => Ok(store.put(
            Kind::Policies,
            object(pod, json!([{"protocol": "TCP", "port": 8080}])),
        )),
        Step::Changed => Ok(store.put(
            Kind::Policies,
            object(
                pod,
                json!([{"protocol": "TCP", "port": 8080, "endPort": 8090}]),
            ),
        )),
        Step::Deleted => store.delete(Kind::Policies, &pod.namespace, "bench"),
    }
}

/// A policy on one local pod: there is one of each namespace.
fn object(pod: &Pod, ports: Value) -> Object {
    let spec: Value = json!({
        "podSelector": {"matchLabels": {"app": pod.app()}},
        "policyTypes": ["Ingress"],
        "ingress": [{
            "from": [
                {"podSelector": {"matchLabels": {"tier": "fe"}}},
                {"namespaceSelector": {"matchLabels": {"team": "t3"}}},
            ],
            "ports": ports,
        }],
    });
    policy(&pod.namespace, "bench", spec)
}

/// Sees the kernel change.
struct Watcher {
    writes: Writes,
    ipset: Ipset,
}

impl Watcher {
    /// Waits until nobody writes rules any more.
    fn quiet(&mut self) -> Result<()> {
        self.writes.last(APART).map(drop)
    }

    /// When the last write was: of rules, or the end of a set that nothing refers to any more.
    fn done(&mut self, doomed: &[String]) -> Result<Instant> {
        let first = self
            .writes
            .next(PATIENCE)?
            .context("no rule was written for a policy")?;
        let mut last = first;
        let deadline = Instant::now() + PATIENCE;
        for name in doomed {
            while self.ipset.exists(name)? {
                last = Instant::now();
                ensure!(last < deadline, "set {name} is still there");
                std::hint::spin_loop();
            }
        }
        // What was still there when looked at went a moment later.
        Ok(self
            .writes
            .last(QUIET)?
            .map_or(last, |rules| rules.max(last)))
    }
}
