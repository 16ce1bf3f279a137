"""Prefixes of IPv4: sixteen addresses in the place of one, all of them free before."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from ec2_calls import attach_eni, create_eni, eni_as_read, refused, small_subnet
from probes import NEVER, Metadata, pings, udp_reply
from test_fabric import Heard

from vpc.client import Vpc
from vpc.netns import ip_in

MACS = "meta-data/network/interfaces/macs/"


def prefixes(eni: dict[str, Any]) -> list[str]:
    return [item["Ipv4Prefix"] for item in eni.get("Ipv4Prefixes", [])]


def free(sdk: Any, subnet: str) -> int:
    (found,) = sdk.describe_subnets(SubnetIds=[subnet])["Subnets"]
    return found["AvailableIpAddressCount"]


def test_a_prefix_is_aligned_whole_and_costs_sixteen_addresses(sdk: Any, vpc: Vpc) -> None:
    subnet = small_subnet(sdk, vpc, "10.40.200.0/26")
    before = free(sdk, subnet)
    eni = create_eni(sdk, vpc, SubnetId=subnet, Ipv4PrefixCount=2)
    given = [ipaddress.ip_network(prefix) for prefix in prefixes(eni)]
    # The first block holds reserved addresses, the last one the broadcast address.
    assert [str(prefix) for prefix in given] == ["10.40.200.16/28", "10.40.200.32/28"]
    assert free(sdk, subnet) == before - 33
    primary = ipaddress.ip_address(eni["PrivateIpAddress"])
    assert not any(primary in prefix for prefix in given)
    assert prefixes(eni_as_read(sdk, eni["NetworkInterfaceId"])) == prefixes(eni)
    # Single addresses never come out of a block that is somebody's.
    more = vpc.assign_addresses(eni["NetworkInterfaceId"], 10)
    assert not any(ipaddress.ip_address(one) in prefix for one in more for prefix in given)


def test_a_fragmented_subnet_and_a_full_one_have_errors_of_their_own(sdk: Any, vpc: Vpc) -> None:
    subnet = small_subnet(sdk, vpc, "10.40.200.0/26")
    eni = create_eni(sdk, vpc, SubnetId=subnet, PrivateIpAddress="10.40.200.4")
    one = {"NetworkInterfaceId": eni["NetworkInterfaceId"], "Ipv4PrefixCount": 1}
    create_eni(sdk, vpc, SubnetId=subnet, PrivateIpAddress="10.40.200.20")
    create_eni(sdk, vpc, SubnetId=subnet, PrivateIpAddress="10.40.200.40")
    with refused("InsufficientCidrBlocks", "does not have enough free cidr blocks"):
        sdk.assign_private_ip_addresses(**one)
    with refused("InsufficientCidrBlocks"):
        create_eni(sdk, vpc, SubnetId=subnet, Ipv4PrefixCount=1)
    vpc.fill_subnet(subnet, leave=3)
    assert free(sdk, subnet) == 3
    with refused("InvalidParameterValue", "sufficient free Ipv4 addresses or prefixes"):
        sdk.assign_private_ip_addresses(**one)
    vpc.assign_addresses(eni["NetworkInterfaceId"], 3)
    with refused("InsufficientFreeAddressesInSubnet"):
        sdk.assign_private_ip_addresses(
            NetworkInterfaceId=eni["NetworkInterfaceId"], SecondaryPrivateIpAddressCount=1
        )


def test_a_prefix_takes_one_place_of_the_interface(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1", "t3.small")  # four places, the primary address has one
    assert len(vpc.assign_prefixes(node.eni, 2)) == 2
    vpc.assign_addresses(node.eni, 1)
    for more in ({"Ipv4PrefixCount": 1}, {"SecondaryPrivateIpAddressCount": 1}):
        with refused("PrivateIpAddressLimitExceeded"):
            sdk.assign_private_ip_addresses(NetworkInterfaceId=node.eni, **more)


def test_only_nitro_instances_take_prefixes(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1", "t2.small")
    with refused("UnsupportedOperation", "t2.small"):
        sdk.assign_private_ip_addresses(NetworkInterfaceId=node.eni, Ipv4PrefixCount=1)
    eni = create_eni(sdk, vpc, Ipv4PrefixCount=1)["NetworkInterfaceId"]
    with refused("UnsupportedOperation", "t2.small"):
        attach_eni(sdk, eni, node.instance_id, 1)
    (left,) = [one for one in vpc.state()["enis"] if one["id"] == eni]
    assert left["status"] == "available"


def test_an_explicit_prefix_must_be_one_of_the_subnet_and_wholly_free(sdk: Any, vpc: Vpc) -> None:
    eni = create_eni(sdk, vpc, PrivateIpAddress="10.40.3.200")["NetworkInterfaceId"]

    def assign(*wanted: str) -> Any:
        return sdk.assign_private_ip_addresses(NetworkInterfaceId=eni, Ipv4Prefixes=list(wanted))

    table = {
        "10.40.3.8/28": "InvalidParameterValue",  # not aligned
        "10.40.3.0/27": "InvalidParameterValue",
        "10.41.3.0/28": "InvalidParameterValue",  # another subnet's
        "10.40.0.0/28": "InvalidParameterValue",  # holds reserved addresses
        "10.40.15.240/28": "InvalidParameterValue",  # holds the broadcast address
        "10.40.3.192/28": "InvalidIPAddress.InUse",  # an address of it is held
    }
    for prefix, code in table.items():
        with refused(code):
            assign(prefix)
    answer = assign("10.40.3.16/28")
    assert answer["AssignedIpv4Prefixes"] == [{"Ipv4Prefix": "10.40.3.16/28"}]
    # What it has is no error and not in the answer.
    assert assign("10.40.3.16/28", "10.40.3.32/28")["AssignedIpv4Prefixes"] == [
        {"Ipv4Prefix": "10.40.3.32/28"}
    ]
    with refused("InvalidIPAddress.InUse"):
        create_eni(sdk, vpc, PrivateIpAddress="10.40.3.17")


@pytest.mark.parametrize(
    "asked",
    [
        {"Ipv4PrefixCount": 1, "SecondaryPrivateIpAddressCount": 1},
        {"Ipv4PrefixCount": 1, "Ipv4Prefixes": ["10.40.3.16/28"]},
        {"Ipv4Prefixes": ["10.40.3.16/28"], "PrivateIpAddresses": ["10.40.3.1"]},
    ],
)
def test_two_ways_of_asking_at_once_are_refused(sdk: Any, vpc: Vpc, asked: dict[str, Any]) -> None:
    eni = create_eni(sdk, vpc)["NetworkInterfaceId"]
    with refused("InvalidParameterCombination"):
        sdk.assign_private_ip_addresses(NetworkInterfaceId=eni, **asked)
    assert prefixes(eni_as_read(sdk, eni)) == []


def test_unassigned_prefixes_are_free_again_and_strangers_are_refused_whole(
    sdk: Any, vpc: Vpc
) -> None:
    eni = create_eni(sdk, vpc, Ipv4PrefixCount=2, SubnetId=vpc.subnets[1].id)
    eni_id, (one, two) = eni["NetworkInterfaceId"], prefixes(eni)
    with refused("InvalidParameterValue", "are not assigned"):
        sdk.unassign_private_ip_addresses(
            NetworkInterfaceId=eni_id, Ipv4Prefixes=[one, "10.40.20.16/28"]
        )
    assert prefixes(eni_as_read(sdk, eni_id)) == [one, two]
    # An address out of a prefix is not the interface's by itself.
    inner = str(ipaddress.ip_network(one)[3])
    with refused("InvalidParameterValue", "are not assigned"):
        sdk.unassign_private_ip_addresses(NetworkInterfaceId=eni_id, PrivateIpAddresses=[inner])
    sdk.unassign_private_ip_addresses(NetworkInterfaceId=eni_id, Ipv4Prefixes=[one])
    assert prefixes(eni_as_read(sdk, eni_id)) == [two]
    assert vpc.assign_prefixes(eni_id, 1) == [one]
    before = free(sdk, vpc.subnets[1].id)
    sdk.delete_network_interface(NetworkInterfaceId=eni_id)
    assert free(sdk, vpc.subnets[1].id) == before + 33


def test_every_address_of_a_prefix_is_delivered_and_may_speak(vpc: Vpc, nodes: Any) -> None:
    node, other = nodes.run("n1"), nodes.run("n2")
    watcher = nodes.inside(other.netns)
    (prefix,) = vpc.assign_prefixes(node.eni, 1)
    block = ipaddress.ip_network(prefix)
    first, last, beyond = str(block[0]), str(block[15]), str(block[15] + 1)
    ip_in(node.netns, [f"addr add {one}/32 dev lo" for one in (first, last, beyond)])
    assert watcher.run(pings(first)) and watcher.run(pings(last))
    assert not watcher.run(pings(beyond, timeout=NEVER))
    assert vpc.owner(last) == node.eni and vpc.owner(beyond) is None

    inside = nodes.inside(node.netns)
    heard = Heard(watcher, other.address)
    assert inside.run(pings(other.address, source=node.address))
    inside.run(udp_reply(other.address, 9, source=beyond))
    assert heard.sources() == []
    inside.run(udp_reply(other.address, 9, source=last))
    assert heard.sources() == [last]
    heard.close()

    vpc.ec2(
        "UnassignPrivateIpAddresses", NetworkInterfaceId=node.eni, **{"Ipv4Prefix.1": prefix}
    )
    assert not watcher.run(pings(first, timeout=NEVER))


def test_prefixes_that_came_before_the_attachment_are_delivered_after_it(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    node, other = nodes.run("n1"), nodes.run("n2")
    eni = create_eni(sdk, vpc, Ipv4PrefixCount=1)
    attach_eni(sdk, eni["NetworkInterfaceId"], node.instance_id, 1)
    (prefix,) = prefixes(eni)
    address = str(ipaddress.ip_network(prefix)[7])
    ip_in(
        node.netns,
        [
            "link set ens6 up",
            f"addr add {address}/32 dev lo",
            f"route add {node.gateway} dev ens6 scope link table 2",
            f"route add default via {node.gateway} dev ens6 table 2",
            f"rule add from {address} lookup 2 priority 1536",
        ],
    )
    assert nodes.inside(other.netns).run(pings(address))


def test_metadata_lists_prefixes_and_knows_who_asks_from_one(vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    imds = Metadata(nodes.inside(node.netns))
    key = f"{MACS}{node.mac}/ipv4-prefix"
    assert imds.read(key)[0] == 404
    given = vpc.assign_prefixes(node.eni, 2)
    assert imds.value(key).splitlines() == given
    assert imds.value(f"{MACS}{node.mac}/local-ipv4s") == node.address
    address = str(ipaddress.ip_network(given[1])[5])
    ip_in(node.netns, [f"addr add {address}/32 dev lo"])
    headers = {"X-aws-ec2-metadata-token": imds.token()}
    asked = imds.ask("/latest/meta-data/instance-id", headers=headers, source=address)
    assert asked == (200, node.instance_id)


def test_the_state_names_the_holder_of_a_prefix(vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    (prefix,) = vpc.assign_prefixes(node.eni, 1)
    state = vpc.state()
    assert state["prefixes"] == {
        prefix: {"eni": node.eni, "instance": node.instance_id, "netns": node.netns}
    }
    assert [one["prefixes"] for one in state["enis"]] == [[prefix]]
    assert list(state["addresses"]) == [node.address]
