//! Addresses of links.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rustix::event::Timespec;
use rustix::io::Errno;

use crate::route::family_of;
use crate::rule::Family;
use crate::{Error, LinkIndex, Request, Socket};

/// Between two looks at an address that is tested for duplicates: that takes a second or two.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// An address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The link.
    pub link: LinkIndex,
    /// The address with its mask: `10.0.1.7/20`.
    pub net: IpNet,
    /// False for addresses that mean something on this link or host only.
    pub global: bool,
}

/// Adds an address; it may be there already. The kernel adds the connected route of its net to main.
pub fn ensure(link: LinkIndex, net: IpNet) -> Request {
    Request::new(
        format!("add address {net} to link {link}"),
        RouteNetlinkMessage::NewAddress(message(link, net)),
        NLM_F_CREATE | NLM_F_EXCL,
        &[Errno::EXIST],
    )
}

/// As [`ensure`], for an address that is nobody else's on this link by construction: an IPv6 one is not tested for
/// duplicates first, which would take a second or two.
pub fn ensure_at_once(link: LinkIndex, net: IpNet) -> Request {
    let mut message = message(link, net);
    if net.addr().is_ipv6() {
        message.header.flags |= AddressHeaderFlags::Nodad;
    }
    Request::new(
        format!("add address {net} to link {link}"),
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_EXCL,
        &[Errno::EXIST],
    )
}

/// Removes an address; it may be gone already. Removing a primary IPv4 address removes the secondary ones of
/// its net with it (unless the promote_secondaries sysctl says otherwise).
pub fn remove(link: LinkIndex, net: IpNet) -> Request {
    Request::new(
        format!("remove address {net} from link {link}"),
        RouteNetlinkMessage::DelAddress(message(link, net)),
        0,
        &[Errno::ADDRNOTAVAIL, Errno::NODEV],
    )
}

/// The addresses of one link, or of all links, in both families. *Cost*: linear in the addresses of all links.
pub fn list(socket: &mut Socket, link: Option<LinkIndex>) -> Result<Vec<Address>, Error> {
    let addresses = messages(socket)?;
    Ok(addresses
        .iter()
        .filter_map(read)
        .filter(|address| link.is_none_or(|link| link == address.link))
        .collect())
}

/// Waits until an address may be used; false if it cannot by the deadline, is another's on the link, or is not there.
/// *Cost*: linear in the addresses of all links, as often as it is looked at.
pub fn await_usable(
    socket: &mut Socket,
    link: LinkIndex,
    ip: IpAddr,
    within: Duration,
) -> Result<bool, Error> {
    let deadline = Instant::now() + within;
    loop {
        let messages = messages(socket)?;
        let found = messages.iter().find(|message| {
            read(message).is_some_and(|found| found.link == link && found.net.addr() == ip)
        });
        let Some(flags) = found.map(flags) else {
            return Ok(false);
        };
        if !flags.contains(AddressFlags::Tentative) {
            return Ok(!flags.contains(AddressFlags::Dadfailed));
        }
        if flags.contains(AddressFlags::Dadfailed) || Instant::now() >= deadline {
            return Ok(false);
        }
        // Nothing to wait on but the time: a pause that a signal may cut short.
        let _ = rustix::event::poll(&mut [], Some(&PAUSE));
    }
}

fn messages(socket: &mut Socket) -> Result<Vec<AddressMessage>, Error> {
    let request = Request::new(
        "list addresses".into(),
        RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        0,
        &[],
    );
    let parse = |body: &[u8]| {
        AddressMessage::parse(body).map_err(|e| Error::Decode {
            what: "list addresses".into(),
            reason: e.to_string(),
        })
    };
    let messages = socket.dump(&request)?;
    messages
        .iter()
        .map(|message| parse(&message.body))
        .collect()
}

/// The header has a byte for them, an attribute all of them.
fn flags(message: &AddressMessage) -> AddressFlags {
    let whole = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
    whole.unwrap_or(AddressFlags::from_bits_retain(
        message.header.flags.bits().into(),
    ))
}

/// Removes the global addresses of a link in one family but those in `keep`, and tells which went.
///
/// For an ENI's interface: a distribution's scripts may have put secondary addresses on it, and an address on
/// the host is deaf in the pod. *Cost*: a listing and one batch.
pub fn flush_global(
    socket: &mut Socket,
    link: LinkIndex,
    family: Family,
    keep: &[IpNet],
) -> Result<Vec<IpNet>, Error> {
    let of_family = |net: &IpNet| match (net, family) {
        (IpNet::V4(_), Family::V4) | (IpNet::V6(_), Family::V6) => true,
        (IpNet::V4(_), Family::V6) | (IpNet::V6(_), Family::V4) => false,
    };
    let mut gone: Vec<IpNet> = list(socket, Some(link))?
        .into_iter()
        .filter(|address| address.global)
        .map(|address| address.net)
        .filter(|net| of_family(net) && !keep.contains(net))
        .collect();
    gone.sort_unstable();
    let requests: Vec<_> = gone.iter().map(|net| remove(link, *net)).collect();
    socket.run_all(&requests)?;
    Ok(gone)
}

fn message(link: LinkIndex, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family_of(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = link.get();
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message
        .attributes
        .push(AddressAttribute::Address(net.addr()));
    message
}

pub(crate) fn read(message: &AddressMessage) -> Option<Address> {
    let mut local: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            // IPv6 has no local address; on a point-to-point IPv4 link this is the other end's.
            AddressAttribute::Address(ip) if local.is_none() => local = Some(*ip),
            _ => {}
        }
    }
    Some(Address {
        link: LinkIndex::new(message.header.index)?,
        net: IpNet::new(local?, message.header.prefix_len).ok()?,
        global: message.header.scope == AddressScope::Universe,
    })
}
