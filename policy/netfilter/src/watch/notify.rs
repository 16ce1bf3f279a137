//! What nf_tables tells of each commit, boiled down to whether table `mangle` was touched.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rtnetlink::sys::{Socket, protocols::NETLINK_NETFILTER};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use selvage_policy_core::ruleset::Family;

use crate::content::TABLE;
use crate::error::Error;
use crate::message::{Received, messages};
use crate::nftables::SUBSYSTEM;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// `NFT_MSG_NEWSETELEM`, `NFT_MSG_DELSETELEM`: native sets are no part of our rules.
const ELEMENTS: [u8; 2] = [12, 14];

/// The name of the table, in messages about tables, chains and rules alike.
const ANY_TABLE: u16 = 1;

/// Longer than any datagram of notifications, of which the kernel fills a page or four.
const RECEIVE: usize = 64 * 1024;

/// Between two looks at the clock.
const DATAGRAMS: usize = 10_000;

/// `MSG_DONTWAIT`, `MSG_TRUNC`.
const AT_ONCE: i32 = 0x40;
const TRUNCATED: i32 = 0x20;

/// `ENOBUFS`.
const OVERRUN: i32 = 105;

/// A socket that hears of every commit in its network namespace.
pub(super) struct Notifications {
    socket: Socket,
    buffer: Vec<u8>,
    /// Something was lost, and the queue has not been empty since: more may be.
    overrun: bool,
}

impl Notifications {
    pub(super) fn open(buffer: usize) -> Result<Self, Error> {
        let failed = |what| move |source| Error::Socket { what, source };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed("open"))?;
        // Only an administrator of the machine may go above the system's limit.
        if set_socket_recv_buffer_size_force(&socket, buffer).is_err() {
            set_socket_recv_buffer_size(&socket, buffer)
                .map_err(io::Error::from)
                .map_err(failed("set the receive buffer"))?;
        }
        socket.bind_auto().map_err(failed("bind"))?;
        socket
            .add_membership(GROUP)
            .map_err(failed("ask for nft notifications"))?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(RECEIVE),
            overrun: false,
        })
    }

    /// Families whose `mangle` was touched since the last call; both when something was lost.
    pub(super) fn drain(&mut self) -> Result<BTreeSet<Family>, Error> {
        let mut families = BTreeSet::new();
        for _ in 0..DATAGRAMS {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, AT_ONCE | TRUNCATED) {
                Ok(length) if length > self.buffer.len() => self.overrun = true,
                Ok(_) => families.extend(messages(&self.buffer).filter_map(|it| touched(&it))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(OVERRUN) => self.overrun = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // From here on everything is told again: what was lost was committed before.
                    if std::mem::take(&mut self.overrun) {
                        tracing::debug!("nft notifications were lost: everything is suspect");
                        families.extend([Family::V4, Family::V6]);
                    }
                    return Ok(families);
                }
                Err(source) => {
                    return Err(Error::Socket {
                        what: "receive nft notifications",
                        source,
                    });
                }
            }
        }
        Ok(families)
    }
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The family whose `mangle` a message is about.
fn touched(message: &Received<'_>) -> Option<Family> {
    let [subsystem, event] = message.kind.to_be_bytes();
    let ours = subsystem == SUBSYSTEM
        && !ELEMENTS.contains(&event)
        && message.attributes().text(ANY_TABLE) == Some(TABLE);
    // NFPROTO_IPV4 and NFPROTO_IPV6: a native table of family inet is none of iptables'.
    match message.body.first()? {
        2 if ours => Some(Family::V4),
        10 if ours => Some(Family::V6),
        _ => None,
    }
}

/// The families that a datagram touches, whoever made it up.
#[cfg(feature = "fuzzing")]
pub(crate) fn touched_by(datagram: &[u8]) -> BTreeSet<Family> {
    messages(datagram).filter_map(|it| touched(&it)).collect()
}

#[cfg(test)]
mod tests {
    use super::touched;
    use crate::message::{Message, messages};
    use selvage_policy_core::ruleset::Family;

    #[test]
    fn only_what_touches_table_mangle_of_a_family_is_told() {
        let deleted_rule = (10, 8);
        for ((subsystem, event), family, table, told, why) in [
            (deleted_rule, 2, "mangle", Some(Family::V4), "a rule"),
            (deleted_rule, 10, "mangle", Some(Family::V6), "of IPv6"),
            ((10, 2), 2, "mangle", Some(Family::V4), "the whole table"),
            (deleted_rule, 2, "filter", None, "another table"),
            (deleted_rule, 1, "mangle", None, "a native table of inet"),
            ((10, 12), 2, "mangle", None, "a member of a native set"),
            ((1, 8), 2, "mangle", None, "another subsystem"),
        ] {
            let mut message = Message::new(subsystem, event, 0, family);
            message.text(1, table);
            let bytes = message.finish(0);
            let received = messages(&bytes).next().unwrap();
            assert_eq!(touched(&received), told, "{why}");
        }
    }
}
