//! The kernel's edge of the policy daemon: reads what is there, carries out a plan.
//!
//! ```text
//!             Kernel::observe -> Observed ─┐
//!                                          ├─ plan (pure) ─> Plan ─> Kernel::apply
//!             Ruleset (compiled, pure) ────┘
//!
//!   sets    ipset       read and written by netlink
//!   rules   nft         read by netlink, written by iptables-nft-restore, deleted by netlink
//!           legacy      read by socket option, written by iptables-legacy-restore
//!   flows   conntrack   read, judged and deleted by netlink
//!   routes  main, …     watched by netlink
//!   nflog   a group     packets that rules log
//! ```
//!
//! What others do to it is noticed by a [`Watcher`], which says when to look again.
//!
//! Everything blocks, with a deadline; an async program calls it from a thread of its own.
//! Only names with our prefix are ever written to, and jumps to them deleted.
//!
//! ```no_run
//! use std::time::Duration;
//! use selvage_netfilter::{Kernel, choose_backend};
//! use selvage_policy_core::ruleset::Family;
//!
//! # fn main() -> Result<(), selvage_netfilter::Error> {
//! let patience = Duration::from_secs(10);
//! let mut kernel = Kernel::open(choose_backend(None, patience)?, patience)?;
//! let found = kernel.observe(Family::V4)?;
//! println!("{} chains, {} sets", found.chains.len(), found.sets.len());
//! # Ok(())
//! # }
//! ```

mod addresses;
mod backend;
pub mod conntrack;
mod content;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod ipset;
mod iptables;
mod ipvs;
mod kernel;
mod legacy;
mod listen;
mod memory;
mod message;
pub mod nflog;
mod nftables;
mod record;
pub mod routes;
mod socket;
mod watch;

use std::time::Duration;

pub use addresses::local_addresses;
pub use backend::choose as choose_backend;
pub use error::{Error, Refusal};
pub use iptables::{Backend, saved_tables};
pub use ipvs::ipvs_in_use;
pub use kernel::{Cleaned, Kernel, Rules, Step};
pub use record::Record;
pub use watch::{Pace, Suspect, Watcher};

/// Waits for something that the kernel does by itself and tells nobody about.
#[expect(
    clippy::disallowed_methods,
    reason = "callers bound the waiting; there is nothing to wait on"
)]
pub(crate) fn pause(length: Duration) {
    std::thread::sleep(length);
}
