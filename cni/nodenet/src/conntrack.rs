//! Connections that the kernel tracks, and removing some of them (net/netfilter/nf_conntrack_netlink.c).
//!
//! A connection is translated as the rules say that its first packet meets, for as long as it lives. What began under
//! wrong rules stays wrong until its entry is gone: then its next packet is a first one again.

use std::net::Ipv4Addr;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rustix::io::Errno;

use crate::netfilter::{CONNTRACK, IPV4, attributes, begin, kind, nested, put};
use crate::{Error, Request, Socket};

const GET: u8 = 1;
const DELETE: u8 = 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
/// `IPS_SEEN_REPLY`.
const SEEN_REPLY: u32 = 1 << 1;

/// An IPv4 connection, as far as translation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Who began it.
    pub source: Ipv4Addr,
    /// Where its packets end, the destination translated.
    pub destination: Ipv4Addr,
    /// What the destination sees as the source.
    pub seen_as: Ipv4Addr,
    /// Its mark.
    pub mark: u32,
    /// Whether an answer has come.
    pub answered: bool,
}

/// Removes the IPv4 connections of the calling thread's network namespace that `doomed` says, and tells how many there
/// were. Connections that come and go meanwhile may be missed.
///
/// *Errors*: [`Error::Socket`], [`Error::Kernel`]. *Cost*: a read of all connections, some 200 ns for each, and a
/// request for each that is removed. *Needs*: `CAP_NET_ADMIN`.
pub fn remove(doomed: impl Fn(&Flow) -> bool) -> Result<usize, Error> {
    let mut socket = Socket::open_for(NETLINK_NETFILTER)?;
    let list = Request::raw(
        "list connections".to_owned(),
        kind(CONNTRACK, GET),
        begin(IPV4),
        &[],
    );
    let mut requests = Vec::new();
    // An entry may be shown twice and is then gone already; one that is left out is no worse off than before.
    socket.walk(&list, |_, body| {
        if let Some(flow) = read(body)
            && doomed(&flow)
        {
            requests.push(removal(&flow, body));
        }
    })?;
    let mut removed = 0;
    for done in socket.run(&requests)? {
        removed += usize::from(done?.changed);
    }
    Ok(removed)
}

/// What names this very entry, and not one that took its place.
fn removal(flow: &Flow, body: &[u8]) -> Request {
    let mut out = begin(IPV4);
    for attribute in attributes(body) {
        match attribute.kind() {
            CTA_TUPLE_ORIG => put(&mut out, CTA_TUPLE_ORIG | NESTED, attribute.value()),
            kind @ (CTA_ID | CTA_ZONE) => put(&mut out, kind, attribute.value()),
            _ => {}
        }
    }
    let what = format!(
        "remove connection from {} to {}",
        flow.source, flow.destination
    );
    Request::raw(what, kind(CONNTRACK, DELETE), out, &[Errno::NOENT])
}

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;

/// `None` for what is not IPv4 or not understood.
fn read(body: &[u8]) -> Option<Flow> {
    let (mut origin, mut reply, mut status, mut mark) = (None, None, None, 0);
    for attribute in attributes(body) {
        match attribute.kind() {
            CTA_TUPLE_ORIG => origin = ends(attribute.value()),
            CTA_TUPLE_REPLY => reply = ends(attribute.value()),
            CTA_STATUS => status = number(attribute.value()),
            CTA_MARK => mark = number(attribute.value())?,
            _ => {}
        }
    }
    let ((source, _), (destination, seen_as)) = (origin?, reply?);
    Some(Flow {
        source,
        destination,
        seen_as,
        mark,
        answered: status? & SEEN_REPLY != 0,
    })
}

/// Source and destination of a tuple.
fn ends(tuple: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let ip = nested(tuple).find(|attribute| attribute.kind() == CTA_TUPLE_IP)?;
    let end = |kind| {
        let end = nested(ip.value()).find(|attribute| attribute.kind() == kind)?;
        let octets: [u8; 4] = end.value().try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    Some((end(CTA_IP_V4_SRC)?, end(CTA_IP_V4_DST)?))
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let (mut ip, mut tuple) = (Vec::new(), Vec::new());
        put(&mut ip, CTA_IP_V4_SRC, &source);
        put(&mut ip, CTA_IP_V4_DST, &destination);
        put(&mut tuple, CTA_TUPLE_IP | NESTED, &ip);
        tuple
    }

    fn entry(status: Option<u32>) -> Vec<u8> {
        let mut body = begin(IPV4);
        let origin = tuple([10, 40, 0, 9], [172, 20, 0, 10]);
        let reply = tuple([198, 51, 100, 10], [10, 40, 0, 4]);
        put(&mut body, CTA_TUPLE_ORIG | NESTED, &origin);
        put(&mut body, CTA_TUPLE_REPLY | NESTED, &reply);
        if let Some(status) = status {
            put(&mut body, CTA_STATUS, &status.to_be_bytes());
        }
        put(&mut body, CTA_MARK, &0x80_u32.to_be_bytes());
        put(&mut body, CTA_ID, &[1, 2, 3, 4]);
        body
    }

    #[test]
    fn a_flow_is_told_by_where_it_ends_and_by_what_is_seen_there() {
        let flow = read(&entry(Some(SEEN_REPLY | 8))).unwrap();
        assert_eq!(
            flow,
            Flow {
                source: [10, 40, 0, 9].into(),
                destination: [198, 51, 100, 10].into(),
                seen_as: [10, 40, 0, 4].into(),
                mark: 0x80,
                answered: true,
            }
        );
        assert!(!read(&entry(Some(8))).unwrap().answered);
    }

    #[test]
    fn what_is_cut_off_or_lacks_something_is_no_flow() {
        let whole = entry(Some(8));
        assert_eq!(read(&entry(None)), None);
        // The tuples and the status: 4 + 2 * (4 + 4 + 8 + 8) + 8 bytes.
        for length in 0..60 {
            assert_eq!(read(&whole[..length]), None, "{length}");
        }
        assert!(read(&whole[..60]).is_some());
    }

    #[test]
    fn an_entry_is_removed_by_its_own_tuple_and_identity() {
        let body = entry(Some(8));
        let flow = read(&body).unwrap();
        let request = removal(&flow, &body);
        assert_eq!(
            request.what(),
            "remove connection from 10.40.0.9 to 198.51.100.10"
        );
        let mut want = begin(IPV4);
        let origin = tuple([10, 40, 0, 9], [172, 20, 0, 10]);
        put(&mut want, CTA_TUPLE_ORIG | NESTED, &origin);
        put(&mut want, CTA_ID, &[1, 2, 3, 4]);
        assert!(format!("{request:?}").contains(&format!("body: {want:?}")));
    }
}
