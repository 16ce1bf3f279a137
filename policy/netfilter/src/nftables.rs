//! Table `mangle` as nf_tables has it: read rule by rule, and emptied of what is ours.
//!
//! iptables-nft's own listing is no observer: one native rule in the table makes it print nothing
//! and exit 0 (seen with 1.8.9). Netlink shows each rule whatever made it, and deletes by handle.

pub(crate) mod rules;

use std::collections::BTreeMap;

use selvage_policy_core::ruleset::{ChainName, Family, Hook};

use crate::content::{Found, FoundHook, TABLE};
use crate::error::Error;
use crate::message::{ACK, DUMP, Message, NO_FAMILY};
use crate::socket::{Nfnetlink, READINGS, Reply};

/// `NFNL_SUBSYS_NFTABLES`.
pub(crate) const SUBSYSTEM: u8 = 10;

/// `enum nf_tables_msg_types`.
const GET_CHAIN: u8 = 4;
const DELETE_CHAIN: u8 = 5;
const GET_RULE: u8 = 7;
const DELETE_RULE: u8 = 8;

const GET_GENERATION: u8 = 16;

/// `enum nft_chain_attributes`.
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
/// `enum nft_rule_attributes`.
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
/// `enum nft_gen_attributes`.
pub(crate) const GENERATION_ID: u16 = 1;

/// `ENOENT`.
const NOT_FOUND: i32 = 2;
/// `EINVAL`: what nfnetlink answers for a subsystem that the kernel doesn't have.
const NO_SUBSYSTEM: i32 = 22;

/// Deletions of 100 bytes each, far below a socket's default send buffer of 200 KiB.
const BATCH: usize = 500;

/// The tables that iptables-nft keeps.
const IPTABLES: [&str; 5] = ["filter", "mangle", "nat", "raw", "security"];

/// What there is in iptables-nft's tables, whoever made it.
#[derive(Debug, Default)]
pub(crate) struct Census {
    /// Chains of `mangle`.
    pub(crate) mangle_chains: Vec<String>,
    /// Rules in all of its tables.
    pub(crate) rules: usize,
}

/// All chains of a family and some rules, of one generation.
#[derive(Default)]
struct Dump {
    chains: Vec<Reply>,
    rules: Vec<Reply>,
    /// `None` from a kernel without nf_tables, which has neither.
    generation: Option<Generation>,
}

/// nf_tables, through one socket.
pub(crate) struct Nftables {
    socket: Nfnetlink,
    /// Transactions of this socket's that went through.
    commits: u32,
}

/// The number of a state of all rules of a network namespace. Each commit, whoever's, makes the
/// next.
pub(crate) type Generation = u32;

impl Nftables {
    pub(crate) fn new(socket: Nfnetlink) -> Self {
        Self { socket, commits: 0 }
    }

    /// Our chains and the jumps to them, all of one generation of the rules.
    ///
    /// A kernel without nf_tables holds nothing of ours.
    pub(crate) fn read(&mut self, family: Family) -> Result<(Found, Option<Generation>), Error> {
        let mut only_mangle = message(GET_RULE, DUMP, family);
        only_mangle.text(RULE_TABLE, TABLE);
        let dump = self.dump_both(family, &[only_mangle])?;
        Ok((rules::digest(&dump.chains, &dump.rules), dump.generation))
    }

