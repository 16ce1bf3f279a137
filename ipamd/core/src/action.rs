//! What the plan asks for and what came of it.
//!
//! Every action changes at most one thing, and each has an outcome of its own. A process that dies between two of
//! them leaves nothing that the next one does not find by asking the cloud.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

use crate::cloud::{CloudError, CreateEni, EniFacts, Operation, SubnetFacts, Want};
use crate::ids::{AttachmentId, ClientToken, EniId, SecurityGroupId};

/// One step, to be carried out by the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make an interface; also the repeat of a create whose reply was lost.
    Create(CreateEni),
    /// Attach it to this instance.
    Attach {
        /// The interface.
        eni: EniId,
        /// A device index that is free as far as we know.
        device_index: u16,
    },
    /// Let it end with the instance (DeleteOnTermination).
    Keep {
        /// The interface.
        eni: EniId,
        /// Its attachment.
        attachment: AttachmentId,
    },
    /// Find its link in the kernel and make address, routes and rules of the host.
    SetUp {
        /// The interface.
        eni: EniId,
    },
    /// Ask the cloud what it really holds: a reply was lost, or we were told that we are wrong.
    Describe {
        /// The interface.
        eni: EniId,
    },
    /// Ask for more addresses.
    Assign {
        /// The interface.
        eni: EniId,
        /// What.
        want: Want,
    },
    /// Give blocks back.
    Unassign {
        /// The interface.
        eni: EniId,
        /// Which, all of one kind; no address of theirs is in use or cooling.
        blocks: BTreeSet<IpNet>,
    },
    /// Add tags that it lacks.
    Tag {
        /// The interface.
        eni: EniId,
        /// Those that it lacks.
        tags: BTreeMap<String, String>,
    },
    /// Give it the security groups that it should have.
    Regroup {
        /// The interface.
        eni: EniId,
        /// All of them.
        groups: BTreeSet<SecurityGroupId>,
    },
    /// Look which subnets there are, and how full.
    DescribeSubnets,
    /// Remove its routes and rules from the host, before it is detached.
    TearDown {
        /// The interface.
        eni: EniId,
    },
    /// Detach it.
    Detach {
        /// The interface.
        eni: EniId,
        /// Its attachment.
        attachment: AttachmentId,
    },
    /// Delete it.
    Delete {
        /// The interface.
        eni: EniId,
    },
}

impl Action {
    /// The interface it is about; `None` for one that has no name yet, and for what is about none.
    pub fn eni(&self) -> Option<&EniId> {
        match self {
            Action::Create(_) | Action::DescribeSubnets => None,
            Action::Attach { eni, .. }
            | Action::Keep { eni, .. }
            | Action::SetUp { eni }
            | Action::Describe { eni }
            | Action::Assign { eni, .. }
            | Action::Unassign { eni, .. }
            | Action::Tag { eni, .. }
            | Action::Regroup { eni, .. }
            | Action::TearDown { eni }
            | Action::Detach { eni, .. }
            | Action::Delete { eni } => Some(eni),
        }
    }

    /// The call that it makes; `None` for what is done on the host.
    pub fn operation(&self) -> Option<Operation> {
        match self {
            Action::SetUp { .. } | Action::TearDown { .. } => None,
            Action::Create(_) => Some(Operation::CreateEni),
            Action::Attach { .. } => Some(Operation::AttachEni),
            Action::Keep { .. } => Some(Operation::KeepWithInstance),
            Action::Describe { .. } => Some(Operation::DescribeEnis),
            Action::Assign { want, .. } => Some(want.operation()),
            Action::Unassign { blocks, .. } => Some(Operation::unassign(blocks)),
            Action::Tag { .. } => Some(Operation::TagEni),
            Action::Regroup { .. } => Some(Operation::RegroupEni),
            Action::DescribeSubnets => Some(Operation::DescribeSubnets),
            Action::Detach { .. } => Some(Operation::DetachEni),
            Action::Delete { .. } => Some(Operation::DeleteEni),
        }
    }

    /// Whether it is done on the host, without the cloud.
    pub fn is_local(&self) -> bool {
        self.operation().is_none()
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Create(request) => write!(
                f,
                "create an interface with {} in {}",
                request.want, request.subnet_id
            ),
            Action::Attach { eni, device_index } => {
                write!(f, "attach {eni} as device {device_index}")
            }
            Action::Keep { eni, .. } => write!(f, "let {eni} end with the instance"),
            Action::SetUp { eni } => write!(f, "set up {eni} on the host"),
            Action::Describe { eni } => write!(f, "look up {eni}"),
            Action::Assign { eni, want } => write!(f, "assign {want} to {eni}"),
            Action::Unassign { eni, blocks } => match blocks.first() {
                Some(first) if first.prefix_len() < first.max_prefix_len() => write!(
                    f,
                    "unassign {} /{} prefixes from {eni}",
                    blocks.len(),
                    first.prefix_len()
                ),
                Some(_) | None => write!(f, "unassign {} addresses from {eni}", blocks.len()),
            },
            Action::Tag { eni, tags } => write!(f, "add {} tags to {eni}", tags.len()),
            Action::Regroup { eni, groups } => {
                write!(f, "give {eni} its {} security groups", groups.len())
            }
            Action::DescribeSubnets => f.write_str("look up the subnets"),
            Action::TearDown { eni } => write!(f, "remove {eni} from the host"),
            Action::Detach { eni, .. } => write!(f, "detach {eni}"),
            Action::Delete { eni } => write!(f, "delete {eni}"),
        }
    }
}

