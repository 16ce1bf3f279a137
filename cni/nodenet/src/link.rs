//! Links: find by name or hardware address, make a veth straight into another namespace, up, MTU, remove.

use std::fmt;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NlaBuffer, NlasIterator};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkHeader, LinkInfo,
    LinkMessage,
};
use rustix::event::Timespec;
use rustix::io::Errno;

use crate::{Error, Mac, Message, Request, Socket};

const RTM_NEWLINK: u16 = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
/// `IF_OPER_UP` in linux/if.h.
const OPER_UP: u8 = 6;
/// Between two looks at a link that is about to carry packets: a kernel worker has to run.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000,
};
/// Length of the fixed part of a link message.
const FIXED: usize = 16;

/// A link's number within its network namespace; never 0, and not reused until the numbers wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkIndex(NonZeroU32);

impl LinkIndex {
    /// `None` for 0, which the kernel uses for "no link".
    pub fn new(index: u32) -> Option<Self> {
        NonZeroU32::new(index).map(LinkIndex)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for LinkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A link, as far as a node agent cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: LinkIndex,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its hardware address, if it is an Ethernet one.
    pub mac: Option<Mac>,
    /// The longest packet it takes, in bytes.
    pub mtu: u32,
    /// Whether it was set up (not whether it has a carrier).
    pub up: bool,
    /// Whether it takes packets: it is up, has a carrier, and the kernel has done what follows from that.
    pub operational: bool,
    /// The kind of a virtual link: `veth`, `vlan`, `dummy`; `None` for hardware.
    pub kind: Option<String>,
    /// The link below a `vlan`, or the other end of a `veth` (a number in *its* namespace).
    pub peer: Option<LinkIndex>,
}

/// A pair of links that does not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Veth {
    /// Name of the end in the namespace of the socket that makes the pair.
    pub name: String,
    /// Its hardware address. Given rather than left to the kernel, so that udev leaves it alone
    /// (MACAddressPolicy=persistent rewrites addresses that nobody set).
    pub mac: Mac,
    /// Name of the other end.
    pub peer_name: String,
    /// Hardware address of the other end.
    pub peer_mac: Mac,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
}

/// Asks for one link by name; [`parse`] reads the answer. A name that does not exist is not an error.
pub fn get(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    message.attributes.push(without_counters());
    Request::new(
        format!("find link {name}"),
        RouteNetlinkMessage::GetLink(message),
        0,
        &[Errno::NODEV],
    )
}

/// The link of that name, if there is one: not one that has it as an alternative name, which the kernel gives
/// too when it is asked. *Cost*: one round trip, whatever the number of links.
pub fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, Error> {
    let reply = socket.run_one(get(name))?;
    let link = reply.messages.first().map(parse).transpose()?;
    Ok(link.filter(|link| link.name == name))
}

/// The link that has a hardware address, as [`with_mac`] picks it. *Cost*: linear in the links.
pub fn find_by_mac(socket: &mut Socket, mac: Mac) -> Result<Option<Link>, Error> {
    Ok(with_mac(&list(socket)?, mac).cloned())
}

/// Of some links the one that has a hardware address: the lowest-numbered one that is not a `vlan`, `macvlan` or
/// `ipvlan`, since those repeat the address of the link below.
pub fn with_mac(links: &[Link], mac: Mac) -> Option<&Link> {
    let repeats =
        |link: &&Link| matches!(link.kind.as_deref(), Some("vlan" | "macvlan" | "ipvlan"));
    links
        .iter()
        .filter(|link| link.mac == Some(mac) && !repeats(link))
        .min_by_key(|link| link.index)
}

/// All links of the socket's namespace. *Cost*: linear in the links.
pub fn list(socket: &mut Socket) -> Result<Vec<Link>, Error> {
    let mut message = LinkMessage::default();
    message.attributes.push(without_counters());
    let request = Request::new(
        "list links".into(),
        RouteNetlinkMessage::GetLink(message),
        0,
        &[],
    );
    socket.dump(&request)?.iter().map(parse).collect()
}

/// Makes a veth pair: one end in the socket's namespace, the other straight in `peer_netns`. Both are down.
///
/// Never make a pair and move an end: moving waits 16 ms for the kernel, one mover at a time (seen on 6.x).
///
/// *Errors*: [`Error::Kernel`] with `EEXIST` if either name is taken. *Needs*: `CAP_NET_ADMIN` over both.
pub fn create_veth(veth: &Veth, peer_netns: &impl AsFd) -> Request {
    let end = |name: &str, mac: Mac| {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Address(mac.bytes().to_vec()),
            LinkAttribute::Mtu(veth.mtu),
        ];
        message
    };
    let mut peer = end(&veth.peer_name, veth.peer_mac);
    let netns = peer_netns.as_fd().as_raw_fd();
    peer.attributes.push(LinkAttribute::NetNsFd(netns));
    let mut message = end(&veth.name, veth.mac);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    Request::new(
        format!("create veth {} with peer {}", veth.name, veth.peer_name),
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
        &[],
    )
}

