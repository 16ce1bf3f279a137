#!/usr/bin/env python3
"""Writes ipamd/src/instances.txt from the lab's copy of EC2's catalogue of instance types.

Run it with the lab's Python after moto has been raised:

    $(tests/lab/venv.sh)/bin/python scripts/instance-types.py > ipamd/src/instances.txt

Source of every number: DescribeInstanceTypes. `tests/lab/tests/test_instance_table.py` compares.
"""
from collections import defaultdict

from moto.ec2.models.instance_types import INSTANCE_TYPES

HEAD = """\
# Instance types and what they can hold; made by scripts/instance-types.py from DescribeInstanceTypes.
# interfaces of the default card, IPv4 addresses on each, virtual processors, prefixes or addresses: types
"""


def row(info: dict) -> tuple[int, int, int, str]:
    """What a type can hold."""
    network = info["NetworkInfo"]
    default = network.get("DefaultNetworkCardIndex", 0)
    cards = {card["NetworkCardIndex"]: card for card in network.get("NetworkCards", [])}
    interfaces = cards.get(default, network)["MaximumNetworkInterfaces"]
    nitro = info.get("Hypervisor") == "nitro" or info["BareMetal"]
    addresses, processors = network["Ipv4AddressesPerInterface"], info["VCpuInfo"]["DefaultVCpus"]
    return interfaces, addresses, processors, "prefixes" if nitro else "addresses"


def table() -> str:
    """The whole file."""
    groups: dict[tuple[int, int, int, str], list[str]] = defaultdict(list)
    for name, info in INSTANCE_TYPES.items():
        groups[row(info)].append(name)
    lines = [
        f"{' '.join(map(str, key))}: {' '.join(sorted(names))}\n"
        for key, names in sorted(groups.items())
    ]
    return HEAD + "".join(lines)


if __name__ == "__main__":
    print(table(), end="")
