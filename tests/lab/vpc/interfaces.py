"""An ENI: moto's object with what moto lacks, and how an API read sees it."""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moto.core.utils import utcnow
from moto.ec2.models.elastic_network_interfaces import Attachment, NetworkInterface
from moto.ec2.utils import random_eni_attach_id

from vpc.fabric import Wire, interface_name
from vpc.holdings import Holdings
from vpc.layout import REGION
from vpc.world import netns_of

if TYPE_CHECKING:
    from vpc.world import World

HISTORY = 64  # writes to one ENI that a lagging read can go back


@dataclass(frozen=True)
class Snapshot:
    """What a read can see of an ENI as of one moment."""

    at: float
    held: Holdings
    groups: tuple[Any, ...]
    description: str
    attachment: Attached | None


@dataclass(frozen=True)
class Attached:
    """An attachment. `detached_at` is set once detaching began."""

    id: str
    instance: str
    device_index: int
    card: int
    time: Any
    attached_at: float
    detached_at: float | None
    delete_on_termination: bool

    def status(self, now: float, settle: float) -> str:
        """attaching, attached or detaching (API reference: NetworkInterfaceAttachment)."""
        if self.detached_at is not None:
            return "detaching"
        return "attached" if now >= self.attached_at + settle else "attaching"


class Interface(NetworkInterface):
    """An ENI whose holdings, groups and attachment obey EC2."""

    def __init__(
        self,
        world: World,
        subnet: Any,
        held: Holdings,
        groups: list[Any],
        description: str,
        tags: dict[str, str],
        interface_type: str = "interface",
    ):
        addresses = held.addresses
        # moto makes up addresses and groups only where it is given none.
        super().__init__(
            world.backend,
            subnet,
            addresses[0],
            _listed(addresses),
            group_ids=[group.id for group in groups],
            description=description,
            tags=tags,
        )
        self.mac_address = _unused_mac(world)
        self.private_dns_name = dns_name(addresses[0])
        self.requester_id = world.account
        self.interface_type = interface_type
        self.held = held
        self.ipv6_addresses = list(held.ipv6_addresses)  # what moto's own answers read
        self.attached: Attached | None = None
        self.created_at = world.now()
        self._history: deque[Snapshot] = deque(maxlen=HISTORY)
        self.device_index = None
        self.written(world)

    @property
    def network_interface_id(self) -> str:
        """moto's serialiser looks for it: it goes by the class's name."""
        return self.id

    @property
    def addresses(self) -> list[str]:
        """All its IPv4 addresses, the primary one first."""
        return list(self.held.addresses)

    def hold(self, world: World, held: Holdings) -> None:
        """Notes what it holds from now on, which the ledger knows already."""
        self.held = held
        self.private_ip_addresses = _listed(held.addresses)
        self.ipv6_addresses = list(held.ipv6_addresses)
        self.written(world)

    def set_attached(self, world: World, instance: Any, device_index: int, card: int) -> None:
        """Notes an attachment whose interface is in the node."""
        self.attached = Attached(
            random_eni_attach_id(),
            instance.id,
            device_index,
            card,
            utcnow(),
            world.now(),
            None,
            False,
        )
        # The fields that moto's own answers read.
        self.instance, self.device_index = instance, device_index
        self.attachment_id, self.attach_time = self.attached.id, self.attached.time
        self.status = "in-use"
        instance.nics[_slot(device_index, card)] = self
        self.written(world)

    def set_delete_on_termination(self, world: World, wanted: bool) -> None:
        """Keeps the attachment's DeleteOnTermination."""
        assert self.attached is not None, "the caller found the attachment"
        self.attached = replace(self.attached, delete_on_termination=wanted)
        self.delete_on_termination = wanted
        self.written(world)

    def set_detaching(self, world: World) -> None:
        """Notes that the interface has left the node; available after `settle`."""
        assert self.attached is not None, "the caller found the attachment"
        self.attached = replace(self.attached, detached_at=world.now())
        self.written(world)
        self.finish_detaching(world)

    def finish_detaching(self, world: World) -> None:
        """Makes the ENI available once detaching took its time."""
        attached = self.attached
        if attached is None or attached.detached_at is None:
            return
        if world.now() < attached.detached_at + world.lag.settle:
            return
        self.set_available(world)

    def set_available(self, world: World) -> None:
        """Forgets the attachment."""
        attached = self.attached
        assert attached is not None, "only an attached ENI becomes available"
        if self.instance is not None:
            self.instance.nics.pop(_slot(attached.device_index, attached.card), None)
        self.attached = None
        self.instance = self.attachment_id = self.attach_time = self.device_index = None
        self.delete_on_termination = False
        self.status = "available"
        self.written(world)

    def written(self, world: World) -> None:
        """Records the state that reads will see once their lag has passed."""
        self._history.append(
            Snapshot(
                world.now(),
                self.held,
                tuple(self._group_set),
                self.description,
                self.attached,
            )
        )

    def visible(self, world: World) -> bool:
        """Whether reads have caught up with its creation."""
        return world.now() >= self.created_at + world.lag.create

    def seen(self, world: World) -> Snapshot:
        """What a read sees now."""
        horizon = world.now() - world.lag.write
        past = [snapshot for snapshot in self._history if snapshot.at <= horizon]
        return past[-1] if past else self._history[0]

    def wire(self, netns: str, device_index: int, card: int) -> Wire:
        """Where its interface is, or will be."""
        return Wire(self.id, self.mac_address, netns, interface_name(device_index, card))

    @property
    def attachment(self) -> Attachment | None:
        """The attachment as moto's DescribeInstances answers it."""
        if self.attached is None:
            return None
        answer = Attachment(self)
        answer.network_card_index = self.attached.card
        answer.status = "detaching" if self.attached.detached_at is not None else "attached"
        return answer

    @property
    def group_set(self) -> list[Any]:
        """Its own groups; moto would add the instance's."""
        return self._group_set

    def dump(self) -> dict[str, Any]:
        """The truth as JSON, without lag."""
        attached = self.attached
        netns = netns_of(self.ec2_backend, attached.instance) if attached else None
        return {
            "id": self.id,
            "mac": self.mac_address,
            "subnet": self.subnet.id,
            "zone": self.subnet.availability_zone,
            "vpc": self.subnet.vpc_id,
            "type": self.interface_type,
            "description": self.description,
            "status": self.status,
            "instance": attached.instance if attached else None,
            "attachment": attached.id if attached else None,
            "device_index": attached.device_index if attached else None,
            "delete_on_termination": attached.delete_on_termination if attached else None,
            "netns": netns,
            "interface": interface_name(attached.device_index, attached.card)
            if attached and netns
            else None,
            "primary": self.addresses[0],
            "addresses": self.addresses,
            "prefixes": list(self.held.prefixes),
            "ipv6_addresses": list(self.held.ipv6_addresses),
            "ipv6_prefixes": list(self.held.ipv6_prefixes),
            "groups": [group.id for group in self._group_set],
            "tags": dict(self.ec2_backend.tags.get(self.id, {})),
        }