    /// As [`Nftables::read`], but what is in other chains than these is left out, and jumps to ours with it.
    ///
    /// *Cost*: linear in all chains there are and in the rules of these, where [`Nftables::read`] is in those of
    /// `mangle`.
    pub(crate) fn read_chains<'a>(
        &mut self,
        family: Family,
        names: impl Iterator<Item = &'a ChainName>,
    ) -> Result<(Found, Option<Generation>), Error> {
        let asks = names.map(|name| {
            let mut only_its = message(GET_RULE, DUMP, family);
            only_its
                .text(RULE_TABLE, TABLE)
                .text(RULE_CHAIN, name.as_str());
            only_its
        });
        let dump = self.dump_both(family, &asks.collect::<Vec<_>>())?;
        Ok((rules::digest(&dump.chains, &dump.rules), dump.generation))
    }

    /// The generation in force; `None` from a kernel without nf_tables.
    ///
    /// *Cost*: 1 µs.
    pub(crate) fn generation(&mut self) -> Result<Option<Generation>, Error> {
        let object = || "ask for the generation of the nft rules".to_owned();
        let ask = Message::new(SUBSYSTEM, GET_GENERATION, ACK, NO_FAMILY);
        let replies = match self.socket.request(&object, ask) {
            Err(error) if error.is_refusal(NO_SUBSYSTEM) => return Ok(None),
            done => done?,
        };
        replies
            .iter()
            .find_map(|reply| reply.attributes().u32(GENERATION_ID))
            .map(Some)
            .ok_or_else(|| Error::Garbled {
                object: object(),
                problem: "no number",
            })
    }

    /// How many generations this socket has made.
    pub(crate) fn commits(&self) -> u32 {
        self.commits
    }

    /// Counts what is in the tables that iptables-nft uses.
    pub(crate) fn census(&mut self, family: Family) -> Result<Census, Error> {
        let everything = message(GET_RULE, DUMP, family);
        let Dump { chains, rules, .. } = self.dump_both(family, &[everything])?;
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
    ///
    /// By handle: with a stranger's native rule in the chain, the tool finds no rule to delete.
    pub(crate) fn unhook(&mut self, family: Family, hooks: &[Hook]) -> Result<(), Error> {
        let object = || format!("delete {family} jumps to our chains");
        let mut count: BTreeMap<&Hook, usize> = BTreeMap::new();
        for hook in hooks {
            *count.entry(hook).or_default() += 1;
        }
        // How many of each are to stay, so that one that somebody deletes meanwhile is not
        // followed by one too many.
        let mut stay: BTreeMap<&Hook, usize> = BTreeMap::new();
        for attempt in 0..READINGS {
            let found = self.read(family)?.0.hooks;
            let same = |hook: &Hook| {
                let hook = hook.clone();
                found.iter().filter(move |it| it.state.hook() == hook)
            };
            if attempt == 0 {
                let left = |(hook, count)| (hook, same(hook).count().saturating_sub(count));
                stay = count
                    .iter()
                    .map(|(hook, count)| left((*hook, *count)))
                    .collect();
            }
            let batch = stay.iter().flat_map(|(hook, stay)| {
                same(hook)
                    .skip(*stay)
                    .filter_map(|jump| deletion(family, jump))
            });
            match self.commit(&object, batch.collect()) {
                // Somebody else was faster with one of them, and so none was deleted.
                Err(error) if error.is_refusal(NOT_FOUND) => {}
                done => return done,
            }
        }
        Err(Error::Restless {
            object: object(),
            attempts: READINGS,
        })
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
        for part in batch.chunks(BATCH) {
            self.socket.batch(object, SUBSYSTEM, part)?;
            self.commits = self.commits.wrapping_add(1);
        }
        Ok(())
    }

    /// Reads until no commit falls in between: a mixture of two states is no state.
    fn dump_both(&mut self, family: Family, asks: &[Message]) -> Result<Dump, Error> {
        let object = || format!("read {family} rules");
        let chains = message(GET_CHAIN, DUMP, family);
        for _ in 0..READINGS {
            let Some(before) = self.generation()? else {
                return Ok(Dump::default());
            };
            // A commit counts the generation up before it shows its rules, and may lose the
            // processor in between. Without this, one reading in thousands of commits was mixed
            // on a busy machine (6.18), under one and the same number.
            self.socket.wait_for_turn(SUBSYSTEM)?;
            let chains = self.socket.dump(&object, &chains)?;
            let mut rules = Vec::new();
            for ask in asks {
                rules.extend(self.socket.dump(&object, ask)?);
            }
            if self.generation()? == Some(before) {
                return Ok(Dump {
                    chains,
                    rules,
                    generation: Some(before),
                });
            }
        }
        Err(Error::Restless {
            object: object(),
            attempts: READINGS,
        })
    }
}

fn deletion(family: Family, jump: &FoundHook) -> Option<Message> {
    let mut delete = message(DELETE_RULE, 0, family);
    delete
        .text(RULE_TABLE, TABLE)
        .text(RULE_CHAIN, jump.state.base.as_str())
        .u64(RULE_HANDLE, jump.handle?);
    Some(delete)
}

fn message(command: u8, flags: u16, family: Family) -> Message {
    // NFPROTO_IPV4 and NFPROTO_IPV6.
    let number = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    Message::new(SUBSYSTEM, command, flags, number)
}

/// What is ours in two datagrams, of chains and of rules, whoever made them up.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_any(chains: &[u8], rules: &[u8]) -> crate::content::Found {
    let replies = |datagram| -> Vec<Reply> {
        crate::message::messages(datagram)
            .map(|message| Reply::of(&message))
            .collect()
    };
    rules::digest(&replies(chains), &replies(rules))
}
