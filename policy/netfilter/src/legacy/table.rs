//! A legacy table's bytes, taken apart: chains, their rules, where each leads.
//!
//! ```text
//!  entry: address part | nfcache, target offset, next offset, comefrom, counters | matches | target
//!         84 (IPv6 136)  4        2              2            4         16
//!  a chain of the kernel's begins where its hook says and ends in its policy; any other begins
//!  behind an ERROR target that bears its name, and ends in a RETURN that nobody wrote
//! ```
//! The bytes come from the kernel and are still not trusted: a length that lies is an error.

use std::collections::BTreeMap;

use selvage_policy_core::observe::HookState;
use selvage_policy_core::ruleset::{BaseChain, ChainName, Family};

use super::sockopt::RawTable;
use crate::content::{BASES, Found, FoundHook, Hashing, Reading, Way, Ways};
use crate::message::text;

/// `struct xt_entry_match` and `xt_entry_target` before their data: size, name, revision.
const EXTENSION: usize = 32;
/// The length of the name in it.
const EXTENSION_NAME: usize = 29;

/// The verdicts of a standard target are hook verdicts, negated, less one.
const VERDICT_DROP: i32 = -1;
const VERDICT_RETURN: i32 = -5;

/// Hook numbers, in the order of the names that iptables gives their chains.
const HOOK_NAMES: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// A table with names instead of offsets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table<'a> {
    pub(super) chains: Vec<Chain<'a>>,
}

/// A chain and the rules that somebody wrote: neither its policy nor its last RETURN.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chain<'a> {
    pub(super) name: &'a str,
    pub(super) rules: Vec<Rule<'a>>,
}

/// A rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule<'a> {
    /// Addresses, interfaces, protocol, flags.
    address: &'a [u8],
    goto: bool,
    matches: Vec<Extension<'a>>,
    target: Target<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extension<'a> {
    name: &'a str,
    revision: u8,
    data: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target<'a> {
    /// No target: on to the next rule.
    None,
    Verdict(i32),
    Chain(&'a str),
    Extension(Extension<'a>),
}

/// Lengths that the families differ in.
struct Layout {
    address: usize,
    /// Where in the address part the flags are, and which of them says goto.
    flags: usize,
    goto: u8,
    /// Where the matches begin.
    head: usize,
}

fn layout(family: Family) -> Layout {
    match family {
        Family::V4 => Layout {
            address: 84,
            flags: 82,
            goto: 0x2,
            head: 112,
        },
        Family::V6 => Layout {
            address: 136,
            flags: 131,
            goto: 0x4,
            head: 168,
        },
    }
}

impl<'a> Table<'a> {
    /// Takes a table apart; the error says what is wrong with it.
    pub(super) fn parse(family: Family, raw: &'a RawTable) -> Result<Self, &'static str> {
        let layout = layout(family);
        let mut starts: BTreeMap<usize, &'a str> = BTreeMap::new();
        let mut entries = Vec::new();
        let mut offset = 0;
        while offset < raw.entries.len() {
            let entry = entry(&layout, &raw.entries[offset..]).ok_or("an entry that lies")?;
            let next = offset + entry.length;
            if let Target::Extension(Extension {
                name: "ERROR",
                data,
                ..
            }) = entry.target
            {
                starts.insert(next, text(data).ok_or("a chain's name that is no text")?);
            }
            entries.push((offset, entry));
            offset = next;
        }
        for (hook, start) in raw.hooks.iter().enumerate() {
            if let Some((start, _)) = start {
                starts.insert(*start, HOOK_NAMES[hook]);
            }
        }
        let mut chains: Vec<Chain<'a>> = Vec::new();
        for (offset, entry) in entries {
            if let Some(name) = starts.get(&offset) {
                chains.push(Chain {
                    name,
                    rules: Vec::new(),
                });
            }
            let heading = matches!(
                entry.target,
                Target::Extension(Extension { name: "ERROR", .. })
            );
            if heading {
                continue;
            }
            let chain = chains.last_mut().ok_or("a rule outside of any chain")?;
            chain.rules.push(entry.named(offset, &starts)?);
        }
        for chain in &mut chains {
            // The policy, or the RETURN that nobody wrote.
            chain.rules.pop().ok_or("a chain without its end")?;
        }
        Ok(Self { chains })
    }

    /// What is ours in it.
    pub(super) fn ours(&self) -> Found {
        let mut found = Found::default();
        let mut ways = Ways::default();
        for chain in &self.chains {
            for rule in &chain.rules {
                ways.add(chain.name, rule.way());
            }
        }
        for chain in &self.chains {
            let base = BASES.into_iter().find(|base| base.as_str() == chain.name);
            if let Some(base) = base {
                found.hooks.extend(hooks(base, chain, &ways));
            } else if let Ok(name) = ChainName::new(chain.name) {
                let mut reading = Reading::default();
                for rule in &chain.rules {
                    rule.hash(reading.rule(rule.comment()));
                }
                found.chains.insert(name, reading.finish());
            }
        }
        found
    }
}

fn hooks(base: BaseChain, chain: &Chain<'_>, ways: &Ways<'_>) -> Vec<FoundHook> {
    let jumps = chain.rules.iter().enumerate();
    jumps
        .filter_map(|(position, rule)| {
            let target = ChainName::new(rule.bare_jump()?).ok()?;
            Some(FoundHook {
                state: HookState {
                    base,
                    target,
                    position,
                    shadowed: ways.may_pass(base.as_str(), position),
                },
                handle: None,
            })
        })
        .collect()
}

impl<'a> Rule<'a> {
    /// The chain that it jumps to, if it does so without conditions.
    fn bare_jump(&self) -> Option<&'a str> {
        let bare = self.address.iter().all(|byte| *byte == 0)
            && self.matches.iter().all(|it| it.name == "comment");
        match self.target {
            Target::Chain(chain) if bare => Some(chain),
            Target::Chain(_) | Target::None | Target::Verdict(_) | Target::Extension(_) => None,
        }
    }

    fn comment(&self) -> Option<&'a str> {
        let comment = self.matches.iter().find(|it| it.name == "comment")?;
        text(comment.data)
    }

    fn way(&self) -> Way<'a> {
        match self.target {
            Target::None | Target::Verdict(VERDICT_DROP) => Way::On,
            Target::Verdict(VERDICT_RETURN) => Way::Back,
            Target::Verdict(_) => Way::Past,
            Target::Chain(chain) if self.goto => Way::Into(chain),
            Target::Chain(chain) => Way::Through(chain),
            // The targets of `mangle` that don't let a packet go on.
            Target::Extension(target) => match target.name {
                "NFQUEUE" | "TPROXY" => Way::Past,
                _ => Way::On,
            },
        }
    }

    fn hash(&self, hashing: &mut Hashing) {
        let extension = |hashing: &mut Hashing, it: &Extension<'_>| {
            hashing.add(it.name.as_bytes());
            hashing.add(&[it.revision]);
            hashing.add(it.data);
        };
        hashing.add(self.address);
        self.matches.iter().for_each(|it| extension(hashing, it));
        match &self.target {
            Target::None => hashing.add(b"none"),
            Target::Verdict(verdict) => hashing.add(&verdict.to_ne_bytes()),
            Target::Chain(chain) => hashing.add(chain.as_bytes()),
            Target::Extension(it) => extension(hashing, it),
        }
    }
}

