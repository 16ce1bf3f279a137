//! A node's kernel as the plan sees it: observed whole, changed step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use selvage_policy_core::observe::{ChainState, HookState, Observed, SetState};
use selvage_policy_core::ruleset::{ChainName, Family, Hook, SetName};

use crate::content::Found;
use crate::error::Error;
use crate::ipset::{Glimpse, Header, IpSets};
use crate::iptables::Backend;
use crate::legacy;
use crate::memory::Memory;
use crate::nftables::{Generation, Nftables};
use crate::record::Record;
use crate::socket::Nfnetlink;

mod apply;

pub use apply::Step;

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

/// Whether a set counts to a family: by its name, since that is what a set of ours must have, or by
/// what it is. One of which neither tells counts to the first, so that somebody takes it away.
fn belongs(header: &Header, family: Family) -> bool {
    let named = header.name.family().or(header.family);
    named.unwrap_or(Family::V4) == family
}
