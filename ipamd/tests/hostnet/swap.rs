//! aws-node is replaced by us and takes over from us again, on a node whose pods keep running.
//!
//! aws-node itself is not here: what it leaves on a node is built field by field, and what it would read of ours is
//! held against its own forms. A test whose name says "as far as known" rests on a field that is deduced.

mod aws_node;
mod back;
mod ipv6;
mod stream;
mod take_over;
