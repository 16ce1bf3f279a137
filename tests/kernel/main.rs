//! The kernel suite: packets on a real kernel, each test in its own namespaces.

mod cluster;
mod corners;
mod fixtures;
mod packets;
mod policy;