/// What came of an [`Action`]. Host steps fail with words; the cloud fails with a [`CloudError`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Of [`Action::Create`].
    Created(ClientToken, Result<EniFacts, CloudError>),
    /// Of [`Action::Attach`], with the device index it was asked for.
    Attached(EniId, u16, Result<AttachmentId, CloudError>),
    /// Of [`Action::Keep`].
    Kept(EniId, Result<(), CloudError>),
    /// Of [`Action::SetUp`].
    SetUp(EniId, Result<(), String>),
    /// Of [`Action::Describe`].
    Described(EniId, Result<Option<EniFacts>, CloudError>),
    /// Of [`Action::Assign`], with what was asked for; what came, a single address as a block of one.
    Assigned(EniId, Want, Result<Vec<IpNet>, CloudError>),
    /// Of [`Action::Unassign`].
    Unassigned(EniId, BTreeSet<IpNet>, Result<(), CloudError>),
    /// Of [`Action::Tag`], with the tags.
    Tagged(EniId, BTreeMap<String, String>, Result<(), CloudError>),
    /// Of [`Action::Regroup`], with the groups.
    Regrouped(EniId, BTreeSet<SecurityGroupId>, Result<(), CloudError>),
    /// Of [`Action::DescribeSubnets`].
    Subnets(Result<Vec<SubnetFacts>, CloudError>),
    /// Of [`Action::TearDown`].
    TornDown(EniId, Result<(), String>),
    /// Of [`Action::Detach`].
    Detached(EniId, Result<(), CloudError>),
    /// Of [`Action::Delete`].
    Deleted(EniId, Result<(), CloudError>),
}

impl Outcome {
    /// The call it comes from; `None` for what is done on the host.
    pub fn operation(&self) -> Option<Operation> {
        match self {
            Outcome::SetUp(..) | Outcome::TornDown(..) => None,
            Outcome::Created(..) => Some(Operation::CreateEni),
            Outcome::Attached(..) => Some(Operation::AttachEni),
            Outcome::Kept(..) => Some(Operation::KeepWithInstance),
            Outcome::Described(..) => Some(Operation::DescribeEnis),
            Outcome::Assigned(_, want, _) => Some(want.operation()),
            Outcome::Unassigned(_, blocks, _) => Some(Operation::unassign(blocks)),
            Outcome::Tagged(..) => Some(Operation::TagEni),
            Outcome::Regrouped(..) => Some(Operation::RegroupEni),
            Outcome::Subnets(_) => Some(Operation::DescribeSubnets),
            Outcome::Detached(..) => Some(Operation::DetachEni),
            Outcome::Deleted(..) => Some(Operation::DeleteEni),
        }
    }

    /// The cloud's refusal, if it is one.
    pub fn cloud_error(&self) -> Option<&CloudError> {
        match self {
            Outcome::Created(_, r) => r.as_ref().err(),
            Outcome::Attached(_, _, r) => r.as_ref().err(),
            Outcome::Described(_, r) => r.as_ref().err(),
            Outcome::Assigned(_, _, r) => r.as_ref().err(),
            Outcome::Unassigned(_, _, r)
            | Outcome::Tagged(_, _, r)
            | Outcome::Regrouped(_, _, r) => r.as_ref().err(),
            Outcome::Subnets(r) => r.as_ref().err(),
            Outcome::Kept(_, r) | Outcome::Detached(_, r) | Outcome::Deleted(_, r) => {
                r.as_ref().err()
            }
            Outcome::SetUp(..) | Outcome::TornDown(..) => None,
        }
    }

    /// The words of a failure of either kind.
    pub fn failure(&self) -> Option<String> {
        match self {
            Outcome::SetUp(eni, Err(words)) => Some(format!("set up {eni} on the host: {words}")),
            Outcome::TornDown(eni, Err(words)) => {
                Some(format!("remove {eni} from the host: {words}"))
            }
            Outcome::SetUp(_, Ok(())) | Outcome::TornDown(_, Ok(())) => None,
            Outcome::Created(..)
            | Outcome::Attached(..)
            | Outcome::Kept(..)
            | Outcome::Described(..)
            | Outcome::Assigned(..)
            | Outcome::Unassigned(..)
            | Outcome::Tagged(..)
            | Outcome::Regrouped(..)
            | Outcome::Subnets(..)
            | Outcome::Detached(..)
            | Outcome::Deleted(..) => self.cloud_error().map(ToString::to_string),
        }
    }
}