def describe(world: World, eni: Interface, status: str | None = None) -> dict[str, Any]:
    """An ENI as the API answers it (API reference: NetworkInterface)."""
    seen = eni.seen(world)
    addresses = seen.held.addresses
    answer: dict[str, Any] = {
        "NetworkInterfaceId": eni.id,
        "SubnetId": eni.subnet.id,
        "VpcId": eni.subnet.vpc_id,
        "AvailabilityZone": eni.subnet.availability_zone,
        "Description": seen.description,
        "OwnerId": world.account,
        "RequesterId": eni.requester_id,
        "RequesterManaged": False,
        "Status": status or ("in-use" if seen.attachment else "available"),
        "MacAddress": eni.mac_address,
        "InterfaceType": eni.interface_type,
        "PrivateIpAddress": addresses[0],
        "PrivateDnsName": dns_name(addresses[0]),
        "SourceDestCheck": True,
        "Groups": [{"GroupId": g.id, "GroupName": g.name} for g in seen.groups],
        "PrivateIpAddresses": [
            {"PrivateIpAddress": a, "PrivateDnsName": dns_name(a), "Primary": at == 0}
            for at, a in enumerate(addresses)
        ],
        "Ipv4Prefixes": [{"Ipv4Prefix": prefix} for prefix in seen.held.prefixes],
        "Ipv6Addresses": [
            {"Ipv6Address": address, "IsPrimaryIpv6": False}
            for address in seen.held.ipv6_addresses
        ],
        "Ipv6Prefixes": [{"Ipv6Prefix": prefix} for prefix in seen.held.ipv6_prefixes],
        "TagSet": [
            {"Key": key, "Value": value}
            for key, value in world.backend.tags.get(eni.id, {}).items()
        ],
    }
    attached = seen.attachment
    if attached is not None:
        answer["Attachment"] = {
            "AttachmentId": attached.id,
            "InstanceId": attached.instance,
            "InstanceOwnerId": world.account,
            "DeviceIndex": attached.device_index,
            "NetworkCardIndex": attached.card,
            "Status": attached.status(world.now(), world.lag.settle),
            "AttachTime": attached.time,
            "DeleteOnTermination": attached.delete_on_termination,
        }
    return answer


def dns_name(address: str) -> str:
    """ip-10-40-0-4.us-west-2.compute.internal (EC2 User Guide, "hostname types")."""
    return f"ip-{address.replace('.', '-')}.{REGION}.compute.internal"


def _listed(addresses: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {"Primary": at == 0, "PrivateIpAddress": address, "PrivateDnsName": dns_name(address)}
        for at, address in enumerate(addresses)
    ]


def _slot(device_index: int, card: int) -> int:
    return device_index + 1000 * card  # moto keeps interfaces by one number; 0 is primary


def _unused_mac(world: World) -> str:
    used = {eni.mac_address for eni in world.backend.enis.values()}
    while True:
        # Locally administered, as EC2's are.
        mac = "02:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(5))
        if mac not in used:
            return mac
