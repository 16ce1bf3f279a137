"""Filters of DescribeNetworkInterfaces, over answers, so that they lag like answers do.

Source: API reference, DescribeNetworkInterfaces: values of one filter are alternatives,
filters all have to match, `*` and `?` are wildcards. What is not in the table here is
refused (EC2 knows a few more that nobody has needed yet).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from typing import Any

from vpc import errors

Answer = dict[str, Any]


def _attachment(field: str) -> Callable[[Answer], list[Any]]:
    return lambda eni: [eni["Attachment"][field]] if "Attachment" in eni else []


def _of(field: str) -> Callable[[Answer], list[Any]]:
    return lambda eni: [eni[field]]


def _of_each(listed: str, field: str) -> Callable[[Answer], list[Any]]:
    return lambda eni: [item[field] for item in eni[listed]]


FIELDS: dict[str, Callable[[Answer], list[Any]]] = {
    "addresses.primary": _of_each("PrivateIpAddresses", "Primary"),
    "addresses.private-ip-address": _of_each("PrivateIpAddresses", "PrivateIpAddress"),
    "attachment.attach-time": _attachment("AttachTime"),
    "attachment.attachment-id": _attachment("AttachmentId"),
    "attachment.delete-on-termination": _attachment("DeleteOnTermination"),
    "attachment.device-index": _attachment("DeviceIndex"),
    "attachment.instance-id": _attachment("InstanceId"),
    "attachment.instance-owner-id": _attachment("InstanceOwnerId"),
    "attachment.status": _attachment("Status"),
    "availability-zone": _of("AvailabilityZone"),
    "description": _of("Description"),
    "group-id": _of_each("Groups", "GroupId"),
    "group-name": _of_each("Groups", "GroupName"),
    "interface-type": _of("InterfaceType"),
    "mac-address": _of("MacAddress"),
    "network-interface-id": _of("NetworkInterfaceId"),
    "owner-id": _of("OwnerId"),
    "private-dns-name": _of("PrivateDnsName"),
    "private-ip-address": _of_each("PrivateIpAddresses", "PrivateIpAddress"),
    "requester-id": _of("RequesterId"),
    "requester-managed": _of("RequesterManaged"),
    "source-dest-check": _of("SourceDestCheck"),
    "status": _of("Status"),
    "subnet-id": _of("SubnetId"),
    "tag-key": _of_each("TagSet", "Key"),
    "tag-value": _of_each("TagSet", "Value"),
    "vpc-id": _of("VpcId"),
}


def matching(enis: list[Answer], filters: dict[str, list[str]]) -> list[Answer]:
    """The answers that pass every filter. Refuses a filter it does not know."""
    for name, values in filters.items():
        field = _field(name)
        patterns = [_pattern(value) for value in values]
        enis = [
            eni
            for eni in enis
            if any(pattern.match(_text(found)) for found in field(eni) for pattern in patterns)
        ]
    return enis


def _field(name: str) -> Callable[[Answer], list[Any]]:
    if name.startswith("tag:"):
        key = name.removeprefix("tag:")
        return lambda eni: [tag["Value"] for tag in eni["TagSet"] if tag["Key"] == key]
    if name not in FIELDS:
        raise errors.bad_value(f"The filter '{name}' is invalid")
    return FIELDS[name]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _pattern(value: str) -> re.Pattern[str]:
    # fnmatch knows [] too, which EC2 takes literally.
    return re.compile(fnmatch.translate(re.sub(r"([\[\]])", r"[\1]", value)))
