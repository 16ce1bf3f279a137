//! Chains and rules of our own in the tables of iptables: pure, from what is wanted and what is there to the text of
//! one transaction.
//!
//! ```text
//! mangle  PREROUTING  -i ens5 to an address of its own: mark the connection (NodePort)
//!         PREROUTING  -i eni+ take the mark over: replies of pods, later packets of connections that they began
//! nat     PREROUTING  -i eni+ -> AWS-CONNMARK-CHAIN-0   mark a connection that leaves the VPC
//!         PREROUTING  take the mark over (first packet)
//!         POSTROUTING -> AWS-SNAT-CHAIN-0      leave the VPC's blocks alone, translate the rest
//! ```
//!
//! A chain that differs is replaced within its transaction, so no packet meets half of it. Rules are written as the
//! tools list them, so that comparing texts is enough.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;

use ipnet::Ipv4Net;

use super::{HostError, NodeNet, Part, PodsV4, Snat};
use crate::config::RandomizeSnat;

/// Translates sources.
pub(super) const SNAT_CHAIN: &str = "AWS-SNAT-CHAIN-0";
/// Marks connections.
pub(super) const CONNMARK_CHAIN: &str = "AWS-CONNMARK-CHAIN-0";

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
    /// What the rules of ours in this chain contain, of whatever time, each one of these: what matches and is not
    /// wanted goes.
    pub(super) ours: &'static [&'static str],
    /// Whether they must be the chain's last rules.
    pub(super) last: bool,
}

/// What is wanted in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) part: Part,
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

/// What the tables of a node should hold, whose primary interface's link has this name.
pub(super) fn wanted(
    node: &NodeNet,
    pods: &PodsV4,
    primary: &str,
    marking: Marking,
) -> Result<Vec<Table>, HostError> {
    let (mut connmark, mut pre) = (Vec::new(), Vec::new());
    let (mut snat, mut post) = (Vec::new(), Vec::new());
    let exempt = exempt(pods)?;
    if let Snat::Here {
        excluded,
        randomize,
        ..
    } = &pods.snat
    {
        snat = translating(exempt, excluded, *randomize, pods.primary_address);
        post = vec![jump("AWS SNAT CHAIN", SNAT_CHAIN)];
        if marking == Marking::Here {
            connmark = marking_rules(exempt, node.mark);
            let outbound = jump("AWS, outbound connections", CONNMARK_CHAIN);
            pre = vec![
                format!("-i {}+ {outbound}", node.veth_prefix),
                format!(
                    "-m comment --comment \"AWS, CONNMARK\" {}",
                    restore(node.mark)
                ),
            ];
        }
    }
    Ok(vec![
        Table {
            name: "nat",
            part: Part::Nat,
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
                    ours: &["--comment \"AWS SNAT CHAIN\"", "-j AWS-SNAT-CHAIN-"],
                    last: false,
                },
                Guests {
                    chain: "PREROUTING",
                    rules: pre,
                    ours: &[
                        "--comment \"AWS, outbound connections\"",
                        "--comment \"AWS, CONNMARK\"",
                        "-j AWS-CONNMARK-CHAIN-",
                    ],
                    last: false,
                },
            ],
        },
        Table {
            name: "mangle",
            part: Part::Mangle,
            chains: vec![],
            guests: vec![Guests {
                chain: "PREROUTING",
                rules: mangle(node, pods, primary),
                ours: &["--comment \"AWS, primary ENI\""],
                last: false,
            }],
        },
    ])
}

/// The blocks to which sources are left alone. Without one, everything would be translated, the VPC's own traffic too.
pub(super) fn exempt(pods: &PodsV4) -> Result<&BTreeSet<Ipv4Net>, HostError> {
    static NONE: BTreeSet<Ipv4Net> = BTreeSet::new();
    match &pods.snat {
        Snat::External => Ok(&NONE),
        Snat::Here { exempt, .. } if exempt.is_empty() => Err(HostError::NoExemptBlocks),
        Snat::Here { exempt, .. } => Ok(exempt),
    }
}

fn jump(comment: &str, chain: &str) -> String {
    format!("-m comment --comment \"{comment}\" -j {chain}")
}

/// Takes the mark of the connection over to the packet.
fn restore(mark: NonZeroU32) -> String {
    format!("-j CONNMARK --restore-mark --nfmask {mark:#x} --ctmask {mark:#x}")
}

/// What a rule says of a destination. The tools write "everything" by leaving it out.
fn to(block: &Ipv4Net) -> String {
    if block.prefix_len() == 0 {
        String::new()
    } else {
        format!("-d {block} ")
    }
}

fn translating(
    exempt: &BTreeSet<Ipv4Net>,
    excluded: &BTreeSet<Ipv4Net>,
    randomize: RandomizeSnat,
    source: Ipv4Addr,
) -> Vec<String> {
    let random = match randomize {
        RandomizeSnat::Prng => " --random-fully",
        RandomizeSnat::Hash => " --random",
        RandomizeSnat::None => "",
    };
    let comment = |block| match excluded.contains(block) {
        true => "AWS SNAT CHAIN EXCLUSION",
        false => "AWS SNAT CHAIN",
    };
    let leave = |block| format!("{}{}", to(block), jump(comment(block), "RETURN"));
    let rest = format!(
        "! -o vlan+ -m comment --comment \"AWS, SNAT\" -m addrtype ! --dst-type LOCAL -j SNAT --to-source {source}{random}"
    );
    exempt.iter().map(leave).chain([rest]).collect()
}

fn marking_rules(exempt: &BTreeSet<Ipv4Net>, mark: NonZeroU32) -> Vec<String> {
    let leave = |block| format!("{}{}", to(block), jump("AWS CONNMARK CHAIN", "RETURN"));
    let rest = format!(
        "-m comment --comment \"AWS, CONNMARK\" -j CONNMARK --set-xmark {mark:#x}/{mark:#x}"
    );
    exempt.iter().map(leave).chain([rest]).collect()
}

fn mangle(node: &NodeNet, pods: &PodsV4, primary: &str) -> Vec<String> {
    let mark = node.mark;
    let translated = match pods.snat {
        Snat::Here { .. } => true,
        Snat::External => false,
    };
    let ours = "-m comment --comment \"AWS, primary ENI\"";
    let take_over = |prefix: &str| format!("-i {prefix}+ {ours} {}", restore(mark));
    let mut rules = Vec::new();
    if pods.node_port {
        // To a port of the node, or to the node itself: nothing else arrives there for an address of its own.
        rules.push(format!(
            "-i {primary} {ours} -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark {mark:#x}/{mark:#x}"
        ));
    }
    if pods.node_port || translated {
        rules.push(take_over(&node.veth_prefix));
    }
    if pods.node_port {
        // Pods with security groups of their own.
        rules.push(take_over("vlan"));
    }
    rules
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

/// The transaction that removes chains of the nat table, which may lead to each other; `None` if there are none.
pub(super) fn removal(chains: &[String]) -> Option<String> {
    // To declare a chain is to empty it: then none leads to another.
    let emptied = chains.iter().map(|chain| format!(":{chain} - [0:0]\n"));
    let removed = chains.iter().map(|chain| format!("-X {chain}\n"));
    let lines: String = emptied.chain(removed).collect();
    (!lines.is_empty()).then(|| format!("*nat\n{lines}COMMIT\n"))
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
