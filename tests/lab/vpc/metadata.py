"""What an instance reads about itself: the metadata tree, from the truth.

Source: EC2 User Guide, "Instance metadata categories" and "Instance identity documents".
A tree is a dict of dicts with texts as leaves; several values are one to a line.
"""

from __future__ import annotations

import ipaddress
import json
from datetime import datetime
from typing import Any

from vpc import layout
from vpc.addresses import ipv6_block
from vpc.world import World

Tree = dict[str, Any]


def tree(world: World, instance: Any) -> Tree:
    """Everything below /latest/ for one instance, as it is now."""
    primary = instance.nics[0]
    meta: Tree = {
        "ami-id": instance.image_id,
        "hostname": instance.private_dns_name,
        "iam": {
            "info": json.dumps(
                {
                    "Code": "Success",
                    "InstanceProfileArn": f"arn:aws:iam::{world.account}:instance-profile/"
                    + layout.ROLE,
                },
                indent=2,
            ),
            "security-credentials": {layout.ROLE: _credentials(world, instance.id)},
        },
        "instance-id": instance.id,
        "instance-life-cycle": "on-demand",
        "instance-type": instance.instance_type,
        **_unless_empty("ipv6", primary.held.ipv6_addresses[:1]),
        "local-hostname": instance.private_dns_name,
        "local-ipv4": primary.addresses[0],
        "mac": primary.mac_address,
        "network": {"interfaces": {"macs": interfaces(world, instance)}},
        "placement": {
            "availability-zone": instance.availability_zone,
            "region": world.region,
        },
        "security-groups": "\n".join(group.name for group in primary.group_set),
        "services": {"domain": "amazonaws.com", "partition": "aws"},
    }
    return {
        "dynamic": {"instance-identity": {"document": _identity(world, instance)}},
        "meta-data": meta,
    }


def interfaces(world: World, instance: Any) -> Tree:
    """network/interfaces/macs/: an interface shows once it is attached, not while it is
    attaching or detaching."""
    found: Tree = {}
    for eni in instance.nics.values():
        if eni.attached.status(world.now(), world.lag.settle) != "attached":
            # The primary one is there from the start.
            if (eni.attached.device_index, eni.attached.card) != (0, 0):
                continue
        found[eni.mac_address] = _interface(world, eni)
    return found


def _interface(world: World, eni: Any) -> Tree:
    vpc = world.backend.get_vpc(eni.subnet.vpc_id)
    blocks = [str(block["cidr_block"]) for block in vpc.get_cidr_block_association_set()]
    blocks6 = [str(block["cidr_block"]) for block in vpc.get_cidr_block_association_set(ipv6=True)]
    subnet6 = ipv6_block(eni.subnet)
    held = eni.held
    return {
        "device-number": str(eni.attached.device_index),
        "interface-id": eni.id,
        **_unless_empty("ipv4-prefix", held.prefixes),
        **_unless_empty("ipv6-prefix", held.ipv6_prefixes),
        **_unless_empty("ipv6s", held.ipv6_addresses),
        "local-hostname": eni.private_dns_name,
        "local-ipv4s": "\n".join(eni.addresses),
        "mac": eni.mac_address,
        "network-card": str(eni.attached.card),
        "owner-id": world.account,
        "security-group-ids": "\n".join(group.id for group in eni.group_set),
        "security-groups": "\n".join(group.name for group in eni.group_set),
        "subnet-id": eni.subnet.id,
        "subnet-ipv4-cidr-block": str(ipaddress.ip_network(eni.subnet.cidr_block)),
        **_unless_empty("subnet-ipv6-cidr-blocks", (subnet6,) if subnet6 else ()),
        "vpc-id": eni.subnet.vpc_id,
        "vpc-ipv4-cidr-block": blocks[0],
        "vpc-ipv4-cidr-blocks": "\n".join(blocks),
        **_unless_empty("vpc-ipv6-cidr-blocks", tuple(blocks6)),
    }


def _unless_empty(name: str, values: tuple[str, ...]) -> Tree:
    """A key that is not there where it has no value."""
    return {name: "\n".join(values)} if values else {}


def _credentials(world: World, instance: str) -> str:
    current = world.credentials.for_instance(instance)
    return json.dumps(
        {
            "Code": "Success",
            "LastUpdated": _time(current.updated),
            "Type": "AWS-HMAC",
            "AccessKeyId": current.access_key_id,
            "SecretAccessKey": current.secret_access_key,
            "Token": current.token,
            "Expiration": _time(current.expires),
        },
        indent=2,
    )


def _identity(world: World, instance: Any) -> str:
    return json.dumps(
        {
            "accountId": world.account,
            "architecture": instance.architecture,
            "availabilityZone": instance.availability_zone,
            "billingProducts": None,
            "devpayProductCodes": None,
            "imageId": instance.image_id,
            "instanceId": instance.id,
            "instanceType": instance.instance_type,
            "kernelId": None,
            "marketplaceProductCodes": None,
            "pendingTime": _time(instance.launch_time),
            "privateIp": instance.private_ip_address,
            "ramdiskId": None,
            "region": world.region,
            "version": "2017-09-30",
        },
        indent=2,
    )


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
