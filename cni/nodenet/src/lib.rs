//! Links, addresses, routes, rules, neighbours, sysctls and connections of a node and its pods, over netlink.
//!
//! The only code of the addressing half that speaks netlink or changes network namespaces. Messages are
//! those of the `rtnetlink` crate; the socket is our own, because the plugin makes a dozen requests in under a
//! millisecond and then ends: one synchronous socket, many requests in one `send`, errors told apart by
//! sequence number.
//!
//! ```text
//! object (link, addr, route, rule, neigh)     pure functions: what is wanted -> Request
//!      |
//! Request, Request, Request                   each with the words for its error and what it puts up with
//!      |  Socket::run: one send, one receive if nothing fails
//! Result<Reply>, Result<Reply>, ...           in the order of the requests; the kernel's own message kept
//! ```
//!
//! | module | reads | makes and removes |
//! |---|---|---|
//! | [`link`] | [`link::list`], [`link::find`], [`link::find_by_mac`], [`link::await_operational`] | [`link::create_veth`], [`link::set_up`], [`link::set_mtu`], [`link::set_mac`], [`link::remove`] |
//! | [`addr`] | [`addr::list`] | [`addr::ensure`], [`addr::ensure_at_once`], [`addr::remove`], [`addr::flush_global`] |
//! | [`route`] | [`route::list`] | [`route::add`], [`route::replace`], [`route::remove`] |
//! | [`rule`] | [`rule::list`] | [`rule::ensure`], [`rule::remove`], [`rule::remove_every`] |
//! | [`neigh`] | [`neigh::list`] | [`neigh::replace`], [`neigh::remove`] |
//! | [`conntrack`] | | [`conntrack::remove`] |
//! | [`sysctl`] | [`sysctl::read`] | [`sysctl::write`], [`sysctl::ensure`], [`sysctl::ensure_if_there`] |
//! | [`netns`] | | [`NetNs::open_socket`], [`NetNs::run`] |
//! | [`monitor`] | [`Monitor::drain`]: what others change, in [`tables`] too | |
//!
//! *Needs*: `CAP_NET_ADMIN` over the network namespace for every change, `CAP_SYS_ADMIN` to enter another one.
//! Reading needs nothing. *Cost*: a change costs 2 to 10 µs and a share of one `send`; a listing is linear in the
//! objects of its kind (about 1 µs each); deleting a link waits 16 to 24 ms for the kernel (seen on 6.x).
//!
//! Calls block their thread, at most [`Socket::DEADLINE`] beyond what the kernel itself takes: async code
//! calls them on a blocking thread.
//!
//! ```
//! use selvage_nodenet::{Socket, link};
//!
//! let mut socket = Socket::open()?;
//! let lo = link::find(&mut socket, "lo")?.expect("every namespace has it");
//! assert_eq!(lo.index.get(), 1);
//! # Ok::<(), selvage_nodenet::Error>(())
//! ```

pub mod addr;
pub mod conntrack;
mod error;
pub mod link;
mod mac;
pub mod monitor;
pub mod neigh;
mod netfilter;
pub mod netns;
pub mod route;
pub mod rule;
mod socket;
pub mod sysctl;
pub mod tables;

pub use error::Error;
pub use link::LinkIndex;
pub use mac::Mac;
pub use monitor::{Event, Monitor};
pub use netns::NetNs;
pub use route::TableId;
pub use socket::{Message, Reply, Request, Socket};
pub use tables::TableChange;
