//! Plans carried out step by step, and what is known of the rules afterwards.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use selvage_policy_core::plan::Plan;
use selvage_policy_core::render::{Rendered, render};
use selvage_policy_core::ruleset::{Chain, ChainName, Family, Set, SetName};

use super::Kernel;
use crate::content::{Found, TABLE};
use crate::error::Error;
use crate::iptables::{Backend, Restore, restore};
use crate::nftables::Generation;

/// So many chains are read one by one faster than all rules are together.
const FEW: usize = 32;

/// Where the rules stood when a plan was begun, and what it has committed since by the tool.
struct Begun {
    generation: Option<Generation>,
    commits: u32,
    restores: u32,
}

/// A plan that is begun: its tool runs.
struct Started<'a> {
    plan: &'a Plan,
    rendered: &'a Rendered,
    tool: Option<Restore<'a>>,
}

/// A step of [`Kernel::apply_all`] that is done, in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A set that was in the way is gone.
    SetCleared,
    /// New sets are there, empty.
    SetsMade,
    /// They have their members.
    SetsFilled,
    /// Members are in a set that was there.
    MembersAdded,
    /// Chains and jumps are in force.
    ChainsWritten,
    /// Members are out of a set.
    MembersRemoved,
    /// Jumps that nobody wants are gone.
    Unhooked,
    /// Chains that nobody wants are gone.
    ChainsDeleted,
    /// One family is right but for sets that nobody wants; the next one is not begun yet.
    FamilyDone,
    /// A set that nobody wants is gone.
    SetDestroyed,
}

impl Kernel {
    /// Carries out a plan, in the order that [`selvage_policy_core::plan`] gives.
    ///
    /// The answer holds what could not be deleted. That is no hole: it is out of use.
    ///
    /// *Errors*: the first step that failed; those behind it were not tried, except that what is
    /// in force is complete either way: a plan made from a new observation goes on from there.
    pub fn apply(&mut self, plan: &Plan) -> Result<Vec<Error>, Error> {
        self.apply_by_step(plan, &mut |_| {})
    }

    /// As [`Kernel::apply`], and tells `after` of each step that is done: for whoever wants to be
    /// stopped between two of them.
    ///
    /// *Errors*: as [`Kernel::apply`].
    pub fn apply_by_step(
        &mut self,
        plan: &Plan,
        after: &mut dyn FnMut(Step),
    ) -> Result<Vec<Error>, Error> {
        self.apply_all(std::slice::from_ref(plan), after)
    }

    /// Carries out plans of different families, so that what they write is in force before what is left
    /// over is looked at: the kernel holds on to sets for a moment after their rules are gone.
    ///
    /// *Errors*: as [`Kernel::apply`]; the plans behind the one that failed were not begun.
    pub fn apply_all(
        &mut self,
        plans: &[Plan],
        after: &mut dyn FnMut(Step),
    ) -> Result<Vec<Error>, Error> {
        let mut begun = self.begin()?;
        let mut left = Vec::new();
        let rendered: Vec<Rendered> = plans.iter().map(render).collect();
        let mut work = plans.iter().zip(&rendered);
        let mut next = self.start(work.next())?;
        let mut done = 0;
        while let Some(started) = next {
            next = match self.write(started, work.next(), &mut begun, after, &mut left) {
                Ok(next) => next,
                Err(error) => {
                    self.remember(&plans[..done], &begun);
                    return Err(error);
                }
            };
            done += 1;
            after(Step::FamilyDone);
        }
        let mut held = Vec::new();
        for name in plans.iter().flat_map(|plan| &plan.destroy) {
            match self.sets.destroy_now(name) {
                Ok(true) => after(Step::SetDestroyed),
                Ok(false) => held.push(name),
                Err(error) => left.push(error),
            }
        }
        self.remember(plans, &begun);
        for name in held {
            match self.sets.destroy(name) {
                Ok(()) => after(Step::SetDestroyed),
                Err(error) => left.push(error),
            }
        }
        Ok(left)
    }

