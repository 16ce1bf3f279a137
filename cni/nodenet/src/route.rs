//! Routes, in any table.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Parseable};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use crate::{Error, LinkIndex, Request, Socket};

/// Number of a route table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub u32);

impl TableId {
    /// The table that everything uses that does not say otherwise.
    pub const MAIN: TableId = TableId(254);
    /// The kernel's table of local and broadcast addresses.
    pub const LOCAL: TableId = TableId(255);
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How far away a route's destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Beyond a gateway.
    Global,
    /// On the link itself.
    Link,
    /// On this host.
    Host,
    /// Any other.
    Other(u8),
}

/// Who made a route: the kernel does not care, people who read `ip route` do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The kernel itself, for an address.
    Kernel,
    /// Set at run time by an administrator or an agent; what `ip route add` says.
    Boot,
    /// Any other, by number (`/etc/iproute2/rt_protos`).
    Other(u8),
}

/// A unicast route through one link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The table it is in.
    pub table: TableId,
    /// What it leads to; `0.0.0.0/0` or `::/0` for everything.
    pub destination: IpNet,
    /// The next hop; `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The link it leaves by.
    pub link: LinkIndex,
    /// How far away the destination is.
    pub scope: Scope,
    /// Who made it.
    pub origin: Origin,
}

impl Route {
    /// A route to what is on the link itself.
    pub fn on_link(table: TableId, destination: IpNet, link: LinkIndex) -> Self {
        Route {
            table,
            destination,
            gateway: None,
            link,
            scope: Scope::Link,
            origin: Origin::Boot,
        }
    }

    /// The default route through a gateway, in the gateway's family.
    pub fn default_via(table: TableId, gateway: IpAddr, link: LinkIndex) -> Self {
        let any: IpAddr = match gateway {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Route {
            table,
            destination: IpNet::new(any, 0).expect("0 is a prefix length"),
            gateway: Some(gateway),
            link,
            scope: Scope::Global,
            origin: Origin::Boot,
        }
    }

    fn message(&self) -> RouteMessage {
        let mut message = key(self.table, self.destination);
        message.header.protocol = match self.origin {
            Origin::Kernel => RouteProtocol::Kernel,
            Origin::Boot => RouteProtocol::Boot,
            Origin::Other(number) => number.into(),
        };
        message.header.scope = match self.scope {
            Scope::Global => RouteScope::Universe,
            Scope::Link => RouteScope::Link,
            Scope::Host => RouteScope::Host,
            Scope::Other(number) => number.into(),
        };
        message.header.kind = RouteType::Unicast;
        message
            .attributes
            .push(RouteAttribute::Oif(self.link.get()));
        if let Some(gateway) = self.gateway {
            message
                .attributes
                .push(RouteAttribute::Gateway(gateway.into()));
        }
        message
    }
}

/// Adds a route. *Errors*: [`Error::Kernel`] with `EEXIST` if the table has one to that destination.
pub fn add(route: &Route) -> Request {
    Request::new(
        format!("add route {} table {}", route.destination, route.table),
        RouteNetlinkMessage::NewRoute(route.message()),
        NLM_F_CREATE | NLM_F_EXCL,
        &[],
    )
}

/// Adds a route, or puts it in the place of the table's first one to that destination.
pub fn replace(route: &Route) -> Request {
    Request::new(
        format!("set route {} table {}", route.destination, route.table),
        RouteNetlinkMessage::NewRoute(route.message()),
        NLM_F_CREATE | NLM_F_REPLACE,
        &[],
    )
}

/// Removes the table's first route to a destination, through `link` only if one is given. It may be gone.
pub fn remove(table: TableId, destination: IpNet, link: Option<LinkIndex>) -> Request {
    let mut message = key(table, destination);
    // 255: whatever the route's own scope is.
    message.header.scope = RouteScope::NoWhere;
    if let Some(link) = link {
        message.attributes.push(RouteAttribute::Oif(link.get()));
    }
    Request::new(
        format!("remove route {destination} table {table}"),
        RouteNetlinkMessage::DelRoute(message),
        0,
        &[Errno::SRCH, Errno::NODEV],
    )
}

/// The unicast routes of one table in one family (that of `like`). A table that was never used is empty.
/// Routes with several next hops are left out. *Cost*: linear in that table's routes.
pub fn list(socket: &mut Socket, table: TableId, like: IpAddr) -> Result<Vec<Route>, Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(like);
    message.attributes.push(RouteAttribute::Table(table.0));
    let what = format!("list routes of table {table}");
    let request = Request::new(
        what.clone(),
        RouteNetlinkMessage::GetRoute(message),
        0,
        &[Errno::NOENT],
    );
    let mut routes = Vec::new();
    for message in socket.dump(&request)? {
        let message = RouteMessage::parse(message.body.as_slice()).map_err(|e| Error::Decode {
            what: what.clone(),
            reason: e.to_string(),
        })?;
        routes.extend(read(&message, like).filter(|route| route.table == table));
    }
    Ok(routes)
}

/// The netlink family of an address.
pub(crate) fn family_of(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn key(table: TableId, destination: IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(destination.addr());
    message.header.destination_prefix_length = destination.prefix_len();
    // The header has a byte for the table, the attribute the whole number.
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.attributes.push(RouteAttribute::Table(table.0));
    if destination.prefix_len() > 0 {
        let address = destination.network().into();
        message
            .attributes
            .push(RouteAttribute::Destination(address));
    }
    message
}

pub(crate) fn read(message: &RouteMessage, like: IpAddr) -> Option<Route> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let unspecified: IpAddr = match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let (mut destination, mut gateway, mut link) = (unspecified, None, None);
    let mut table = TableId(message.header.table.into());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => gateway = Some(ip(address)?),
            RouteAttribute::Oif(index) => link = LinkIndex::new(*index),
            RouteAttribute::Table(id) => table = TableId(*id),
            _ => {}
        }
    }
    Some(Route {
        table,
        destination: IpNet::new(destination, message.header.destination_prefix_length).ok()?,
        gateway,
        link: link?,
        scope: match message.header.scope {
            RouteScope::Universe => Scope::Global,
            RouteScope::Link => Scope::Link,
            RouteScope::Host => Scope::Host,
            other => Scope::Other(other.into()),
        },
        origin: match message.header.protocol {
            RouteProtocol::Kernel => Origin::Kernel,
            RouteProtocol::Boot => Origin::Boot,
            other => Origin::Other(other.into()),
        },
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}
