//! The kernel of one node, as the loop sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::IpAddr;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use selvage_netfilter::ipset::Glimpses;
use selvage_netfilter::{Backend, Kernel, Pace, Step, Suspect, Watcher, choose_backend};
use selvage_policy_core::index::MemberChanges;
use selvage_policy_core::observe::{ChainState, HookState, Observed, SetState};
use selvage_policy_core::plan::{Plan, plan};
use selvage_policy_core::ruleset::{Action, Chain, ChainName, Family, Match, Ruleset};
use tokio::sync::mpsc::Sender;
use tracing::{debug, info, warn};

use crate::failpoint::{self, Failpoint};
use crate::flows::{Flows, NodeFlows};
use crate::record::RecordFile;
use crate::thread::step_back;

mod hand;

pub(crate) use hand::{Finished, Hand, Job};

/// Bounds each exchange with the kernel and each run of a tool, the wait for the xtables lock
/// included.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the watch on others' hands waits without looking whether anybody listens.
const WATCH_TICK: Duration = Duration::from_millis(500);

/// How much of ours the kernel holds, all families.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Chains.
    pub chains: u64,
    /// Rules in them.
    pub rules: u64,
    /// Sets.
    pub sets: u64,
    /// Members of those.
    pub members: u64,
}

/// What is on the node after a piece of work, and what it took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    /// Chains that were written.
    pub chains_written: usize,
    /// Whether anything at all was written.
    pub changed: bool,
    /// What is there now.
    pub held: Held,
    /// The iptables in use.
    pub backend: String,
    /// How much is out of use and could not be deleted yet.
    pub left: usize,
    /// Whose flows may not be allowed any more.
    pub affected: Affected,
    /// What was done, for people.
    pub did: String,
}

/// Whose flows a piece of work may have forbidden.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Affected {
    /// The pods behind these interfaces, by name.
    pub interfaces: BTreeSet<String>,
    /// The peers with these addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// How the kernel is compared with what it should hold, from the least trouble to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Look {
    /// With what was written last.
    Remembered,
    /// Rules with what is there, sets with what was written last: reading their members takes most of
    /// the time.
    Rules,
    /// With what is there, all of it read.
    Afresh,
}

/// Something that can hold rulesets. Everything blocks.
pub trait Dataplane: Send + 'static {
    /// Why something was not done.
    type Error: Error + Send + 'static;

    /// What ends flows.
    type Flows: Flows;

    /// A hand of its own on the flows that these families' rules are about.
    fn flows(&self, families: &BTreeSet<Family>) -> Self::Flows;

    /// Asks to be told, from before the first look on, when somebody else may have changed what is
    /// held. A full channel is no loss: what waits in it is as good.
    fn watch(&mut self, suspects: Sender<Suspect>);

    /// Whether something is not as it was left, as far as a suspicion goes.
    ///
    /// *Errors*: those of reading.
    fn is_changed(&mut self, suspect: Suspect) -> Result<bool, Self::Error>;

    /// Makes the kernel hold these rulesets, at most one for each family.
    ///
    /// *Errors*: what was in force is in force still, in whole or in part; look afresh next time.
    fn converge(&mut self, want: Vec<Ruleset>, look: Look) -> Result<Done, Self::Error>;

    /// Changes members of sets that [`Dataplane::converge`] made, additions first.
    ///
    /// *Errors*: some may be changed and some not; look afresh next time.
    fn change_members(&mut self, changes: &MemberChanges) -> Result<Done, Self::Error>;
}

/// The node's own kernel, through netlink and the iptables tools.
pub struct Node {
    fixed: Option<Backend>,
    kernel: Option<Kernel>,
    /// What was written last, by family. A family is absent after an error.
    known: BTreeMap<Family, Observed>,
    /// Whether everybody else's place has been cleaned of ours.
    cleaned: bool,
    suspects: Option<Sender<Suspect>>,
    watching: Option<JoinHandle<()>>,
    /// What that watch has seen of sets.
    glimpses: Option<Glimpses>,
    /// What the next process believes of the chains, if it is to believe anything.
    record: Option<RecordFile>,
}

impl Node {
    /// The kernel of the calling thread's network namespace; `None` chooses the iptables that the
    /// node uses. Touches nothing yet, nor opens anything.
    #[must_use]
    pub fn new(fixed: Option<Backend>) -> Self {
        Self {
            fixed,
            kernel: None,
            known: BTreeMap::new(),
            cleaned: false,
            suspects: None,
            watching: None,
            glimpses: None,
            record: None,
        }
    }

