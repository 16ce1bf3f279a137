//! What others' firewalls do to pods' traffic that is not ours to change: found, and named with what would help.
//!
//! A policy of DROP is handled ([`super::forward`]). A rule that refuses everything is somebody's decision: our rules
//! stand behind it, and nobody's verdict is overridden (invariant 28).

use std::collections::BTreeSet;
use std::fmt;

use selvage_nodenet::rule::Family;

use super::iptables::{self, Iptables};
use super::{HostError, NodeNet};

/// Chains that are followed from FORWARD.
const CHAINS: usize = 32;

/// Something that keeps pods' traffic from passing, in words for a person.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Obstacle {
    /// Where it is: `filter chain FORWARD (iptables-nft)`.
    pub place: String,
    /// What it is: the rule, or the policy.
    pub what: String,
    /// What would help.
    pub remedy: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Obstacle {
            place,
            what,
            remedy,
        } = self;
        write!(
            f,
            "{place}: `{what}` meets pods' packets that nothing accepted before: {remedy}"
        )
    }
}

/// What a rule that matches every packet does with it.
#[derive(Debug, PartialEq, Eq)]
enum Fate<'a> {
    Refused,
    Accepted,
    Returns,
    Jumps(&'a str),
}

/// What a rule does if it matches everything; `None` if it matches some packets only, or lets them go on.
fn fate(rule: &str) -> Option<Fate<'_>> {
    let mut rest = rule.trim();
    while let Some(comment) = rest.strip_prefix("-m comment --comment ") {
        rest = match comment.strip_prefix('"') {
            Some(quoted) => quoted.split_once("\" ")?.1,
            None => comment.split_once(' ')?.1,
        };
    }
    let target = rest.strip_prefix("-j ").or(rest.strip_prefix("-g "))?;
    match target.split_whitespace().next()? {
        "DROP" | "REJECT" => Some(Fate::Refused),
        // Whoever listens to the queue decides.
        "ACCEPT" | "QUEUE" | "NFQUEUE" => Some(Fate::Accepted),
        "RETURN" => Some(Fate::Returns),
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TCPMSS" => None,
        chain => Some(Fate::Jumps(chain)),
    }
}

/// Whether rules accept everything that comes from and goes to pods.
#[derive(Debug, Default, Clone, Copy)]
struct Accepted {
    from: bool,
    to: bool,
}

impl Accepted {
    fn take(&mut self, rule: &str, prefix: &str) {
        let accepts = |direction: &str| {
            let start = format!("{direction} {prefix}+ ");
            let rest = rule.strip_prefix(&start).map(fate);
            rest == Some(Some(Fate::Accepted))
        };
        self.from |= accepts("-i");
        self.to |= accepts("-o");
    }
}

/// The rules that refuse pods' packets in chains that FORWARD leads every packet to, in the order of the packet.
async fn refusals(tools: Iptables, prefix: &str) -> Result<Vec<Obstacle>, HostError> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut accepted = Accepted::default();
    let mut chains = vec![(
        "FORWARD".to_owned(),
        rules(tools, "FORWARD").await?.into_iter(),
    )];
    while let Some((chain, left)) = chains.last_mut() {
        let Some(rule) = left.next() else {
            chains.pop();
            continue;
        };
        accepted.take(&rule, prefix);
        match fate(&rule) {
            None => {}
            Some(Fate::Accepted) => break,
            Some(Fate::Refused) if accepted.from && accepted.to => break,
            Some(Fate::Refused) => {
                found.push(Obstacle {
                    place: format!("filter chain {chain} ({})", tools.tool()),
                    remedy: format!(
                        "let the firewall accept what is forwarded from and to interfaces {prefix}+ (by hand: {0} -I FORWARD -i {prefix}+ -j ACCEPT; {0} -I FORWARD -o {prefix}+ -j ACCEPT)",
                        tools.tool()
                    ),
                    what: rule,
                });
                break;
            }
            Some(Fate::Returns) => {
                chains.pop();
            }
            Some(Fate::Jumps(to)) if seen.len() < CHAINS && seen.insert(to.to_owned()) => {
                let next = rules(tools, to).await?.into_iter();
                chains.push((to.to_owned(), next));
            }
            Some(Fate::Jumps(_)) => {}
        }
    }
    Ok(found)
}

/// The rules of a chain of filter, without `-A CHAIN`.
async fn rules(tools: Iptables, chain: &str) -> Result<Vec<String>, HostError> {
    let lines = tools.list("filter", chain).await?.unwrap_or_default();
    let start = format!("-A {chain} ");
    let rules = lines.iter().filter_map(|line| line.strip_prefix(&start));
    Ok(rules.map(str::to_owned).collect())
}

/// A chain of nft's that sees forwarded packets.
#[derive(Debug, PartialEq, Eq)]
struct Hooked {
    family: String,
    table: String,
    chain: String,
    drops: bool,
}

