//! What others change: the kernel's notifications of links, addresses, routes and rules, and of nft's tables.
//!
//! ```text
//! kernel ──RTM_NEW…, NFT_MSG_…──> receive buffer ──drain──> [Event]       full: Event::Overrun, look at everything
//! ```
//!
//! A change of one's own is told like anybody's. Order is the kernel's: what is listed after a monitor was opened and
//! drained is newer than what it told.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use rtnetlink::packet_core::Parseable;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::sys;
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::addr::Address;
use crate::link::{self, Link};
use crate::route::Route;
use crate::rule::{Family, Rule};
use crate::socket::split;
use crate::{Error, LinkIndex, TableChange, addr, route, rule, tables};

/// A notification is at most some kilobytes; the kernel puts one in a datagram.
const DATAGRAM: usize = 32 * 1024;
/// Room for some thousand notifications: a node that drains sees hundreds of pods go without an overrun.
const ROOM: usize = 4 * 1024 * 1024;
/// Of links, and of addresses, routes and rules of both families (`RTNLGRP_…` in linux/rtnetlink.h).
const GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
/// `NFNLGRP_NFTABLES` in linux/netfilter/nfnetlink.h.
const TABLES: [u32; 1] = [7];

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;

/// One change, as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link is new, or something about it has changed.
    Link(Link),
    /// A link is gone; its routes and addresses are not told one by one.
    LinkGone(LinkIndex),
    /// An address is new or has changed.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route is new or has changed.
    Route(Route),
    /// A route is gone.
    RouteGone(Route),
    /// A rule is new.
    Rule(Rule),
    /// A rule is gone.
    RuleGone(Rule),
    /// A table of nft's or iptables-nft's has gone, or a chain has changed.
    Table(TableChange),
    /// Notifications were lost: anything may have changed.
    Overrun,
}

/// A socket that hears of every change in the network namespace where it was opened.
///
/// *Shape*: does not block; readable when [`Monitor::drain`] has something to tell.
pub struct Monitor {
    socket: sys::Socket,
    read: fn(u16, &[u8]) -> Option<Event>,
}

impl Monitor {
    /// Begins to hear of links, addresses, routes and rules.
    ///
    /// *Errors*: [`Error::Socket`]. *Needs*: nothing.
    pub fn open() -> Result<Self, Error> {
        Self::of(sys::protocols::NETLINK_ROUTE, &GROUPS, read)
    }

    /// Begins to hear of tables: [`Event::Table`]. Legacy tables are told by nobody.
    ///
    /// *Errors*: [`Error::Socket`]. *Needs*: `CAP_NET_ADMIN`.
    pub fn of_tables() -> Result<Self, Error> {
        Self::of(sys::protocols::NETLINK_NETFILTER, &TABLES, |kind, body| {
            tables::read(kind, body).map(Event::Table)
        })
    }

    fn of(
        protocol: isize,
        groups: &[u32],
        read: fn(u16, &[u8]) -> Option<Event>,
    ) -> Result<Self, Error> {
        let wrap = |doing| move |reason| Error::Socket { doing, reason };
        let mut socket = sys::Socket::new(protocol).map_err(wrap("open"))?;
        socket.bind_auto().map_err(wrap("bind"))?;
        // More than the system's limit needs privilege: what we get is what we have.
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, ROOM).is_err() {
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket, ROOM)
                .map_err(|e| wrap("make room")(e.into()))?;
        }
        for group in groups {
            socket.add_membership(*group).map_err(wrap("subscribe"))?;
        }
        Ok(Monitor { socket, read })
    }

    /// Everything that was told and not drained yet, in order; empty if there is nothing. What is not understood, or
    /// of a kind that this crate does not know (several next hops, bridge ports), is left out.
    ///
    /// *Errors*: [`Error::Socket`]. *Cost*: a system call for each change.
    pub fn drain(&self) -> Result<Vec<Event>, Error> {
        let mut buffer = vec![0; DATAGRAM];
        let mut events = Vec::new();
        loop {
            match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => {
                    let messages = split(&buffer[..length]);
                    events.extend(
                        messages.filter_map(|(header, body)| (self.read)(header.kind, body)),
                    );
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(events),
                Err(Errno::NOBUFS) => events.push(Event::Overrun),
                Err(errno) => {
                    return Err(Error::Socket {
                        doing: "receive",
                        reason: io::Error::from(errno),
                    });
                }
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn read(kind: u16, body: &[u8]) -> Option<Event> {
    match kind {
        // A bridge tells of its ports with messages of its own family.
        RTM_NEWLINK | RTM_DELLINK if body.first() != Some(&0) => None,
        RTM_NEWLINK => link::parse_body(body).ok().map(Event::Link),
        RTM_DELLINK => {
            let link = link::parse_body(body).ok()?;
            Some(Event::LinkGone(link.index))
        }
        RTM_NEWADDR => address(body).map(Event::Address),
        RTM_DELADDR => address(body).map(Event::AddressGone),
        RTM_NEWROUTE => route(body).map(Event::Route),
        RTM_DELROUTE => route(body).map(Event::RouteGone),
        RTM_NEWRULE => rule(body).map(Event::Rule),
        RTM_DELRULE => rule(body).map(Event::RuleGone),
        _ => None,
    }
}

fn address(body: &[u8]) -> Option<Address> {
    addr::read(&AddressMessage::parse(body).ok()?)
}

fn route(body: &[u8]) -> Option<Route> {
    let message = RouteMessage::parse(body).ok()?;
    let like = match family(message.header.address_family)? {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    route::read(&message, like)
}

fn rule(body: &[u8]) -> Option<Rule> {
    let message = RuleMessage::parse(body).ok()?;
    rule::read(&message, family(message.header.family)?)
}

fn family(family: AddressFamily) -> Option<Family> {
    match family {
        AddressFamily::Inet => Some(Family::V4),
        AddressFamily::Inet6 => Some(Family::V6),
        _ => None,
    }
}