    /// Keeps a file in that folder that says how the kernel held our chains when they were right, and
    /// believes of what is there at the start only what the file says.
    #[must_use]
    pub fn recording(mut self, run_dir: &Path) -> Self {
        self.record = Some(RecordFile::new(run_dir));
        self
    }

    /// Opens the kernel, and before that, once, the watch on others' hands.
    fn open(&mut self, families: &BTreeSet<Family>) -> Result<(), selvage_netfilter::Error> {
        if self.kernel.is_some() {
            return Ok(());
        }
        let backend = choose_backend(self.fixed, PATIENCE)?;
        if let Some(suspects) = self.suspects.take() {
            let families: Vec<Family> = families.iter().copied().collect();
            let watcher = Watcher::open(backend, &families, Pace::default())
                .inspect_err(|_| self.suspects = Some(suspects.clone()))?;
            self.glimpses = Some(watcher.glimpses());
            self.watching = Some(std::thread::spawn(move || keep_watch(watcher, &suspects)));
        }
        let mut kernel = Kernel::open(backend, PATIENCE)?;
        if let Some(record) = &self.record {
            kernel.believe(record.read(backend));
        }
        self.kernel = Some(kernel);
        Ok(())
    }

    fn done(&self, chains_written: usize, changed: bool, left: usize) -> Done {
        let mut held = Held::default();
        for observed in self.known.values() {
            held.chains += observed.chains.len() as u64;
            held.rules += observed
                .chains
                .values()
                .map(|chain| chain.rules as u64)
                .sum::<u64>();
            held.sets += observed.sets.len() as u64;
            held.members += observed.sets.values().map(members).sum::<u64>();
        }
        Done {
            chains_written,
            changed,
            held,
            backend: self
                .kernel
                .as_ref()
                .map(|kernel| kernel.backend().to_string())
                .unwrap_or_default(),
            left,
            affected: Affected::default(),
            did: String::new(),
        }
    }
}

impl Affected {
    fn extend(&mut self, other: Self) {
        self.interfaces.extend(other.interfaces);
        self.addresses.extend(other.addresses);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(watching) = self.watching.take() {
            // Nobody listens to it any more: it ends within a tick. What it panicked of is printed.
            let _ = watching.join();
        }
    }
}

/// Tells of suspicions until nobody listens. Blocks.
fn keep_watch(mut watcher: Watcher, suspects: &Sender<Suspect>) {
    step_back();
    while !suspects.is_closed() {
        let told = match watcher.wait(Instant::now() + WATCH_TICK) {
            Ok(told) => told,
            Err(error) => {
                let error = crate::error_chain(&error);
                warn!(error, "watch on rules and sets is in trouble");
                // The answer to not knowing: look at everything, but not without end.
                std::thread::park_timeout(WATCH_TICK);
                [Suspect::Members].into()
            }
        };
        for suspect in told {
            // Full: the loop is behind, and what it has not read yet is older than this look.
            if suspects.try_send(suspect).is_err() && !suspects.is_closed() {
                debug!(?suspect, "suspicions wait already");
            }
        }
    }
}

/// What a plan may forbid: to the pods behind chains that are written anew, and to whom loses a
/// place in a set that stays.
fn affected_by(ruleset: &Ruleset, plan: &Plan) -> Affected {
    let mut affected = Affected::default();
    let mut chains: BTreeSet<&ChainName> = plan.write.keys().collect();
    for (set, members) in &plan.remove {
        for member in members {
            if member.net.prefix_len() == member.net.max_prefix_len() {
                affected.addresses.insert(member.net.addr());
            } else {
                let users = ruleset.chains.iter();
                let users = users.filter(|(_, chain)| chain.sets().any(|used| used == set));
                chains.extend(users.map(|(name, _)| name));
            }
        }
    }
    with_those_above(&mut chains, ruleset);
    for rule in ruleset.chains.values().flat_map(Chain::rules) {
        let (Action::Jump(to) | Action::Goto(to)) = &rule.action else {
            continue;
        };
        if !chains.contains(to) {
            continue;
        }
        for condition in &rule.matches {
            if let Match::In(interface) | Match::Out(interface) = condition {
                affected.interfaces.insert(interface.to_string());
            }
        }
    }
    affected
}