/// Sets a link up; it may be up already.
pub fn set_up(index: LinkIndex) -> Request {
    let mut message = of(index);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Request::new(
        format!("set link {index} up"),
        RouteNetlinkMessage::NewLink(message),
        0,
        &[],
    )
}

/// Sets a link's MTU, in bytes.
pub fn set_mtu(index: LinkIndex, mtu: u32) -> Request {
    let mut message = of(index);
    message.attributes.push(LinkAttribute::Mtu(mtu));
    Request::new(
        format!("set mtu of link {index} to {mtu}"),
        RouteNetlinkMessage::NewLink(message),
        0,
        &[],
    )
}

/// Sets a link's hardware address. The kernel does it on a veth that is up.
pub fn set_mac(index: LinkIndex, mac: Mac) -> Request {
    let mut message = of(index);
    message
        .attributes
        .push(LinkAttribute::Address(mac.bytes().to_vec()));
    Request::new(
        format!("set address of link {index} to {mac}"),
        RouteNetlinkMessage::NewLink(message),
        0,
        &[],
    )
}

/// Waits until a link takes packets; false if it does not by the deadline, or is gone.
///
/// Of a veth's ends the one that is set up first gets its carrier while it is up, and drops whatever is sent
/// through it until a kernel worker has started its queue: a first SYN is lost, and the next comes a second
/// later. Asking for the link makes the kernel do that work at once (since 6.8; older ones take a moment).
///
/// *Cost*: one round trip on 6.8 and later.
pub fn await_operational(
    socket: &mut Socket,
    index: LinkIndex,
    within: Duration,
) -> Result<bool, Error> {
    let deadline = Instant::now() + within;
    loop {
        let mut message = of(index);
        message.attributes.push(without_counters());
        let request = Request::new(
            format!("find link {index}"),
            RouteNetlinkMessage::GetLink(message),
            0,
            &[Errno::NODEV],
        );
        let reply = socket.run_one(request)?;
        match reply.messages.first().map(parse).transpose()? {
            Some(link) if link.operational => return Ok(true),
            Some(_) if Instant::now() < deadline => {
                // Nothing to wait on but the time: a pause that a signal may cut short.
                let _ = rustix::event::poll(&mut [], Some(&PAUSE));
            }
            Some(_) | None => return Ok(false),
        }
    }
}

/// Removes a link, and with it the other end of a veth, wherever that is. It may be gone already.
/// *Cost*: 16 to 24 ms of waiting in the kernel.
pub fn remove(index: LinkIndex) -> Request {
    Request::new(
        format!("remove link {index}"),
        RouteNetlinkMessage::DelLink(of(index)),
        0,
        &[Errno::NODEV],
    )
}

/// Half of a link's answer is counters, which the kernel adds up over all processors.
fn without_counters() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

fn of(index: LinkIndex) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index.get();
    message
}

/// Reads a link out of an answer. By hand, because a link carries dozens of attributes that a node agent
/// never looks at, and one of a new kind must not hide a link from it.
pub fn parse(message: &Message) -> Result<Link, Error> {
    let fail = |reason: String| Error::Decode {
        what: "link".into(),
        reason,
    };
    if message.kind != RTM_NEWLINK {
        return Err(fail(format!("message of type {}", message.kind)));
    }
    parse_body(&message.body)
}

/// As [`parse`], for what follows any netlink header of a link.
pub(crate) fn parse_body(body: &[u8]) -> Result<Link, Error> {
    let fail = |reason: String| Error::Decode {
        what: "link".into(),
        reason,
    };
    let header = LinkHeader::parse(body).map_err(|e| fail(e.to_string()))?;
    let index = LinkIndex::new(header.index).ok_or_else(|| fail("index 0".into()))?;
    let mut link = Link {
        index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: header.flags.contains(LinkFlags::Up),
        operational: false,
        kind: None,
        peer: None,
    };
    for attribute in NlasIterator::new(body.get(FIXED..).unwrap_or(&[])) {
        let attribute = attribute.map_err(|e| fail(e.to_string()))?;
        let value = attribute.value();
        match attribute.kind() {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac::new),
            IFLA_MTU => link.mtu = number(value).unwrap_or(0),
            IFLA_LINK => link.peer = number(value).and_then(LinkIndex::new),
            IFLA_OPERSTATE => link.operational = value == [OPER_UP],
            IFLA_LINKINFO => link.kind = kind(value),
            _ => {}
        }
    }
    Ok(link)
}

fn kind(info: &[u8]) -> Option<String> {
    NlasIterator::new(info)
        .map_while(Result::ok)
        .find(|attribute: &NlaBuffer<&[u8]>| attribute.kind() == IFLA_INFO_KIND)
        .map(|attribute| text(attribute.value()))
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value)
        .trim_end_matches('\0')
        .to_owned()
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}
