"""Assign and unassign secondary private addresses, IPv6 addresses, and prefixes."""

from __future__ import annotations

from typing import Any

from vpc import errors, limits
from vpc.actions import Call, action
from vpc.enis import check_free_prefixes, find, needs_prefixes
from vpc.holdings import Holdings
from vpc.interfaces import Interface
from vpc.netns import NetworkError
from vpc.world import World


@action("AssignPrivateIpAddresses")
def assign_private_ip_addresses(world: World, call: Call) -> dict[str, Any]:
    """API reference, AssignPrivateIpAddresses. The answer holds what is new, no more."""
    eni = find(world, call.needed("NetworkInterfaceId"))
    count = call.count("SecondaryPrivateIpAddressCount")
    prefix_count = call.count("Ipv4PrefixCount")
    explicit, prefixes = call.listed("PrivateIpAddresses"), call.listed("Ipv4Prefixes")
    given = [name for name, value in (
        ("privateIpAddresses", explicit), ("secondaryPrivateIpAddressCount", count is not None),
        ("ipv4Prefixes", prefixes), ("ipv4PrefixCount", prefix_count is not None),
    ) if value]
    if len(given) > 1:
        raise errors.bad_combination(f"{' and '.join(given)} cannot be used together")
    if not given:
        raise errors.missing_parameter("secondaryPrivateIpAddressCount")
    _check_count("secondaryPrivateIpAddressCount", count)
    _check_count("ipv4PrefixCount", prefix_count)

    ledger = world.ledger(eni.subnet.vpc_id)
    # What it already holds is no error and not in the answer (unverified).
    wanted = [address for address in dict.fromkeys(explicit) if address not in eni.held.addresses]
    blocks = [prefix for prefix in dict.fromkeys(prefixes) if prefix not in eni.held.prefixes]
    for address in wanted:
        ledger.check(eni.subnet, address)
    if prefixes or prefix_count:
        needs_prefixes(world, eni)
    check_limits(world, eni, len(wanted) + len(blocks) + (count or 0) + (prefix_count or 0))
    check_free_prefixes(world, eni.subnet, blocks, 4)
    elsewhere = [address for address in wanted if ledger.holder(address) is not None]
    if elsewhere and not call.flag("AllowReassignment"):
        raise errors.addresses_assigned_elsewhere(elsewhere)
    for address in elsewhere:
        _take_from(world, find(world, str(ledger.holder(address))), address)

    new = Holdings(
        addresses=tuple(wanted or ledger.pick(eni.subnet, count or 0)),
        prefixes=tuple(blocks or ledger.pick_prefixes(eni.subnet, prefix_count or 0)),
    )
    _assign(world, eni, new)
    return {
        "NetworkInterfaceId": eni.id,
        "AssignedPrivateIpAddresses": [{"PrivateIpAddress": one} for one in new.addresses],
        "AssignedIpv4Prefixes": [{"Ipv4Prefix": one} for one in new.prefixes],
    }


@action("AssignIpv6Addresses")
def assign_ipv6_addresses(world: World, call: Call) -> dict[str, Any]:
    """API reference, AssignIpv6Addresses. The answer holds what is new, no more."""
    eni = find(world, call.needed("NetworkInterfaceId"))
    count, prefix_count = call.count("Ipv6AddressCount"), call.count("Ipv6PrefixCount")
    explicit, prefixes = call.listed("Ipv6Addresses"), call.listed("Ipv6Prefixes")
    if sum(1 for given in (count is not None, prefix_count is not None, explicit, prefixes) if given) != 1:
        raise errors.one_of_ipv6()
    _check_count("ipv6AddressCount", count)
    _check_count("ipv6PrefixCount", prefix_count)
    ledger = world.ledger(eni.subnet.vpc_id)
    wanted = [one for one in dict.fromkeys(explicit) if one not in eni.held.ipv6_addresses]
    blocks = [one for one in dict.fromkeys(prefixes) if one not in eni.held.ipv6_prefixes]
    for address in wanted:
        ledger.check(eni.subnet, address, family=6)
    if prefixes or prefix_count:
        needs_prefixes(world, eni)
    check_limits(world, eni, 0, len(wanted) + len(blocks) + (count or 0) + (prefix_count or 0))
    check_free_prefixes(world, eni.subnet, blocks, 6)
    elsewhere = [address for address in wanted if ledger.holder(address) is not None]
    if elsewhere:
        raise errors.addresses_assigned_elsewhere(elsewhere)
    new = Holdings(
        ipv6_addresses=tuple(wanted or ledger.pick(eni.subnet, count or 0, family=6)),
        ipv6_prefixes=tuple(blocks or ledger.pick_prefixes(eni.subnet, prefix_count or 0, 6)),
    )
    _assign(world, eni, new)
    return {
        "NetworkInterfaceId": eni.id,
        "AssignedIpv6Addresses": list(new.ipv6_addresses),
        "AssignedIpv6Prefixes": list(new.ipv6_prefixes),
    }


