//! The input vocabulary: what the cluster's objects say, as far as we understood it.

pub mod addresses;
pub mod cidr;
pub mod labels;
pub mod pod;
pub mod policy;
pub mod pool;

pub use addresses::Addresses;
pub use cidr::AddressSet;
pub use labels::{BadSelector, Labels, Requirements, Selector};
pub use pod::{Interfaces, Namespace, NamespaceName, NodeName, Pod, PodKey, PodUid};
pub use policy::{
    Direction, NamedPort, Namespaces, Peer, PeerSelector, Peers, Policy, PolicyKey, PortName, Rule,
    Traffic,
};
pub use pool::Pool;