/// The chains at the forward hook that are not of the iptables tools, by `nft list chains`.
fn hooked(listing: &str, family: Family) -> Vec<Hooked> {
    let own = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let (mut table, mut chain) = (("", ""), "");
    let mut found = Vec::new();
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["table", family, name, "{"] => table = (family, name),
            ["chain", name, "{"] => chain = name,
            ["type", "filter", "hook", "forward", ..] => found.push(Hooked {
                family: table.0.to_owned(),
                table: table.1.to_owned(),
                chain: chain.to_owned(),
                drops: words.ends_with(&["policy", "drop;"]),
            }),
            _ => {}
        }
    }
    // The iptables tools have their chain in a table of one family, in capitals.
    found.retain(|h| h.family == "inet" || (h.family == own && h.chain != "FORWARD"));
    found
}

/// What refuses everything in a chain, by its listing; `None` if nothing does.
fn refusal_of<'a>(chain: &Hooked, listing: &'a str) -> Option<&'a str> {
    if chain.drops {
        return Some("policy drop");
    }
    let mut lines = listing.lines().map(str::trim);
    lines.rfind(|line| *line == "drop" || line.starts_with("reject"))
}

/// Everything that is found on the node.
pub(super) async fn obstacles(node: &NodeNet) -> Result<Vec<Obstacle>, HostError> {
    let prefix = &node.veth_prefix;
    let tools = iptables::choose(node.family()).await?;
    let mut found = Vec::new();
    for tools in [Some(tools), tools.other("filter")].into_iter().flatten() {
        found.extend(refusals(tools, prefix).await?);
    }
    for chain in hooked(&iptables::nft_chains().await?, node.family()) {
        let Hooked {
            family,
            table,
            chain: name,
            ..
        } = &chain;
        let listing = iptables::nft_chain(family, table, name).await?;
        if accepts_natively(&listing, prefix) {
            continue;
        }
        if let Some(what) = refusal_of(&chain, &listing) {
            found.push(Obstacle {
                place: format!("nft chain {family} {table} {name}"),
                what: what.to_owned(),
                remedy: format!(
                    "let the firewall accept what is forwarded from and to interfaces {prefix}* (firewalld: a policy that accepts them, or a zone with target ACCEPT for them)"
                ),
            });
        }
    }
    Ok(found)
}

/// Whether a chain of nft's accepts what comes from and goes to pods.
fn accepts_natively(listing: &str, prefix: &str) -> bool {
    let accepts = |key: &str| {
        let rule = format!("{key} \"{prefix}*\" accept");
        listing.lines().any(|line| line.trim() == rule)
    };
    accepts("iifname") && accepts("oifname")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_meets_every_packet_is_an_obstacle() {
        for (rule, want) in [
            (
                "-j REJECT --reject-with icmp-host-prohibited",
                Some(Fate::Refused),
            ),
            ("-j DROP", Some(Fate::Refused)),
            (
                "-m comment --comment \"the rest is refused\" -j DROP",
                Some(Fate::Refused),
            ),
            ("-m comment --comment rest -j DROP", Some(Fate::Refused)),
            (
                "-j ufw-reject-forward",
                Some(Fate::Jumps("ufw-reject-forward")),
            ),
            ("-g other", Some(Fate::Jumps("other"))),
            ("-o docker0 -j DROP", None),
            ("-d 10.0.0.1/32 -j REJECT", None),
            ("-m conntrack --ctstate INVALID -j DROP", None),
            ("-j ACCEPT", Some(Fate::Accepted)),
            ("-j RETURN", Some(Fate::Returns)),
            ("-j LOG --log-prefix \"dropped \"", None),
        ] {
            assert_eq!(fate(rule), want, "{rule}");
        }
    }

    #[test]
    fn chains_of_the_iptables_tools_are_not_taken_for_somebodys_own() {
        let listing = "\
table ip filter {
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy drop;
\t}
}
table inet firewalld {
\tchain filter_FORWARD {
\t\ttype filter hook forward priority filter + 10; policy accept;
\t}
\tchain filter_INPUT {
\t\ttype filter hook input priority filter + 10; policy drop;
\t}
\tchain helper {
\t}
}
table ip6 mine {
\tchain fw {
\t\ttype filter hook forward priority filter; policy drop;
\t}
}
";
        let names = |family| -> Vec<(String, bool)> {
            let found = hooked(listing, family).into_iter();
            found.map(|h| (h.chain, h.drops)).collect()
        };
        assert_eq!(names(Family::V4), [("filter_FORWARD".into(), false)]);
        assert_eq!(
            names(Family::V6),
            [("filter_FORWARD".into(), false), ("fw".into(), true)]
        );
        assert_eq!(hooked("", Family::V4), []);
    }

    #[test]
    fn a_chain_that_refuses_at_its_end_or_by_policy_is_told() {
        let chain = |drops| Hooked {
            family: "inet".into(),
            table: "firewalld".into(),
            chain: "filter_FORWARD".into(),
            drops,
        };
        let refusing = "\t\tct state { established, related } accept\n\t\treject with icmpx admin-prohibited\n";
        assert_eq!(
            refusal_of(&chain(false), refusing),
            Some("reject with icmpx admin-prohibited")
        );
        assert_eq!(refusal_of(&chain(true), ""), Some("policy drop"));
        assert_eq!(
            refusal_of(&chain(false), "\t\tct state invalid drop\n"),
            None
        );
    }
}
