"""EC2's error codes as the lab answers them.

Each names its source. "codes" is the page "Error codes for the Amazon EC2 API" of the API
reference; "seen" is a message that users quoted from EC2, with the place; "unverified" is
our best guess of the code or the wording.
"""

from __future__ import annotations

from moto.ec2.exceptions import EC2ClientError

Refusal = EC2ClientError


def missing_parameter(name: str) -> Refusal:
    """codes: MissingParameter."""
    return Refusal("MissingParameter", f"The request must contain the parameter {name}")


def bad_value(message: str) -> Refusal:
    """codes: InvalidParameterValue."""
    return Refusal("InvalidParameterValue", message)


def bad_combination(message: str) -> Refusal:
    """codes: InvalidParameterCombination."""
    return Refusal("InvalidParameterCombination", message)


def unsupported(what: str) -> Refusal:
    """codes: UnsupportedOperation. Where EC2 would do it and the lab does not."""
    return Refusal("UnsupportedOperation", f"The lab does not model {what}.")


def no_free_addresses() -> Refusal:
    """codes; seen: amazon-vpc-cni-k8s#40 (create), amazon-vpc-cni-k8s#1773 (assign)."""
    return Refusal(
        "InsufficientFreeAddressesInSubnet",
        "The specified subnet does not have enough free addresses to satisfy the request.",
    )


def no_room_for_prefixes() -> Refusal:
    """Fewer free addresses than the prefixes hold; seen: cilium#31016, which quotes AWS's
    support: this one for a subnet at capacity, the next for a fragmented one."""
    return bad_value("There aren't sufficient free Ipv4 addresses or prefixes")


def no_free_blocks() -> Refusal:
    """codes; seen: amazon-vpc-cni-k8s#1836, #1585."""
    return Refusal(
        "InsufficientCidrBlocks",
        "The specified subnet does not have enough free cidr blocks to satisfy the request.",
    )


def no_ipv6_block(subnet: str) -> Refusal:
    """unverified."""
    return bad_value(f"The subnet '{subnet}' has no IPv6 CIDR block associated with it.")


def one_of_ipv6() -> Refusal:
    """seen for RunInstances: karpenter-provider-aws#2187; for ENI calls unverified."""
    return bad_value(
        "You can and can only specify one of ipv6-addresses or ipv6-addresses-count"
        "  ipv6-prefix and ipv6-prefix-count."
    )


def prefixes_need_nitro(instance_type: str) -> Refusal:
    """EC2 User Guide, "Prefix delegation": instances built on Nitro only; code unverified."""
    return Refusal(
        "UnsupportedOperation",
        f"Prefixes are not supported on instances of type {instance_type}.",
    )


def no_ipv6_on_type(instance_type: str) -> Refusal:
    """DescribeInstanceTypes, Ipv6Supported; code unverified."""
    return bad_value(f"IPv6 is not supported for the instance type '{instance_type}'")


def too_many_ipv6_addresses() -> Refusal:
    """unverified: codes has a limit for IPv4 addresses alone."""
    return Refusal("Ipv6AddressLimitExceeded", "Number of IPv6 addresses will exceed limit.")


def prefixes_not_assigned(prefixes: list[str], eni: str) -> Refusal:
    """Unassign of prefixes that the ENI does not hold; unverified."""
    return bad_value(f"Some of [{', '.join(prefixes)}] are not assigned to interface {eni}")


def bad_interface_type(given: str) -> Refusal:
    """API reference, CreateNetworkInterface, InterfaceType; code unverified."""
    return bad_value(f"Invalid value '{given}' for interfaceType")


def too_many_addresses() -> Refusal:
    """codes; seen: amazon-vpc-cni-k8s#989."""
    return Refusal(
        "PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit."
    )


def too_many_interfaces(count: int, instance_type: str) -> Refusal:
    """codes; seen: cilium#8830, amazon-vpc-cni-k8s#36."""
    return Refusal(
        "AttachmentLimitExceeded", f"Interface count {count} exceeds the limit for {instance_type}"
    )


def device_index_taken(instance: str, index: int) -> Refusal:
    """seen: lstoll/k8s-vpcnet#71, terraform-provider-aws#906."""
    return bad_value(
        f"Instance '{instance}' already has an interface attached at device index '{index}'."
    )


