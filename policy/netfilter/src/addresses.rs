//! The node's own addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::error::Error;
use crate::message::{Attributes, DUMP, Message};
use crate::socket::Nfnetlink;

/// `RTM_GETADDR`; the kernel answers with `RTM_NEWADDR`.
const GET_ADDRESS: u16 = 22;
const NEW_ADDRESS: u16 = 20;

/// `struct ifaddrmsg`.
const HEADER: usize = 8;

/// `IFA_ADDRESS`, and `IFA_LOCAL` where the first is the other end of a link between two.
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;

/// Every address of the network namespace, of both families.
///
/// *Errors*: [`Error::Socket`], [`Error::Silence`], [`Error::Refused`].
///
/// *Cost*: linear in addresses, 1 µs each.
pub fn local_addresses(patience: Duration) -> Result<BTreeSet<IpAddr>, Error> {
    let mut socket = Nfnetlink::open_routes(patience)?;
    let mut found = BTreeSet::new();
    socket.stream(
        &|| "read the node's addresses".to_owned(),
        Message::plain(GET_ADDRESS, DUMP, &[0; HEADER]),
        &mut |message| {
            if message.kind == NEW_ADDRESS {
                found.extend(parse(message.body));
            }
        },
    )?;
    Ok(found)
}

fn parse(body: &[u8]) -> Option<IpAddr> {
    let attributes = Attributes(body.get(HEADER..)?);
    let bytes = attributes
        .find(LOCAL)
        .or_else(|| attributes.find(ADDRESS))?;
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}
