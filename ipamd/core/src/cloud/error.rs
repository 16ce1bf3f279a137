//! How the cloud fails, sorted by what one can do about it.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;
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
    /// [`Cloud::attached_enis`](super::Cloud::attached_enis), `unattached_enis` and `describe_eni`.
    DescribeEnis,
    /// [`Cloud::describe_subnets`](super::Cloud::describe_subnets).
    DescribeSubnets,
    /// [`Cloud::find_loose_enis`](super::Cloud::find_loose_enis).
    FindLooseEnis,
    /// [`Cloud::create_eni`](super::Cloud::create_eni).
    CreateEni,
    /// [`Cloud::attach_eni`](super::Cloud::attach_eni).
    AttachEni,
    /// [`Cloud::keep_with_instance`](super::Cloud::keep_with_instance).
    KeepWithInstance,
    /// [`Cloud::assign`](super::Cloud::assign) of IPv4 addresses and prefixes.
    AssignAddresses,
    /// [`Cloud::assign`](super::Cloud::assign) of an IPv6 prefix.
    AssignIpv6,
    /// [`Cloud::unassign`](super::Cloud::unassign) of IPv4 addresses and prefixes.
    UnassignAddresses,
    /// [`Cloud::unassign`](super::Cloud::unassign) of IPv6 prefixes.
    UnassignIpv6,
    /// [`Cloud::tag_eni`](super::Cloud::tag_eni).
    TagEni,
    /// [`Cloud::regroup_eni`](super::Cloud::regroup_eni).
    RegroupEni,
    /// [`Cloud::detach_eni`](super::Cloud::detach_eni).
    DetachEni,
    /// [`Cloud::delete_eni`](super::Cloud::delete_eni).
    DeleteEni,
}

/// Which of EC2's budgets a call draws on: EC2 counts calls that read and calls that change apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Budget {
    /// Describe calls.
    Read,
    /// Calls that change something.
    Change,
}

impl Operation {
    /// The call that gives blocks of one kind back.
    pub fn unassign(blocks: &BTreeSet<IpNet>) -> Self {
        match blocks.first() {
            Some(IpNet::V6(_)) => Operation::UnassignIpv6,
            Some(IpNet::V4(_)) | None => Operation::UnassignAddresses,
        }
    }

    /// The name people know it by: EC2's, or what is read from instance metadata. Used in messages and metrics.
    pub fn api(self) -> &'static str {
        match self {
            Operation::Facts => "InstanceMetadata",
            Operation::Limits => "DescribeInstanceTypes",
            Operation::VpcCidrs => "InstanceMetadata/vpc-ipv4-cidr-blocks",
            Operation::SeenEnis => "InstanceMetadata/macs",
            Operation::DescribeEnis | Operation::FindLooseEnis => "DescribeNetworkInterfaces",
            Operation::DescribeSubnets => "DescribeSubnets",
            Operation::CreateEni => "CreateNetworkInterface",
            Operation::AttachEni => "AttachNetworkInterface",
            Operation::KeepWithInstance | Operation::RegroupEni => {
                "ModifyNetworkInterfaceAttribute"
            }
            Operation::AssignAddresses => "AssignPrivateIpAddresses",
            Operation::AssignIpv6 => "AssignIpv6Addresses",
            Operation::UnassignAddresses => "UnassignPrivateIpAddresses",
            Operation::UnassignIpv6 => "UnassignIpv6Addresses",
            Operation::TagEni => "CreateTags",
            Operation::DetachEni => "DetachNetworkInterface",
            Operation::DeleteEni => "DeleteNetworkInterface",
        }
    }

    /// The budget of EC2 that it draws on; `None` for instance metadata.
    pub fn budget(self) -> Option<Budget> {
        match self {
            Operation::Facts | Operation::VpcCidrs | Operation::SeenEnis => None,
            Operation::Limits
            | Operation::DescribeEnis
            | Operation::FindLooseEnis
            | Operation::DescribeSubnets => Some(Budget::Read),
            Operation::CreateEni
            | Operation::AttachEni
            | Operation::KeepWithInstance
            | Operation::AssignAddresses
            | Operation::AssignIpv6
            | Operation::UnassignAddresses
            | Operation::UnassignIpv6
            | Operation::TagEni
            | Operation::RegroupEni
            | Operation::DetachEni
            | Operation::DeleteEni => Some(Budget::Change),
        }
    }

    /// Whether it is a call to EC2 (else instance metadata).
    pub fn is_ec2(self) -> bool {
        self.budget().is_some()
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
    /// The subnet has no free `/28`, though it may have single addresses; nothing was done.
    PrefixesExhausted,
    /// The subnet or a security group that was named does not exist (here); nothing was done.
    NoSuchNetwork,
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
        let message = message.into();
        Self {
            operation,
            kind: classify(code, &message, status),
            code: Some(code.to_owned()),
            message,
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
            | CloudErrorKind::PrefixesExhausted
            | CloudErrorKind::NoSuchNetwork
            | CloudErrorKind::AddressLimit
            | CloudErrorKind::EniLimit
            | CloudErrorKind::NotFound
            | CloudErrorKind::Denied
            | CloudErrorKind::Refused => false,
        }
    }

    /// Whether the same call is right to make again: what became of it is not known, or EC2 did not look at it.
    pub fn is_undecided(&self) -> bool {
        self.may_have_happened() || self.kind == CloudErrorKind::Throttled
    }
}

