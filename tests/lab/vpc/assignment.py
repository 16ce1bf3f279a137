"""Assign and unassign secondary private addresses."""

from __future__ import annotations

from typing import Any

from vpc import errors, limits
from vpc.actions import Call, action
from vpc.enis import IPV6, PREFIXES, find
from vpc.interfaces import Interface
from vpc.netns import NetworkError
from vpc.world import World


@action("AssignPrivateIpAddresses")
def assign_private_ip_addresses(world: World, call: Call) -> dict[str, Any]:
    """API reference, AssignPrivateIpAddresses. The answer holds what is new, no more."""
    call.refuse(Ipv4PrefixCount=PREFIXES, Ipv4Prefixes=PREFIXES)
    eni = find(world, call.needed("NetworkInterfaceId"))
    count = call.count("SecondaryPrivateIpAddressCount")
    explicit = call.listed("PrivateIpAddresses")
    if count is not None and explicit:
        raise errors.bad_combination(
            "privateIpAddresses and secondaryPrivateIpAddressCount cannot be used together"
        )
    if count is None and not explicit:
        raise errors.missing_parameter("secondaryPrivateIpAddressCount")
    if count is not None and count < 1:
        raise errors.bad_value(f"Invalid value '{count}' for secondaryPrivateIpAddressCount")

    ledger = world.ledger(eni.subnet.vpc_id)
    # What it already holds is no error and not in the answer (unverified).
    wanted = [address for address in dict.fromkeys(explicit) if address not in eni.addresses]
    for address in wanted:
        ledger.check(eni.subnet, address)
    check_address_limit(world, eni, len(wanted) + (count or 0))
    elsewhere = [address for address in wanted if ledger.holder(address) is not None]
    if elsewhere and not call.flag("AllowReassignment"):
        raise errors.addresses_assigned_elsewhere(elsewhere)
    for address in elsewhere:
        _take_from(world, find(world, str(ledger.holder(address))), address)

    new = wanted or ledger.pick(eni.subnet, count or 0)
    ledger.take(eni.id, new)
    eni.add_addresses(world, new)
    try:
        world.fabric.assign(eni.id, new)
    except NetworkError:
        eni.drop_addresses(world, new)
        ledger.release(new)
        raise
    return {
        "NetworkInterfaceId": eni.id,
        "AssignedPrivateIpAddresses": [{"PrivateIpAddress": address} for address in new],
    }


def check_address_limit(world: World, eni: Interface, more: int) -> None:
    """The type's addresses per interface, primary included; an ENI that is attached to
    nothing has no type yet."""
    if eni.attached is None:
        return
    instance = world.backend.get_instance(eni.attached.instance)
    most = limits.of(instance.instance_type).addresses_per_interface
    if len(eni.addresses) + more > most:
        raise errors.too_many_addresses()


def _take_from(world: World, holder: Interface, address: str) -> None:
    if address == holder.addresses[0]:
        raise errors.addresses_assigned_elsewhere([address])  # a primary one never moves
    _unassign(world, holder, [address])


@action("UnassignPrivateIpAddresses")
def unassign_private_ip_addresses(world: World, call: Call) -> None:
    """API reference, UnassignPrivateIpAddresses: secondary addresses only; all or none."""
    call.refuse(Ipv4Prefixes=PREFIXES)
    eni = find(world, call.needed("NetworkInterfaceId"))
    addresses = list(dict.fromkeys(call.listed("PrivateIpAddresses")))
    if not addresses:
        raise errors.missing_parameter("privateIpAddress")
    others = [address for address in addresses if address not in eni.addresses[1:]]
    if others:
        raise errors.addresses_not_assigned(others, eni.id)
    _unassign(world, eni, addresses)


def _unassign(world: World, eni: Interface, addresses: list[str]) -> None:
    world.fabric.unassign(eni.id, addresses)
    eni.drop_addresses(world, addresses)
    world.ledger(eni.subnet.vpc_id).release(addresses)


@action("AssignIpv6Addresses")
def assign_ipv6_addresses(world: World, call: Call) -> dict[str, Any]:
    """Not modelled yet, and says so; moto would never return where a subnet has no block."""
    raise errors.unsupported(IPV6)


@action("UnassignIpv6Addresses")
def unassign_ipv6_addresses(world: World, call: Call) -> dict[str, Any]:
    """Not modelled yet, and says so."""
    raise errors.unsupported(IPV6)
