//! The CNI plugin: gives a pod the VPC address that ipamd leased for it.

fn main() {}
