//! The sets that keep a cut flow cut: who must not speak first to whom, for a while.
//!
//! A forbidden flow from client to server, once its conntrack entry is gone, looks like a new flow
//! from server to client when the server goes on sending; allowed, if that direction is. So rules
//! drop what is new and comes from a member's server and port to its client:
//!
//! ```text
//!   -m conntrack --ctstate NEW -m set --match-set selvage-cut4 src,src,dst -j DROP
//! ```
//!
//! TCP and SCTP need no member: what belongs to no flow there (new or invalid) and opens none is
//! dropped by a rule.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use selvage_policy_core::ruleset::{Family, guard_set};

use super::IpSets;
use super::wire::{self, Command, attribute};
use crate::error::Error;
use crate::message::{ATTRIBUTE_MAX, Message};

/// How many members a set holds: more than the flows that a node's conntrack table has room for.
/// Only those that are there take memory, 100 bytes each.
pub(super) const ROOM: u32 = 1 << 20;

/// The most that one member takes in a message: nest, two IPv6 addresses, port, protocol, timeout,
/// line.
const MEMBER_MAX: usize = 4 + 24 + 24 + 8 + 8 + 8 + 8;

/// The kernel takes no longer ones: a signed number of milliseconds.
const LONGEST: Duration = Duration::from_secs(2_147_483);

/// Somebody who must not speak first for a while.
///
/// *Shape*: both addresses are of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unasked {
    /// Who answered in the flow that was cut.
    pub server: IpAddr,
    /// The number of the protocol above IP.
    pub protocol: u8,
    /// Where from; 0 for a protocol without ports.
    pub port: u16,
    /// Whom to, as the server addresses it.
    pub client: IpAddr,
}

impl IpSets {
    /// Makes members of the families' sets for a while, from now on also those that are there.
    ///
    /// *Units*: whole seconds, at least 1.
    ///
    /// *Errors*: [`Error::Refused`] when there is no such set, one without timeouts, or a full
    /// one.
    ///
    /// *Cost*: as of [`IpSets::add`].
    pub fn guard(&mut self, members: &BTreeSet<Unasked>, timeout: Duration) -> Result<(), Error> {
        for family in [Family::V4, Family::V6] {
            let name = guard_set(family);
            let object = || format!("add to set {name}");
            let mut rest = members
                .iter()
                .filter(|member| Family::of_address(member.client) == family)
                .peekable();
            let mut line = 0;
            while rest.peek().is_some() {
                let mut message = self.about(Command::Add, &name);
                message.net_u32(attribute::LINE, 0);
                message.nested(attribute::MEMBERS, |nest| {
                    while nest.len() + MEMBER_MAX + 64 <= ATTRIBUTE_MAX
                        && let Some(member) = rest.next()
                    {
                        line += 1;
                        nest.nested(attribute::DATA, |data| write(data, member, timeout, line));
                    }
                });
                self.socket.request(&object, message)?;
            }
        }
        Ok(())
    }
}

fn write(data: &mut Message, member: &Unasked, timeout: Duration, line: u32) {
    wire::write_address(data, attribute::IP, member.server);
    data.net_u16(attribute::PORT, member.port)
        .u8(attribute::TRANSPORT, member.protocol);
    wire::write_address(data, attribute::IP_2, member.client);
    data.net_u32(attribute::TIMEOUT, seconds(timeout))
        .net_u32(attribute::LINE, line);
}

fn seconds(timeout: Duration) -> u32 {
    let whole = timeout.min(LONGEST).as_secs().max(1);
    u32::try_from(whole).expect("the longest fits")
}
