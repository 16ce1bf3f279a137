//! Names that reach the kernel: they cannot hold a character that would change a restore input.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use super::Family;

/// Every chain and set of ours begins with this, and nothing of anybody else's does.
pub const PREFIX: &str = "selvage-";

/// Kernel limit on chain names that iptables enforces (`XT_EXTENSION_MAXNAMELEN` less one).
pub const CHAIN_NAME_MAX: usize = 28;

/// Kernel limit on ipset names (`IPSET_MAXNAMELEN` less one).
pub const SET_NAME_MAX: usize = 31;

/// A name that is too long, lacks our prefix or holds a character outside `[a-z0-9-]`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{name:?} is no name of ours: {PREFIX} then [a-z0-9-], at most {max} bytes")]
pub struct BadName {
    name: String,
    max: usize,
}

fn parse(name: &str, max: usize) -> Result<&str, BadName> {
    let ours = name.strip_prefix(PREFIX).is_some_and(|rest| {
        !rest.is_empty()
            && rest
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    });
    if ours && name.len() <= max {
        Ok(name)
    } else {
        Err(BadName {
            name: name.to_owned(),
            max,
        })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $max:expr) => {
        $(#[$doc])*
        ///
        /// *Cost*: comparing names that share their memory looks at no letter.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub struct $type(Arc<str>);

        impl Ord for $type {
            fn cmp(&self, other: &Self) -> Ordering {
                if Arc::ptr_eq(&self.0, &other.0) {
                    Ordering::Equal
                } else {
                    self.0.cmp(&other.0)
                }
            }
        }

        impl PartialOrd for $type {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl $type {
            /// Checks a name.
            ///
            /// *Errors*: [`BadName`] when the prefix, the alphabet or the length is wrong.
            pub fn new(name: &str) -> Result<Self, BadName> {
                parse(name, $max).map(|name| Self(name.into()))
            }

            /// The name as the kernel knows it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The name of a chain of ours.
    ChainName,
    CHAIN_NAME_MAX
);
name!(
    /// The name of an ipset of ours.
    SetName,
    SET_NAME_MAX
);

impl SetName {
    /// The family that the name is of, if it is like those that we give to sets.
    #[must_use]
    pub fn family(&self) -> Option<Family> {
        let rest = self.0.strip_prefix(PREFIX)?;
        let digit = ["i", "e", "s", "cut"]
            .into_iter()
            .find_map(|begin| rest.strip_prefix(begin))?;
        let (digit, rest) = digit.split_at_checked(1)?;
        let family = match digit {
            "4" => Family::V4,
            "6" => Family::V6,
            _ => return None,
        };
        (rest.is_empty() || rest.starts_with('-')).then_some(family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_change_the_text_it_is_written_into() {
        let long = format!("{PREFIX}{}", "x".repeat(SET_NAME_MAX));
        let bad = [
            "",
            "selvage-",
            "selvage",
            "KUBE-FORWARD",
            "selvage-a b",
            "selvage-a\nCOMMIT",
            "selvage-A",
            "selvage-é",
            "xselvage-a",
            &long,
        ];
        for name in bad {
            assert!(ChainName::new(name).is_err(), "chain {name:?}");
            assert!(SetName::new(name).is_err(), "set {name:?}");
        }
    }

    #[test]
    fn a_name_is_as_long_as_the_kernel_takes_and_no_longer() {
        let name = |length: usize| format!("{PREFIX}{}", "x".repeat(length - PREFIX.len()));
        assert!(ChainName::new(&name(CHAIN_NAME_MAX)).is_ok());
        assert!(ChainName::new(&name(CHAIN_NAME_MAX + 1)).is_err());
        assert!(SetName::new(&name(SET_NAME_MAX)).is_ok());
        assert!(SetName::new(&name(SET_NAME_MAX + 1)).is_err());
    }

    #[test]
    fn a_sets_name_says_its_family_where_it_is_one_that_we_give() {
        for (name, family) in [
            ("selvage-i4-p-0123456789abcdef", Some(Family::V4)),
            ("selvage-e6-r-0123456789abcdef", Some(Family::V6)),
            ("selvage-s4-s-0123456789abcdef", Some(Family::V4)),
            ("selvage-cut6", Some(Family::V6)),
            ("selvage-v0-friends", None),
            ("selvage-i", None),
            ("selvage-i46", None),
            ("selvage-e5-p-0", None),
        ] {
            assert_eq!(SetName::new(name).unwrap().family(), family, "{name}");
        }
        for family in [Family::V4, Family::V6] {
            assert_eq!(crate::ruleset::guard_set(family).family(), Some(family));
        }
    }
}
