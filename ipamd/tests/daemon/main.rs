//! The whole daemon in one process: a cloud in memory, a host that is a book, the real socket, the real files.
//!
//! The clock is tokio's paused one: waiting costs nothing, and what takes two minutes on a node takes none here.

mod cluster;
mod failures;
mod host;
mod hostile;
mod leases;
mod modes;
mod node;
mod start;
