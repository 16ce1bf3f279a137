"""Create, describe, modify and delete network interfaces."""

from __future__ import annotations

import re
from typing import Any

from moto.ec2.utils import add_tag_specification

from vpc import errors
from vpc.actions import Call, action
from vpc.filters import matching
from vpc.interfaces import Interface, describe
from vpc.pages import page
from vpc.world import World

PREFIXES = "prefixes on an interface"
IPV6 = "IPv6 addresses"
ENI_ID = re.compile(r"eni-[0-9a-f]{8,17}")


@action("CreateNetworkInterface")
def create_network_interface(world: World, call: Call) -> dict[str, Any]:
    """API reference, CreateNetworkInterface."""
    token, parameters = call.text("ClientToken"), call.parameters()
    eni = world.tokens.earlier("CreateNetworkInterface", token, parameters)
    if eni is None:
        call.refuse(
            Ipv4PrefixCount=PREFIXES,
            Ipv4Prefixes=PREFIXES,
            Ipv6PrefixCount=PREFIXES,
            Ipv6Prefixes=PREFIXES,
            Ipv6AddressCount=IPV6,
            Ipv6Addresses=IPV6,
        )
        if call.text("InterfaceType") not in (None, "interface"):
            raise errors.unsupported(f"interface type {call.text('InterfaceType')}")
        eni = create(
            world,
            world.backend.get_subnet(call.needed("SubnetId")),
            call.listed("Groups"),
            call.text("Description") or "",
            add_tag_specification(call.listed("TagSpecifications")),
            explicit=_explicit(call.text("PrivateIpAddress"), call.listed("PrivateIpAddresses")),
            secondary=call.count("SecondaryPrivateIpAddressCount"),
        )
        world.tokens.remember("CreateNetworkInterface", token, parameters, eni)
    # The sample answer of the API reference says pending.
    return {"NetworkInterface": describe(world, eni, status="pending"), "ClientToken": token}


def create(
    world: World,
    subnet: Any,
    group_ids: list[str],
    description: str,
    tags: dict[str, str],
    explicit: list[str],
    secondary: int | None,
) -> Interface:
    """Makes an ENI, attached to nothing. The first of `explicit` is the primary address."""
    if secondary and len(explicit) > 1:
        # API reference, CreateNetworkInterface, SecondaryPrivateIpAddressCount.
        raise errors.bad_combination(
            "secondaryPrivateIpAddressCount cannot be used with more than one privateIpAddresses"
        )
    groups = groups_of(world, group_ids, subnet)
    ledger = world.ledger(subnet.vpc_id)
    for address in explicit:
        ledger.check(subnet, address)
        if ledger.holder(address) is not None or explicit.count(address) > 1:
            raise errors.address_in_use(address)
    picked = max(0, 1 - len(explicit)) + (secondary or 0)
    addresses = explicit + ledger.pick(subnet, picked, besides=explicit)
    eni = Interface(world, subnet, addresses, groups, description, tags)
    ledger.take(eni.id, addresses)
    world.backend.enis[eni.id] = eni
    return eni


def groups_of(world: World, group_ids: list[str], subnet: Any) -> list[Any]:
    """The groups by id; the VPC's default one where none is named (API reference)."""
    if not group_ids:
        return [world.backend.get_default_security_group(subnet.vpc_id)]
    groups = []
    for group_id in group_ids:
        group = world.backend.get_security_group_from_id(group_id)
        if group is None:
            raise errors.no_such_group(group_id)
        if group.vpc_id != subnet.vpc_id:
            raise errors.group_of_another_vpc(group_id, subnet.id)
        groups.append(group)
    return groups


def _explicit(single: str | None, listed: list[dict[str, Any]]) -> list[str]:
    wanted = [single] if single else []
    ordered = sorted(listed, key=lambda item: str(item.get("Primary")).lower() != "true")
    wanted += [item["PrivateIpAddress"] for item in ordered]
    return wanted


@action("DeleteNetworkInterface")
def delete_network_interface(world: World, call: Call) -> None:
    """API reference, DeleteNetworkInterface: it must be detached first."""
    eni = find(world, call.needed("NetworkInterfaceId"))
    if eni.attached is not None:
        raise errors.interface_in_use(eni.id)
    delete(world, eni)


def delete(world: World, eni: Interface) -> None:
    """Forgets an ENI that is attached to nothing, and frees its addresses."""
    world.ledger(eni.subnet.vpc_id).release(eni.addresses)
    del world.backend.enis[eni.id]
    world.backend.tags.pop(eni.id, None)


@action("DescribeNetworkInterfaces")
def describe_network_interfaces(world: World, call: Call) -> dict[str, Any]:
    """API reference, DescribeNetworkInterfaces; reads lag (world.Lag)."""
    shown = [describe(world, eni) for eni in world.interfaces() if eni.visible(world)]
    ids = call.listed("NetworkInterfaceIds")
    if ids:
        by_id = {eni["NetworkInterfaceId"]: eni for eni in shown}
        for eni_id in ids:
            if not ENI_ID.fullmatch(eni_id):
                raise errors.malformed_interface(eni_id)
            if eni_id not in by_id:
                raise errors.no_such_interface(eni_id)
        shown = [by_id[eni_id] for eni_id in ids]
    shown = matching(shown, call.filters())
    listed, token = page(call, shown, "NetworkInterfaceIds", largest=1000)
    return {"NetworkInterfaces": listed, "NextToken": token}


@action("ModifyNetworkInterfaceAttribute")
def modify_network_interface_attribute(world: World, call: Call) -> None:
    """API reference, ModifyNetworkInterfaceAttribute: one attribute a call (the code for
    several is unverified)."""
    eni = find(world, call.needed("NetworkInterfaceId"))
    attachment = call.structure("Attachment")
    groups = call.listed("Groups")
    description = call.structure("Description")
    check = call.structure("SourceDestCheck")
    if sum(1 for given in (attachment, groups, description, check) if given) != 1:
        raise errors.bad_combination("Specify exactly one attribute to modify")
    if attachment:
        attached = eni.attached
        if attached is None or attached.id != attachment.get("AttachmentId"):
            raise errors.no_such_attachment(str(attachment.get("AttachmentId")))
        if "DeleteOnTermination" not in attachment:
            raise errors.missing_parameter("Attachment.DeleteOnTermination")
        wanted = str(attachment["DeleteOnTermination"]).lower() == "true"
        eni.set_delete_on_termination(world, wanted)
    elif groups:
        eni._group_set = groups_of(world, groups, eni.subnet)
        eni.written(world)
    elif description:
        eni.description = description.get("Value", "")
        eni.written(world)
    elif str(check.get("Value")).lower() != "true":
        raise errors.unsupported("interfaces without source/destination check")


def find(world: World, eni_id: str) -> Interface:
    """An ENI by id; writes see every one, reads only those of `visible`."""
    if not ENI_ID.fullmatch(eni_id):
        raise errors.malformed_interface(eni_id)
    eni = world.backend.enis.get(eni_id)
    if eni is None:
        raise errors.no_such_interface(eni_id)
    eni.finish_detaching(world)
    return eni
