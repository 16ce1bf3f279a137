//! Pods, namespaces, and what they are called.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use super::{Labels, NamedPort};

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// Takes a name as the API server gave it.
            #[must_use]
            pub fn new(name: impl Into<String>) -> Self {
                Self(name.into())
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
name!(
    /// What tells a pod from a later one of the same name.
    PodUid
);

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
    pub addresses: BTreeSet<IpAddr>,
    /// The ports that its containers call by a name. A name may stand for several.
    pub ports: BTreeSet<(NamedPort, NonZeroU16)>,
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
        let (first, last) = (
            (named.clone(), NonZeroU16::MIN),
            (named.clone(), NonZeroU16::MAX),
        );
        self.ports.range(first..=last).map(|(_, number)| *number)
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