def _check_count(name: str, count: int | None) -> None:
    if count is not None and count < 1:
        raise errors.bad_value(f"Invalid value '{count}' for {name}")


def check_limits(world: World, eni: Interface, more: int, more_ipv6: int = 0) -> None:
    """What the type allows on an interface: places of each family, primary included, a
    prefix taking one; prefixes and IPv6 at all. An ENI that is attached to nothing has no
    type yet."""
    if eni.attached is None:
        return
    allowed = limits.of(world.backend.get_instance(eni.attached.instance).instance_type)
    if eni.held.slots + more > allowed.addresses_per_interface:
        raise errors.too_many_addresses()
    ipv6 = eni.held.ipv6_slots + more_ipv6
    if ipv6 and not allowed.ipv6_addresses_per_interface:
        raise errors.no_ipv6_on_type(allowed.instance_type)
    if ipv6 > allowed.ipv6_addresses_per_interface:
        raise errors.too_many_ipv6_addresses()


def _assign(world: World, eni: Interface, new: Holdings) -> None:
    ledger, before = world.ledger(eni.subnet.vpc_id), eni.held
    ledger.take(eni.id, new.addresses + new.ipv6_addresses)
    ledger.take_prefixes(eni.id, new.prefixes + new.ipv6_prefixes)
    eni.hold(world, before.plus(new))
    try:
        world.fabric.assign(eni.id, new.destinations)
    except NetworkError:
        eni.hold(world, before)
        _release(world, eni, new)
        raise


def _take_from(world: World, holder: Interface, address: str) -> None:
    if address == holder.addresses[0] or address not in holder.addresses:
        # A primary one never moves, nor one out of a prefix (the latter unverified).
        raise errors.addresses_assigned_elsewhere([address])
    _unassign(world, holder, Holdings(addresses=(address,)))


@action("UnassignPrivateIpAddresses")
def unassign_private_ip_addresses(world: World, call: Call) -> None:
    """API reference, UnassignPrivateIpAddresses: secondary addresses only; all or none."""
    eni = find(world, call.needed("NetworkInterfaceId"))
    gone = Holdings(
        addresses=tuple(dict.fromkeys(call.listed("PrivateIpAddresses"))),
        prefixes=tuple(dict.fromkeys(call.listed("Ipv4Prefixes"))),
    )
    if not gone:
        raise errors.missing_parameter("privateIpAddress")
    others = [address for address in gone.addresses if address not in eni.addresses[1:]]
    if others:
        raise errors.addresses_not_assigned(others, eni.id)
    strange = [prefix for prefix in gone.prefixes if prefix not in eni.held.prefixes]
    if strange:
        raise errors.prefixes_not_assigned(strange, eni.id)
    _unassign(world, eni, gone)


@action("UnassignIpv6Addresses")
def unassign_ipv6_addresses(world: World, call: Call) -> dict[str, Any]:
    """API reference, UnassignIpv6Addresses; all or none (unverified)."""
    eni = find(world, call.needed("NetworkInterfaceId"))
    gone = Holdings(
        ipv6_addresses=tuple(dict.fromkeys(call.listed("Ipv6Addresses"))),
        ipv6_prefixes=tuple(dict.fromkeys(call.listed("Ipv6Prefixes"))),
    )
    if not gone:
        raise errors.missing_parameter("ipv6Addresses")
    others = [one for one in gone.ipv6_addresses if one not in eni.held.ipv6_addresses]
    if others:
        raise errors.addresses_not_assigned(others, eni.id)
    strange = [one for one in gone.ipv6_prefixes if one not in eni.held.ipv6_prefixes]
    if strange:
        raise errors.prefixes_not_assigned(strange, eni.id)
    _unassign(world, eni, gone)
    return {
        "NetworkInterfaceId": eni.id,
        "UnassignedIpv6Addresses": list(gone.ipv6_addresses),
        "UnassignedIpv6Prefixes": list(gone.ipv6_prefixes),
    }


def _unassign(world: World, eni: Interface, gone: Holdings) -> None:
    world.fabric.unassign(eni.id, gone.destinations)
    eni.hold(world, eni.held.without(gone))
    _release(world, eni, gone)


def _release(world: World, eni: Interface, gone: Holdings) -> None:
    ledger = world.ledger(eni.subnet.vpc_id)
    ledger.release(gone.addresses + gone.ipv6_addresses)
    ledger.release_prefixes(gone.prefixes + gone.ipv6_prefixes)
