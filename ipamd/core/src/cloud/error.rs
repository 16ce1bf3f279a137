//! How the cloud fails, sorted by what one can do about it.

use std::fmt;

use thiserror::Error;

/// What was asked of the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// [`Cloud::facts`](super::Cloud::facts).
    Facts,
    /// [`Cloud::limits`](super::Cloud::limits).
    Limits,
    /// [`Cloud::vpc_cidrs`](super::Cloud::vpc_cidrs).
    VpcCidrs,
    /// [`Cloud::seen_enis`](super::Cloud::seen_enis).
    SeenEnis,
    /// [`Cloud::describe_enis`](super::Cloud::describe_enis) and `describe_eni`.
    DescribeEnis,
    /// [`Cloud::create_eni`](super::Cloud::create_eni).
    CreateEni,
    /// [`Cloud::attach_eni`](super::Cloud::attach_eni).
    AttachEni,
    /// [`Cloud::keep_with_instance`](super::Cloud::keep_with_instance).
    KeepWithInstance,
    /// [`Cloud::assign_addresses`](super::Cloud::assign_addresses).
    AssignAddresses,
    /// [`Cloud::unassign_addresses`](super::Cloud::unassign_addresses).
    UnassignAddresses,
    /// [`Cloud::detach_eni`](super::Cloud::detach_eni).
    DetachEni,
    /// [`Cloud::delete_eni`](super::Cloud::delete_eni).
    DeleteEni,
}

impl Operation {
    /// The name people know it by: EC2's, or what is read from instance metadata. Used in messages and metrics.
    pub fn api(self) -> &'static str {
        match self {
            Operation::Facts => "InstanceMetadata",
            Operation::Limits => "DescribeInstanceTypes",
            Operation::VpcCidrs => "InstanceMetadata/vpc-ipv4-cidr-blocks",
            Operation::SeenEnis => "InstanceMetadata/macs",
            Operation::DescribeEnis => "DescribeNetworkInterfaces",
            Operation::CreateEni => "CreateNetworkInterface",
            Operation::AttachEni => "AttachNetworkInterface",
            Operation::KeepWithInstance => "ModifyNetworkInterfaceAttribute",
            Operation::AssignAddresses => "AssignPrivateIpAddresses",
            Operation::UnassignAddresses => "UnassignPrivateIpAddresses",
            Operation::DetachEni => "DetachNetworkInterface",
            Operation::DeleteEni => "DeleteNetworkInterface",
        }
    }

    /// Whether it is a call to EC2 (else instance metadata).
    pub fn is_ec2(self) -> bool {
        match self {
            Operation::Facts | Operation::VpcCidrs | Operation::SeenEnis => false,
            Operation::Limits
            | Operation::DescribeEnis
            | Operation::CreateEni
            | Operation::AttachEni
            | Operation::KeepWithInstance
            | Operation::AssignAddresses
            | Operation::UnassignAddresses
            | Operation::DetachEni
            | Operation::DeleteEni => true,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.api())
    }
}

/// What a failure means for the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CloudErrorKind {
    /// Too many calls; nothing was done. Slow down everywhere.
    Throttled,
    /// The subnet has no free address; nothing was done. Leave it alone for a while.
    SubnetExhausted,
    /// The interface holds as many addresses as it can: we know less than there is.
    AddressLimit,
    /// The instance (or the account) has as many interfaces as it can.
    EniLimit,
    /// The object is not there (or, just after it was made, not there yet).
    NotFound,
    /// Our role may not do this. A person must act.
    Denied,
    /// Refused for another reason, or with a code nobody knows; nothing was done.
    Refused,
    /// No answer, or none that can be read: it may have been done.
    Unknown,
}

/// A call that failed: which, why, and in whose words.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{operation}: {}{message}", code_prefix(.code))]
pub struct CloudError {
    /// What was asked.
    pub operation: Operation,
    /// What it means.
    pub kind: CloudErrorKind,
    /// The cloud's own code, if it gave one.
    pub code: Option<String>,
    /// The cloud's own words, or ours where it was silent.
    pub message: String,
}

fn code_prefix(code: &Option<String>) -> String {
    code.as_ref().map(|c| format!("{c}: ")).unwrap_or_default()
}

