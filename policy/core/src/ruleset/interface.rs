//! Interface names and wildcards, all made from the veth naming rule.

use std::fmt;
use std::sync::Arc;

use sha1::{Digest as _, Sha1};
use thiserror::Error;

use super::marker::hex;

/// 11 hex digits of the hash are in a name (Calico's rule, AWS's rule).
const HASH_DIGITS: usize = 11;

/// 4: with 11 digits the name fills the 15 bytes that the kernel allows (`IFNAMSIZ` less one).
const PREFIX_MAX: usize = 4;

/// 32: the most network cards that an instance type has (p5.48xlarge).
const CARDS_MAX: usize = 32;

/// Beginnings that other interfaces have, which we would cut off.
const TAKEN: [&str; 3] = ["eth", "vlan", "lo"];

/// A prefix that cannot begin the names of pods' interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("interface prefix {0:?}: want 1 to {PREFIX_MAX} of [a-z0-9], and none of {TAKEN:?}")]
pub struct BadPrefix(String);

/// How the host ends of pods' veths begin.
///
/// ```
/// use selvage_policy_core::ruleset::VethPrefix;
///
/// let veth = VethPrefix::new("eni")?.veth("default", "web-0");
/// assert_eq!(veth.to_string(), "eni0d7763386da");
/// # Ok::<(), selvage_policy_core::ruleset::BadPrefix>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VethPrefix(String);

impl VethPrefix {
    /// Checks a prefix.
    ///
    /// *Errors*: [`BadPrefix`] when it is empty, too long, holds other characters than `[a-z0-9]`,
    /// or is `eth`, `vlan` or `lo`.
    pub fn new(prefix: &str) -> Result<Self, BadPrefix> {
        let well_formed = (1..=PREFIX_MAX).contains(&prefix.len())
            && prefix
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            && !TAKEN.contains(&prefix);
        if well_formed {
            Ok(Self(prefix.to_owned()))
        } else {
            Err(BadPrefix(prefix.to_owned()))
        }
    }

    /// The host end of a pod's veth: the prefix and the first 11 hex digits of
    /// `sha1("<namespace>.<pod name>")`.
    #[must_use]
    pub fn veth(&self, namespace: &str, pod: &str) -> Interface {
        let digest = Sha1::digest(format!("{namespace}.{pod}"));
        Interface {
            text: format!("{}{}", self.0, &hex(&digest)[..HASH_DIGITS]).into(),
            whole: true,
        }
    }

    /// The prefix itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How AWS's plugin calls the host end of a pod with security groups of its own in strict
    /// mode: `vlan` and the same digits. Nothing else can be said of names that begin so: the
    /// node's uplink for such pods is `vlan.eth.7`, and people call theirs `vlan100`.
    #[must_use]
    pub fn branch() -> Self {
        Self("vlan".to_owned())
    }

    /// The host ends of a pod's interfaces on further network cards, as AWS's plugin calls them.
    pub(crate) fn card_veths(&self, namespace: &str, pod: &str) -> impl Iterator<Item = Interface> {
        (1..CARDS_MAX).map(move |card| self.veth(namespace, &format!("{pod}.{card}")))
    }

    /// Any interface with the prefix.
    #[must_use]
    pub fn any(&self) -> Interface {
        self.beginning("")
    }

    /// Any interface with the prefix and then these digits.
    pub(crate) fn beginning(&self, digits: &str) -> Interface {
        Interface {
            text: format!("{}{digits}", self.0).into(),
            whole: false,
        }
    }

    /// The digits of a veth's name after the prefix.
    pub(crate) fn digits<'a>(&self, veth: &'a Interface) -> &'a str {
        &veth.text[self.0.len()..]
    }
}

impl Default for VethPrefix {
    /// `eni`, as in AWS's CNI plugin.
    fn default() -> Self {
        Self("eni".to_owned())
    }
}

/// An interface's name, or the beginning of many.
///
/// *Shape*: only [`VethPrefix`] makes it, so it holds nothing but `[a-z0-9]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface {
    text: Arc<str>,
    whole: bool,
}

impl Interface {
    /// Whether an interface of this name is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if self.whole {
            name == &*self.text
        } else {
            name.starts_with(&*self.text)
        }
    }
}

impl fmt::Display for Interface {
    /// As iptables writes it: `eni0d7763386da`, or `eni0+` for a beginning.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if self.whole { Ok(()) } else { f.write_str("+") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn veth_names_are_those_of_calico_and_aws() {
        for (namespace, pod, want) in [
            ("default", "nginx", "enic440f455693"),
            ("default", "web-0", "eni0d7763386da"),
            ("kube-system", "coredns-5d78c9869d-abcde", "eni4d5f75c480c"),
            ("kube-system", "aws-node", "eni91c0f2ebbec"),
        ] {
            let name = VethPrefix::default().veth(namespace, pod).to_string();
            assert_eq!(name, want, "{namespace}/{pod}");
        }
        let cali = VethPrefix::new("cali").unwrap().veth("default", "nginx");
        assert_eq!(cali.to_string(), "calic440f455693");
    }

    #[test]
    fn a_prefix_that_would_catch_other_interfaces_is_refused() {
        for bad in ["", "eth", "vlan", "lo", "enienix", "en+", "EN", "e n"] {
            assert!(VethPrefix::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_whole_name_is_no_wildcard() {
        let prefix = VethPrefix::default();
        let veth = prefix.veth("default", "web-0");
        assert!(veth.matches("eni0d7763386da"));
        assert!(!veth.matches("eni0d7763386da1"));
        assert!(prefix.any().matches("eni0d7763386da"));
        assert!(!prefix.any().matches("ens5"));
    }
}
