//! Names that reach the kernel: they cannot hold a character that would change a restore input.

use std::fmt;

use thiserror::Error;

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

fn parse(name: &str, max: usize) -> Result<String, BadName> {
    let ours = name.strip_prefix(PREFIX).is_some_and(|rest| {
        !rest.is_empty()
            && rest
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    });
    if ours && name.len() <= max {
        Ok(name.to_owned())
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
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// Checks a name.
            ///
            /// *Errors*: [`BadName`] when the prefix, the alphabet or the length is wrong.
            pub fn new(name: &str) -> Result<Self, BadName> {
                parse(name, $max).map(Self)
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
