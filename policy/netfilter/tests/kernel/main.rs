//! The kernel's edge against a real kernel, each test in namespaces of its own.

mod conntrack;
mod contention;
mod cutter;
mod foreign;
mod foreign_sets;
mod nflog;
mod node;
mod routes;
mod rules;
mod sets;
mod strangers;
