//! What must be set before the daemon runs, with more privilege than it has: `selvage-ipamd init`.

use selvage_ipamd_core::ids::Mac;
use selvage_nodenet::sysctl::{self, Key};
use selvage_nodenet::{Socket, link};
use thiserror::Error;

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

/// Sets the sysctls that pods need and tells which were changed: forwarding on, the primary interface's reverse path
/// filter loose (replies to marked connections come in by it), early demultiplexing of TCP on (what AWS's init sets;
/// skipped where the kernel has no such key).
///
/// # Errors
/// When the primary interface is not there or the kernel refuses.
///
/// *Needs*: a writable /proc/sys, as a privileged container has it, in the host's network namespace. Blocks.
pub fn prepare_node(primary: Mac) -> Result<Vec<String>, PrepareError> {
    let mut socket = Socket::open()?;
    let mac = selvage_nodenet::Mac::new(primary.0);
    let link = link::find_by_mac(&mut socket, mac)?.ok_or(PrepareError::NoPrimary(primary))?;
    let mut changed = Vec::new();
    for (key, value) in [
        (Key::new("net/ipv4/ip_forward"), "1"),
        (Key::ipv4_of_link(&link.name, "rp_filter"), "2"),
    ] {
        if sysctl::ensure(&key, value)? {
            changed.push(format!("{} = {value}", key.as_str()));
        }
    }
    let demux = Key::new("net/ipv4/tcp_early_demux");
    if sysctl::read(&demux)?.is_some() && sysctl::ensure(&demux, "1")? {
        changed.push(format!("{} = 1", demux.as_str()));
    }
    Ok(changed)
}