/// An entry, its target's jump an offset still.
struct Entry<'a> {
    length: usize,
    address: &'a [u8],
    goto: bool,
    matches: Vec<Extension<'a>>,
    target: Target<'a>,
}

impl<'a> Entry<'a> {
    fn named(
        self,
        offset: usize,
        starts: &BTreeMap<usize, &'a str>,
    ) -> Result<Rule<'a>, &'static str> {
        let target = match self.target {
            Target::Verdict(jump) => match usize::try_from(jump) {
                Err(_) => Target::Verdict(jump),
                Ok(to) if to == offset + self.length => Target::None,
                Ok(to) => Target::Chain(starts.get(&to).ok_or("a jump into a chain's middle")?),
            },
            other @ (Target::None | Target::Chain(_) | Target::Extension(_)) => other,
        };
        Ok(Rule {
            address: self.address,
            goto: self.goto,
            matches: self.matches,
            target,
        })
    }
}

fn entry<'a>(layout: &Layout, bytes: &'a [u8]) -> Option<Entry<'a>> {
    let target_at = usize::from(u16_at(bytes, layout.address + 4)?);
    let length = usize::from(u16_at(bytes, layout.address + 6)?);
    let bytes = bytes.get(..length)?;
    let address = bytes.get(..layout.address)?;
    let mut matches = Vec::new();
    let mut rest = bytes.get(layout.head..target_at)?;
    while !rest.is_empty() {
        let (size, found) = extension(rest)?;
        matches.push(found);
        rest = rest.get(size..)?;
    }
    let (_, target) = extension(bytes.get(target_at..)?)?;
    let target = match target.name {
        "" => Target::Verdict(i32::from_ne_bytes(target.data.get(..4)?.try_into().ok()?)),
        _ => Target::Extension(target),
    };
    Some(Entry {
        length,
        address,
        goto: address[layout.flags] & layout.goto != 0,
        matches,
        target,
    })
}

fn extension(bytes: &[u8]) -> Option<(usize, Extension<'_>)> {
    let size = usize::from(u16_at(bytes, 0)?);
    let found = Extension {
        name: text(bytes.get(2..2 + EXTENSION_NAME)?)?,
        revision: *bytes.get(2 + EXTENSION_NAME)?,
        data: bytes.get(EXTENSION..size)?,
    };
    Some((size, found))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