impl CloudError {
    /// An answer with an error code, classified by it. `status` is HTTP's, where known: what a 5xx answers may have
    /// been done all the same.
    pub fn from_code(
        operation: Operation,
        code: &str,
        message: impl Into<String>,
        status: Option<u16>,
    ) -> Self {
        Self {
            operation,
            kind: classify(code, status),
            code: Some(code.to_owned()),
            message: message.into(),
        }
    }

    /// No answer, or one that could not be read: the thing may have been done.
    pub fn unknown(operation: Operation, message: impl Into<String>) -> Self {
        Self {
            operation,
            kind: CloudErrorKind::Unknown,
            code: None,
            message: message.into(),
        }
    }

    /// A refusal of our own making, before anything was sent.
    pub fn refused(operation: Operation, message: impl Into<String>) -> Self {
        Self {
            operation,
            kind: CloudErrorKind::Refused,
            code: None,
            message: message.into(),
        }
    }

    /// Whether it may have been done in spite of the failure.
    pub fn may_have_happened(&self) -> bool {
        match self.kind {
            CloudErrorKind::Unknown => true,
            CloudErrorKind::Throttled
            | CloudErrorKind::SubnetExhausted
            | CloudErrorKind::AddressLimit
            | CloudErrorKind::EniLimit
            | CloudErrorKind::NotFound
            | CloudErrorKind::Denied
            | CloudErrorKind::Refused => false,
        }
    }
}

/// EC2's codes, from its API reference ("Error codes for the Amazon EC2 API"). Codes are an open set, hence the
/// default: refused if the answer was a refusal, unknown if the server itself failed.
fn classify(code: &str, status: Option<u16>) -> CloudErrorKind {
    match code {
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "SlowDown"
        | "TooManyRequestsException"
        | "EC2ThrottledException"
        | "RequestThrottled" => CloudErrorKind::Throttled,
        "InsufficientFreeAddressesInSubnet" | "InsufficientCidrBlocks" => {
            CloudErrorKind::SubnetExhausted
        }
        "PrivateIpAddressLimitExceeded" => CloudErrorKind::AddressLimit,
        "AttachmentLimitExceeded" | "NetworkInterfaceLimitExceeded" => CloudErrorKind::EniLimit,
        "InvalidNetworkInterfaceID.NotFound"
        | "InvalidNetworkInterface.NotFound"
        | "InvalidAttachmentID.NotFound" => CloudErrorKind::NotFound,
        "UnauthorizedOperation"
        | "AccessDenied"
        | "AuthFailure"
        | "ExpiredToken"
        | "RequestExpired"
        | "InvalidClientTokenId"
        | "OptInRequired" => CloudErrorKind::Denied,
        "InternalError" | "InternalFailure" | "Unavailable" | "ServiceUnavailable"
        | "RequestTimeout" => CloudErrorKind::Unknown,
        _ => match status {
            Some(429) => CloudErrorKind::Throttled,
            Some(500..) => CloudErrorKind::Unknown,
            Some(_) | None => CloudErrorKind::Refused,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_nobody_knows_is_a_refusal_unless_the_server_itself_failed() {
        for (code, status, kind) in [
            ("RequestLimitExceeded", Some(503), CloudErrorKind::Throttled),
            (
                "InsufficientFreeAddressesInSubnet",
                Some(400),
                CloudErrorKind::SubnetExhausted,
            ),
            ("NewCodeOfNextYear", Some(400), CloudErrorKind::Refused),
            ("NewCodeOfNextYear", None, CloudErrorKind::Refused),
            ("NewCodeOfNextYear", Some(500), CloudErrorKind::Unknown),
            ("NewCodeOfNextYear", Some(429), CloudErrorKind::Throttled),
            ("InternalError", Some(500), CloudErrorKind::Unknown),
            ("UnauthorizedOperation", Some(403), CloudErrorKind::Denied),
        ] {
            let error = CloudError::from_code(Operation::CreateEni, code, "words", status);
            assert_eq!(error.kind, kind, "{code} {status:?}");
        }
    }

    #[test]
    fn an_error_names_the_call_the_code_and_the_clouds_words() {
        let error = CloudError::from_code(
            Operation::AssignAddresses,
            "PrivateIpAddressLimitExceeded",
            "too many",
            None,
        );
        assert_eq!(
            error.to_string(),
            "AssignPrivateIpAddresses: PrivateIpAddressLimitExceeded: too many"
        );
        let silent = CloudError::unknown(Operation::Facts, "no answer within 5s");
        assert_eq!(silent.to_string(), "InstanceMetadata: no answer within 5s");
    }
}
