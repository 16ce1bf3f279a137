//! Chains and rules of our own in the tables of iptables: pure, from what is wanted and what is there to the text of
//! one transaction.
//!
//! ```text
//! nat     POSTROUTING -> AWS-SNAT-CHAIN-0      leave the VPC's blocks alone, translate the rest
//! nat     PREROUTING  -i eni+ -> AWS-CONNMARK-CHAIN-0   mark a connection that leaves the VPC
//!         PREROUTING  take the mark over (first packet)
//! mangle  PREROUTING  -i eni+ take the mark over (later packets, which nat does not see)
//! ```
//!
//! A chain that differs is replaced within its transaction, so no packet meets half of it. Rules are written as the
//! tools list them, so that comparing texts is enough.

use super::{HostError, MARK, NodeNet, Snat};
use crate::config::RandomizeSnat;

/// Translates sources.
const SNAT_CHAIN: &str = "AWS-SNAT-CHAIN-0";
/// Marks connections.
const CONNMARK_CHAIN: &str = "AWS-CONNMARK-CHAIN-0";

/// A chain that is ours as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    /// Its rules, without `-A CHAIN`.
    pub(super) rules: Vec<String>,
}

/// Rules of ours in somebody else's chain, in this order, at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Guests {
    pub(super) chain: &'static str,
    /// Wanted, without `-A CHAIN`.
    pub(super) rules: Vec<String>,
    /// What every rule of ours in this chain contains, of whatever time: what matches and is not wanted goes.
    pub(super) ours: &'static [&'static str],
    /// Whether they must be the chain's last rules.
    pub(super) last: bool,
}

/// What is wanted in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) chains: Vec<Chain>,
    pub(super) guests: Vec<Guests>,
}

/// Where connections that leave the VPC are marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marking {
    /// In nat PREROUTING, after kube-proxy's jump there.
    Here,
    /// In a table of nft ([`super::nft`]): kube-proxy's chain is nft's own, and may come after ours.
    Nft,
}

/// What the tables of a node should hold.
pub(super) fn wanted(node: &NodeNet, marking: Marking) -> Result<Vec<Table>, HostError> {
    let prefix = &node.veth_prefix;
    let restore = format!("-j CONNMARK --restore-mark --nfmask {MARK:#x} --ctmask {MARK:#x}");
    let (snat, mut connmark, post, mut pre, mangle) = match &node.snat {
        Snat::External => (vec![], vec![], vec![], vec![], vec![]),
        Snat::Here { exempt, .. } if exempt.is_empty() => return Err(HostError::NoExemptBlocks),
        Snat::Here {
            exempt,
            excluded,
            randomize,
        } => {
            let mut snat = Vec::new();
            let mut connmark = Vec::new();
            for block in exempt {
                // The tools write "everything" by leaving it out.
                let to = if block.prefix_len() == 0 {
                    String::new()
                } else {
                    format!("-d {block} ")
                };
                let comment = if excluded.contains(block) {
                    "AWS SNAT CHAIN EXCLUSION"
                } else {
                    "AWS SNAT CHAIN"
                };
                snat.push(format!("{to}-m comment --comment \"{comment}\" -j RETURN"));
                connmark.push(format!(
                    "{to}-m comment --comment \"AWS CONNMARK CHAIN\" -j RETURN"
                ));
            }
            let random = match randomize {
                RandomizeSnat::Prng => " --random-fully",
                RandomizeSnat::Hash => " --random",
                RandomizeSnat::None => "",
            };
            snat.push(format!(
                "! -o vlan+ -m comment --comment \"AWS, SNAT\" -m addrtype ! --dst-type LOCAL -j SNAT --to-source {}{random}",
                node.primary_address
            ));
            connmark.push(format!(
                "-m comment --comment \"AWS, CONNMARK\" -j CONNMARK --set-xmark {MARK:#x}/{MARK:#x}"
            ));
            (
                snat,
                connmark,
                vec![format!(
                    "-m comment --comment \"AWS SNAT CHAIN\" -j {SNAT_CHAIN}"
                )],
                vec![
                    format!(
                        "-i {prefix}+ -m comment --comment \"AWS, outbound connections\" -j {CONNMARK_CHAIN}"
                    ),
                    format!("-m comment --comment \"AWS, CONNMARK\" {restore}"),
                ],
                vec![format!(
                    "-i {prefix}+ -m comment --comment \"AWS, primary ENI\" {restore}"
                )],
            )
        }
    };
    if marking == Marking::Nft {
        connmark.clear();
        pre.clear();
    }
    Ok(vec![
        Table {
            name: "nat",
            chains: vec![
                Chain {
                    name: SNAT_CHAIN,
                    rules: snat,
                },
                Chain {
                    name: CONNMARK_CHAIN,
                    rules: connmark,
                },
            ],
            guests: vec![
                Guests {
                    chain: "POSTROUTING",
                    rules: post,
                    ours: &["--comment \"AWS SNAT CHAIN\""],
                    last: false,
                },
                Guests {
                    chain: "PREROUTING",
                    rules: pre,
                    ours: &[
                        "--comment \"AWS, outbound connections\"",
                        "--comment \"AWS, CONNMARK\"",
                    ],
                    last: false,
                },
            ],
        },
        Table {
            name: "mangle",
            chains: vec![],
            guests: vec![Guests {
                chain: "PREROUTING",
                rules: mangle,
                // Only the rule that takes the mark over: AWS's NodePort rules carry the same comment.
                ours: &["--comment \"AWS, primary ENI\" -j CONNMARK --restore-mark"],
                last: false,
            }],
        },
    ])
}

