//! The cloud as the daemon sees it: what it can be asked, what it answers, and how it fails.
//!
//! Growing by an interface is a chain of single calls, each of which may lose its reply or be the last before a crash:
//!
//! ```text
//! create_eni(token) -> attach_eni -> keep_with_instance(DeleteOnTermination) -> link in the kernel -> host set-up
//! ```
//!
//! Nothing between two calls lives in memory only: a create is repeated with its token, and an interface that was made
//! but not attached is found again by its tag ([`TAG_INSTANCE`]), so that [`Cloud::attached_enis`] and
//! [`Cloud::unattached_enis`] are all a fresh process needs; on a new instance the first of them ([`is_untouched`]), and
//! not even that before it makes an interface ([`is_as_made`]).

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::ids::{
    AttachmentId, ClientToken, EniId, InstanceId, InstanceType, Mac, SecurityGroupId, SubnetId,
    VpcId,
};
use crate::limits::Limits;

mod error;
mod want;

pub use error::{Budget, CloudError, CloudErrorKind, Operation};
pub use want::{PREFIX_ADDRESSES, PREFIX_LEN, PREFIX_LEN_V6, Want};

/// Tag that names the instance an interface was made for.
pub const TAG_INSTANCE: &str = "node.k8s.amazonaws.com/instance_id";
/// Tag that says when an interface was made, RFC 3339.
pub const TAG_CREATED: &str = "node.k8s.amazonaws.com/createdAt";
/// Tag by which an owner forbids (`true`) or allows (anything else) that an attached interface is used.
pub const TAG_NO_MANAGE: &str = "node.k8s.amazonaws.com/no_manage";
/// Tag that names the cluster, written when the cluster's name is known.
pub const TAG_CLUSTER: &str = "cluster.k8s.amazonaws.com/name";
/// Tag that names who made the interface, written when the cluster's name is known.
pub const TAG_OWNER: &str = "eks:eni:owner";
/// Value of [`TAG_OWNER`].
pub const OWNER: &str = "amazon-vpc-cni";
/// How the description of an interface begins that was made for pods; the instance's id follows.
pub const DESCRIPTION: &str = "aws-K8S-";
/// Tag of subnets: any value but `0` offers the subnet to pods, `0` keeps pods out of it.
pub const TAG_SUBNET: &str = "kubernetes.io/role/cni";
/// Tags of subnets that begin so name the clusters that may use them.
pub const TAG_SUBNET_CLUSTER: &str = "cni.networking.k8s.aws/cluster/";

/// What the instance says of itself. Does not change while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceFacts {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its type, which decides its limits.
    pub instance_type: InstanceType,
    /// Region, `us-west-2`.
    pub region: String,
    /// Availability zone, `us-west-2a`.
    pub availability_zone: String,
    /// The VPC of the primary interface.
    pub vpc_id: VpcId,
    /// The primary interface (device 0 of card 0).
    pub primary_eni: EniId,
    /// Hardware address of the primary interface.
    pub primary_mac: Mac,
    /// The node's address: primary address of the primary interface.
    pub primary_address: Ipv4Addr,
    /// The node's IPv6 address: the first of the primary interface, if its subnet has IPv6.
    pub primary_ipv6: Option<Ipv6Addr>,
    /// Subnet of the primary interface; new interfaces are made in it where no other is wanted.
    pub subnet_id: SubnetId,
    /// Block of that subnet.
    pub subnet: Ipv4Net,
    /// Security groups of the primary interface; new interfaces get the same.
    pub security_groups: Vec<SecurityGroupId>,
}

/// How an interface is attached to this instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Identifier, needed to detach.
    pub id: AttachmentId,
    /// Device index on its card; 0 on card 0 is the primary interface.
    pub device_index: u16,
    /// Network card.
    pub card: u16,
    /// Whether the interface ends with the instance.
    pub delete_on_termination: bool,
}