    /// A plan with the tool for its first batch, if it has any: a process takes as long to start as a few rules to go in.
    fn start<'a>(
        &self,
        work: Option<(&'a Plan, &'a Rendered)>,
    ) -> Result<Option<Started<'a>>, Error> {
        let Some((plan, rendered)) = work else {
            return Ok(None);
        };
        let first = rendered.whole.as_ref().or(rendered.apply.as_ref());
        let start =
            |text: &'a String| Restore::start(plan.family, self.backend, text, self.patience);
        Ok(Some(Started {
            plan,
            rendered,
            tool: first.map(start).transpose()?,
        }))
    }

    /// Everything of a plan but the destruction of sets; what could not be deleted is `left`. Starts the next one.
    fn write<'a>(
        &mut self,
        started: Started<'a>,
        next: Option<(&'a Plan, &'a Rendered)>,
        begun: &mut Begun,
        after: &mut dyn FnMut(Step),
        left: &mut Vec<Error>,
    ) -> Result<Option<Started<'a>>, Error> {
        let Started {
            plan,
            rendered,
            mut tool,
        } = started;
        let family = plan.family;
        self.clear(plan, begun, after)?;
        let sets = by_use(plan);
        self.sets.make_sets(family, &sets)?;
        if !sets.is_empty() {
            after(Step::SetsMade);
        }
        // The sets that rules name are there: while they are filled the tool works through the rules. It must not end
        // before they are.
        let mut feed = || {
            if let Some(tool) = &mut tool {
                tool.feed();
            }
        };
        feed();
        let next = self.start(next)?;
        self.sets.fill_sets(&sets, &mut feed)?;
        if !sets.is_empty() {
            after(Step::SetsFilled);
        }
        for (name, members) in &plan.add {
            self.sets.add(name, members)?;
            after(Step::MembersAdded);
        }
        let committed = match tool.map(Restore::commit) {
            None => false,
            Some(Ok(())) => {
                begun.restores += 1;
                true
            }
            // A stranger's jump to a chain that goes, perhaps.
            Some(Err(Error::Tool { .. })) if rendered.whole.is_some() => false,
            Some(Err(error)) => return Err(error),
        };
        // A batch more would read and write the whole legacy table once more, and in nft be waited for by the
        // other family's.
        let deleted = committed && rendered.whole.is_some();
        if let Some(text) = &rendered.apply {
            if !committed {
                self.restore(family, text, begun)?;
            }
            after(Step::ChainsWritten);
        }
        for (name, members) in &plan.remove {
            self.sets.remove(name, members)?;
            after(Step::MembersRemoved);
        }
        let chains: Vec<&ChainName> = plan.delete.iter().collect();
        // Deleted here and not by the plan's text: with a stranger's native rule in the table,
        // iptables-nft finds no rule to delete, and the whole batch fails.
        if !plan.unhook.is_empty() {
            match self.unhook(self.backend, family, &plan.unhook) {
                Ok(()) => after(Step::Unhooked),
                Err(error) => left.push(error),
            }
        }
        if !chains.is_empty() {
            if !deleted {
                match self.delete(self.backend, family, &chains) {
                    Ok(more) => left.extend(more),
                    Err(error) => left.push(error),
                }
            }
            after(Step::ChainsDeleted);
        }
        Ok(next)
    }

    fn begin(&mut self) -> Result<Begun, Error> {
        let generation = match self.backend {
            Backend::Nft => self.nft.generation()?,
            Backend::Legacy => None,
        };
        Ok(Begun {
            generation,
            commits: self.nft.commits(),
            restores: 0,
        })
    }

    fn restore(&mut self, family: Family, text: &str, begun: &mut Begun) -> Result<(), Error> {
        restore(family, self.backend, text, self.patience)?;
        begun.restores += 1;
        Ok(())
    }

    /// Destroys sets whose names are wanted for others. Where rules of ours refer to one, their
    /// chains drop everything until they are written anew, later in the plan: closed, not open.
    fn clear(
        &mut self,
        plan: &Plan,
        begun: &mut Begun,
        after: &mut dyn FnMut(Step),
    ) -> Result<(), Error> {
        for name in &plan.clear {
            if self.sets.destroy_now(name)? {
                after(Step::SetCleared);
                continue;
            }
            let users = plan.write.iter();
            let users = users.filter(|(_, chain)| chain.sets().any(|set| set == name));
            let mut text = format!("*{TABLE}\n");
            for chain in users.map(|(chain, _)| chain).chain(&plan.delete) {
                text += &format!(":{chain} - [0:0]\n-A {chain} -j DROP\n");
            }
            text += "COMMIT\n";
            self.restore(plan.family, &text, begun)?;
            self.sets.destroy(name)?;
            after(Step::SetCleared);
        }
        Ok(())
    }

    /// Reads what plans have written, while it is known that nobody else wrote.
    fn remember(&mut self, plans: &[Plan], begun: &Begun) {
        let mut readings = Vec::new();
        let mut last = None;
        for plan in plans.iter().filter(|plan| touches_rules(plan)) {
            let (found, generation) = match self.written(plan) {
                Ok(read) => read,
                Err(error) => {
                    // The plan is carried out. What it wrote is doubted, and so written again.
                    let family = plan.family;
                    tracing::debug!(%family, %error, "what was written could not be read back");
                    Default::default()
                }
            };
            readings.push((plan, found));
            last = generation;
        }
        if readings.is_empty() {
            return;
        }
        let ours = begun.restores + self.nft.commits().wrapping_sub(begun.commits);
        let expected = begun.generation.map(|before| before.wrapping_add(ours));
        let alone = match self.backend {
            Backend::Nft => last.is_some() && last == expected,
            // There are no generations to count: see the limit in docs/architecture.md.
            Backend::Legacy => true,
        };
        // Where rules were known up to the first of these commits, they are known now, also of a family
        // that has no plan.
        let mut known = BTreeSet::new();
        for (family, memory) in &mut self.memory {
            if alone && memory.generation() == begun.generation {
                memory.carry_to(last);
                known.insert(*family);
            }
        }
        for (plan, found) in readings {
            let current = last.filter(|_| known.contains(&plan.family));
            let memory = self.memory.entry(plan.family).or_default();
            memory.written(plan, &found, alone, current);
        }
    }

    /// The rules of the chains that a plan wrote and deleted; others' may be there or not.
    fn written(&mut self, plan: &Plan) -> Result<(Found, Option<Generation>), Error> {
        let chains = plan.write.keys().chain(&plan.delete);
        match self.backend {
            Backend::Nft if chains.clone().count() <= FEW => {
                self.nft.read_chains(plan.family, chains)
            }
            backend @ (Backend::Nft | Backend::Legacy) => self.rules(backend, plan.family),
        }
    }
}

