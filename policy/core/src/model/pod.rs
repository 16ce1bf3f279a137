//! Pods, namespaces, and what they are called.

use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

use super::{Addresses, Labels, NamedPort};

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(pub(super) Arc<str>);

        impl $type {
            /// Takes a name as the API server gave it.
            #[must_use]
            pub fn new(name: impl Into<String>) -> Self {
                Self(Arc::from(name.into()))
            }

            /// The name.
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
    /// The name of a node.
    NodeName
);
name!(
    /// The name of a namespace.
    NamespaceName
);

/// What tells a pod from a later one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(Uid);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Uid {
    /// As the API server makes them: written in lower case, with dashes.
    Uuid(u64, u64),
    /// Anything else.
    Text(Box<str>),
}

/// Where a UUID has its dashes.
const DASHES: [usize; 4] = [8, 13, 18, 23];

impl PodUid {
    /// Takes a uid as the API server gave it.
    #[must_use]
    pub fn new(uid: impl Into<String>) -> Self {
        let text = uid.into();
        Self(uuid(&text).unwrap_or_else(|| Uid::Text(text.into())))
    }
}

fn uuid(text: &str) -> Option<Uid> {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_uuid = text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| {
            if DASHES.contains(&index) {
                byte == b'-'
            } else {
                digit(byte)
            }
        });
    if !is_uuid {
        return None;
    }
    let mut number = 0_u128;
    for byte in text.bytes().filter(|byte| *byte != b'-') {
        number = number << 4 | u128::from(char::from(byte).to_digit(16)?);
    }
    // Two halves: a u128 would ask for 16 bytes of alignment in every pod.
    let [high, low] = [number >> 64, number & u128::from(u64::MAX)];
    Some(Uid::Uuid(
        u64::try_from(high).ok()?,
        u64::try_from(low).ok()?,
    ))
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Uid::Uuid(high, low) => {
                let (high, low) = (format!("{high:016x}"), format!("{low:016x}"));
                let (one, two, three) = (&high[..8], &high[8..12], &high[12..]);
                write!(f, "{one}-{two}-{three}-{}-{}", &low[..4], &low[4..])
            }
            Uid::Text(text) => f.write_str(text),
        }
    }
}

/// Which pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    /// Its namespace.
    pub namespace: NamespaceName,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod, as far as enforcement is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Which one.
    pub key: PodKey,
    /// Which of that name.
    pub uid: PodUid,
    /// The node it is bound to, from the moment it is.
    pub node: Option<NodeName>,
    /// Whether it is in its node's network namespace: then it has no veth and no address of its own.
    pub host_network: bool,
    /// Whether its containers have ended for good: then its address may be another's already.
    pub finished: bool,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses as the API server knows them, of both families; empty until it has one.
    pub addresses: Addresses,
    /// The ports that its containers call by a name, in order. A name may stand for several.
    pub ports: Arc<[(NamedPort, NonZeroU16)]>,
    /// Which interfaces it has.
    pub interfaces: Interfaces,
}

/// Which interfaces a pod has beside the veth that every pod has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// Security groups of its own, on a branch ENI: AWS's strict mode then calls the host end of
    /// its veth `vlan` and the digits, its standard mode as ever. Which mode it is, the pod does
    /// not say.
    pub branch_eni: bool,
    /// One more on each network card of the node, made by AWS's plugin.
    pub more_cards: bool,
    /// Others, made by another plugin (Multus): they aren't known by name.
    pub others: bool,
}

impl Pod {
    /// Whether policies can select it: as their subject, or as somebody's peer.
    #[must_use]
    pub fn is_selectable(&self) -> bool {
        !self.host_network && !self.finished
    }

    /// The numbers that it calls by a name.
    pub fn numbers(&self, named: &NamedPort) -> impl Iterator<Item = NonZeroU16> {
        let ports = self.ports.iter().filter(move |(name, _)| name == named);
        ports.map(|(_, number)| *number)
    }

    /// Whether this node enforces for it, even before it has an address or an interface.
    #[must_use]
    pub fn is_enforced_on(&self, node: &NodeName) -> bool {
        self.is_selectable() && self.node.as_ref() == Some(node)
    }
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Which one.
    pub name: NamespaceName,
    /// Its labels.
    pub labels: Labels,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_told_as_it_came() {
        for uid in [
            "0a1b2c3d-0000-4fff-8abc-00000000000f",
            "0A1B2C3D-0000-4fff-8abc-00000000000f",
            "0a1b2c3d00004fff8abc00000000000f",
            "0a1b2c3d-0000-4fff-8abc+00000000000f",
            "b",
            "",
        ] {
            assert_eq!(PodUid::new(uid).to_string(), uid);
        }
        let (lower, upper) = (
            "0a1b2c3d-0000-4fff-8abc-00000000000f",
            "0A1B2C3D-0000-4FFF-8ABC-00000000000F",
        );
        assert_ne!(PodUid::new(lower), PodUid::new(upper));
    }
}