/// Adds the chains that branch into these by port: pods' packets come in by the uppermost.
fn with_those_above<'a>(chains: &mut BTreeSet<&'a ChainName>, ruleset: &'a Ruleset) {
    let mut above: BTreeMap<&ChainName, &ChainName> = BTreeMap::new();
    for (name, chain) in &ruleset.chains {
        for rule in chain.rules() {
            if let (Action::Goto(to), [Match::Ports(..)]) = (&rule.action, rule.matches.as_slice())
            {
                above.insert(to, name);
            }
        }
    }
    let mut ahead: Vec<&ChainName> = chains.iter().copied().collect();
    while let Some(next) = ahead.pop() {
        if let Some(parent) = above.get(next)
            && chains.insert(parent)
        {
            ahead.push(parent);
        }
    }
}

fn members(set: &SetState) -> u64 {
    match set {
        SetState::Known { members, .. } => members.len() as u64,
        SetState::Foreign => 0,
    }
}

/// What a kernel holds in which this ruleset is in force.
fn as_observed(ruleset: Ruleset) -> Observed {
    let chains = ruleset
        .chains
        .iter()
        .map(|(name, chain)| {
            let state = ChainState {
                marker: Some(chain.marker()),
                rules: chain.rules_in_kernel(),
            };
            (name.clone(), state)
        })
        .collect();
    let hooks = ruleset
        .hooks
        .into_iter()
        .map(|hook| HookState {
            base: hook.base,
            target: hook.target,
            position: 0,
            shadowed: false,
        })
        .collect();
    let sets = ruleset
        .sets
        .into_iter()
        .map(|(name, set)| {
            let state = SetState::Known {
                kind: set.kind,
                members: set.members,
            };
            (name, state)
        })
        .collect();
    Observed {
        chains,
        hooks,
        sets,
    }
}

/// Families that nobody wants ruled hold nothing of ours.
fn clear_others(kernel: &mut Kernel, wanted: &BTreeSet<Family>) {
    for family in [Family::V4, Family::V6] {
        if wanted.contains(&family) {
            continue;
        }
        let cleared = kernel.observe(family).and_then(|found| {
            let plan = plan(&Ruleset::empty(family), &found);
            if plan.is_empty() {
                return Ok(());
            }
            info!(%family, "rules of a family that is not enforced are taken away");
            kernel
                .apply_by_step(&plan, &mut stop_behind)
                .map(|left| _ = warn_left(&left))
        });
        if let Err(error) = cleared {
            let error = crate::error_chain(&error);
            warn!(%family, error, "leftovers of a family that is not enforced stay");
        }
    }
}

/// A test may want a crash behind any step.
fn stop_behind(step: Step) {
    failpoint::hit(step.into());
}

/// Takes the last step out of a plan, as one of its own.
fn only_destroying(from: &mut Plan) -> Plan {
    let mut last = plan(&Ruleset::empty(from.family), &Observed::default());
    last.destroy = std::mem::take(&mut from.destroy);
    last
}

/// What could not be deleted is out of use, and tried again with the next look: how much it is.
fn warn_left(left: &[selvage_netfilter::Error]) -> usize {
    for error in left {
        let error = crate::error_chain(error);
        warn!(error, "something of ours that is out of use stays");
    }
    left.len()
}

impl Dataplane for Node {
    type Error = selvage_netfilter::Error;
    type Flows = NodeFlows;

    fn flows(&self, families: &BTreeSet<Family>) -> NodeFlows {
        NodeFlows::new(families.iter().copied())
    }

    fn watch(&mut self, suspects: Sender<Suspect>) {
        self.suspects = Some(suspects);
    }

