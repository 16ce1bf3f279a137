//! The host's network on a real kernel, each test in namespaces of its own (tests/netns-runner).

mod firewall;
mod ipv6;
mod node_port;
mod packets;
mod repair;
mod state;
mod swap;
mod world;
