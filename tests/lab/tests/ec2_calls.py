"""Short words for what the tests do through the SDK."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from vpc.client import Vpc


@contextlib.contextmanager
def refused(code: str, words: str = "", status: int = 400) -> Iterator[None]:
    """The block's call is refused with this code and status, in words that hold `words`."""
    with pytest.raises(ClientError) as caught:
        yield
    error = caught.value.response
    assert error["Error"]["Code"] == code
    assert error["ResponseMetadata"]["HTTPStatusCode"] == status
    assert words in error["Error"]["Message"]


def create_eni(sdk: Any, vpc: Vpc, **more: Any) -> dict[str, Any]:
    """A new ENI in the first subnet."""
    asked = {"SubnetId": vpc.subnets[0].id, **more}
    return sdk.create_network_interface(**asked)["NetworkInterface"]


def attach_eni(sdk: Any, eni: str, instance: str, index: int) -> str:
    """Attaches and returns the attachment's id."""
    answer = sdk.attach_network_interface(
        NetworkInterfaceId=eni, InstanceId=instance, DeviceIndex=index
    )
    return answer["AttachmentId"]


def eni_as_read(sdk: Any, eni: str) -> dict[str, Any]:
    """One ENI as DescribeNetworkInterfaces shows it."""
    return sdk.describe_network_interfaces(NetworkInterfaceIds=[eni])["NetworkInterfaces"][0]


def addresses(eni: dict[str, Any]) -> list[str]:
    """An ENI's addresses, the primary one first."""
    return [item["PrivateIpAddress"] for item in eni["PrivateIpAddresses"]]


def small_subnet(sdk: Any, vpc: Vpc, block: str = "10.40.200.0/28") -> str:
    """A subnet with eleven usable addresses, in the first zone."""
    made = sdk.create_subnet(VpcId=vpc.vpc_id, CidrBlock=block, AvailabilityZone="us-west-2a")
    return made["Subnet"]["SubnetId"]