/// The sets that a plan creates, those first that most of its rules match on: each rule makes the tool ask the
/// kernel for its set by name, and the kernel looks through all sets in the order in which they were made.
fn by_use(plan: &Plan) -> Vec<(&SetName, &Set)> {
    let mut uses: BTreeMap<&SetName, usize> = BTreeMap::new();
    for set in plan.write.values().flat_map(Chain::sets) {
        *uses.entry(set).or_default() += 1;
    }
    let mut sets: Vec<(&SetName, &Set)> = plan.create.iter().collect();
    sets.sort_by_key(|(name, _)| Reverse(uses.get(name).copied().unwrap_or_default()));
    sets
}

fn touches_rules(plan: &Plan) -> bool {
    let Plan {
        write,
        hook,
        unhook,
        delete,
        ..
    } = plan;
    !(write.is_empty() && hook.is_empty() && unhook.is_empty() && delete.is_empty())
}

#[cfg(test)]
mod tests {
    use selvage_policy_core::observe::Observed;
    use selvage_policy_core::plan::plan;
    use selvage_policy_core::ruleset::{Action, Match, MemberSet, Rule, Ruleset, SetKind, Side};

    use super::*;

    #[test]
    fn the_sets_that_most_rules_match_on_are_made_first() {
        let name = |text: &str| SetName::new(text).unwrap();
        let kind = SetKind::Net;
        let rule = |set: &str| Rule {
            matches: vec![Match::Set {
                set: name(set),
                kind,
                peer: Side::Source,
            }],
            action: Action::Return,
        };
        let rules = Vec::from(["selvage-b", "selvage-c", "selvage-c"].map(rule));
        let empty = Ruleset::empty(Family::V4);
        let members = MemberSet::new();
        let set = |text: &str| {
            let members = members.clone();
            (name(text), Set { kind, members })
        };
        let want = Ruleset {
            chains: [(
                ChainName::new("selvage-x").unwrap(),
                Chain::ending_in(Action::Drop, rules),
            )]
            .into(),
            sets: ["selvage-a", "selvage-b", "selvage-c"].map(set).into(),
            ..empty
        };
        let plan = plan(&want, &Observed::default());
        let order: Vec<&str> = by_use(&plan).iter().map(|(set, _)| set.as_str()).collect();
        assert_eq!(order, ["selvage-c", "selvage-b", "selvage-a"]);
    }
}
