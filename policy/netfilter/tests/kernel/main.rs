//! The kernel's edge against a real kernel, each test in namespaces of its own.

mod node;
mod rules;
mod sets;
mod strangers;
