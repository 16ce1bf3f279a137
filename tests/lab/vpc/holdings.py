"""What an ENI holds: addresses and prefixes of both families."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Holdings:
    """Addresses and prefixes, in the order in which they came. Of an ENI the first IPv4
    address is the primary one."""

    addresses: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    ipv6_addresses: tuple[str, ...] = ()
    ipv6_prefixes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.destinations)

    @property
    def slots(self) -> int:
        """How many of the interface's IPv4 places it takes: a prefix takes one."""
        return len(self.addresses) + len(self.prefixes)

    @property
    def ipv6_slots(self) -> int:
        """How many of the interface's IPv6 places it takes."""
        return len(self.ipv6_addresses) + len(self.ipv6_prefixes)

    @property
    def destinations(self) -> list[str]:
        """All of it, for who delivers packets."""
        return [*self.addresses, *self.prefixes, *self.ipv6_addresses, *self.ipv6_prefixes]

    def plus(self, more: Holdings) -> Holdings:
        """Both together."""
        return Holdings(
            self.addresses + more.addresses,
            self.prefixes + more.prefixes,
            self.ipv6_addresses + more.ipv6_addresses,
            self.ipv6_prefixes + more.ipv6_prefixes,
        )

    def without(self, gone: Holdings) -> Holdings:
        """This without what is gone."""
        return Holdings(
            tuple(one for one in self.addresses if one not in gone.addresses),
            tuple(one for one in self.prefixes if one not in gone.prefixes),
            tuple(one for one in self.ipv6_addresses if one not in gone.ipv6_addresses),
            tuple(one for one in self.ipv6_prefixes if one not in gone.ipv6_prefixes),
        )
