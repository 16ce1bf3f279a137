//! What an interface is asked for.

use std::fmt;

use super::Operation;

/// Addresses in an IPv4 prefix.
pub const PREFIX_ADDRESSES: u32 = 16;
/// Length of an IPv4 prefix: the only one EC2 gives to interfaces.
pub const PREFIX_LEN: u8 = 28;
/// Length of an IPv6 prefix: the only one EC2 gives to interfaces.
pub const PREFIX_LEN_V6: u8 = 80;

/// What an interface is asked for, at its making or later. Each takes places of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// So many single IPv4 addresses.
    Addresses(u32),
    /// So many `/28`s.
    Prefixes(u32),
    /// One `/80`.
    Ipv6Prefix,
}

impl Want {
    /// IPv4 addresses that it brings to pods; a `/80` has more than any node needs.
    pub fn addresses(self) -> u32 {
        match self {
            Want::Addresses(count) => count,
            Want::Prefixes(count) => count.saturating_mul(PREFIX_ADDRESSES),
            Want::Ipv6Prefix => u32::MAX,
        }
    }

    /// How many of its kind.
    pub fn count(self) -> u32 {
        match self {
            Want::Addresses(count) | Want::Prefixes(count) => count,
            Want::Ipv6Prefix => 1,
        }
    }

    /// The call by which an interface that exists is asked.
    pub fn operation(self) -> Operation {
        match self {
            Want::Addresses(_) | Want::Prefixes(_) => Operation::AssignAddresses,
            Want::Ipv6Prefix => Operation::AssignIpv6,
        }
    }
}

impl fmt::Display for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Want::Addresses(count) => write!(f, "{count} addresses"),
            Want::Prefixes(count) => write!(f, "{count} /{PREFIX_LEN} prefixes"),
            Want::Ipv6Prefix => write!(f, "a /{PREFIX_LEN_V6} prefix"),
        }
    }
}
