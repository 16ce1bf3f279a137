"""Who holds which private address: unique, in the subnet, outside its reserved five.

Source: VPC User Guide, "Subnet CIDR blocks": the first four addresses and the last one of
each subnet are not available. EC2 does not say which free address it picks; the lowest is
picked here, which hands a released address out again at once: the hardest case for a user.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from vpc import errors

RESERVED_FIRST = 4  # network, router, DNS, future use
RESERVED_LAST = 1  # broadcast


class Ledger:
    """Address to ENI id, for every ENI there is."""

    def __init__(self) -> None:
        self._holder: dict[str, str] = {}

    def holder(self, address: str) -> str | None:
        """The ENI that holds an address."""
        return self._holder.get(address)

    def items(self) -> list[tuple[str, str]]:
        """All (address, ENI) pairs, by address."""
        return sorted(self._holder.items(), key=lambda item: ipaddress.ip_address(item[0]))

    def free(self, subnet: Any) -> int:
        """How many addresses of a subnet nobody holds."""
        first, last = _usable(subnet.cidr_block)
        held = sum(1 for a in self._holder if first <= int(ipaddress.IPv4Address(a)) <= last)
        return last - first + 1 - held

    def pick(self, subnet: Any, count: int, besides: Iterable[str] = ()) -> list[str]:
        """The lowest free addresses, none taken yet; all of them or a refusal."""
        first, last = _usable(subnet.cidr_block)
        avoid = set(besides)
        picked: list[str] = []
        for number in range(first, last + 1):
            if len(picked) == count:
                break
            address = str(ipaddress.IPv4Address(number))
            if address not in self._holder and address not in avoid:
                picked.append(address)
        if len(picked) < count:
            raise errors.no_free_addresses()
        return picked

    def check(self, subnet: Any, address: str) -> None:
        """Refuses an address that is no usable one of the subnet."""
        first, last = _usable(subnet.cidr_block)
        try:
            number = int(ipaddress.IPv4Address(address))
        except ValueError:
            raise errors.bad_value(f"Invalid IPv4 address '{address}'") from None
        if not first <= number <= last:
            raise errors.address_outside(address, subnet.cidr_block)

    def take(self, eni: str, addresses: Iterable[str]) -> None:
        """Gives free addresses to an ENI."""
        for address in addresses:
            assert address not in self._holder, f"{address} is checked to be free"
            self._holder[address] = eni

    def release(self, addresses: Iterable[str]) -> None:
        """Takes addresses back."""
        for address in addresses:
            del self._holder[address]


def _usable(cidr: str) -> tuple[int, int]:
    block = ipaddress.IPv4Network(cidr)
    first = int(block.network_address) + RESERVED_FIRST
    return first, int(block.broadcast_address) - RESERVED_LAST
