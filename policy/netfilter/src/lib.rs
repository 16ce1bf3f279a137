//! Ipset, nftables and iptables at the kernel's edge of the policy daemon.
