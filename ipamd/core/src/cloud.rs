//! The cloud as the daemon sees it: what it can be asked, what it answers, and how it fails.
//!
//! Growing by an interface is a chain of single calls, each of which may lose its reply or be the last before a crash:
//!
//! ```text
//! create_eni(token) -> attach_eni -> keep_with_instance(DeleteOnTermination) -> link in the kernel -> host set-up
//! ```
//!
//! Nothing between two calls lives in memory only: a create is repeated with its token, and an interface that was made
//! but not attached is found again by its tag ([`TAG_INSTANCE`]), so that [`Cloud::describe_enis`] is all a fresh
//! process needs.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::ids::{
    AttachmentId, ClientToken, EniId, InstanceId, InstanceType, Mac, SecurityGroupId, SubnetId,
    VpcId,
};
use crate::limits::Limits;

mod error;

pub use error::{CloudError, CloudErrorKind, Operation};

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
    /// Subnet of the primary interface; new interfaces are made in it.
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
    /// The addresses pods can have: all but the primary one.
    pub secondary_addresses: BTreeSet<Ipv4Addr>,
    /// `None`: made for this instance, but not attached. An interface that is being detached counts as attached.
    pub attachment: Option<Attachment>,
    /// Kind of interface.
    pub kind: EniKind,
    /// Tags, complete.
    pub tags: BTreeMap<String, String>,
}

impl EniFacts {
    /// Whether the pool may use it: an ordinary interface on the first card that nobody has forbidden.
    pub fn is_usable(&self) -> bool {
        let ordinary = match self.kind {
            EniKind::Interface => true,
            EniKind::Trunk | EniKind::Efa => false,
        };
        let first_card = self.attachment.as_ref().is_none_or(|a| a.card == 0);
        let forbidden = self.tags.get(TAG_NO_MANAGE).is_some_and(|v| v == "true");
        ordinary && first_card && !forbidden
    }
}

/// An interface as instance metadata tells it: cheap to ask, sometimes behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenEni {
    /// The interface.
    pub id: EniId,
    /// All its IPv4 addresses, the primary one included.
    pub addresses: BTreeSet<Ipv4Addr>,
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
    /// Secondary addresses to ask for with it (SecondaryPrivateIpAddressCount).
    pub addresses: u32,
    /// Description, `aws-K8S-<instance>`.
    pub description: String,
    /// Tags, set in the same call (TagSpecifications).
    pub tags: BTreeMap<String, String>,
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

    /// Every interface attached to this instance, and every unattached one that carries [`TAG_INSTANCE`] with this
    /// instance's id (DescribeNetworkInterfaces, all pages).
    fn describe_enis(&self) -> impl Future<Output = Result<Vec<EniFacts>, CloudError>> + Send;

    /// One interface, `None` if EC2 does not know it (which, just after a create, may not be true yet).
    fn describe_eni(
        &self,
        eni: &EniId,
    ) -> impl Future<Output = Result<Option<EniFacts>, CloudError>> + Send;

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

    /// AssignPrivateIpAddresses by count. Answers only what is new.
    fn assign_addresses(
        &self,
        eni: &EniId,
        count: u32,
    ) -> impl Future<Output = Result<Vec<Ipv4Addr>, CloudError>> + Send;

    /// UnassignPrivateIpAddresses.
    fn unassign_addresses(
        &self,
        eni: &EniId,
        addresses: &BTreeSet<Ipv4Addr>,
    ) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// DetachNetworkInterface, not forced. Returns when EC2 has accepted it, not when it is done.
    fn detach_eni(
        &self,
        attachment: &AttachmentId,
    ) -> impl Future<Output = Result<(), CloudError>> + Send;

    /// DeleteNetworkInterface. One that is still being detached answers InvalidParameterValue; the caller repeats.
    fn delete_eni(&self, eni: &EniId) -> impl Future<Output = Result<(), CloudError>> + Send;
}
