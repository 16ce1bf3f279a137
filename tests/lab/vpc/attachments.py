"""Attach and detach network interfaces: the interface comes and goes with the state."""

from __future__ import annotations

from typing import Any

from vpc import errors, limits
from vpc.actions import Call, action
from vpc.assignment import check_limits
from vpc.enis import find, needs_prefixes, note_ending
from vpc.fabric import Primary
from vpc.interfaces import Interface
from vpc.world import World, netns_of


@action("AttachNetworkInterface")
def attach_network_interface(world: World, call: Call) -> dict[str, Any]:
    """API reference, AttachNetworkInterface."""
    eni = find(world, call.needed("NetworkInterfaceId"))
    instance = world.backend.get_instance(call.needed("InstanceId"))
    call.needed("DeviceIndex") if call.count("DeviceIndex") is None else None
    index = call.count("DeviceIndex") or 0
    card = call.count("NetworkCardIndex") or 0
    if eni.attached is not None:
        raise errors.interface_attached(eni.id)
    if instance.state not in ("running", "stopped"):
        raise errors.wrong_state(instance.id, instance.state)
    if eni.subnet.availability_zone != instance.availability_zone:
        raise errors.other_zone(eni.id, instance.id)
    attach(world, eni, instance, index, card)
    assert eni.attached is not None, "attach has attached it"
    return {"AttachmentId": eni.attached.id, "NetworkCardIndex": card}


def attach(world: World, eni: Interface, instance: Any, index: int, card: int) -> None:
    """Checks what the instance's type allows, puts the interface in the node, and notes it."""
    allowed = limits.of(instance.instance_type)
    attached = [nic.attached for nic in instance.nics.values()]
    if any((at.device_index, at.card) == (index, card) for at in attached):
        raise errors.device_index_taken(instance.id, index)
    if not 0 <= card < len(allowed.interfaces_by_card):
        raise errors.bad_value(f"Invalid network card index '{card}'")  # unverified
    if index < 0:
        raise errors.bad_value(f"Invalid device index '{index}'")  # unverified
    on_card = sum(1 for at in attached if at.card == card) + 1
    if on_card > allowed.interfaces_by_card[card]:
        raise errors.too_many_interfaces(len(attached) + 1, instance.instance_type)

    netns = netns_of(world.backend, instance.id)
    eni.set_attached(world, instance, index, card)
    try:
        check_limits(world, eni, 0)  # that Attach refuses here is unverified
        if eni.held.prefixes or eni.held.ipv6_prefixes:
            needs_prefixes(world, eni)
        if netns is not None and eni.subnet.vpc_id in world.vpcs:
            primary = None
            if (index, card) == (0, 0):
                held = eni.held
                primary = Primary(held.addresses[0], eni.subnet.cidr_block, held.ipv6_addresses)
            wire = eni.wire(netns, index, card)
            world.fabric.attach(wire, eni.held.destinations, primary)
    except Exception:
        eni.set_available(world)
        raise


@action("DetachNetworkInterface")
def detach_network_interface(world: World, call: Call) -> None:
    """API reference, DetachNetworkInterface. The interface is gone when this answers; the
    ENI says detaching for `settle` more, and cannot be deleted before it is available."""
    wanted = call.needed("AttachmentId")
    for eni in world.interfaces():
        if eni.attached is not None and eni.attached.id == wanted:
            if (eni.attached.device_index, eni.attached.card) == (0, 0):
                raise errors.primary_stays()
            if eni.attached.detached_at is None:  # a second detach is no error (unverified)
                note_ending(world, call, eni, "detached")
                world.fabric.detach(eni.id)
                eni.set_detaching(world)
            return
    raise errors.no_such_attachment(wanted)
