"""What an instance type allows: moto's copy of EC2's own catalogue.

Source: DescribeInstanceTypes, NetworkInfo (MaximumNetworkInterfaces per card,
Ipv4AddressesPerInterface, which counts the primary address too, Ipv6AddressesPerInterface);
Hypervisor and BareMetal: prefixes need Nitro (EC2 User Guide, "Prefix delegation").
"""

from __future__ import annotations

from dataclasses import dataclass

from moto.ec2.models.instance_types import INSTANCE_TYPES

from vpc import errors


@dataclass(frozen=True)
class Limits:
    """Interfaces by network card, and addresses (primary included) on each interface. A
    prefix takes the place of one address."""

    instance_type: str
    interfaces_by_card: tuple[int, ...]
    addresses_per_interface: int
    ipv6_addresses_per_interface: int  # 0 where the type has no IPv6
    takes_prefixes: bool

    @property
    def interfaces(self) -> int:
        """Interfaces on all cards together."""
        return sum(self.interfaces_by_card)


def of(instance_type: str) -> Limits:
    """The limits of a type. Refuses an unknown one (the code for Run is unverified)."""
    known = INSTANCE_TYPES.get(instance_type)
    if known is None:
        raise errors.bad_value(f"Invalid value '{instance_type}' for InstanceType.")
    network = known["NetworkInfo"]
    cards = network.get("NetworkCards") or [network]
    return Limits(
        instance_type,
        tuple(card["MaximumNetworkInterfaces"] for card in cards),
        network["Ipv4AddressesPerInterface"],
        network.get("Ipv6AddressesPerInterface", 0) if network.get("Ipv6Supported") else 0,
        known.get("Hypervisor") == "nitro" or known.get("BareMetal", False),
    )
