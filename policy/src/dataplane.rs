//! The kernel of one node, as the loop sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::time::{Duration, Instant};

use selvage_netfilter::{Backend, Kernel, Step, choose_backend};
use selvage_policy_core::index::MemberChange;
use selvage_policy_core::observe::{ChainState, HookState, Observed, SetState};
use selvage_policy_core::plan::{Plan, plan};
use selvage_policy_core::ruleset::{Family, Ruleset, SetName};
use tracing::{debug, info, warn};

use crate::failpoint::{self, Failpoint};
use crate::metrics::Work;

/// Bounds each exchange with the kernel and each run of a tool, the wait for the xtables lock
/// included.
const PATIENCE: Duration = Duration::from_secs(30);

/// Changes of members, by set.
pub type MemberChanges = BTreeMap<SetName, MemberChange>;

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
}

/// How the kernel is compared with what it should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// With what was written last.
    Remembered,
    /// With what is there, all of it read.
    Afresh,
}

/// Something that can hold rulesets. Everything blocks.
pub trait Dataplane: Send + 'static {
    /// Why something was not done.
    type Error: Error + Send + 'static;

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
        }
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

/// Opens the kernel once, and takes leftovers of a family that is not enforced (any more) away.
fn open(fixed: Option<Backend>) -> Result<Kernel, selvage_netfilter::Error> {
    Kernel::open(choose_backend(fixed, PATIENCE)?, PATIENCE)
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

    fn converge(&mut self, want: Vec<Ruleset>, look: Look) -> Result<Done, Self::Error> {
        let first = self.kernel.is_none();
        let kernel = match &mut self.kernel {
            Some(kernel) => kernel,
            none => none.insert(open(self.fixed)?),
        };
        if look == Look::Afresh {
            self.known.clear();
        }
        let families: BTreeSet<Family> = want.iter().map(|ruleset| ruleset.family).collect();
        let (mut written, mut changed, mut left) = (0, false, 0);
        let mut unused = Vec::new();
        for ruleset in want {
            let family = ruleset.family;
            // Removed before it is changed: after an error it is unknown.
            let found = match self.known.remove(&family) {
                Some(found) => found,
                None => kernel.observe(family)?,
            };
            let mut plan = plan(&ruleset, &found);
            if first {
                // Rules in the other backend may use them still.
                unused.push(only_destroying(&mut plan));
            }
            if !plan.is_empty() {
                debug!(%family, plan = %Summary(&plan), "plan");
                written += plan.write.len();
                changed = true;
                left += warn_left(&kernel.apply_by_step(&plan, &mut stop_behind)?);
            }
            self.known.insert(family, as_observed(ruleset));
            failpoint::hit(Failpoint::FamilyDone);
        }
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
        }
        failpoint::hit(Failpoint::Converged);
        Ok(self.done(written, changed, left))
    }

    fn change_members(&mut self, changes: &MemberChanges) -> Result<Done, Self::Error> {
        let kernel = match &mut self.kernel {
            Some(kernel) => kernel,
            none => none.insert(open(self.fixed)?),
        };
        for (name, change) in changes {
            let state = self
                .known
                .values_mut()
                .find_map(|observed| observed.sets.get_mut(name));
            if !change.add.is_empty() {
                kernel.sets().add(name, &change.add)?;
                failpoint::hit(Failpoint::MembersAdded);
            }
            if !change.remove.is_empty() {
                kernel.sets().remove(name, &change.remove)?;
                failpoint::hit(Failpoint::MembersRemoved);
            }
            if let Some(SetState::Known { members, .. }) = state {
                members.extend(&change.add);
                for gone in &change.remove {
                    members.remove(gone);
                }
            }
        }
        Ok(self.done(0, true, 0))
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

/// A piece of work.
#[derive(Debug)]
pub(crate) enum Job {
    /// See [`Dataplane::converge`].
    Rules(Vec<Ruleset>, Look),
    /// See [`Dataplane::change_members`].
    Members(MemberChanges),
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Finished {
    /// What it was.
    pub(crate) work: Work,
    /// What came of it, or why not.
    pub(crate) result: Result<Done, String>,
    /// How long it took.
    pub(crate) took: Duration,
}

/// Does a job and says how it went. Blocks.
pub(crate) fn work(dataplane: &mut impl Dataplane, job: Job) -> Finished {
    let started = Instant::now();
    let (work, result) = match job {
        Job::Rules(want, look) => (Work::Rules, dataplane.converge(want, look)),
        Job::Members(changes) => (Work::Members, dataplane.change_members(&changes)),
    };
    Finished {
        work,
        result: result.map_err(|error| crate::error_chain(&error)),
        took: started.elapsed(),
    }
}
