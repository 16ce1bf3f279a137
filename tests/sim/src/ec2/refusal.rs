//! How EC2 refuses.

/// A refusal, in EC2's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// EC2's code.
    pub code: &'static str,
}

impl Refusal {
    /// An empty bucket's answer.
    pub const THROTTLED: Self = Self {
        code: "RequestLimitExceeded",
    };
    pub(super) const NO_ADDRESS: Self = Self {
        code: "InsufficientFreeAddressesInSubnet",
    };
    pub(super) const NO_BLOCK: Self = Self {
        code: "InsufficientCidrBlocks",
    };
    pub(super) const ADDRESS_LIMIT: Self = Self {
        code: "PrivateIpAddressLimitExceeded",
    };
    pub(super) const ATTACHMENT_LIMIT: Self = Self {
        code: "AttachmentLimitExceeded",
    };
    pub(super) const NO_ENI: Self = Self {
        code: "InvalidNetworkInterfaceID.NotFound",
    };
    pub(super) const NO_ATTACHMENT: Self = Self {
        code: "InvalidAttachmentID.NotFound",
    };
    pub(super) const INVALID: Self = Self {
        code: "InvalidParameterValue",
    };

    /// Whether the subnet had not enough.
    pub fn is_exhaustion(self) -> bool {
        self == Self::NO_ADDRESS || self == Self::NO_BLOCK
    }

    /// HTTP's status of the answer.
    pub fn status(self) -> u16 {
        if self == Self::THROTTLED { 503 } else { 400 }
    }
}
