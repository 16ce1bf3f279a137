//! What the kernel and the tools answer.

use selvage_netfilter::conntrack::entries;
use selvage_netfilter::fuzzing;
use selvage_netfilter::nflog::{packets, parse_header};
use selvage_netfilter::routes::told_by;
use selvage_policy_core::ruleset::Family;

use crate::feed::Feed;

pub(crate) fn conntrack(bytes: &[u8]) {
    for entry in entries(bytes) {
        let seen = entry.seen();
        assert!(
            seen.source.is_ipv4() == seen.destination.is_ipv4(),
            "a packet of two families: {entry:?}"
        );
        fuzzing::deletion(&entry);
    }
}

pub(crate) fn ipset(bytes: &[u8]) {
    fuzzing::ipset(bytes);
}

/// Family, which hooks there are and where, entries.
pub(crate) fn legacy(bytes: &[u8]) {
    let mut feed = Feed::new(bytes);
    let family = match feed.one_in(2) {
        false => Family::V4,
        true => Family::V6,
    };
    let valid = feed.byte();
    let hooks = std::array::from_fn(|hook| {
        let at = (usize::from(feed.u16()), usize::from(feed.u16()));
        (valid & (1 << hook) != 0).then_some(at)
    });
    // What is wrong with it is no panic's business.
    let _ = fuzzing::legacy(family, hooks, feed.rest());
}

/// What all of netlink has in common.
pub(crate) fn netlink(bytes: &[u8]) {
    fuzzing::refusals(bytes);
    fuzzing::notifications(bytes);
}

/// A packet alone, or a datagram of logged ones.
pub(crate) fn nflog(bytes: &[u8]) {
    let mut feed = Feed::new(bytes);
    if feed.one_in(2) {
        let _ = parse_header(feed.rest());
    } else {
        for logged in packets(feed.rest()) {
            assert!(!logged.prefix.contains('\0'), "a prefix ends at its NUL");
        }
    }
}

/// The length of the dump of chains, that dump, the dump of rules.
pub(crate) fn nftables(bytes: &[u8]) {
    let mut feed = Feed::new(bytes);
    let length = usize::from(feed.u16());
    let chains = feed.take(length);
    fuzzing::nftables(chains, feed.rest());
}

pub(crate) fn routes(bytes: &[u8]) {
    for change in told_by(bytes) {
        assert!(!change.addresses.is_empty(), "nothing was there before");
    }
}

/// The length of the complaint, the complaint, and the text it is about.
pub(crate) fn tools(bytes: &[u8]) {
    let mut feed = Feed::new(bytes);
    let length = usize::from(feed.byte());
    let complaint = String::from_utf8_lossy(feed.take(length));
    let text = String::from_utf8_lossy(feed.rest());
    fuzzing::complaint(&complaint, &text);
    fuzzing::interfaces(&text, &complaint);
}
