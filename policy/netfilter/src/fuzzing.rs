//! Every parser of what others wrote, for `fuzz/`: bytes in, a panic when a promise is broken.
//!
//! What is public in any case ([`crate::conntrack::entries`], [`crate::nflog::packets`],
//! [`crate::routes::told_by`]) needs no way in; these do. *Cost*: linear in the input.

use selvage_policy_core::ruleset::Family;

use crate::conntrack::Entry;
use crate::{conntrack, ipset, iptables, ipvs, legacy, nftables, socket, watch};

/// Ipset's answers: what is read as a member is read the same from what we would write of it.
pub fn ipset(datagram: &[u8]) {
    for (member, again) in ipset::read_any(datagram).1 {
        assert_eq!(again, Some(member), "written and read back");
    }
}

/// nf_tables' answers: a chain is told of as one of ours only when the dump of chains has it.
pub fn nftables(chains: &[u8], rules: &[u8]) {
    let found = nftables::read_any(chains, rules);
    let alone = nftables::read_any(chains, &[]);
    assert!(
        found.chains.keys().eq(alone.chains.keys()),
        "a rule makes no chain"
    );
}

/// A table of x_tables'; `Err` when it is none.
pub fn legacy(
    family: Family,
    hooks: [Option<(usize, usize)>; 5],
    entries: &[u8],
) -> Result<(), &'static str> {
    legacy::read_any(family, hooks, entries).map(drop)
}

/// Errors that answer a request.
pub fn refusals(datagram: &[u8]) {
    for refusal in socket::refusals(datagram) {
        assert!(!refusal.to_string().is_empty(), "said in words");
    }
}

/// Notifications of nf_tables.
pub fn notifications(datagram: &[u8]) {
    watch::touched_by(datagram);
}

/// The request that deletes an entry of conntrack's names a tuple: without one it would empty the
/// whole table.
pub fn deletion(entry: &Entry) {
    // An attribute is 4 bytes of header at least, behind two headers of 16 and 4.
    assert!(
        conntrack::deletion_of(entry).len() > 16 + 4 + 4,
        "{entry:?}"
    );
}

/// What a restore tool complains about: a line of what it was given.
pub fn complaint(stderr: &str, text: &str) {
    if let Some(line) = iptables::complained_about(stderr, text) {
        assert!(text.lines().any(|it| it == line), "{line:?} is no line");
    }
}

/// The list of interfaces: who is in it stands in it.
pub fn interfaces(list: &str, name: &str) {
    if ipvs::lists(list, name) {
        assert!(list.contains(name), "{name:?} is not there");
    }
}
