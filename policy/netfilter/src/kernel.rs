//! A node's kernel as the plan sees it: observed whole, changed step by step.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use selvage_policy_core::observe::{ChainState, HookState, Observed, SetState};
use selvage_policy_core::plan::Plan;
use selvage_policy_core::render::{Rendered, render};
use selvage_policy_core::ruleset::{Chain, ChainName, Family, Hook, Set, SetName};

use crate::content::{Found, TABLE};
use crate::error::Error;
use crate::ipset::{Glimpse, Header, IpSets};
use crate::iptables::{Backend, Restore, restore};
use crate::legacy;
use crate::memory::Memory;
use crate::nftables::{Generation, Nftables};
use crate::record::Record;
use crate::socket::Nfnetlink;

/// So many chains are read one by one faster than all rules are together.
const FEW: usize = 32;

/// The families, in the order in which they are cleaned.
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The network namespace that [`Kernel::open`] ran in, with one of its iptables backends.
///
/// *Shape*: one owner. Two at once would undo each other's work; what holds them apart is the lock
/// of the daemon.
pub struct Kernel {
    backend: Backend,
    patience: Duration,
    sets: IpSets,
    nft: Nftables,
    /// Rules in `backend` as this one left them, by family.
    memory: BTreeMap<Family, Memory>,
    /// What an earlier process knew of them, where that is known.
    earlier: Option<Record>,
}

/// Chains by name, and jumps to them.
pub type Rules = (BTreeMap<ChainName, ChainState>, Vec<HookState>);

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

/// What was taken away.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// Jumps in other people's chains.
    pub hooks: usize,
    /// Chains, both families.
    pub chains: usize,
    /// Sets.
    pub sets: usize,
    /// What could not be taken away, and why: a chain that a stranger's rule jumps to stays,
    /// empty.
    pub left: Vec<Error>,
}

impl Kernel {
    /// Opens the sockets. `patience` bounds each exchange with the kernel and each run of a tool.
    ///
    /// *Needs*: `CAP_NET_ADMIN`.
    ///
    /// *Errors*: [`Error::Socket`]; [`Error::Refused`] without the capability or without ipset.
    pub fn open(backend: Backend, patience: Duration) -> Result<Self, Error> {
        Ok(Self {
            backend,
            patience,
            sets: IpSets::open(patience)?,
            nft: Nftables::new(Nfnetlink::open(patience)?),
            memory: BTreeMap::new(),
            earlier: None,
        })
    }

    /// Believes of the chains that are there only those that an earlier process recorded; the others
    /// are reported without their marker, and so written again. Without this the marker is believed.
    pub fn believe(&mut self, earlier: Record) {
        self.earlier = Some(earlier);
    }

    /// How our chains are held, as far as that is known for certain, for a later process.
    #[must_use]
    pub fn record(&self) -> Record {
        let families = self.memory.iter();
        let chains = families.flat_map(|(family, memory)| {
            let chains = memory.certain();
            chains.map(|(name, fingerprint)| (*family, name.clone(), fingerprint))
        });
        Record::new(self.backend, chains)
    }

    /// The backend that plans are applied to.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The sets, to change members or look at headers without a plan.
    pub fn sets(&mut self) -> &mut IpSets {
        &mut self.sets
    }

    /// Reads everything of ours of a family: chains, jumps to them, sets with their members.
    ///
    /// A chain that this kernel has written, and whose rules are not those any more, is reported
    /// without its marker, also where somebody kept that.
    ///
    /// *Errors*: those of reading. What cannot be read is an error, never an empty answer.
    ///
    /// *Cost*: linear in the rules of `mangle` and in our members: 1 µs and 0.2 µs each.
    pub fn observe(&mut self, family: Family) -> Result<Observed, Error> {
        let (chains, hooks) = self.observe_rules(family)?;
        let mut sets = BTreeMap::new();
        for header in self.sets.list()? {
            if belongs(&header, family) {
                // Before its members are read, so that a swap in between is seen later.
                self.sets.recognise(&header);
                let state = match header.kind.filter(|_| header.family == Some(family)) {
                    None => SetState::Foreign,
                    Some(kind) => SetState::Known {
                        kind,
                        members: self.sets.read(&header.name)?.1,
                    },
                };
                sets.insert(header.name, state);
            }
        }
        Ok(Observed {
            chains,
            hooks,
            sets,
        })
    }

    /// The part of [`Kernel::observe`] that is about rules: chains, and jumps to them.
    ///
    /// *Errors*: as [`Kernel::observe`].
    ///
    /// *Cost*: linear in the rules of `mangle`.
    pub fn observe_rules(&mut self, family: Family) -> Result<Rules, Error> {
        let (found, generation) = self.rules(self.backend, family)?;
        let memory = self.memory.entry(family).or_default();
        let (backend, earlier) = (self.backend, self.earlier.as_ref());
        let chains = memory.learn(&found, generation, &|name, fingerprint| {
            earlier.is_none_or(|record| record.holds(backend, family, name, fingerprint))
        });
        let hooks = found.hooks.into_iter().map(|hook| hook.state).collect();
        Ok((chains, hooks))
    }

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

