"""IPv6: blocks of VPC and subnets, addresses, prefixes of /80, and packets between them."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
from typing import Any

import pytest
from ec2_calls import attach_eni, create_eni, eni_as_read, refused, small_subnet
from probes import NEVER, SOON, Metadata, http_get

from vpc.client import Vpc
from vpc.netns import Namespace, ip_in

MACS = "meta-data/network/interfaces/macs/"
PORT = 9


def ipv6_addresses(eni: dict[str, Any]) -> list[str]:
    return [item["Ipv6Address"] for item in eni.get("Ipv6Addresses", [])]


def ipv6_prefixes(eni: dict[str, Any]) -> list[str]:
    return [item["Ipv6Prefix"] for item in eni.get("Ipv6Prefixes", [])]


class Ears:
    """A UDP socket on every IPv6 address of a namespace, and whom it has heard."""

    def __init__(self, inside: Namespace):
        def bind() -> socket.socket:
            bound = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            bound.bind(("::", PORT))
            bound.settimeout(NEVER)
            return bound

        self.socket = inside.run(bind)

    def heard(self) -> str | None:
        try:
            return str(self.socket.recvfrom(2048)[1][0])
        except TimeoutError:
            return None


def send(inside: Namespace, target: str, source: str = "::") -> None:
    def go() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind((source, 0))
            probe.sendto(b"hello", (target, PORT))

    inside.run(go)


def reaches(inside: Namespace, target: str, source: str, ears: Ears) -> bool:
    """Whether a packet arrives, if not the first: while an interface's own link-local address
    is being probed, it asks for no neighbour in another's name."""

    def arrives() -> bool:
        send(inside, target, source)
        return ears.heard() == source

    arrived = any(arrives() for _ in range(12))
    while ears.heard() is not None:
        pass  # what waited for the neighbour comes all at once
    return arrived


def hold(netns: str, *addresses: str) -> None:
    ip_in(netns, [f"addr add {one}/128 dev lo nodad" for one in addresses])


def test_addresses_and_prefixes_come_out_of_the_subnets_block(sdk: Any, vpc: Vpc) -> None:
    block = ipaddress.ip_network(vpc.subnets[1].ipv6_cidr)
    eni = create_eni(sdk, vpc, SubnetId=vpc.subnets[1].id, Ipv6AddressCount=2)
    eni_id, first = eni["NetworkInterfaceId"], ipv6_addresses(eni)
    assert len(set(first)) == 2
    assert all(ipaddress.ip_address(one) in block for one in first)
    answer = sdk.assign_ipv6_addresses(NetworkInterfaceId=eni_id, Ipv6PrefixCount=1)
    assert answer["AssignedIpv6Addresses"] == []
    (prefix,) = answer["AssignedIpv6Prefixes"]
    network = ipaddress.ip_network(prefix)
    assert network.prefixlen == 80 and network.subnet_of(block)
    assert not any(ipaddress.ip_address(one) in network for one in first)
    answer = sdk.assign_ipv6_addresses(NetworkInterfaceId=eni_id, Ipv6AddressCount=1)
    assert len(answer["AssignedIpv6Addresses"]) == 1, "only what is new"
    read = eni_as_read(sdk, eni_id)
    assert ipv6_addresses(read) == [*first, *answer["AssignedIpv6Addresses"]]
    assert ipv6_prefixes(read) == [prefix]
    gone = sdk.unassign_ipv6_addresses(
        NetworkInterfaceId=eni_id, Ipv6Addresses=[first[0]], Ipv6Prefixes=[prefix]
    )
    assert (gone["UnassignedIpv6Addresses"], gone["UnassignedIpv6Prefixes"]) == (
        [first[0]],
        [prefix],
    )
    assert ipv6_prefixes(eni_as_read(sdk, eni_id)) == []


