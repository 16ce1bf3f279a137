//! Table `mangle` as nf_tables has it: read rule by rule, and emptied of what is ours.
//!
//! iptables-nft's own listing is no observer: one native rule in the table makes it print nothing
//! and exit 0 (seen with 1.8.9). Netlink shows each rule whatever made it, and deletes by handle.

use std::collections::BTreeMap;

use selvage_policy_core::observe::{ChainState, HookState};
use selvage_policy_core::ruleset::{BaseChain, ChainName, Family, Hook, Marker};

use crate::error::Error;
use crate::message::{Attributes, DUMP, Message, text};
use crate::socket::{Nfnetlink, READINGS, Reply};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u8 = 10;

/// `enum nf_tables_msg_types`.
const GET_CHAIN: u8 = 4;
const DELETE_CHAIN: u8 = 5;
const GET_RULE: u8 = 7;
const DELETE_RULE: u8 = 8;

/// `enum nft_chain_attributes`.
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
/// `enum nft_rule_attributes`.
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USER_DATA: u16 = 7;
/// `enum nft_expr_attributes`.
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// `enum nft_immediate_attributes`, `nft_data_attributes`, `nft_verdict_attributes`.
const IMMEDIATE_DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NFT_JUMP`.
const JUMP: i32 = -3;
/// `enum nft_match_attributes`.
const MATCH_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;
/// `NFTNL_UDATA_RULE_COMMENT`: where native rules keep a comment. iptables-nft 1.8.9 uses the
/// match of x_tables; not every version does.
const USER_COMMENT: u8 = 0;

/// `EINVAL`: what nfnetlink answers for a subsystem that the kernel doesn't have.
const NO_SUBSYSTEM: i32 = 22;

/// Deletions of 100 bytes each, far below a socket's default send buffer of 200 KiB.
const BATCH: usize = 500;

/// The table of ours and everybody's.
pub(crate) const TABLE: &str = "mangle";

/// The tables that iptables-nft keeps.
const IPTABLES: [&str; 5] = ["filter", "mangle", "nat", "raw", "security"];

/// The base chains that we may be hooked into.
pub(crate) const BASES: [BaseChain; 2] = [BaseChain::Prerouting, BaseChain::Forward];

/// What `mangle` holds of ours.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) chains: BTreeMap<ChainName, ChainState>,
    pub(crate) hooks: Vec<FoundHook>,
}

/// A jump to a chain of ours, and how to name it to the kernel.
#[derive(Debug)]
pub(crate) struct FoundHook {
    pub(crate) state: HookState,
    handle: u64,
}

/// What there is in iptables-nft's tables, whoever made it.
#[derive(Debug, Default)]
pub(crate) struct Census {
    /// Chains of `mangle`.
    pub(crate) mangle_chains: Vec<String>,
    /// Rules in all of its tables.
    pub(crate) rules: usize,
}

/// nf_tables, through one socket.
pub(crate) struct Nftables(Nfnetlink);

impl Nftables {
    pub(crate) fn new(socket: Nfnetlink) -> Self {
        Self(socket)
    }

    /// Our chains and the jumps to them, all of one generation of the rules.
    ///
    /// A kernel without nf_tables holds nothing of ours.
    pub(crate) fn read(&mut self, family: Family) -> Result<Found, Error> {
        let mut only_mangle = message(GET_RULE, DUMP, family);
        only_mangle.text(RULE_TABLE, TABLE);
        let (chains, rules) = self.dump_both(family, only_mangle)?;
        Ok(digest(&chains, &rules))
    }

    /// Counts what is in the tables that iptables-nft uses.
    pub(crate) fn census(&mut self, family: Family) -> Result<Census, Error> {
        let everything = message(GET_RULE, DUMP, family);
        let (chains, rules) = self.dump_both(family, everything)?;
        let mangle_chains = chains
            .iter()
            .map(Reply::attributes)
            .filter(|chain| chain.text(CHAIN_TABLE) == Some(TABLE))
            .filter_map(|chain| chain.text(CHAIN_NAME).map(str::to_owned))
            .collect();
        let rules = rules
            .iter()
            .filter_map(|rule| rule.attributes().text(RULE_TABLE))
            .filter(|table| IPTABLES.contains(table))
            .count();
        Ok(Census {
            mangle_chains,
            rules,
        })
    }

    /// Deletes jumps to our chains: of each hook as many as it is listed, the last ones, so that
    /// the one that is met first stays if any does.
    pub(crate) fn unhook(&mut self, family: Family, hooks: &[Hook]) -> Result<(), Error> {
        let found = self.read(family)?.hooks;
        let mut count: BTreeMap<&Hook, usize> = BTreeMap::new();
        for hook in hooks {
            *count.entry(hook).or_default() += 1;
        }
        let mut batch = Vec::new();
        for (hook, count) in count {
            let same = found.iter().rev().filter(|it| it.state.hook() == *hook);
            for jump in same.take(count) {
                let mut delete = message(DELETE_RULE, 0, family);
                delete
                    .text(RULE_TABLE, TABLE)
                    .text(RULE_CHAIN, hook.base.as_str())
                    .u64(RULE_HANDLE, jump.handle);
                batch.push(delete);
            }
        }
        self.commit(&|| format!("delete {family} jumps to our chains"), batch)
    }

    /// Empties and deletes chains of ours. One that a stranger's rule jumps to stays, empty, and
    /// its error is returned.
    pub(crate) fn delete(
        &mut self,
        family: Family,
        names: &[&ChainName],
    ) -> Result<Vec<Error>, Error> {
        let flush = names.iter().map(|name| {
            let mut flush = message(DELETE_RULE, 0, family);
            flush
                .text(RULE_TABLE, TABLE)
                .text(RULE_CHAIN, name.as_str());
            flush
        });
        // Emptied first, all at once: they refer to each other.
        self.commit(&|| format!("empty {family} chains"), flush.collect())?;
        let delete = |name: &ChainName| {
            let mut delete = message(DELETE_CHAIN, 0, family);
            delete
                .text(CHAIN_TABLE, TABLE)
                .text(CHAIN_NAME, name.as_str());
            delete
        };
        let all = names.iter().map(|name| delete(name)).collect();
        if self
            .commit(&|| format!("delete {family} chains"), all)
            .is_ok()
        {
            return Ok(Vec::new());
        }
        Ok(names
            .iter()
            .filter_map(|name| {
                let object = || format!("delete {family} chain {name}");
                self.commit(&object, vec![delete(name)]).err()
            })
            .collect())
    }

    /// Each part is a transaction of its own; nothing here needs the whole to be one.
    fn commit(&mut self, object: &dyn Fn() -> String, batch: Vec<Message>) -> Result<(), Error> {
        batch
            .chunks(BATCH)
            .try_for_each(|part| self.0.batch(object, SUBSYSTEM, part))
    }

    /// All chains of a family, and rules, read while nothing changed in between.
    fn dump_both(
        &mut self,
        family: Family,
        rules: Message,
    ) -> Result<(Vec<Reply>, Vec<Reply>), Error> {
        let object = || format!("read {family} rules");
        let chains = message(GET_CHAIN, DUMP, family);
        for _ in 0..READINGS {
            let chains = match self.0.dump(&object, &chains) {
                Err(error) if error.is_refusal(NO_SUBSYSTEM) => return Ok(Default::default()),
                done => done?,
            };
            let rules = self.0.dump(&object, &rules)?;
            let mut generations = chains.iter().chain(&rules).map(Reply::generation);
            let first = generations.next();
            if generations.all(|generation| Some(generation) == first) {
                return Ok((chains, rules));
            }
        }
        Err(Error::Restless {
            object: object(),
            attempts: READINGS,
        })
    }
}

fn message(command: u8, flags: u16, family: Family) -> Message {
    // NFPROTO_IPV4 and NFPROTO_IPV6.
    let number = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    Message::new(SUBSYSTEM, command, flags, number)
}

fn digest(chains: &[Reply], rules: &[Reply]) -> Found {
    let mut found = Found::default();
    for chain in chains {
        let chain = chain.attributes();
        if chain.text(CHAIN_TABLE) != Some(TABLE) {
            continue;
        }
        if let Some(name) = chain.text(CHAIN_NAME).and_then(our_chain) {
            let empty = ChainState {
                marker: None,
                rules: 0,
            };
            found.chains.insert(name, empty);
        }
    }
    // Rules of a chain come in their order.
    let mut position = [0; BASES.len()];
    for rule in rules {
        let rule = rule.attributes();
        let Some(chain) = rule.text(RULE_CHAIN) else {
            continue;
        };
        if let Some(base) = BASES.iter().position(|base| base.as_str() == chain) {
            if let (Some(target), Some(handle)) = (bare_jump(rule), rule.u64(RULE_HANDLE)) {
                let state = HookState {
                    base: BASES[base],
                    target,
                    position: position[base],
                };
                found.hooks.push(FoundHook { state, handle });
            }
            position[base] += 1;
        } else if let Some(state) = our_chain(chain).and_then(|name| found.chains.get_mut(&name)) {
            state.rules += 1;
            state.marker = comment(rule).and_then(Marker::from_comment);
        }
    }
    found
}

fn our_chain(name: &str) -> Option<ChainName> {
    ChainName::new(name).ok()
}

/// Name and data of each expression of a rule.
fn expressions<'a>(rule: Attributes<'a>) -> impl Iterator<Item = (&'a str, Attributes<'a>)> {
    rule.nested(RULE_EXPRESSIONS)
        .into_iter()
        .flatten()
        .filter_map(|(_, element)| {
            let element = Attributes(element);
            let name = element.text(EXPRESSION_NAME)?;
            Some((
                name,
                element.nested(EXPRESSION_DATA).unwrap_or(Attributes(&[])),
            ))
        })
}

/// The chain of ours that a rule without conditions jumps to.
fn bare_jump(rule: Attributes<'_>) -> Option<ChainName> {
    let mut target = None;
    for (name, data) in expressions(rule) {
        match name {
            "counter" => {}
            "match" if data.text(MATCH_NAME) == Some("comment") => {}
            "immediate" => {
                let verdict = data.nested(IMMEDIATE_DATA)?.nested(DATA_VERDICT)?;
                if verdict.u32(VERDICT_CODE)?.cast_signed() != JUMP {
                    return None;
                }
                target = our_chain(verdict.text(VERDICT_CHAIN)?);
            }
            _ => return None,
        }
    }
    target
}

/// A rule's comment, wherever its maker keeps it.
fn comment(rule: Attributes<'_>) -> Option<&str> {
    expressions(rule)
        .filter(|(name, _)| *name == "match")
        .filter(|(_, data)| data.text(MATCH_NAME) == Some("comment"))
        .find_map(|(_, data)| data.text(MATCH_INFO))
        .or_else(|| user_comment(rule.find(RULE_USER_DATA)?))
}

/// User data is a list of type (1 byte), length (1 byte), value.
fn user_comment(mut data: &[u8]) -> Option<&str> {
    loop {
        let (&kind, rest) = data.split_first()?;
        let (&length, rest) = rest.split_first()?;
        let value = rest.get(..usize::from(length))?;
        if kind == USER_COMMENT {
            return text(value);
        }
        data = &rest[usize::from(length)..];
    }
}

#[cfg(test)]
mod tests {
    use super::user_comment;

    #[test]
    fn a_comment_in_user_data_is_found_behind_other_entries() {
        let mut data = vec![7, 3, 1, 2, 3, 0, 5];
        data.extend(b"abcd\0");
        assert_eq!(user_comment(&data), Some("abcd"));
        assert_eq!(user_comment(&data[..8]), None, "cut short");
        assert_eq!(user_comment(&[]), None);
    }
}
