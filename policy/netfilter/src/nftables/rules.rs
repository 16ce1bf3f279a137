//! Rules of nf_tables taken apart: whose they are, where they lead, what they are made of.

use std::collections::BTreeMap;

use selvage_policy_core::observe::HookState;
use selvage_policy_core::ruleset::ChainName;

use super::{CHAIN_NAME, CHAIN_TABLE, RULE_CHAIN, RULE_HANDLE};
use crate::content::{BASES, Found, FoundHook, Hashing, Reading, TABLE, Way, Ways};
use crate::message::{Attributes, text};
use crate::socket::Reply;

/// `enum nft_rule_attributes`.
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
/// `NF_DROP`, `NFT_CONTINUE`, `NFT_BREAK`, `NFT_JUMP`, `NFT_GOTO`, `NFT_RETURN`.
const DROP: i32 = 0;
const CONTINUE: i32 = -1;
const BREAK: i32 = -2;
const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;
/// `enum nft_match_attributes`, `nft_target_attributes`.
const MATCH_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;
const TARGET_NAME: u16 = 1;
/// `enum nft_lookup_attributes`: where a map's answer goes; `NFT_REG_VERDICT` is the verdict.
const LOOKUP_TO: u16 = 3;
const REGISTER_VERDICT: u32 = 0;
/// `NFTNL_UDATA_RULE_COMMENT`: where native rules keep a comment. iptables-nft 1.8.9 uses the
/// match of x_tables; not every version does.
const USER_COMMENT: u8 = 0;

/// What is ours among chains and rules of one generation.
pub(super) fn digest(chains: &[Reply], rules: &[Reply]) -> Found {
    let mut readings: BTreeMap<ChainName, Reading> = chains
        .iter()
        .map(Reply::attributes)
        .filter(|chain| chain.text(CHAIN_TABLE) == Some(TABLE))
        .filter_map(|chain| our_chain(chain.text(CHAIN_NAME)?))
        .map(|name| (name, Reading::default()))
        .collect();
    let mut ways = Ways::default();
    let mut jumps = Vec::new();
    // Rules of a chain come in their order.
    let mut positions = [0; BASES.len()];
    for rule in rules {
        let rule = rule.attributes();
        let Some(chain) = rule.text(RULE_CHAIN) else {
            continue;
        };
        ways.add(chain, way(rule));
        if let Some(base) = BASES.iter().position(|base| base.as_str() == chain) {
            if let (Some(target), Some(handle)) = (bare_jump(rule), rule.u64(RULE_HANDLE)) {
                jumps.push((BASES[base], target, positions[base], handle));
            }
            positions[base] += 1;
        } else if let Some(reading) = our_chain(chain).and_then(|it| readings.get_mut(&it)) {
            hash(rule, reading.rule(comment(rule)));
        }
    }
    let hooks = jumps.into_iter().map(|(base, target, position, handle)| {
        let state = HookState {
            base,
            target,
            position,
            shadowed: ways.may_pass(base.as_str(), position),
        };
        FoundHook {
            state,
            handle: Some(handle),
        }
    });
    Found {
        hooks: hooks.collect(),
        chains: readings
            .into_iter()
            .map(|(name, reading)| (name, reading.finish()))
            .collect(),
    }
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

/// Code and chain of an immediate verdict.
fn verdict<'a>(data: Attributes<'a>) -> Option<(i32, Option<&'a str>)> {
    let verdict = data.nested(IMMEDIATE_DATA)?.nested(DATA_VERDICT)?;
    let code = verdict.u32(VERDICT_CODE)?.cast_signed();
    Some((code, verdict.text(VERDICT_CHAIN)))
}

/// The chain of ours that a rule without conditions jumps to.
fn bare_jump(rule: Attributes<'_>) -> Option<ChainName> {
    let mut target = None;
    for (name, data) in expressions(rule) {
        match name {
            "counter" => {}
            "match" if data.text(MATCH_NAME) == Some("comment") => {}
            "immediate" => match verdict(data)? {
                (JUMP, chain) => target = our_chain(chain?),
                _ => return None,
            },
            _ => return None,
        }
    }
    target
}

/// Where a rule leads. What isn't known to go on is taken to let packets go.
fn way<'a>(rule: Attributes<'a>) -> Way<'a> {
    expressions(rule)
        .map(|(name, data)| match name {
            "immediate" => match verdict(data) {
                // Not a verdict: a value for a register.
                None | Some((DROP | CONTINUE | BREAK, _)) => Way::On,
                Some((RETURN, _)) => Way::Back,
                Some((JUMP, Some(chain))) => Way::Through(chain),
                Some((GOTO, Some(chain))) => Way::Into(chain),
                Some(_) => Way::Past,
            },
            "lookup" if data.u32(LOOKUP_TO) == Some(REGISTER_VERDICT) => Way::Past,
            "target" if matches!(data.text(TARGET_NAME), Some("NFQUEUE" | "TPROXY")) => Way::Past,
            "queue" | "tproxy" | "synproxy" | "fwd" => Way::Past,
            _ => Way::On,
        })
        .find(|way| *way != Way::On)
        .unwrap_or(Way::On)
}

/// Everything that makes a rule what it is, but what its counters say.
fn hash(rule: Attributes<'_>, hashing: &mut Hashing) {
    for (name, data) in expressions(rule) {
        hashing.add(name.as_bytes());
        if name != "counter" {
            hashing.add(data.0);
        }
    }
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
