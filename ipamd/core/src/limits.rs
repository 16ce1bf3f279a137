//! What an instance type can hold: interfaces, and addresses or prefixes on each.

use thiserror::Error;

use crate::cloud::PREFIX_ADDRESSES;

/// What pods get their addresses from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Single IPv4 addresses.
    #[default]
    Addresses,
    /// IPv4 prefixes (`/28`, ENABLE_PREFIX_DELEGATION).
    Prefixes,
    /// One IPv6 prefix (`/80`, ENABLE_IPv6).
    Ipv6,
}

/// How many interfaces an instance can have and how many IPv4 addresses each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    enis: u16,
    addresses_per_eni: u16,
    prefixes: bool,
    vcpus: Option<u32>,
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

/// Below so many vCPUs a node with prefixes should have [`PODS_SMALL`] pods at most (EKS User Guide, "Assign more IP
/// addresses to Amazon EKS nodes with prefixes").
const VCPUS_LARGE: u32 = 30;
/// Pods that EKS recommends at most for instances below [`VCPUS_LARGE`] vCPUs.
const PODS_SMALL: u32 = 110;
/// Pods that EKS recommends at most for all others.
const PODS_LARGE: u32 = 250;

impl Limits {
    /// Limits of a type: `enis` interfaces (the primary one included, on the default network card),
    /// `addresses_per_eni` IPv4 addresses on each (its primary address included). Without prefixes, and with an unknown
    /// number of vCPUs.
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
            prefixes: false,
            vcpus: None,
        })
    }

    /// Whether its interfaces can have prefixes: Nitro and bare metal.
    #[must_use]
    pub fn with_prefixes(self, prefixes: bool) -> Self {
        Self { prefixes, ..self }
    }

    /// How many vCPUs it has.
    #[must_use]
    pub fn with_vcpus(self, vcpus: u32) -> Self {
        Self {
            vcpus: Some(vcpus),
            ..self
        }
    }

    /// The same with at most `enis` interfaces (MAX_ENI), one at least.
    #[must_use]
    pub fn with_enis(self, enis: u32) -> Self {
        let enis = u16::try_from(enis).unwrap_or(u16::MAX);
        Self {
            enis: enis.clamp(1, self.enis),
            ..self
        }
    }

    /// Interfaces, the primary one included.
    pub fn enis(&self) -> u32 {
        u32::from(self.enis)
    }

    /// Whether its interfaces can have prefixes.
    pub fn can_have_prefixes(&self) -> bool {
        self.prefixes
    }

    /// vCPUs, if known.
    pub fn vcpus(&self) -> Option<u32> {
        self.vcpus
    }

    /// Places on an interface for what serves pods: all its addresses but its own. A prefix takes one, as a single
    /// address does.
    pub fn places_per_eni(&self) -> u32 {
        u32::from(self.addresses_per_eni) - 1
    }

    /// Addresses that an interface can give to pods, IPv4 only.
    pub fn pod_addresses_per_eni(&self, mode: Mode) -> u32 {
        match mode {
            Mode::Addresses => self.places_per_eni(),
            Mode::Prefixes => self.places_per_eni() * PREFIX_ADDRESSES,
            Mode::Ipv6 => u32::MAX,
        }
    }

    /// The kubelet's max-pods for the type: every pod address of the interfaces that serve pods (`custom`: all but the
    /// primary one), and two agents on the host's network. With prefixes (also IPv6's) no more than EKS recommends for
    /// the number of vCPUs; where that is not known, as for a small one.
    pub fn max_pods(&self, mode: Mode, custom: bool) -> u32 {
        let enis = self.enis() - u32::from(custom);
        let recommended = match self.vcpus {
            Some(vcpus) if vcpus >= VCPUS_LARGE => PODS_LARGE,
            Some(_) | None => PODS_SMALL,
        };
        let counted = |mode| enis.saturating_mul(self.pod_addresses_per_eni(mode)) + 2;
        match mode {
            Mode::Addresses => counted(mode),
            Mode::Prefixes => counted(mode).min(recommended),
            Mode::Ipv6 => counted(Mode::Prefixes).min(recommended),
        }
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
            assert_eq!(limits.max_pods(Mode::Addresses, false), pods, "{name}");
        }
    }

    #[test]
    fn max_pods_of_other_modes_is_what_eks_computes() {
        let c5_large = Limits::new(3, 10).unwrap().with_vcpus(2);
        let m5_24xlarge = Limits::new(15, 50).unwrap().with_vcpus(96);
        let t3_nano = Limits::new(2, 2).unwrap().with_vcpus(2);
        for (name, limits, mode, custom, pods) in [
            ("custom networking", c5_large, Mode::Addresses, true, 20),
            ("prefixes, small", c5_large, Mode::Prefixes, false, 110),
            ("prefixes, large", m5_24xlarge, Mode::Prefixes, false, 250),
            ("prefixes, tiny", t3_nano, Mode::Prefixes, false, 34),
            (
                "prefixes and custom, tiny",
                t3_nano,
                Mode::Prefixes,
                true,
                18,
            ),
            ("IPv6, large", m5_24xlarge, Mode::Ipv6, false, 250),
        ] {
            assert_eq!(limits.max_pods(mode, custom), pods, "{name}");
        }
        let unknown = Limits::new(15, 50).unwrap();
        assert_eq!(unknown.max_pods(Mode::Prefixes, false), 110);
    }

    #[test]
    fn a_type_without_interfaces_or_addresses_is_refused() {
        assert!(Limits::new(0, 10).is_err());
        assert!(Limits::new(3, 0).is_err());
    }
}