/// EC2's codes, from its API reference ("Error codes for the Amazon EC2 API"), and what AWS's SDKs count as throttling.
/// Codes are an open set, hence the default: refused if the answer was a refusal, unknown if the server itself failed.
fn classify(code: &str, message: &str, status: Option<u16>) -> CloudErrorKind {
    match code {
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "SlowDown"
        | "TooManyRequestsException"
        | "BandwidthLimitExceeded"
        | "PriorRequestNotComplete"
        | "EC2ThrottledException"
        | "RequestThrottledException"
        | "RequestThrottled" => CloudErrorKind::Throttled,
        "InsufficientFreeAddressesInSubnet" => CloudErrorKind::SubnetExhausted,
        "InsufficientCidrBlocks" => CloudErrorKind::PrefixesExhausted,
        "PrivateIpAddressLimitExceeded" => CloudErrorKind::AddressLimit,
        "AttachmentLimitExceeded" | "NetworkInterfaceLimitExceeded" => CloudErrorKind::EniLimit,
        "InvalidNetworkInterfaceID.NotFound"
        | "InvalidNetworkInterface.NotFound"
        | "InvalidAttachmentID.NotFound" => CloudErrorKind::NotFound,
        "InvalidSubnetID.NotFound"
        | "InvalidSubnetId.NotFound"
        | "InvalidSubnetID.Malformed"
        | "InvalidGroup.NotFound"
        | "InvalidGroupId.Malformed"
        | "InvalidGroupId.NotFound"
        | "InvalidSecurityGroupID.NotFound"
        | "InvalidSecurityGroupId.Malformed" => CloudErrorKind::NoSuchNetwork,
        "UnauthorizedOperation"
        | "AccessDenied"
        | "AccessDeniedException"
        | "AuthFailure"
        | "ExpiredToken"
        | "RequestExpired"
        | "InvalidClientTokenId"
        | "OptInRequired" => CloudErrorKind::Denied,
        "InternalError" | "InternalFailure" | "Unavailable" | "ServiceUnavailable"
        | "RequestTimeout" => CloudErrorKind::Unknown,
        // CreateNetworkInterface says in words what the others have codes for (amazon-vpc-cni-k8s#3105).
        "InvalidParameterValue" => exhaustion(message).unwrap_or(CloudErrorKind::Refused),
        _ => match status {
            Some(429) => CloudErrorKind::Throttled,
            Some(500..) => CloudErrorKind::Unknown,
            Some(_) | None => CloudErrorKind::Refused,
        },
    }
}

/// Whether the words of an InvalidParameterValue tell of a subnet that has nothing left.
fn exhaustion(message: &str) -> Option<CloudErrorKind> {
    let words = message.to_lowercase();
    let lacks = ["free", "available", "enough", "insufficient"]
        .iter()
        .any(|word| words.contains(word));
    if lacks && (words.contains("prefix") || words.contains("cidr")) {
        return Some(CloudErrorKind::PrefixesExhausted);
    }
    (lacks && words.contains("addresses")).then_some(CloudErrorKind::SubnetExhausted)
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
    fn a_subnet_without_room_is_known_by_code_and_by_words() {
        for (code, words, kind) in [
            (
                "InsufficientFreeAddressesInSubnet",
                "",
                CloudErrorKind::SubnetExhausted,
            ),
            (
                "InsufficientCidrBlocks",
                "There are not sufficient free Ipv4 addresses in the specified subnet to satisfy the request.",
                CloudErrorKind::PrefixesExhausted,
            ),
            (
                "InvalidParameterValue",
                "The specified subnet does not have enough free addresses to satisfy the request.",
                CloudErrorKind::SubnetExhausted,
            ),
            (
                "InvalidParameterValue",
                "There aren't enough free prefixes in the specified subnet",
                CloudErrorKind::PrefixesExhausted,
            ),
            (
                "InvalidParameterValue",
                "Network interface eni-1 is currently in use",
                CloudErrorKind::Refused,
            ),
            (
                "InvalidParameterValue",
                "device 1 is in use",
                CloudErrorKind::Refused,
            ),
            (
                "InvalidSubnetID.NotFound",
                "The subnet ID 'subnet-9' does not exist",
                CloudErrorKind::NoSuchNetwork,
            ),
        ] {
            let error = CloudError::from_code(Operation::CreateEni, code, words, Some(400));
            assert_eq!(error.kind, kind, "{code}: {words}");
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
