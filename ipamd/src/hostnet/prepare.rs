//! What must be set before the daemon runs, with more privilege than it has: `selvage-ipamd init`.

use std::collections::BTreeSet;

use selvage_ipamd_core::ids::Mac;
use selvage_nodenet::link::Link;
use selvage_nodenet::rule::Family;
use selvage_nodenet::sysctl::{self, Key};
use selvage_nodenet::{Socket, link};
use thiserror::Error;

use super::HostError;

/// The node could not be prepared.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// The primary interface is not in this namespace.
    #[error("no link with hardware address {0}: is this the host's network namespace?")]
    NoPrimary(Mac),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] selvage_nodenet::Error),
}

/// What a node is prepared for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepare {
    /// What pods speak.
    pub family: Family,
    /// Whether TCP is demultiplexed before a packet's route is known. Off where kubelet's TCP probes must reach pods
    /// with security groups of their own.
    pub tcp_early_demux: bool,
}

/// Sets the sysctls that pods need and tells which were changed: forwarding on, in the pods' family; the primary
/// interface's reverse path filter loose (replies to marked connections come in by it); early demultiplexing of TCP as
/// asked (skipped where the kernel has no such key). For IPv6 also: IPv6 on, and router advertisements accepted on the
/// primary interface although the node forwards: its default route comes from them.
///
/// # Errors
/// When the primary interface is not there or the kernel refuses.
///
/// *Needs*: a writable /proc/sys, as a privileged container has it, in the host's network namespace. Blocks.
pub fn prepare_node(primary: Mac, prepare: Prepare) -> Result<Vec<String>, PrepareError> {
    let mut socket = Socket::open()?;
    let mac = selvage_nodenet::Mac::new(primary.0);
    let link = link::find_by_mac(&mut socket, mac)?.ok_or(PrepareError::NoPrimary(primary))?;
    let mut changed = Vec::new();
    let mut note = |key: &Key, value: &str, written: bool| {
        if written {
            changed.push(format!("{} = {value}", key.as_str()));
        }
    };
    for (key, value) in needed(&link.name, prepare.family) {
        note(&key, value, sysctl::ensure(&key, value)?);
    }
    let loose = Key::ipv4_of_link(&link.name, "rp_filter");
    note(&loose, "2", sysctl::ensure(&loose, "2")?);
    let demux = Key::new("net/ipv4/tcp_early_demux");
    let value = if prepare.tcp_early_demux { "1" } else { "0" };
    note(&demux, value, sysctl::ensure_if_there(&demux, value)?);
    Ok(changed)
}

/// What pods of a family cannot do without, in the order in which it is set: `forwarding` resets others.
fn needed(primary: &str, family: Family) -> Vec<(Key, &'static str)> {
    let mut needed = vec![(Key::new("net/ipv4/ip_forward"), "1")];
    match family {
        Family::V4 => {}
        Family::V6 => needed.extend([
            (Key::new("net/ipv6/conf/all/disable_ipv6"), "0"),
            (Key::new("net/ipv6/conf/all/forwarding"), "1"),
            (Key::ipv6_of_link(primary, "accept_ra"), "2"),
        ]),
    }
    needed
}

/// The primary interface's link.
pub(super) fn primary(socket: &mut Socket, primary: Mac) -> Result<Link, HostError> {
    let mac = selvage_nodenet::Mac::new(primary.0);
    link::find_by_mac(socket, mac)?.ok_or(HostError::NoLink { mac: primary })
}

/// The keys that are not as [`prepare_node`] sets them, and matter.
pub(super) fn wrong(primary: &str, family: Family) -> Result<BTreeSet<String>, HostError> {
    let mut wrong = BTreeSet::new();
    for (key, value) in needed(primary, family) {
        if sysctl::read(&key)?.as_deref() != Some(value) {
            wrong.insert(key.as_str().to_owned());
        }
    }
    // Strict (1) drops replies that come in by the primary interface and belong to another one. What counts is the
    // greater of `all` and the link's own, and 2 is loose.
    let own = Key::ipv4_of_link(primary, "rp_filter");
    let all = Key::new("net/ipv4/conf/all/rp_filter");
    let strictest = [sysctl::read(&own)?, sysctl::read(&all)?];
    let effective = strictest
        .iter()
        .flatten()
        .filter_map(|value| value.parse::<u8>().ok())
        .max();
    if effective == Some(1) {
        wrong.insert(own.as_str().to_owned());
    }
    Ok(wrong)
}
