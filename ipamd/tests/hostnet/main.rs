//! The host's network on a real kernel, each test in namespaces of its own (tests/netns-runner).

mod packets;
mod state;
mod world;
