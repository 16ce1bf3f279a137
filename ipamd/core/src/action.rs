//! What the plan asks for and what came of it.
//!
//! Every action changes at most one thing, and each has an outcome of its own. A process that dies between two of
//! them leaves nothing that the next one does not find by asking the cloud.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use crate::cloud::{CloudError, CreateEni, EniFacts};
use crate::ids::{AttachmentId, ClientToken, EniId};

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
        /// How many.
        count: u32,
    },
    /// Give addresses back.
    Unassign {
        /// The interface.
        eni: EniId,
        /// Which; none of them is in use or cooling.
        addresses: BTreeSet<Ipv4Addr>,
    },
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
    /// The interface it is about; `None` for one that has no name yet.
    pub fn eni(&self) -> Option<&EniId> {
        match self {
            Action::Create(_) => None,
            Action::Attach { eni, .. }
            | Action::Keep { eni, .. }
            | Action::SetUp { eni }
            | Action::Describe { eni }
            | Action::Assign { eni, .. }
            | Action::Unassign { eni, .. }
            | Action::TearDown { eni }
            | Action::Detach { eni, .. }
            | Action::Delete { eni } => Some(eni),
        }
    }

    /// Whether it is done on the host, without the cloud.
    pub fn is_local(&self) -> bool {
        match self {
            Action::SetUp { .. } | Action::TearDown { .. } => true,
            Action::Create(_)
            | Action::Attach { .. }
            | Action::Keep { .. }
            | Action::Describe { .. }
            | Action::Assign { .. }
            | Action::Unassign { .. }
            | Action::Detach { .. }
            | Action::Delete { .. } => false,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Create(request) => write!(
                f,
                "create an interface with {} addresses in {}",
                request.addresses, request.subnet_id
            ),
            Action::Attach { eni, device_index } => {
                write!(f, "attach {eni} as device {device_index}")
            }
            Action::Keep { eni, .. } => write!(f, "let {eni} end with the instance"),
            Action::SetUp { eni } => write!(f, "set up {eni} on the host"),
            Action::Describe { eni } => write!(f, "look up {eni}"),
            Action::Assign { eni, count } => write!(f, "assign {count} addresses to {eni}"),
            Action::Unassign { eni, addresses } => {
                write!(f, "unassign {} addresses from {eni}", addresses.len())
            }
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
    /// Of [`Action::Assign`], with the count that was asked for.
    Assigned(EniId, u32, Result<Vec<Ipv4Addr>, CloudError>),
    /// Of [`Action::Unassign`].
    Unassigned(EniId, BTreeSet<Ipv4Addr>, Result<(), CloudError>),
    /// Of [`Action::TearDown`].
    TornDown(EniId, Result<(), String>),
    /// Of [`Action::Detach`].
    Detached(EniId, Result<(), CloudError>),
    /// Of [`Action::Delete`].
    Deleted(EniId, Result<(), CloudError>),
}

impl Outcome {
    /// The cloud's refusal, if it is one.
    pub fn cloud_error(&self) -> Option<&CloudError> {
        match self {
            Outcome::Created(_, r) => r.as_ref().err(),
            Outcome::Attached(_, _, r) => r.as_ref().err(),
            Outcome::Described(_, r) => r.as_ref().err(),
            Outcome::Assigned(_, _, r) => r.as_ref().err(),
            Outcome::Unassigned(_, _, r) => r.as_ref().err(),
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
            | Outcome::Detached(..)
            | Outcome::Deleted(..) => self.cloud_error().map(ToString::to_string),
        }
    }
}
