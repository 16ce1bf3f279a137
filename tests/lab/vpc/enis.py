"""Create, describe, modify and delete network interfaces."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any

from moto.ec2.utils import add_tag_specification

from vpc import errors, limits
from vpc.actions import Call, action
from vpc.filters import matching
from vpc.holdings import Holdings
from vpc.interfaces import Interface, describe
from vpc.pages import page
from vpc.world import World

ENI_ID = re.compile(r"eni-[0-9a-f]{8,17}")
# API reference, CreateNetworkInterface, InterfaceType. efa-only and branch are not modelled.
TYPES = ("interface", "efa", "trunk")
UNMODELLED_TYPES = ("efa-only", "branch")
KEPT_TYPES = ("efa", "trunk")  # made by others for pods to use: no address agent ends them


@dataclass(frozen=True)
class Wanted:
    """What an ENI shall hold when it is made. The first of `explicit` is the primary address."""

    explicit: list[str] = field(default_factory=list)
    secondary: int = 0
    prefixes: list[str] = field(default_factory=list)
    prefix_count: int = 0
    ipv6: list[str] = field(default_factory=list)
    ipv6_count: int = 0
    ipv6_prefixes: list[str] = field(default_factory=list)
    ipv6_prefix_count: int = 0

    def check(self) -> None:
        """Refuses what may not be asked for together (API reference, CreateNetworkInterface)."""
        several = len(self.explicit) > 1
        ways = (several, self.secondary, self.prefixes, self.prefix_count)
        if sum(1 for way in ways if way) > 1:
            raise errors.bad_combination(
                "Only one of more than one privateIpAddresses, secondaryPrivateIpAddressCount,"
                " ipv4Prefixes and ipv4PrefixCount can be used"
            )
        ways = (self.ipv6, self.ipv6_count, self.ipv6_prefixes, self.ipv6_prefix_count)
        if sum(1 for way in ways if way) > 1:
            raise errors.one_of_ipv6()


@action("CreateNetworkInterface")
def create_network_interface(world: World, call: Call) -> dict[str, Any]:
    """API reference, CreateNetworkInterface."""
    token, parameters = call.text("ClientToken"), call.parameters()
    eni = world.tokens.earlier("CreateNetworkInterface", token, parameters)
    if eni is None:
        interface_type = call.text("InterfaceType") or "interface"
        if interface_type in UNMODELLED_TYPES:
            raise errors.unsupported(f"interface type {interface_type}")
        if interface_type not in TYPES:
            raise errors.bad_interface_type(interface_type)
        eni = create(
            world,
            world.backend.get_subnet(call.needed("SubnetId")),
            call.listed("Groups"),
            call.text("Description") or "",
            add_tag_specification(call.listed("TagSpecifications")),
            Wanted(
                _explicit(call.text("PrivateIpAddress"), call.listed("PrivateIpAddresses")),
                call.count("SecondaryPrivateIpAddressCount") or 0,
                [item["Ipv4Prefix"] for item in call.listed("Ipv4Prefixes")],
                call.count("Ipv4PrefixCount") or 0,
                [item["Ipv6Address"] for item in call.listed("Ipv6Addresses")],
                call.count("Ipv6AddressCount") or 0,
                [item["Ipv6Prefix"] for item in call.listed("Ipv6Prefixes")],
                call.count("Ipv6PrefixCount") or 0,
            ),
            interface_type,
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
    wanted: Wanted,
    interface_type: str = "interface",
) -> Interface:
    """Makes an ENI, attached to nothing."""
    wanted.check()
    groups = groups_of(world, group_ids, subnet)
    ledger = world.ledger(subnet.vpc_id)
    explicit = wanted.explicit
    for addresses, family in ((explicit, 4), (wanted.ipv6, 6)):
        for address in addresses:
            ledger.check(subnet, address, family)
            if ledger.holder(address) is not None or addresses.count(address) > 1:
                raise errors.address_in_use(address)
    check_free_prefixes(world, subnet, wanted.prefixes, 4)
    check_free_prefixes(world, subnet, wanted.ipv6_prefixes, 6)
    # The blocks first: the primary address then comes from what is no whole block any more.
    blocks = wanted.prefixes or ledger.pick_prefixes(subnet, wanted.prefix_count)
    blocks6 = wanted.ipv6_prefixes or ledger.pick_prefixes(subnet, wanted.ipv6_prefix_count, 6)
    picked = max(0, 1 - len(explicit)) + wanted.secondary
    held = Holdings(
        addresses=(*explicit, *ledger.pick(subnet, picked, [*explicit, *_in_blocks(blocks)])),
        prefixes=tuple(blocks),
        ipv6_addresses=tuple(wanted.ipv6 or ledger.pick(subnet, wanted.ipv6_count, family=6)),
        ipv6_prefixes=tuple(blocks6),
    )
    eni = Interface(world, subnet, held, groups, description, tags, interface_type)
    ledger.take(eni.id, held.addresses + held.ipv6_addresses)
    ledger.take_prefixes(eni.id, held.prefixes + held.ipv6_prefixes)
    world.backend.enis[eni.id] = eni
    return eni


def _in_blocks(blocks: list[str]) -> list[str]:
    return [str(address) for block in blocks for address in ipaddress.ip_network(block)]


def check_free_prefixes(world: World, subnet: Any, prefixes: list[str], family: int) -> None:
    """Refuses prefixes that are none of the subnet, or not free as a whole (the code for the
    latter is unverified)."""
    ledger = world.ledger(subnet.vpc_id)
    for prefix in prefixes:
        ledger.check_prefix(subnet, prefix, family)
        if not ledger.is_free_prefix(prefix) or prefixes.count(prefix) > 1:
            raise errors.address_in_use(prefix)


def needs_prefixes(world: World, eni: Interface) -> None:
    """Refuses prefixes where the instance's type takes none."""
    if eni.attached is not None:
        allowed = limits.of(world.backend.get_instance(eni.attached.instance).instance_type)
        if not allowed.takes_prefixes:
            raise errors.prefixes_need_nitro(allowed.instance_type)


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
    note_ending(world, call, eni, "deleted")
    delete(world, eni)


def note_ending(world: World, call: Call, eni: Interface, what: str) -> None:
    """Notes that a node's own agent ends a trunk or EFA interface: EC2 lets it, we do not
    forgive it (`violations` of the state)."""
    if eni.interface_type in KEPT_TYPES and call.by_node():
        world.violations.append(f"{eni.interface_type} interface {eni.id} was {what} by a node")


def delete(world: World, eni: Interface) -> None:
    """Forgets an ENI that is attached to nothing, and frees its addresses."""
    ledger, held = world.ledger(eni.subnet.vpc_id), eni.held
    ledger.release(held.addresses + held.ipv6_addresses)
    ledger.release_prefixes(held.prefixes + held.ipv6_prefixes)
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
