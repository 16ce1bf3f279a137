//! Routing policy rules: which table a packet's route is looked up in.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rustix::io::Errno;

use crate::route::family_of;
use crate::{Error, Request, Socket, TableId};

/// More rules than this for one address are not leftovers but somebody's loop.
const MOST_ALIKE: u32 = 1000;

/// The address families of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A packet mark to compare: `packet mark & mask == value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// What it must be.
    pub value: u32,
    /// The bits that count.
    pub mask: u32,
}

/// A rule that sends packets to a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Its family.
    pub family: Family,
    /// Its place: lower numbers are asked first. Of two with the same number the older one is.
    pub priority: u32,
    /// Packets from here only.
    pub from: Option<IpNet>,
    /// Packets to here only.
    pub to: Option<IpNet>,
    /// Packets with this mark only.
    pub mark: Option<Mark>,
    /// Packets that came in by the link of this name only.
    pub incoming: Option<String>,
    /// The table.
    pub table: TableId,
}

impl Rule {
    /// A rule for every packet; narrow it with [`Rule::from`], [`Rule::to`] and so on.
    pub fn new(family: Family, priority: u32, table: TableId) -> Self {
        Rule {
            family,
            priority,
            from: None,
            to: None,
            mark: None,
            incoming: None,
            table,
        }
    }

    /// For packets from a net only.
    #[must_use]
    pub fn from(mut self, net: IpNet) -> Self {
        self.from = Some(net);
        self
    }

    /// For packets to a net only.
    #[must_use]
    pub fn to(mut self, net: IpNet) -> Self {
        self.to = Some(net);
        self
    }

    /// For packets with a mark only.
    #[must_use]
    pub fn mark(mut self, value: u32, mask: u32) -> Self {
        self.mark = Some(Mark { value, mask });
        self
    }

    fn message(&self) -> RuleMessage {
        let mut message = key(self.family, self.priority, self.from, self.to);
        message.header.action = RuleAction::ToTable;
        message.attributes.push(RuleAttribute::Table(self.table.0));
        if let Some(mark) = self.mark {
            message.attributes.push(RuleAttribute::FwMark(mark.value));
            message.attributes.push(RuleAttribute::FwMask(mark.mask));
        }
        if let Some(link) = &self.incoming {
            message
                .attributes
                .push(RuleAttribute::Iifname(link.clone()));
        }
        message
    }
}

impl fmt::Display for Rule {
    /// As `ip rule` shows it: `512: from all to 10.0.1.7/32 lookup 254`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: from ", self.priority)?;
        match self.from {
            Some(net) => write!(f, "{net}")?,
            None => f.write_str("all")?,
        }
        if let Some(net) = self.to {
            write!(f, " to {net}")?;
        }
        if let Some(mark) = self.mark {
            write!(f, " fwmark {:#x}/{:#x}", mark.value, mark.mask)?;
        }
        if let Some(link) = &self.incoming {
            write!(f, " iif {link}")?;
        }
        write!(f, " lookup {}", self.table)
    }
}

/// Adds a rule; it may be there already. (Without this check the kernel keeps as many copies as are added.)
/// It says nothing about who made it, as AWS's rules: the kernel takes two that differ in that for two rules.
/// *Cost*: linear in the rules of the family; about 5 µs at 500.
pub fn ensure(rule: &Rule) -> Request {
    Request::new(
        format!("add rule {rule}"),
        RouteNetlinkMessage::NewRule(rule.message()),
        NLM_F_CREATE | NLM_F_EXCL,
        &[Errno::EXIST],
    )
}

/// Removes the first rule that is like this one in all that it says; it may be gone already.
pub fn remove(rule: &Rule) -> Request {
    Request::new(
        format!("remove rule {rule}"),
        RouteNetlinkMessage::DelRule(rule.message()),
        0,
        &[Errno::NOENT],
    )
}

/// Removes the first rule at a priority from, or to, one net, whatever its table: [`Reply::changed`] tells
/// whether there was one.
///
/// [`Reply::changed`]: crate::Reply::changed
pub fn remove_any_table(priority: u32, direction: Direction) -> Request {
    let (net, from, to) = match direction {
        Direction::From(net) => (net, Some(net), None),
        Direction::To(net) => (net, None, Some(net)),
    };
    let family = match net {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    };
    let mut message = key(family, priority, from, to);
    message.header.action = RuleAction::ToTable;
    Request::new(
        format!("remove rules {direction} at {priority}"),
        RouteNetlinkMessage::DelRule(message),
        0,
        &[Errno::NOENT],
    )
}

/// Removes all rules at a priority from, or to, one net, whatever their tables; tells how many there were.
/// *Cost*: one round trip for each rule and one more.
pub fn remove_every(
    socket: &mut Socket,
    priority: u32,
    direction: Direction,
) -> Result<u32, Error> {
    // Bounded, since another process may be adding them as fast as we remove them.
    for removed in 0..MOST_ALIKE {
        let request = remove_any_table(priority, direction);
        if !socket.run_one(request)?.changed {
            return Ok(removed);
        }
    }
    Ok(MOST_ALIKE)
}

/// Which end of a packet a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Packets from this net.
    From(IpNet),
    /// Packets to this net.
    To(IpNet),
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Direction::From(net) => write!(f, "from {net}"),
            Direction::To(net) => write!(f, "to {net}"),
        }
    }
}

/// All rules of a family that look up a table, in the order in which the kernel asks them.
/// *Cost*: linear in the rules.
pub fn list(socket: &mut Socket, family: Family) -> Result<Vec<Rule>, Error> {
    let mut message = RuleMessage::default();
    message.header.family = family_of(unspecified(family));
    let request = Request::new(
        "list rules".into(),
        RouteNetlinkMessage::GetRule(message),
        0,
        &[],
    );
    let mut rules = Vec::new();
    for message in socket.dump(&request)? {
        let message = RuleMessage::parse(message.body.as_slice()).map_err(|e| Error::Decode {
            what: "list rules".into(),
            reason: e.to_string(),
        })?;
        rules.extend(read(&message, family));
    }
    Ok(rules)
}

fn key(family: Family, priority: u32, from: Option<IpNet>, to: Option<IpNet>) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family_of(unspecified(family));
    message.attributes.push(RuleAttribute::Priority(priority));
    if let Some(net) = from {
        message.header.src_len = net.prefix_len();
        message
            .attributes
            .push(RuleAttribute::Source(net.network()));
    }
    if let Some(net) = to {
        message.header.dst_len = net.prefix_len();
        message
            .attributes
            .push(RuleAttribute::Destination(net.network()));
    }
    message
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

pub(crate) fn read(message: &RuleMessage, family: Family) -> Option<Rule> {
    if message.header.action != RuleAction::ToTable {
        return None;
    }
    let mut rule = Rule::new(family, 0, TableId(message.header.table.into()));
    let (mut value, mut mask) = (None, u32::MAX);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Source(ip) => {
                rule.from = IpNet::new(*ip, message.header.src_len).ok();
            }
            RuleAttribute::Destination(ip) => {
                rule.to = IpNet::new(*ip, message.header.dst_len).ok();
            }
            RuleAttribute::FwMark(mark) => value = Some(*mark),
            RuleAttribute::FwMask(bits) => mask = *bits,
            RuleAttribute::Iifname(name) => rule.incoming = Some(name.clone()),
            RuleAttribute::Table(table) => rule.table = TableId(*table),
            _ => {}
        }
    }
    rule.mark = value.map(|value| Mark { value, mask });
    Some(rule)
}