    fn is_changed(&mut self, suspect: Suspect) -> Result<bool, Self::Error> {
        let Some(kernel) = &mut self.kernel else {
            return Ok(true);
        };
        match suspect {
            Suspect::Rules(family) => Ok(!kernel.rules_unchanged(family)?),
            Suspect::Sets => {
                let glimpse = match self.glimpses.as_ref().and_then(Glimpses::take) {
                    Some(glimpse) => glimpse,
                    None => kernel.sets().glimpse()?,
                };
                for (family, observed) in &self.known {
                    let changed = kernel.sets_changed(*family, &observed.sets, &glimpse)?;
                    if !changed.is_empty() {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Suspect::Members => Ok(true),
        }
    }

    fn converge(&mut self, want: Vec<Ruleset>, look: Look) -> Result<Done, Self::Error> {
        let families: BTreeSet<Family> = want.iter().map(|ruleset| ruleset.family).collect();
        let first = !self.cleaned;
        self.open(&families)?;
        let kernel = self.kernel.as_mut().expect("opened above");
        if look == Look::Afresh {
            self.known.clear();
        }
        let mut affected = Affected::default();
        let mut did = Vec::new();
        let (mut written, mut changed, mut left) = (0, false, 0);
        let (mut plans, mut unused) = (Vec::new(), Vec::new());
        let mut then = BTreeMap::new();
        for ruleset in want {
            let family = ruleset.family;
            // Removed before it is changed: after an error it is unknown.
            let found = match (self.known.remove(&family), look) {
                (Some(known), Look::Remembered) => known,
                (Some(known), Look::Rules) => {
                    let (chains, hooks) = kernel.observe_rules(family)?;
                    Observed {
                        chains,
                        hooks,
                        ..known
                    }
                }
                (None, Look::Remembered | Look::Rules | Look::Afresh) | (Some(_), Look::Afresh) => {
                    kernel.observe(family)?
                }
            };
            let mut plan = plan(&ruleset, &found);
            if first {
                // Rules in the other backend may use them still.
                unused.push(only_destroying(&mut plan));
            }
            if !plan.is_empty() {
                debug!(%family, plan = %Summary(&plan), "plan");
                did.push(format!("{family}: {}", Summary(&plan)));
                written += plan.write.len();
                affected.extend(affected_by(&ruleset, &plan));
                changed = true;
                plans.push(plan);
            }
            then.insert(family, as_observed(ruleset));
        }
        if !plans.is_empty() {
            left += warn_left(&kernel.apply_all(&plans, &mut stop_behind)?);
        }
        self.known.extend(then);
        if first {
            // In force in one backend; only now may the other let go.
            let other = kernel.clean_rules(kernel.backend().other());
            if other.chains > 0 || other.hooks > 0 {
                let backend = kernel.backend().other();
                info!(%backend, chains = other.chains, "rules of ours in the other backend are taken away");
            }
            left += warn_left(&other.left);
            failpoint::hit(Failpoint::OtherBackendCleaned);
            for plan in unused {
                changed |= !plan.is_empty();
                left += warn_left(&kernel.apply_by_step(&plan, &mut stop_behind)?);
            }
            clear_others(kernel, &families);
            self.cleaned = true;
        }
        if let Some(file) = &mut self.record {
            file.write(&kernel.record());
        }
        failpoint::hit(Failpoint::Converged);
        Ok(Done {
            affected,
            did: did.join("; "),
            ..self.done(written, changed, left)
        })
    }

    fn change_members(&mut self, changes: &MemberChanges) -> Result<Done, Self::Error> {
        self.open(&BTreeSet::new())?;
        let kernel = self.kernel.as_mut().expect("opened above");
        let adds = changes.values().any(|change| !change.add.is_empty());
        let removes = changes.values().any(|change| !change.remove.is_empty());
        kernel.sets().change_members(changes, &mut || {
            if adds {
                failpoint::hit(Failpoint::MembersAdded);
            }
        })?;
        if removes {
            failpoint::hit(Failpoint::MembersRemoved);
        }
        for (name, change) in changes {
            let mut known = self.known.values_mut();
            let state = known.find_map(|observed| observed.sets.get_mut(name));
            if let Some(SetState::Known { members, .. }) = state {
                members.clone_from(&change.members);
            }
        }
        let removed = changes.values().flat_map(|change| &change.remove);
        let affected = Affected {
            addresses: removed.map(|member| member.net.addr()).collect(),
            ..Affected::default()
        };
        Ok(Done {
            affected,
            ..self.done(0, !changes.is_empty(), 0)
        })
    }
}

struct Summary<'a>(&'a Plan);

impl std::fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plan = self.0;
        write!(
            f,
            "create {} sets, change {}, write {} chains, {} hooks, delete {} hooks, {} chains, {} sets",
            plan.create.len(),
            plan.add.len() + plan.remove.len(),
            plan.write.len(),
            plan.hook.len(),
            plan.unhook.len(),
            plan.delete.len(),
            plan.destroy.len() + plan.clear.len(),
        )
    }
}