/// What is there: for each chain of the table that was asked for, its lines as listed, `None` if there is none.
pub(super) type Listed<'a> = dyn Fn(&str) -> Option<&'a [String]> + 'a;

/// The transaction that makes a table as wanted; `None` if it is.
pub(super) fn transaction(table: &Table, listed: &Listed<'_>) -> Option<String> {
    let mut declared = Vec::new();
    let mut lines = Vec::new();
    for chain in &table.chains {
        let there = listed(chain.name).map(|lines| rules(chain.name, lines));
        let missing = there.is_none() && !chain.rules.is_empty();
        if missing || there.unwrap_or_default() != chain.rules {
            // To declare a chain of one's own is to empty it.
            declared.push(format!(":{} - [0:0]", chain.name));
            lines.extend(chain.rules.iter().map(|r| format!("-A {} {r}", chain.name)));
        }
    }
    for guests in &table.guests {
        let there = listed(guests.chain).unwrap_or_default();
        lines.extend(moves(guests, &rules(guests.chain, there)));
    }
    if declared.is_empty() && lines.is_empty() {
        return None;
    }
    let mut text = format!("*{}\n", table.name);
    for line in declared.into_iter().chain(lines) {
        text.push_str(&line);
        text.push('\n');
    }
    text.push_str("COMMIT\n");
    Some(text)
}

/// The lines that take our rules out of a chain and put the wanted ones at its end; none if they are there.
fn moves(guests: &Guests, there: &[&str]) -> Vec<String> {
    let is_ours = |rule: &&str| guests.ours.iter().any(|mark| rule.contains(mark));
    let ours: Vec<&str> = there.iter().copied().filter(is_ours).collect();
    let wanted: Vec<&str> = guests.rules.iter().map(String::as_str).collect();
    let in_place = ours == wanted && (!guests.last || there.ends_with(&wanted));
    if in_place {
        return Vec::new();
    }
    let chain = guests.chain;
    let out = ours.iter().map(|rule| format!("-D {chain} {rule}"));
    let back = wanted.iter().map(|rule| format!("-A {chain} {rule}"));
    out.chain(back).collect()
}

/// The rules among the lines of a listing, without `-A CHAIN`.
fn rules<'a>(chain: &str, listed: &'a [String]) -> Vec<&'a str> {
    let start = format!("-A {chain} ");
    listed
        .iter()
        .filter_map(|line| line.strip_prefix(&start))
        .collect()
}

#[cfg(test)]
mod tests;