/// What kind of interface it is; only ordinary ones serve pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EniKind {
    /// An ordinary interface.
    Interface,
    /// A trunk that carries branch interfaces.
    Trunk,
    /// An Elastic Fabric Adapter (also EFA-only); never changed, never deleted.
    Efa,
}

/// An interface as the EC2 API tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniFacts {
    /// The interface.
    pub id: EniId,
    /// Hardware address.
    pub mac: Mac,
    /// Subnet it lives in.
    pub subnet_id: SubnetId,
    /// Block of that subnet (EC2 does not repeat it with the interface; the implementation knows it from the
    /// primary interface or asks).
    pub subnet: Ipv4Net,
    /// Its own address, never given to a pod.
    pub primary_address: Ipv4Addr,
    /// Single addresses that pods can have: all but the primary one. EC2 does not list those within prefixes.
    pub secondary_addresses: BTreeSet<Ipv4Addr>,
    /// Blocks of 16 addresses (`/28`) that are its own, all for pods.
    pub prefixes: BTreeSet<Ipv4Net>,
    /// Its IPv6 addresses, never given to pods.
    pub ipv6_addresses: BTreeSet<Ipv6Addr>,
    /// Its IPv6 blocks (`/80`), all for pods.
    pub ipv6_prefixes: BTreeSet<Ipv6Net>,
    /// `None`: made for this instance, but not attached. An interface that is being detached counts as attached.
    pub attachment: Option<Attachment>,
    /// Kind of interface.
    pub kind: EniKind,
    /// Its security groups; `None` where it was metadata that told of it.
    pub security_groups: Option<BTreeSet<SecurityGroupId>>,
    /// Description, empty if it has none.
    pub description: String,
    /// Tags, complete.
    pub tags: BTreeMap<String, String>,
}

impl EniFacts {
    /// Whether it is an ordinary interface on the first card that nobody has forbidden: what the pool may use.
    pub fn is_usable(&self) -> bool {
        let ordinary = match self.kind {
            EniKind::Interface => true,
            EniKind::Trunk | EniKind::Efa => false,
        };
        let first_card = self.attachment.as_ref().is_none_or(|a| a.card == 0);
        let forbidden = self.tags.get(TAG_NO_MANAGE).is_some_and(|v| v == "true");
        ordinary && first_card && !forbidden
    }

    /// Whether it was made for this instance, by us or by AWS's agent: we may remove it. The tag alone does not say
    /// so: an interface that somebody attached by hand carries it too, once it has been adopted.
    pub fn is_made_for(&self, instance: &InstanceId) -> bool {
        let tagged = self
            .tags
            .get(TAG_INSTANCE)
            .is_some_and(|v| v == instance.as_str());
        tagged && self.description.starts_with(DESCRIPTION)
    }

    /// All that pods can have addresses from.
    pub fn blocks(&self) -> BTreeSet<IpNet> {
        let single = self.secondary_addresses.iter();
        single
            .map(|address| IpNet::from(std::net::IpAddr::V4(*address)))
            .chain(self.prefixes.iter().map(|block| IpNet::V4(*block)))
            .chain(self.ipv6_prefixes.iter().map(|block| IpNet::V6(*block)))
            .collect()
    }
}

/// An interface as instance metadata tells it: cheap to ask, sometimes behind, without tags and kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenEni {
    /// The interface.
    pub id: EniId,
    /// Hardware address.
    pub mac: Mac,
    /// Device index on its card.
    pub device_index: u16,
    /// Network card.
    pub card: u16,
    /// Subnet it lives in.
    pub subnet_id: SubnetId,
    /// Block of that subnet.
    pub subnet: Ipv4Net,
    /// Its own address; the first that metadata lists.
    pub primary_address: Ipv4Addr,
    /// All its single IPv4 addresses, the primary one included.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Its `/28`s.
    pub prefixes: BTreeSet<Ipv4Net>,
    /// Its IPv6 addresses.
    pub ipv6_addresses: BTreeSet<Ipv6Addr>,
    /// Its `/80`s.
    pub ipv6_prefixes: BTreeSet<Ipv6Net>,
}

