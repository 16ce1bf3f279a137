//! The enforcement daemon: watches the Kubernetes API, programs iptables and ipset.

fn main() {}
