//! Two readings of NetworkPolicy: the plain one, and what policy-core compiles.

#[path = "readings/blocks.rs"]
mod blocks;
#[path = "readings/compiled.rs"]
mod compiled;
#[path = "readings/nodes.rs"]
mod nodes;
#[path = "readings/peers.rs"]
mod peers;
#[path = "readings/ports.rs"]
mod ports;
#[path = "readings/random.rs"]
mod random;
#[path = "readings/subjects.rs"]
mod subjects;
#[path = "readings/world.rs"]
mod world;
