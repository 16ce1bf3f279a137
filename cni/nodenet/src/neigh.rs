//! Neighbours: permanent entries, so that nobody has to answer for an address that nobody has, and entries that spare the
//! first packet a question.

use std::net::IpAddr;

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE, Parseable};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rustix::io::Errno;

use crate::route::family_of;
use crate::{Error, LinkIndex, Mac, Request, Socket};

/// Who answers for an address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The link.
    pub link: LinkIndex,
    /// The address.
    pub ip: IpAddr,
    /// The hardware address that packets for it go to.
    pub mac: Mac,
    /// True if the kernel never asks again.
    pub permanent: bool,
}

/// Sets a permanent neighbour, in the place of what the kernel has for that address.
pub fn replace(link: LinkIndex, ip: IpAddr, mac: Mac) -> Request {
    set(link, ip, mac, NeighbourState::Permanent)
}

/// Tells the kernel of a neighbour as if it had been heard of some time ago: it is used at once, and asked whether it is
/// still there after the first packets.
pub fn introduce(link: LinkIndex, ip: IpAddr, mac: Mac) -> Request {
    set(link, ip, mac, NeighbourState::Stale)
}

fn set(link: LinkIndex, ip: IpAddr, mac: Mac, state: NeighbourState) -> Request {
    let mut message = key(link, ip);
    message.header.state = state;
    let address = NeighbourAttribute::LinkLayerAddress(mac.bytes().to_vec());
    message.attributes.push(address);
    Request::new(
        format!("set neighbour {ip} on link {link}"),
        RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_REPLACE,
        &[],
    )
}

/// Removes a neighbour; it may be gone already.
pub fn remove(link: LinkIndex, ip: IpAddr) -> Request {
    Request::new(
        format!("remove neighbour {ip} from link {link}"),
        RouteNetlinkMessage::DelNeighbour(key(link, ip)),
        0,
        &[Errno::NOENT, Errno::NODEV],
    )
}

/// The neighbours of a link that have a hardware address, in one family (that of `like`).
/// *Cost*: linear in the neighbours of all links.
pub fn list(socket: &mut Socket, link: LinkIndex, like: IpAddr) -> Result<Vec<Neighbour>, Error> {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(like);
    let request = Request::new(
        "list neighbours".into(),
        RouteNetlinkMessage::GetNeighbour(message),
        0,
        &[],
    );
    let mut neighbours = Vec::new();
    for message in socket.dump(&request)? {
        let message =
            NeighbourMessage::parse(message.body.as_slice()).map_err(|e| Error::Decode {
                what: "list neighbours".into(),
                reason: e.to_string(),
            })?;
        neighbours.extend(read(&message).filter(|neighbour| neighbour.link == link));
    }
    Ok(neighbours)
}

fn key(link: LinkIndex, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(ip);
    message.header.ifindex = link.get();
    let address = match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    };
    message
        .attributes
        .push(NeighbourAttribute::Destination(address));
    message
}

fn read(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some((*v4).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some((*v6).into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().map(Mac::new);
            }
            _ => {}
        }
    }
    Some(Neighbour {
        link: LinkIndex::new(message.header.ifindex)?,
        ip: ip?,
        mac: mac?,
        permanent: message.header.state == NeighbourState::Permanent,
    })
}
