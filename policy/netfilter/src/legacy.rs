//! Table `mangle` as x_tables has it: read whole by a socket option, changed by batches for the
//! restore tool.
//!
//! Native nft rules cannot be mixed in here, so the tool can be trusted with `-D`. A table that is
//! not listed in /proc is not looked at: looking would create it.

mod sockopt;
mod table;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use selvage_policy_core::ruleset::{ChainName, Family, Hook};

use crate::content::{Found, TABLE};
use crate::error::Error;
use crate::iptables::{Backend, restore};
use sockopt::RawTable;
use table::Table;

/// What there is in legacy tables, whoever made it.
#[derive(Debug, Default)]
pub(crate) struct Census {
    /// Whether there is any table.
    pub(crate) tables: bool,
    /// Chains of `mangle`.
    pub(crate) mangle_chains: Vec<String>,
    /// Rules in all tables.
    pub(crate) rules: usize,
}

/// Counts what is in the tables that exist.
pub(crate) fn census(family: Family) -> Result<Census, Error> {
    let mut census = Census::default();
    for name in tables(family)?.lines() {
        census.tables = true;
        let raw = sockopt::read(family, name)?;
        let table = parse(family, name, &raw)?;
        census.rules += table.chains.iter().map(|it| it.rules.len()).sum::<usize>();
        if name == TABLE {
            let chains = table.chains.iter().map(|it| it.name.to_owned());
            census.mangle_chains.extend(chains);
        }
    }
    Ok(census)
}

/// Our chains and the jumps to them.
///
/// *Cost*: linear in the table, 0.3 ms for 1,000 rules; no process.
pub(crate) fn read(family: Family) -> Result<Found, Error> {
    if !tables(family)?.lines().any(|table| table == TABLE) {
        return Ok(Found::default());
    }
    let raw = sockopt::read(family, TABLE)?;
    Ok(parse(family, TABLE, &raw)?.ours())
}

fn parse<'a>(family: Family, name: &str, raw: &'a RawTable) -> Result<Table<'a>, Error> {
    Table::parse(family, raw).map_err(|problem| Error::Garbled {
        object: format!("read {family} legacy table {name}"),
        problem,
    })
}

/// Deletes jumps to our chains: of each hook as many as it is listed.
///
/// `-D` deletes the first of equals, so where some are to stay they are all replaced, in the one
/// atomic batch, by as many as stay, in first place.
pub(crate) fn unhook(family: Family, hooks: &[Hook], patience: Duration) -> Result<(), Error> {
    let found = read(family)?.hooks;
    let mut lines = String::new();
    let mut wanted: BTreeMap<&Hook, usize> = BTreeMap::new();
    for hook in hooks {
        *wanted.entry(hook).or_default() += 1;
    }
    for (hook, delete) in wanted {
        let present = found.iter().filter(|it| it.state.hook() == *hook).count();
        for _ in 0..present {
            line(&mut lines, "-D", hook);
        }
        for _ in delete..present {
            line(&mut lines, "-I", hook);
        }
    }
    commit(family, &lines, patience)
}

/// Empties and deletes chains of ours. One that a stranger's rule jumps to stays, empty, and its
/// error is returned.
pub(crate) fn delete(
    family: Family,
    names: &[&ChainName],
    patience: Duration,
) -> Result<Vec<Error>, Error> {
    let declare: String = names
        .iter()
        .map(|name| format!(":{name} - [0:0]\n"))
        .collect();
    commit(family, &declare, patience)?;
    let delete = |name: &ChainName| format!("-X {name}\n");
    let all: String = names.iter().map(|name| delete(name)).collect();
    if commit(family, &all, patience).is_ok() {
        return Ok(Vec::new());
    }
    Ok(names
        .iter()
        .filter_map(|name| commit(family, &delete(name), patience).err())
        .collect())
}

fn line(lines: &mut String, verb: &str, hook: &Hook) {
    let Hook { base, target } = hook;
    writeln!(lines, "{verb} {} -j {target}", base.as_str()).expect("a String takes any text");
}

fn commit(family: Family, lines: &str, patience: Duration) -> Result<(), Error> {
    if lines.is_empty() {
        return Ok(());
    }
    let text = format!("*{TABLE}\n{lines}COMMIT\n");
    restore(family, Backend::Legacy, &text, patience)
}

/// Whether any table exists in the calling thread's network namespace.
pub(crate) fn has_tables(family: Family) -> Result<bool, Error> {
    Ok(!tables(family)?.is_empty())
}

/// The names of the tables that exist in the calling thread's network namespace, a line each.
fn tables(family: Family) -> Result<String, Error> {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match fs::read_to_string(path) {
        // The module is not loaded: there are no tables.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(Error::File {
            path: path.to_owned(),
            source,
        }),
        Ok(names) => Ok(names),
    }
}

/// What is ours in a table, whoever made it up; the error says what is wrong with it.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_any(
    family: Family,
    hooks: [Option<(usize, usize)>; 5],
    entries: &[u8],
) -> Result<Found, &'static str> {
    let entries = entries.to_vec();
    Ok(Table::parse(family, &RawTable { hooks, entries })?.ours())
}
