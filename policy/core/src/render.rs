//! A plan's rules as input for `iptables-restore --noflush` (or `ip6tables-restore`).
//!
//! Set members are not text: they go to the kernel by netlink, from the [`Plan`] itself.

use std::fmt::Write as _;

use crate::plan::Plan;
use crate::ruleset::{Action, Chain, ChainName, FlowState, Match, Rule, SetKind, Side};

/// Inputs for the restore tool, each one atomic batch for table `mangle`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Step 4 of the plan: chains and hooks. Holds no `-D` and no `-X`.
    pub apply: Option<String>,
    /// Step 4 and the chains of step 6 together, where no jump has to go before them. A stranger's jump to one
    /// of these chains makes the whole batch fail.
    pub whole: Option<String>,
}

/// Writes a plan's rules.
///
/// *Shape*: a batch without work is `None`. Chains are declared before any rule, so rules may
/// refer to chains in any order; declaring an existing chain flushes it in the same batch.
#[must_use]
pub fn render(plan: &Plan) -> Rendered {
    Rendered {
        apply: apply_text(plan),
        whole: whole_text(plan),
    }
}

fn apply_text(plan: &Plan) -> Option<String> {
    if plan.write.is_empty() && plan.hook.is_empty() {
        return None;
    }
    let mut lines: Vec<String> = plan.write.keys().map(declare).collect();
    lines.extend(contents(plan));
    Some(batch(&lines))
}

fn whole_text(plan: &Plan) -> Option<String> {
    if plan.delete.is_empty() || !plan.unhook.is_empty() {
        return None;
    }
    // All are emptied before any is deleted: they may refer to each other.
    let emptied = plan.write.keys().chain(&plan.delete);
    let mut lines: Vec<String> = emptied.map(declare).collect();
    lines.extend(contents(plan));
    lines.extend(plan.delete.iter().map(|name| format!("-X {name}\n")));
    Some(batch(&lines))
}

/// What is in the chains that are written, and the hooks.
fn contents(plan: &Plan) -> impl Iterator<Item = String> {
    let chains = plan.write.iter();
    let hooks = plan.hook.iter();
    chains
        .map(|(name, chain)| chain_text(name, chain))
        .chain(hooks.map(|hook| format!("-I {} -j {}\n", hook.base.as_str(), hook.target)))
}

fn batch(lines: &[String]) -> String {
    format!("*mangle\n{}COMMIT\n", lines.concat())
}

fn declare(name: &ChainName) -> String {
    format!(":{name} - [0:0]\n")
}

fn chain_text(name: &ChainName, chain: &Chain) -> String {
    let mut text = String::new();
    for rule in chain.rules() {
        text.push_str(&format!("-A {name} {}\n", rule_text(rule)));
    }
    text.push_str(&format!(
        "-A {name} -m comment --comment \"{}\"\n",
        chain.marker()
    ));
    text
}

/// A rule without the chain it is in.
pub(crate) fn rule_text(rule: &Rule) -> String {
    let mut text = String::new();
    for condition in &rule.matches {
        text.push_str(&match_text(condition));
        text.push(' ');
    }
    match &rule.action {
        Action::Return => text.push_str("-j RETURN"),
        Action::Drop => text.push_str("-j DROP"),
        Action::Log { group, chain } => {
            write!(
                text,
                "-j NFLOG --nflog-group {group} --nflog-prefix {chain}"
            )
            .expect("a String takes any text");
        }
        Action::Renew { set, seconds } => {
            write!(
                text,
                "-j SET --add-set {set} src,src,dst --exist --timeout {seconds}"
            )
            .expect("a String takes any text");
        }
        Action::Jump(chain) => {
            write!(text, "-j {chain}").expect("a String takes any text");
        }
        Action::Goto(chain) => {
            write!(text, "-g {chain}").expect("a String takes any text");
        }
    }
    text
}

fn match_text(condition: &Match) -> String {
    match condition {
        Match::In(interface) => format!("-i {interface}"),
        Match::Out(interface) => format!("-o {interface}"),
        Match::NotIn(interface) => format!("! -i {interface}"),
        Match::NotOut(interface) => format!("! -o {interface}"),
        Match::State(state) => {
            let states = match state {
                FlowState::Established => "RELATED,ESTABLISHED",
                FlowState::New => "NEW",
                FlowState::Invalid => "INVALID",
                FlowState::Untracked => "UNTRACKED",
            };
            format!("-m conntrack --ctstate {states}")
        }
        Match::OfNoFlow => "-m conntrack --ctstate NEW,INVALID".to_owned(),
        Match::NotSyn => "-p tcp -m tcp ! --syn".to_owned(),
        Match::NotInit => "-p sctp -m sctp ! --chunk-types any INIT".to_owned(),
        Match::Icmp6 => "-p ipv6-icmp".to_owned(),
        Match::Icmp6Type(number) => format!("-p ipv6-icmp -m icmp6 --icmpv6-type {number}"),
        Match::SourceElsewhere => "-m rpfilter --invert".to_owned(),
        Match::Protocol(protocol) => format!("-p {protocol}"),
        Match::Ports(protocol, ports) => {
            format!("-p {protocol} -m {protocol} --dport {ports}")
        }
        Match::Set { set, kind, peer } => {
            let dimensions = match (kind, peer) {
                (SetKind::Net, Side::Source) => "src",
                (SetKind::Net, Side::Destination) => "dst",
                (SetKind::NetPort, Side::Source) => "src,dst",
                (SetKind::NetPort, Side::Destination) => "dst,dst",
                (SetKind::Guard, Side::Source | Side::Destination) => "src,src,dst",
            };
            format!("-m set --match-set {set} {dimensions}")
        }
    }
}