def interface_attached(eni: str) -> Refusal:
    """seen for RunInstances: terraform-provider-aws#27513; for Attach unverified. codes:
    InvalidNetworkInterface.InUse covers "deleted or attached to another instance"."""
    return Refusal("InvalidNetworkInterface.InUse", f"Interface: [{eni}] in use.")


def interface_in_use(eni: str) -> Refusal:
    """Delete of an attached ENI. The code is what SDK users report; unverified."""
    return bad_value(f"Network interface '{eni}' is currently in use.")


def primary_stays() -> Refusal:
    """seen: redhat-performance/cloud-governance#952."""
    return Refusal(
        "OperationNotPermitted",
        "The network interface at device index 0 and networkCard index 0 cannot be detached.",
    )


def address_in_use(address: str) -> Refusal:
    """seen: pulumi-aws#2169 (create), aws-cli#7178 (run)."""
    return Refusal("InvalidIPAddress.InUse", f"Address {address} is in use.")


def addresses_assigned_elsewhere(addresses: list[str]) -> Refusal:
    """Assign of another ENI's address without AllowReassignment; unverified."""
    return bad_value(f"Some of [{', '.join(addresses)}] are already assigned.")


def address_outside(address: str, cidr: str) -> Refusal:
    """seen: terraform-provider-aws#23114 (the code); the wording is unverified."""
    return bad_value(f"invalid value for parameter address: {address}: not usable in {cidr}")


def addresses_not_assigned(addresses: list[str], eni: str) -> Refusal:
    """Unassign of what the ENI does not hold, or of its primary; unverified."""
    return bad_value(f"Some of [{', '.join(addresses)}] are not assigned to interface {eni}")


def no_such_interface(eni: str) -> Refusal:
    """codes: InvalidNetworkInterfaceID.NotFound; wording as moto has it."""
    return Refusal(
        "InvalidNetworkInterfaceID.NotFound", f"The networkInterface ID '{eni}' does not exist"
    )


def malformed_interface(eni: str) -> Refusal:
    """unverified: codes has the pattern for other resources."""
    return Refusal("InvalidNetworkInterfaceId.Malformed", f'Invalid id: "{eni}"')


def no_such_attachment(attachment: str) -> Refusal:
    """codes: InvalidAttachmentID.NotFound; wording as moto has it."""
    return Refusal(
        "InvalidAttachmentID.NotFound",
        f"The network interface attachment ID '{attachment}' does not exist",
    )


def no_such_group(group: str) -> Refusal:
    """codes: InvalidGroup.NotFound; that ENI calls use this one is unverified."""
    return Refusal("InvalidGroup.NotFound", f"The security group '{group}' does not exist")


def group_of_another_vpc(group: str, subnet: str) -> Refusal:
    """codes: InvalidParameter, whose text has this very example."""
    return Refusal(
        "InvalidParameter",
        f"Security group {group} and subnet {subnet} belong to different networks.",
    )


def wrong_state(instance: str, state: str) -> Refusal:
    """codes: IncorrectState; the wording is unverified."""
    return Refusal("IncorrectState", f"Instance '{instance}' is not in a valid state: {state}")


def other_zone(eni: str, instance: str) -> Refusal:
    """AttachNetworkInterface needs both in one zone (EC2 User Guide, "Elastic network
    interfaces"); code and wording unverified."""
    return bad_value(f"'{eni}' and '{instance}' are not in the same availability zone.")


def token_reused(token: str) -> Refusal:
    """codes: IdempotentParameterMismatch; "Ensuring idempotency in Amazon EC2 API requests"."""
    return Refusal(
        "IdempotentParameterMismatch",
        f"The client token '{token}' was used before with other parameters.",
    )


def bad_page_token() -> Refusal:
    """codes: InvalidPaginationToken."""
    return Refusal("InvalidPaginationToken", "The specified pagination token is not valid.")


def subnet_in_use(subnet: str) -> Refusal:
    """codes: DependencyViolation."""
    return Refusal(
        "DependencyViolation",
        f"The subnet '{subnet}' has dependencies and cannot be deleted.",
    )
