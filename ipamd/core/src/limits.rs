//! What an instance type can hold: interfaces, and addresses on each.

use thiserror::Error;

/// How many interfaces an instance can have and how many IPv4 addresses each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    enis: u16,
    addresses_per_eni: u16,
}

/// Numbers that no instance type has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{enis} interfaces with {addresses_per_eni} addresses each: an instance has at least one of both"
)]
pub struct BadLimits {
    enis: u16,
    addresses_per_eni: u16,
}

impl Limits {
    /// Limits of a type: `enis` interfaces (the primary one included, on the default network card),
    /// `addresses_per_eni` IPv4 addresses on each (its primary address included).
    ///
    /// # Errors
    /// When either is zero.
    pub fn new(enis: u16, addresses_per_eni: u16) -> Result<Self, BadLimits> {
        if enis == 0 || addresses_per_eni == 0 {
            return Err(BadLimits {
                enis,
                addresses_per_eni,
            });
        }
        Ok(Self {
            enis,
            addresses_per_eni,
        })
    }

    /// Interfaces, the primary one included.
    pub fn enis(&self) -> u32 {
        u32::from(self.enis)
    }

    /// Addresses that an interface can give to pods: all but its own.
    pub fn pod_addresses_per_eni(&self) -> u32 {
        u32::from(self.addresses_per_eni) - 1
    }

    /// The kubelet's max-pods for the type: every pod address, and two agents on the host's network.
    pub fn max_pods(&self) -> u32 {
        self.enis() * self.pod_addresses_per_eni() + 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_pods_is_that_of_the_published_tables() {
        for (name, enis, addresses, pods) in [
            ("t3.small", 3, 4, 11),
            ("c5.large", 3, 10, 29),
            ("c5.xlarge", 4, 15, 58),
            ("m5.4xlarge", 8, 30, 234),
        ] {
            let limits = Limits::new(enis, addresses).unwrap();
            assert_eq!(limits.max_pods(), pods, "{name}");
        }
    }

    #[test]
    fn a_type_without_interfaces_or_addresses_is_refused() {
        assert!(Limits::new(0, 10).is_err());
        assert!(Limits::new(3, 0).is_err());
    }
}
