//! The difference between what should be and what is, in the order in which it is carried out.
//!
//! ```text
//! 1 clear    sets that bear a wanted name and are of a type we never make
//! 2 create   sets that are missing, filled before anything refers to them
//! 3 add      members
//! 4 write    chains that differ, and hooks that are missing: one restore batch, atomic
//! 5 remove   members
//! 6 delete   hooks and chains that are not wanted: in a batch of their own wherever a stranger's
//!            reference to a chain makes the whole batch fail
//! 7 destroy  sets that nothing refers to any more: those of all families last
//! ```
//!
//! Members come before chains and go after them: at every moment between, what both the old and
//! the new state allow is allowed. Every step is idempotent against a fresh observation, so a
//! crash between any two is mended by the next plan.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use crate::observe::{Observed, SetState};
use crate::ruleset::{
    BaseChain, Chain, ChainName, Family, Hook, Member, Ruleset, Set, SetKind, SetName,
};

/// What to do to the kernel, by step. See the module for the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The family whose tables and sets are meant.
    pub family: Family,
    /// Step 1: sets to destroy before anything else. Fails if a rule refers to one.
    pub clear: BTreeSet<SetName>,
    /// Step 2: sets to create, with everything that belongs in them.
    pub create: BTreeMap<SetName, Set>,
    /// Step 3: members to add to sets that exist.
    pub add: BTreeMap<SetName, BTreeSet<Member>>,
    /// Step 4: chains to write whole, whether they exist or not.
    pub write: BTreeMap<ChainName, Chain>,
    /// Step 4, same batch: hooks to insert as first rule of their base chain.
    pub hook: BTreeSet<Hook>,
    /// Step 5: members to remove from sets that stay.
    pub remove: BTreeMap<SetName, BTreeSet<Member>>,
    /// Step 6: jumps to delete, one entry for each rule (a duplicate is deleted once for each).
    pub unhook: Vec<Hook>,
    /// Step 6: chains to delete.
    pub delete: BTreeSet<ChainName>,
    /// Step 7: sets to destroy.
    pub destroy: BTreeSet<SetName>,
}

impl Plan {
    /// Whether the kernel is already as it should be.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            family: _,
            clear,
            create,
            add,
            write,
            hook,
            remove,
            unhook,
            delete,
            destroy,
        } = self;
        clear.is_empty()
            && create.is_empty()
            && add.is_empty()
            && write.is_empty()
            && hook.is_empty()
            && remove.is_empty()
            && unhook.is_empty()
            && delete.is_empty()
            && destroy.is_empty()
    }
}

/// What it takes to turn `have` into `want`.
///
/// *Shape*: nothing that is already right is in the plan, and no member of a guard set. A hook that exists stays where it is, even
/// behind others' rules: no war of insertions. Except in FORWARD behind a rule that may let packets
/// go: there it would be no hook. (In PREROUTING stands only the source check, and Felix keeps an
/// accept in front of everybody there.)
///
/// *Cost*: linear in chains and sets, and in those members of both that they don't share.
#[must_use]
pub fn plan(want: &Ruleset, have: &Observed) -> Plan {
    let mut plan = Plan {
        family: want.family,
        clear: BTreeSet::new(),
        create: BTreeMap::new(),
        add: BTreeMap::new(),
        write: BTreeMap::new(),
        hook: want.hooks.clone(),
        remove: BTreeMap::new(),
        unhook: Vec::new(),
        delete: BTreeSet::new(),
        destroy: BTreeSet::new(),
    };
    plan_sets(want, have, &mut plan);
    for (name, chain, found) in side_by_side(&want.chains, &have.chains) {
        let Some(chain) = chain else {
            plan.delete.insert(name.clone());
            continue;
        };
        // A rule names a set once and keeps it by index: what is created now is another set.
        let right = found.is_some_and(|found| {
            found.marker == Some(chain.marker()) && found.rules == chain.rules_in_kernel()
        }) && (plan.create.is_empty()
            || !chain.sets().any(|set| plan.create.contains_key(set)));
        if !right {
            plan.write.insert(name.clone(), chain.clone());
        }
    }
    for found in &have.hooks {
        let hook = found.hook();
        // In FORWARD a jump that packets can get past is as good as none: another goes in first
        // place, and this one away. The first of equals is kept; `remove` says whether this is it.
        let in_force = match hook.base {
            BaseChain::Forward => !found.shadowed,
            BaseChain::Prerouting => true,
        };
        if !in_force || !plan.hook.remove(&hook) {
            plan.unhook.push(hook);
        }
    }
    plan
}

fn plan_sets(want: &Ruleset, have: &Observed, plan: &mut Plan) {
    for (name, set, found) in side_by_side(&want.sets, &have.sets) {
        match (set, found) {
            // Its members come and go without us.
            (Some(set), Some(SetState::Known { kind, .. }))
                if *kind == set.kind && set.kind == SetKind::Guard => {}
            (Some(set), Some(SetState::Known { kind, members })) if *kind == set.kind => {
                let (add, remove) = set.members.difference(members);
                if !add.is_empty() {
                    plan.add.insert(name.clone(), add.into_iter().collect());
                }
                if !remove.is_empty() {
                    plan.remove
                        .insert(name.clone(), remove.into_iter().collect());
                }
            }
            (Some(set), Some(SetState::Known { .. } | SetState::Foreign)) => {
                plan.clear.insert(name.clone());
                plan.create.insert(name.clone(), set.clone());
            }
            (Some(set), None) => {
                plan.create.insert(name.clone(), set.clone());
            }
            (None, _) => {
                plan.destroy.insert(name.clone());
            }
        }
    }
}

/// All keys of both, in order, each with what is under it in one and in the other.
fn side_by_side<'a, K: Ord, A, B>(
    one: &'a BTreeMap<K, A>,
    other: &'a BTreeMap<K, B>,
) -> impl Iterator<Item = (&'a K, Option<&'a A>, Option<&'a B>)> {
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (one.peek(), other.peek()) {
            (Some((key, _)), Some((another, _))) => key.cmp(another),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        match order {
            Ordering::Less => one.next().map(|(key, value)| (key, Some(value), None)),
            Ordering::Greater => other.next().map(|(key, value)| (key, None, Some(value))),
            Ordering::Equal => {
                let ((key, value), (_, another)) = (one.next()?, other.next()?);
                Some((key, Some(value), Some(another)))
            }
        }
    })
}
