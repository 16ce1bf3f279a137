//! Table `mangle` as x_tables has it: what `iptables-legacy-save` prints, and batches that delete.
//!
//! Native nft rules cannot be mixed in here, so the tool's text can be trusted. A table that is not
//! listed in /proc is not looked at: looking would create it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use selvage_policy_core::observe::{ChainState, HookState};
use selvage_policy_core::ruleset::{ChainName, Family, Hook, Marker};

use crate::error::Error;
use crate::iptables::{Backend, restore, save_legacy};
use crate::nftables::{BASES, TABLE};

/// What legacy `mangle` holds of ours.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) chains: BTreeMap<ChainName, ChainState>,
    pub(crate) hooks: Vec<HookState>,
}

/// The legacy tables that exist, as the tool prints them; empty when there are none.
pub(crate) fn print(family: Family, patience: Duration) -> Result<String, Error> {
    if tables(family)?.is_empty() {
        return Ok(String::new());
    }
    save_legacy(family, patience)
}

/// Our chains and the jumps to them.
pub(crate) fn read(family: Family, patience: Duration) -> Result<Found, Error> {
    if !tables(family)?.lines().any(|table| table == TABLE) {
        return Ok(Found::default());
    }
    save_legacy(family, patience).map(|text| parse(&text))
}

/// Deletes jumps to our chains: of each hook as many as it is listed.
///
/// `-D` deletes the first of equals, so where some are to stay they are all replaced, in the one
/// atomic batch, by as many as stay, in first place.
pub(crate) fn unhook(family: Family, hooks: &[Hook], patience: Duration) -> Result<(), Error> {
    let found = read(family, patience)?.hooks;
    let mut lines = String::new();
    let mut wanted: BTreeMap<&Hook, usize> = BTreeMap::new();
    for hook in hooks {
        *wanted.entry(hook).or_default() += 1;
    }
    for (hook, delete) in wanted {
        let present = found.iter().filter(|it| it.hook() == *hook).count();
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

/// The lines of one table in what the save tool printed.
pub(crate) fn section<'a>(text: &'a str, table: &str) -> impl Iterator<Item = &'a str> {
    let start = format!("*{table}");
    text.lines()
        .skip_while(move |line| *line != start)
        .skip(1)
        .take_while(|line| *line != "COMMIT")
}

/// The name in a chain's declaration, `:name policy [packets:bytes]`.
pub(crate) fn declared(line: &str) -> Option<&str> {
    line.strip_prefix(':')?.split(' ').next()
}

fn parse(text: &str) -> Found {
    let mut found = Found::default();
    let mut position = [0; BASES.len()];
    for line in section(text, TABLE) {
        if let Some(name) = declared(line).and_then(|name| ChainName::new(name).ok()) {
            let empty = ChainState {
                marker: None,
                rules: 0,
            };
            found.chains.insert(name, empty);
        }
        let Some((chain, rule)) = line
            .strip_prefix("-A ")
            .and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        if let Some(base) = BASES.iter().position(|base| base.as_str() == chain) {
            let target = rule.strip_prefix("-j ").map(ChainName::new);
            if let Some(Ok(target)) = target {
                found.hooks.push(HookState {
                    base: BASES[base],
                    target,
                    position: position[base],
                });
            }
            position[base] += 1;
        } else if let Some(state) = ChainName::new(chain)
            .ok()
            .and_then(|name| found.chains.get_mut(&name))
        {
            state.rules += 1;
            state.marker = comment(rule).and_then(Marker::from_comment);
        }
    }
    found
}

/// The text of a rule's comment; ours hold no quotes and no blanks.
fn comment(rule: &str) -> Option<&str> {
    let rest = rule.split_once("--comment ")?.1;
    rest.split(' ').next().map(|text| text.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use selvage_policy_core::ruleset::BaseChain;

    use super::parse;

    const SAVED: &str = "\
# Generated by iptables-save v1.8.9 on Sat Nov 21 06:03:31 2026
*mangle
:PREROUTING ACCEPT [0:0]
:FORWARD ACCEPT [12:720]
:KUBE-KUBELET-CANARY - [0:0]
:selvage-Not-Ours - [0:0]
:selvage-a - [0:0]
:selvage-b - [0:0]
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A FORWARD -j selvage-a
-A FORWARD -i eth9 -j selvage-a
-A FORWARD -j selvage-a
-A selvage-a -i eni+ -j DROP
-A selvage-a -m comment --comment \"selvage:0123456789abcdef\"
-A selvage-Not-Ours -j DROP
COMMIT
*filter
:FORWARD ACCEPT [0:0]
:selvage-filter - [0:0]
-A FORWARD -j selvage-a
COMMIT
";

    #[test]
    fn our_chains_and_hooks_are_found_and_nothing_else() {
        let found = parse(SAVED);
        let chains: Vec<_> = found
            .chains
            .iter()
            .map(|(name, state)| (name.as_str(), state.rules, state.marker.is_some()))
            .collect();
        assert_eq!(chains, [("selvage-a", 2, true), ("selvage-b", 0, false)]);
        let hooks: Vec<_> = found
            .hooks
            .iter()
            .map(|hook| (hook.base, hook.target.as_str(), hook.position))
            .collect();
        assert_eq!(
            hooks,
            [
                (BaseChain::Forward, "selvage-a", 1),
                (BaseChain::Forward, "selvage-a", 3)
            ]
        );
    }

    #[test]
    fn a_marker_counts_only_in_the_last_rule() {
        let text = SAVED.replace("-A selvage-Not-Ours", "-A selvage-a");
        let found = parse(&text);
        let state = found.chains.values().next().unwrap();
        assert_eq!((state.rules, &state.marker), (3, &None));
    }
}
