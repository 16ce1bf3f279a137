//! A node and its pods in one test process: real namespaces, real veths, real packets.
//!
//! Depends on neither half of the project, so that it can judge both. Interfaces, addresses and
//! routes are made with `ip`, a pair of hands that owes our netlink code nothing.
//!
//! ```text
//!   the test's own namespace = the node        pod "a"            pod "b"
//!   eni<sha1 of ns.name> ──────────────────── eth0 10.40.0.11/32
//!   eni…                 ───────────────────────────────────── eth0 10.40.0.12/32
//!   a route per pod address, forwarding on     default via 169.254.1.1, permanent neighbour
//! ```
//!
//! ```no_run
//! use selvage_tests::{Node, Outcome, Protocol, probe};
//!
//! # fn main() -> anyhow::Result<()> {
//! let node = Node::new()?;
//! let a = node.pod("default", "a", "10.40.0.11".parse()?)?;
//! let b = node.pod("default", "b", "10.40.0.12".parse()?)?;
//! let _server = b.serve(Protocol::Tcp, 8080)?;
//! assert_eq!(probe(&a, &b, Protocol::Tcp, 8080), Outcome::Reached);
//! assert_eq!(probe(&a, &b, Protocol::Tcp, 8081), Outcome::Refused);
//! # Ok(())
//! # }
//! ```
//!
//! Tests that use it run under `cargo nextest` only: it gives each test a process, and
//! `tests/netns-runner` gives that process its namespaces. [`Node::new`] refuses anything else.

mod command;
mod netns;
mod node;
mod pod;
mod probe;
mod server;

pub use command::{run, run_with_input};
pub use netns::{Netns, Place, assert_isolated};
pub use node::Node;
pub use pod::{Pod, interface_name};
pub use probe::{Flow, Outcome, PATIENCE, Protocol, connect, probe, probe_at, send_from};
pub use server::Server;
