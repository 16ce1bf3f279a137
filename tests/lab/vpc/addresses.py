"""Who holds which address and prefix of a VPC: unique, in the subnet, outside its reserved five.

Source: VPC User Guide, "Subnet CIDR blocks": the first four addresses and the last one of
each subnet's block are not available, of its IPv6 block neither. EC2 User Guide, "Prefix
delegation for network interfaces": a prefix is a /28 of IPv4 or a /80 of IPv6, all of it
free. EC2 does not say which free address or block it picks; the lowest is picked here, which
hands a released address out again at once: the hardest case for a user.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from typing import Any

from vpc import errors

RESERVED_FIRST = 4  # network, router, DNS, future use
RESERVED_LAST = 1  # broadcast
PREFIX_LENGTH = {4: 28, 6: 80}
BITS = {4: 32, 6: 128}

Number = tuple[int, int]  # IP version and value


class Ledger:
    """Address and prefix to ENI id, for every ENI of one VPC, in both families."""

    def __init__(self) -> None:
        self._addresses: dict[Number, str] = {}
        self._prefixes: dict[Number, str] = {}
        # How many addresses are held in each block that could be a prefix.
        self._held_in: Counter[Number] = Counter()

    def holder(self, address: str) -> str | None:
        """The ENI that holds an address, by itself or within a prefix."""
        number = _number(address)
        return self._addresses.get(number) or self._prefixes.get(_block_of(number))

    def addresses(self) -> list[tuple[str, str]]:
        """All (address, ENI) pairs, by address; those within prefixes are not among them."""
        return [(_text(number), eni) for number, eni in sorted(self._addresses.items())]

    def prefixes(self) -> list[tuple[str, str]]:
        """All (prefix, ENI) pairs, by prefix."""
        return [(_prefix_text(number), eni) for number, eni in sorted(self._prefixes.items())]

    def free(self, subnet: Any) -> int:
        """How many IPv4 addresses of a subnet nobody holds; a prefix holds sixteen."""
        first, last = _usable(subnet.cidr_block)
        held = sum(1 for v, number in self._addresses if v == 4 and first <= number <= last)
        blocks = sum(1 for v, number in self._prefixes if v == 4 and first <= number <= last)
        return last - first + 1 - held - blocks * 2 ** (BITS[4] - PREFIX_LENGTH[4])

    def pick(
        self, subnet: Any, count: int, besides: Iterable[str] = (), family: int = 4
    ) -> list[str]:
        """The lowest free addresses, none taken yet; all of them or a refusal."""
        if count == 0:
            return []
        first, last = _usable(block_of(subnet, family))
        avoid = {_number(address) for address in besides}
        picked: list[str] = []
        at = first
        while at <= last and len(picked) < count:
            number = (family, at)
            if _block_of(number) in self._prefixes:
                at = _block_of(number)[1] + _size(family)
                continue
            if number not in self._addresses and number not in avoid:
                picked.append(_text(number))
            at += 1
        if len(picked) < count:
            raise errors.no_free_addresses()
        return picked

    def pick_prefixes(self, subnet: Any, count: int, family: int = 4) -> list[str]:
        """The lowest blocks that are free as a whole; all of them or a refusal."""
        if count == 0:
            return []
        if family == 4 and self.free(subnet) < count * _size(4):
            raise errors.no_room_for_prefixes()
        first, last = _usable(block_of(subnet, family))
        size = _size(family)
        picked: list[str] = []
        for at in range(first - first % size + size, last + 1, size):
            if len(picked) == count or at + size - 1 > last:
                break
            number = (family, at)
            if number not in self._prefixes and not self._held_in[number]:
                picked.append(_prefix_text(number))
        if len(picked) < count:
            raise errors.no_free_blocks()
        return picked

    def check(self, subnet: Any, address: str, family: int = 4) -> None:
        """Refuses an address that is no usable one of the subnet."""
        block = block_of(subnet, family)
        first, last = _usable(block)
        try:
            version, number = _number(address)
        except ValueError:
            raise errors.bad_value(f"Invalid IPv{family} address '{address}'") from None
        if version != family or not first <= number <= last:
            raise errors.address_outside(address, block)

    def check_prefix(self, subnet: Any, prefix: str, family: int = 4) -> None:
        """Refuses what is no prefix of the subnet: length, alignment, reserved addresses."""
        block = block_of(subnet, family)
        first, last = _usable(block)
        try:
            network = ipaddress.ip_network(prefix)
        except ValueError:
            raise errors.bad_value(f"Invalid IPv{family} prefix '{prefix}'") from None
        start = int(network.network_address)
        if (network.version, network.prefixlen) != (family, PREFIX_LENGTH[family]):
            raise errors.bad_value(f"'{prefix}' is not a /{PREFIX_LENGTH[family]}")
        if not first <= start or not start + _size(family) - 1 <= last:
            raise errors.address_outside(prefix, block)

    def is_free_prefix(self, prefix: str) -> bool:
        """Whether nobody holds a prefix or any address in it."""
        number = _prefix_number(prefix)
        return number not in self._prefixes and not self._held_in[number]

    def take(self, eni: str, addresses: Iterable[str]) -> None:
        """Gives free addresses to an ENI."""
        for address in addresses:
            number = _number(address)
            assert self.holder(address) is None, f"{address} is checked to be free"
            self._addresses[number] = eni
            self._held_in[_block_of(number)] += 1

    def take_prefixes(self, eni: str, prefixes: Iterable[str]) -> None:
        """Gives free prefixes to an ENI."""
        for prefix in prefixes:
            assert self.is_free_prefix(prefix), f"{prefix} is checked to be free"
            self._prefixes[_prefix_number(prefix)] = eni

    def release(self, addresses: Iterable[str]) -> None:
        """Takes addresses back."""
        for address in addresses:
            number = _number(address)
            del self._addresses[number]
            self._held_in[_block_of(number)] -= 1

    def release_prefixes(self, prefixes: Iterable[str]) -> None:
        """Takes prefixes back."""
        for prefix in prefixes:
            del self._prefixes[_prefix_number(prefix)]


def ipv6_block(subnet: Any) -> str | None:
    """The subnet's IPv6 block, if it has one."""
    for association in subnet.ipv6_cidr_block_associations.values():
        if association["ipv6CidrBlockState"]["State"] == "associated":
            return str(association["ipv6CidrBlock"])
    return None


def block_of(subnet: Any, family: int) -> str:
    """The subnet's block of a family. Refuses IPv6 where there is none."""
    if family == 4:
        return str(subnet.cidr_block)
    block = ipv6_block(subnet)
    if block is None:
        raise errors.no_ipv6_block(subnet.id)
    return block


def _number(address: str) -> Number:
    parsed = ipaddress.ip_address(address)
    return parsed.version, int(parsed)


def _prefix_number(prefix: str) -> Number:
    network = ipaddress.ip_network(prefix)
    return network.version, int(network.network_address)


def _text(number: Number) -> str:
    version, value = number
    return str(ipaddress.IPv4Address(value) if version == 4 else ipaddress.IPv6Address(value))


def _prefix_text(number: Number) -> str:
    return f"{_text(number)}/{PREFIX_LENGTH[number[0]]}"


def _size(family: int) -> int:
    return 2 ** (BITS[family] - PREFIX_LENGTH[family])


def _block_of(number: Number) -> Number:
    version, value = number
    return version, value - value % _size(version)


def _usable(cidr: str) -> tuple[int, int]:
    block = ipaddress.ip_network(cidr)
    first = int(block.network_address) + RESERVED_FIRST
    return first, int(block.broadcast_address) - RESERVED_LAST