impl SeenEni {
    /// What EC2 would say, as far as metadata knows: an ordinary interface that ends with the instance, without tags.
    /// Its attachment has no name, so it cannot be detached.
    pub fn facts(&self) -> EniFacts {
        EniFacts {
            id: self.id.clone(),
            mac: self.mac,
            subnet_id: self.subnet_id.clone(),
            subnet: self.subnet,
            primary_address: self.primary_address,
            secondary_addresses: self
                .addresses
                .iter()
                .copied()
                .filter(|address| *address != self.primary_address)
                .collect(),
            prefixes: self.prefixes.clone(),
            ipv6_addresses: self.ipv6_addresses.clone(),
            ipv6_prefixes: self.ipv6_prefixes.clone(),
            attachment: Some(Attachment {
                id: AttachmentId::new(""),
                device_index: self.device_index,
                card: self.card,
                delete_on_termination: true,
            }),
            kind: EniKind::Interface,
            security_groups: None,
            description: String::new(),
            tags: BTreeMap::new(),
        }
    }

    /// All that pods can have addresses from.
    pub fn blocks(&self) -> BTreeSet<IpNet> {
        self.facts().blocks()
    }
}

/// A subnet of the instance's VPC and availability zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetFacts {
    /// The subnet.
    pub id: SubnetId,
    /// Its block.
    pub block: Ipv4Net,
    /// Addresses that nobody has (AvailableIpAddressCount).
    pub available: u32,
    /// Tags, complete.
    pub tags: BTreeMap<String, String>,
}

/// An interface that is attached to no instance, for the search for leaked ones ([`crate::sweep`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LooseEni {
    /// The interface.
    pub id: EniId,
    /// Description, empty if it has none.
    pub description: String,
    /// Tags, complete.
    pub tags: BTreeMap<String, String>,
}

/// All that makes a new interface. A repeat with the same token must carry the same rest: EC2 refuses otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateEni {
    /// What makes the call idempotent.
    pub token: ClientToken,
    /// Where.
    pub subnet_id: SubnetId,
    /// Security groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// What to ask for with it (SecondaryPrivateIpAddressCount, Ipv4PrefixCount, Ipv6PrefixCount); a count may be 0.
    pub want: Want,
    /// Description, `aws-K8S-<instance>`.
    pub description: String,
    /// Tags, set in the same call (TagSpecifications).
    pub tags: BTreeMap<String, String>,
}

/// Whether no agent has worked on an instance with these interfaces attached: either puts [`TAG_INSTANCE`] on the
/// primary one, and on each that it makes. Where nothing on the node's disk says otherwise, none was made for the
/// instance that is not attached.
pub fn is_untouched(attached: &[EniFacts]) -> bool {
    !attached
        .iter()
        .any(|eni| eni.tags.contains_key(TAG_INSTANCE))
}

/// Whether metadata shows an instance as EC2 makes it: only the primary interface, with its own address alone. Then EC2 has
/// nothing to add but tags.
pub fn is_as_made(seen: &[SeenEni], primary: &EniId) -> bool {
    matches!(seen, [only] if only.id == *primary && only.blocks().is_empty())
}

