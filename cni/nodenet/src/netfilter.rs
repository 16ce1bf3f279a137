//! What netfilter's families of netlink messages have in common (linux/netfilter/nfnetlink.h).

use rtnetlink::packet_core::{NlaBuffer, NlasIterator};

/// `NFNL_SUBSYS_CTNETLINK`.
pub(crate) const CONNTRACK: u8 = 1;
/// `NFNL_SUBSYS_NFTABLES`.
pub(crate) const NFTABLES: u8 = 10;
/// `NFPROTO_IPV4`.
pub(crate) const IPV4: u8 = 2;
/// Length of `struct nfgenmsg`: family, version, two bytes that say nothing to us.
const GENERIC: usize = 4;

/// The message type of a subsystem's message.
pub(crate) const fn kind(subsystem: u8, message: u8) -> u16 {
    u16::from_be_bytes([subsystem, message])
}

/// What every body begins with.
pub(crate) fn begin(family: u8) -> Vec<u8> {
    vec![family, 0, 0, 0]
}

/// Adds an attribute.
pub(crate) fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("attributes of ours are short");
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The attributes of a body, up to the first that cannot be.
pub(crate) fn attributes(body: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    nested(body.get(GENERIC..).unwrap_or_default())
}

/// The attributes within one, up to the first that cannot be.
pub(crate) fn nested(value: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(value).map_while(Result::ok)
}
