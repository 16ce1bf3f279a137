//! Rulesets and sets as text that people know: what the restore tool and `ipset save` would show.

use std::fmt::Write as _;

use selvage_policy_core::observe::{Observed, SetState};
use selvage_policy_core::plan::plan;
use selvage_policy_core::render::render;
use selvage_policy_core::ruleset::{Member, Ruleset, SetKind, SetName};

/// Members of one set that are listed; more are counted.
const MEMBERS_MAX: usize = 10_000;

/// What a kernel that holds nothing of ours would be given, sets first.
#[must_use]
pub fn text(ruleset: &Ruleset) -> String {
    let mut text = format!("# {}\n", ruleset.family);
    for (name, set) in &ruleset.sets {
        write_set(&mut text, name, set.kind, set.members.iter());
    }
    let plan = plan(ruleset, &Observed::default());
    text.push_str(&render(&plan).apply.unwrap_or_default());
    text
}

/// What a kernel was seen to hold.
#[must_use]
pub fn observed(found: &Observed) -> String {
    let mut text = String::new();
    for hook in &found.hooks {
        let (base, target) = (hook.base.as_str(), &hook.target);
        line(
            &mut text,
            format_args!("# rule {} of {base} jumps to {target}", hook.position),
        );
    }
    for (name, chain) in &found.chains {
        let marker = chain
            .marker
            .as_ref()
            .map_or("no marker".to_owned(), ToString::to_string);
        line(
            &mut text,
            format_args!("# chain {name}: {} rules, {marker}", chain.rules),
        );
    }
    for (name, set) in &found.sets {
        match set {
            SetState::Known { kind, members } => write_set(&mut text, name, *kind, members.iter()),
            SetState::Foreign => line(&mut text, format_args!("# set {name}: not as we make them")),
        }
    }
    text
}

fn write_set(
    text: &mut String,
    name: &SetName,
    kind: SetKind,
    members: impl ExactSizeIterator<Item = Member>,
) {
    let count = members.len();
    let kind = kind_name(kind);
    line(text, format_args!("create {name} {kind} # {count} members"));
    for Member { net, port } in members.take(MEMBERS_MAX) {
        match port {
            Some((protocol, port)) => {
                line(text, format_args!("add {name} {net},{protocol}:{port}"))
            }
            None => line(text, format_args!("add {name} {net}")),
        }
    }
    if count > MEMBERS_MAX {
        line(text, format_args!("# and {} more", count - MEMBERS_MAX));
    }
}

/// The type's name in the kernel.
#[must_use]
pub fn kind_name(kind: SetKind) -> &'static str {
    match kind {
        SetKind::Net => "hash:net",
        SetKind::NetPort => "hash:net,port",
        SetKind::Guard => "hash:ip,port,ip",
    }
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    writeln!(text, "{content}").expect("a String takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use crate::status::enforced::rulesets;

    #[test]
    fn a_wanted_ruleset_reads_like_restore_input_with_its_sets() {
        let rulesets = rulesets(&mut fixtures::shop());
        let text = text(&rulesets[0]);
        assert!(text.starts_with("# IPv4\n"), "{text}");
        assert!(text.contains(" 10.0.0.3/32,tcp:80\n"), "{text}");
        assert!(text.contains("-I FORWARD -j selvage-forward\n"), "{text}");
        assert!(text.ends_with("COMMIT\n"), "{text}");
    }
}