    /// Whether the rules of a family are as this kernel last observed or left them. Not so, or
    /// never observed: observe, plan and apply.
    ///
    /// *Errors*: those of reading.
    ///
    /// *Cost*: for nft, where nobody else committed since: 1 µs, however many commits were our own.
    /// Else as reading the rules: linear in those of `mangle`, 0.3 ms for 1,000 in legacy and 1 ms in nft.
    pub fn rules_unchanged(&mut self, family: Family) -> Result<bool, Error> {
        let Some(known) = self.memory.get(&family).map(Memory::generation) else {
            return Ok(false);
        };
        if known.is_some() && self.nft.generation()? == known {
            return Ok(true);
        }
        let (found, generation) = self.rules(self.backend, family)?;
        let memory = self.memory.entry(family).or_default();
        let same = memory.recognises(&found);
        if same {
            memory.carry_to(generation);
        }
        Ok(same)
    }

    /// Which of these sets of a family are not what they should be, as far as their headers show:
    /// gone, of another type or family, with another number of members, swapped with another or
    /// made anew since they were last observed or written, or matched on by no rule.
    ///
    /// One member less and another more is not seen here: only [`Kernel::observe`] reads members. Of the sets that
    /// this kernel has made, read or changed since the glimpse was begun, a few are looked at anew, others each time.
    ///
    /// *Errors*: those of reading.
    ///
    /// *Cost*: 1 µs a set, and 10 µs or more for those few.
    pub fn sets_changed(
        &mut self,
        family: Family,
        expected: &BTreeMap<SetName, SetState>,
        glimpse: &Glimpse,
    ) -> Result<BTreeSet<SetName>, Error> {
        self.sets.differing(family, expected, glimpse)
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

    /// Takes our rules out of one backend, for both families, and leaves sets and strangers'
    /// rules alone. For the backend that is not in use any more, once the other is in force.
    ///
    /// *Errors*: none: what could not be done is in [`Cleaned::left`].
    pub fn clean_rules(&mut self, backend: Backend) -> Cleaned {
        let mut cleaned = Cleaned::default();
        if backend == self.backend {
            self.memory.clear();
        }
        for family in FAMILIES {
            if let Err(error) = self.clean_family(backend, family, &mut cleaned) {
                cleaned.left.push(error);
            }
        }
        cleaned
    }

    /// Takes away everything of ours: rules of both backends and families, then sets.
    ///
    /// *Errors*: none: what could not be done is in [`Cleaned::left`].
    pub fn cleanup(&mut self) -> Cleaned {
        let mut cleaned = Cleaned::default();
        for backend in Backend::ALL {
            let part = self.clean_rules(backend);
            cleaned.hooks += part.hooks;
            cleaned.chains += part.chains;
            cleaned.left.extend(part.left);
        }
        match self.sets.list() {
            Err(error) => cleaned.left.push(error),
            Ok(headers) => {
                let names: Vec<SetName> = headers.into_iter().map(|it| it.name).collect();
                let left = self.destroy(names.iter());
                cleaned.sets = names.len() - left.len();
                cleaned.left.extend(left);
            }
        }
        cleaned
    }

    fn clean_family(
        &mut self,
        backend: Backend,
        family: Family,
        cleaned: &mut Cleaned,
    ) -> Result<(), Error> {
        let (found, _) = self.rules(backend, family)?;
        let hooks: Vec<Hook> = found.hooks.iter().map(|it| it.state.hook()).collect();
        self.unhook(backend, family, &hooks)?;
        cleaned.hooks += hooks.len();
        let chains: Vec<&ChainName> = found.chains.keys().collect();
        let left = self.delete(backend, family, &chains)?;
        cleaned.chains += chains.len() - left.len();
        cleaned.left.extend(left);
        Ok(())
    }

    fn rules(
        &mut self,
        backend: Backend,
        family: Family,
    ) -> Result<(Found, Option<Generation>), Error> {
        match backend {
            Backend::Nft => self.nft.read(family),
            Backend::Legacy => legacy::read(family).map(|found| (found, None)),
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

    fn unhook(&mut self, backend: Backend, family: Family, hooks: &[Hook]) -> Result<(), Error> {
        if hooks.is_empty() {
            return Ok(());
        }
        match backend {
            Backend::Nft => self.nft.unhook(family, hooks),
            Backend::Legacy => legacy::unhook(family, hooks, self.patience),
        }
    }

    fn delete(
        &mut self,
        backend: Backend,
        family: Family,
        chains: &[&ChainName],
    ) -> Result<Vec<Error>, Error> {
        if chains.is_empty() {
            return Ok(Vec::new());
        }
        match backend {
            Backend::Nft => self.nft.delete(family, chains),
            Backend::Legacy => legacy::delete(family, chains, self.patience),
        }
    }

    fn destroy<'a>(&mut self, names: impl Iterator<Item = &'a SetName>) -> Vec<Error> {
        names
            .filter_map(|name| self.sets.destroy(name).err())
            .collect()
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

/// Whether a set counts to a family: by its name, since that is what a set of ours must have, or by
/// what it is. One of which neither tells counts to the first, so that somebody takes it away.
fn belongs(header: &Header, family: Family) -> bool {
    let named = header.name.family().or(header.family);
    named.unwrap_or(Family::V4) == family
}

#[cfg(test)]
mod tests {
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
