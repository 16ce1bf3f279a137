//! How large the pool is, which interfaces it fills, where it makes them, and what it says when it is empty.

mod arithmetic;
mod causes;
mod demand;
mod network;
mod node;
mod ownership;
mod prefixes;