/// EC2 and instance metadata. Each function is one effect (one changing call at most) and may be repeated.
///
/// The caller sets a deadline on every call by dropping the future; implementations retry nothing by themselves,
/// or at most what is certain not to have happened.
pub trait Cloud: Send + Sync + 'static {
    /// What the instance says of itself (metadata).
    fn facts(&self) -> impl Future<Output = Result<InstanceFacts, CloudError>> + Send;

    /// Limits of a type: from a table, else DescribeInstanceTypes (default network card).
    fn limits(
        &self,
        instance_type: &InstanceType,
    ) -> impl Future<Output = Result<Limits, CloudError>> + Send;

    /// The VPC's IPv4 blocks (metadata, `vpc-ipv4-cidr-blocks` of the primary interface). Never empty.
    fn vpc_cidrs(&self) -> impl Future<Output = Result<Vec<Ipv4Net>, CloudError>> + Send;

    /// The attached interfaces by metadata: to notice a difference without a call to EC2.
    fn seen_enis(&self) -> impl Future<Output = Result<Vec<SeenEni>, CloudError>> + Send;

    /// Every interface attached to this instance (DescribeNetworkInterfaces, all pages).
    fn attached_enis(&self) -> impl Future<Output = Result<Vec<EniFacts>, CloudError>> + Send;

    /// Every interface that is attached to nothing and carries [`TAG_INSTANCE`] with this instance's id
    /// (DescribeNetworkInterfaces, all pages).
    fn unattached_enis(&self) -> impl Future<Output = Result<Vec<EniFacts>, CloudError>> + Send;

    /// One interface, `None` if EC2 does not know it (which, just after a create, may not be true yet).
    fn describe_eni(
        &self,
        eni: &EniId,
    ) -> impl Future<Output = Result<Option<EniFacts>, CloudError>> + Send;

    /// The subnets of the instance's VPC in its availability zone (DescribeSubnets, all pages).
    fn describe_subnets(&self)
    -> impl Future<Output = Result<Vec<SubnetFacts>, CloudError>> + Send;

    /// Interfaces of the instance's VPC that are attached to nothing and carry [`TAG_INSTANCE`]; if `cluster` is not
    /// empty, only those whose [`TAG_CLUSTER`] is `cluster` (DescribeNetworkInterfaces, all pages).
    fn find_loose_enis(
        &self,
        cluster: &str,
    ) -> impl Future<Output = Result<Vec<LooseEni>, CloudError>> + Send;

    /// CreateNetworkInterface with ClientToken. A repeat with the same token answers the same interface.
    fn create_eni(
        &self,
        request: &CreateEni,
    ) -> impl Future<Output = Result<EniFacts, CloudError>> + Send;

    /// AttachNetworkInterface at a device index of card 0.
    fn attach_eni(
        &self,
        eni: &EniId,
        device_index: u16,
    ) -> impl Future<Output = Result<AttachmentId, CloudError>> + Send;

    /// ModifyNetworkInterfaceAttribute: DeleteOnTermination on.
    fn keep_with_instance(
        &self,
        eni: &EniId,
        attachment: &AttachmentId,
    ) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// AssignPrivateIpAddresses or AssignIpv6Addresses by count, as [`Want::operation`] says. Answers only what is new, a
    /// single address as a block of one.
    fn assign(
        &self,
        eni: &EniId,
        want: Want,
    ) -> impl Future<Output = Result<Vec<IpNet>, CloudError>> + Send;

    /// UnassignPrivateIpAddresses or UnassignIpv6Addresses. The blocks are of one kind: single addresses, `/28`s or
    /// `/80`s.
    fn unassign(
        &self,
        eni: &EniId,
        blocks: &BTreeSet<IpNet>,
    ) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// CreateTags on an interface: adds these, changes none of the others.
    fn tag_eni(
        &self,
        eni: &EniId,
        tags: &BTreeMap<String, String>,
    ) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// ModifyNetworkInterfaceAttribute: these security groups in the place of those that it has. Running connections of
    /// pods are judged by the new ones.
    fn regroup_eni(
        &self,
        eni: &EniId,
        groups: &BTreeSet<SecurityGroupId>,
    ) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// DetachNetworkInterface, not forced. Returns when EC2 has accepted it, not when it is done.
    fn detach_eni(
        &self,
        attachment: &AttachmentId,
    ) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// DeleteNetworkInterface. One that is still being detached answers InvalidParameterValue; the caller repeats.
    fn delete_eni(&self, eni: &EniId) -> impl Future<Output = Result<(), CloudError>> + Send;
}