def test_what_ipv6_refuses(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1", "t3.small")  # four IPv6 places
    with refused("InvalidParameterValue", "You can and can only specify one of"):
        sdk.assign_ipv6_addresses(
            NetworkInterfaceId=node.eni, Ipv6AddressCount=1, Ipv6PrefixCount=1
        )
    with refused("InvalidParameterValue", "You can and can only specify one of"):
        sdk.assign_ipv6_addresses(NetworkInterfaceId=node.eni)
    sdk.assign_ipv6_addresses(NetworkInterfaceId=node.eni, Ipv6PrefixCount=4)
    with refused("Ipv6AddressLimitExceeded"):
        sdk.assign_ipv6_addresses(NetworkInterfaceId=node.eni, Ipv6AddressCount=1)
    with refused("InvalidParameterValue", "are not assigned"):
        sdk.unassign_ipv6_addresses(
            NetworkInterfaceId=node.eni, Ipv6Prefixes=["2001:db8:40:0:77::/80"]
        )
    bare = create_eni(sdk, vpc, SubnetId=small_subnet(sdk, vpc))["NetworkInterfaceId"]
    with refused("InvalidParameterValue", "has no IPv6 CIDR block"):
        sdk.assign_ipv6_addresses(NetworkInterfaceId=bare, Ipv6AddressCount=1)
    old = nodes.run("n2", "m1.small")
    with refused("InvalidParameterValue", "m1.small"):
        sdk.assign_ipv6_addresses(NetworkInterfaceId=old.eni, Ipv6AddressCount=1)


def test_metadata_has_the_ipv6_keys_where_they_have_a_value(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    node = nodes.run("n1", ipv6=True)
    imds = Metadata(nodes.inside(node.netns))
    base = f"{MACS}{node.mac}"
    assert node.ipv6
    assert imds.value("meta-data/ipv6") == node.ipv6
    assert imds.value(f"{base}/ipv6s") == node.ipv6
    assert imds.value(f"{base}/subnet-ipv6-cidr-blocks") == vpc.subnets[0].ipv6_cidr
    assert imds.value(f"{base}/vpc-ipv6-cidr-blocks") == "2001:db8:40::/56"
    assert imds.read(f"{base}/ipv6-prefix")[0] == 404
    answer = sdk.assign_ipv6_addresses(NetworkInterfaceId=node.eni, Ipv6PrefixCount=1)
    assert imds.value(f"{base}/ipv6-prefix") == answer["AssignedIpv6Prefixes"][0]
    plain = nodes.run("n2")
    old = Metadata(nodes.inside(plain.netns))
    assert old.read("meta-data/ipv6")[0] == 404
    assert old.read(f"{MACS}{plain.mac}/ipv6s")[0] == 404


def test_nodes_reach_each_other_across_zones_and_vpcs_by_ipv6(vpc: Vpc, nodes: Any) -> None:
    one = nodes.run("n1", ipv6=True)
    two = nodes.run("n2", subnet=vpc.subnets[1].id, ipv6=True)
    three = nodes.run("n3", subnet=vpc.peer_subnets[0].id, ipv6=True)
    inside = nodes.inside(one.netns)
    for other in (two, three):
        ears = Ears(nodes.inside(other.netns))
        send(inside, other.ipv6)
        assert ears.heard() == one.ipv6
        ears.socket.close()


def test_a_prefix_is_delivered_and_nothing_else_may_speak(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    node = nodes.run("n1", ipv6=True)
    other = nodes.run("n2", ipv6=True)
    answer = sdk.assign_ipv6_addresses(NetworkInterfaceId=node.eni, Ipv6PrefixCount=1)
    prefix = ipaddress.ip_network(answer["AssignedIpv6Prefixes"][0])
    within, beyond = str(prefix[77]), str(prefix.broadcast_address + 1)
    hold(node.netns, within, beyond)
    there = Ears(nodes.inside(node.netns))
    for target, heard in ((within, other.ipv6), (beyond, None)):
        send(nodes.inside(other.netns), target)
        assert there.heard() == heard, target
    back = Ears(nodes.inside(other.netns))
    inside = nodes.inside(node.netns)
    for source in (within, node.ipv6):
        assert reaches(inside, other.ipv6, source, back), source
    send(inside, other.ipv6, beyond)
    assert back.heard() is None
    sdk.unassign_ipv6_addresses(NetworkInterfaceId=node.eni, Ipv6Prefixes=[str(prefix)])
    send(nodes.inside(other.netns), within)
    assert there.heard() is None
    there.socket.close()
    back.socket.close()


def test_a_packet_leaves_by_the_interface_that_holds_its_source_or_not_at_all(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    node, other = nodes.run("n1", ipv6=True), nodes.run("n2", ipv6=True)
    eni = create_eni(sdk, vpc, Ipv6AddressCount=1)
    attach_eni(sdk, eni["NetworkInterfaceId"], node.instance_id, 1)
    (address,) = ipv6_addresses(eni)
    hold(node.netns, address)
    ears = Ears(nodes.inside(other.netns))
    send(nodes.inside(node.netns), other.ipv6, address)
    assert ears.heard() is None, "it left by the primary interface"
    ip_in(node.netns, ["link set ens6 up", "route add ::/0 via fe80:ec2::1 dev ens6 table 2"])
    rule = ["rule", "add", "from", address, "lookup", "2", "priority", "1536"]
    subprocess.run(["ip", "-6", "-n", node.netns, *rule], check=True)
    assert reaches(nodes.inside(node.netns), other.ipv6, address, ears)
    ears.socket.close()


def test_the_internet_sees_a_pods_own_ipv6_address(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1", ipv6=True)
    answer = sdk.assign_ipv6_addresses(NetworkInterfaceId=node.eni, Ipv6PrefixCount=1)
    pod = str(ipaddress.ip_network(answer["AssignedIpv6Prefixes"][0])[1])
    hold(node.netns, pod, "2001:db8:40::9999")
    inside = nodes.inside(node.netns)
    there = vpc.info["internet_ipv6_address"]
    for source in (node.ipv6, pod):
        assert inside.run(http_get(there, source=source, timeout=SOON)) == (200, f"{source}\n")
    with pytest.raises(TimeoutError):
        inside.run(http_get(there, source="2001:db8:40::9999", timeout=NEVER))
