"""Private addresses: unique, in the subnet, outside its reserved five, within the limits."""

from __future__ import annotations

import ipaddress
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ec2_calls import addresses, attach_eni, create_eni, eni_as_read, refused, small_subnet

from vpc.client import Vpc


def test_a_small_subnet_gives_its_eleven_usable_addresses_each_once(sdk: Any, vpc: Vpc) -> None:
    subnet = small_subnet(sdk, vpc)
    given = [
        create_eni(sdk, vpc, SubnetId=subnet)["PrivateIpAddress"],
        *addresses(create_eni(sdk, vpc, SubnetId=subnet, SecondaryPrivateIpAddressCount=9)),
    ]
    usable = list(ipaddress.ip_network("10.40.200.0/28"))[4:-1]
    assert sorted(map(ipaddress.ip_address, given)) == usable


def test_an_exhausted_subnet_refuses_create_assign_and_run_at_once(sdk: Any, vpc: Vpc) -> None:
    subnet = small_subnet(sdk, vpc)
    eni = create_eni(sdk, vpc, SubnetId=subnet, SecondaryPrivateIpAddressCount=9)
    started = time.monotonic()
    code = "InsufficientFreeAddressesInSubnet"
    with refused(code):
        create_eni(sdk, vpc, SubnetId=subnet, SecondaryPrivateIpAddressCount=1)
    with refused(code):
        sdk.assign_private_ip_addresses(
            NetworkInterfaceId=eni["NetworkInterfaceId"], SecondaryPrivateIpAddressCount=2
        )
    create_eni(sdk, vpc, SubnetId=subnet)
    with refused(code):
        sdk.run_instances(
            ImageId="ami-1", InstanceType="t3.small", MinCount=1, MaxCount=1, SubnetId=subnet
        )
    assert time.monotonic() - started < 3
    assert sdk.describe_subnets(SubnetIds=[subnet])["Subnets"][0]["AvailableIpAddressCount"] == 0


def test_calls_at_once_never_share_an_address(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    enis = [nodes.run(f"n{at}", "m5.4xlarge").eni for at in range(4)]
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda at: vpc.assign_addresses(enis[at % 4], 3), range(32)))
    flat = [address for some in given for address in some]
    assert len(set(flat)) == len(flat) == 96


def test_a_refused_assign_leaves_nothing_assigned(sdk: Any, vpc: Vpc) -> None:
    subnet = small_subnet(sdk, vpc)
    eni = create_eni(sdk, vpc, SubnetId=subnet)["NetworkInterfaceId"]
    with refused("InsufficientFreeAddressesInSubnet"):
        sdk.assign_private_ip_addresses(NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=11)
    assert len(addresses(eni_as_read(sdk, eni))) == 1
    assert sdk.describe_subnets(SubnetIds=[subnet])["Subnets"][0]["AvailableIpAddressCount"] == 10


def test_assign_answers_only_what_is_new(sdk: Any, vpc: Vpc) -> None:
    eni = create_eni(sdk, vpc, SecondaryPrivateIpAddressCount=2)
    answer = sdk.assign_private_ip_addresses(
        NetworkInterfaceId=eni["NetworkInterfaceId"], SecondaryPrivateIpAddressCount=3
    )
    new = [item["PrivateIpAddress"] for item in answer["AssignedPrivateIpAddresses"]]
    assert len(new) == 3
    assert not set(new) & set(addresses(eni))
    assert addresses(eni_as_read(sdk, eni["NetworkInterfaceId"])) == addresses(eni) + new


def test_released_addresses_can_be_given_again(sdk: Any, vpc: Vpc) -> None:
    eni = create_eni(sdk, vpc, SecondaryPrivateIpAddressCount=1)
    secondary = addresses(eni)[1]
    sdk.unassign_private_ip_addresses(
        NetworkInterfaceId=eni["NetworkInterfaceId"], PrivateIpAddresses=[secondary]
    )
    again = create_eni(sdk, vpc, PrivateIpAddress=secondary)
    assert again["PrivateIpAddress"] == secondary


def test_addresses_beyond_the_types_limit_are_refused(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1", "t3.small")  # four addresses an interface
    assert len(vpc.assign_addresses(node.eni, 3)) == 3
    with refused("PrivateIpAddressLimitExceeded"):
        sdk.assign_private_ip_addresses(
            NetworkInterfaceId=node.eni, SecondaryPrivateIpAddressCount=1
        )


def test_an_interface_with_more_addresses_than_the_type_allows_is_not_attached(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    node = nodes.run("n1", "t3.small")
    eni = create_eni(sdk, vpc, SecondaryPrivateIpAddressCount=4)["NetworkInterfaceId"]
    with refused("PrivateIpAddressLimitExceeded"):
        attach_eni(sdk, eni, node.instance_id, 1)
    assert eni_as_read(sdk, eni)["Status"] == "available"


def test_explicit_addresses_outside_the_subnet_or_reserved_are_refused(sdk: Any, vpc: Vpc) -> None:
    eni = create_eni(sdk, vpc)["NetworkInterfaceId"]
    for address in ("10.40.16.9", "10.40.0.0", "10.40.0.3", "10.40.15.255", "8.8.8.8", "nonsense"):
        with refused("InvalidParameterValue"):
            create_eni(sdk, vpc, PrivateIpAddress=address)
        with refused("InvalidParameterValue"):
            sdk.assign_private_ip_addresses(NetworkInterfaceId=eni, PrivateIpAddresses=[address])


def test_an_explicit_address_in_use_is_refused(sdk: Any, vpc: Vpc) -> None:
    taken = create_eni(sdk, vpc, SecondaryPrivateIpAddressCount=1)
    eni = create_eni(sdk, vpc)["NetworkInterfaceId"]
    for address in addresses(taken):
        with refused("InvalidIPAddress.InUse"):
            create_eni(sdk, vpc, PrivateIpAddress=address)
        with refused("InvalidParameterValue", "already assigned"):
            sdk.assign_private_ip_addresses(NetworkInterfaceId=eni, PrivateIpAddresses=[address])


def test_reassignment_moves_a_secondary_address_and_never_a_primary_one(sdk: Any, vpc: Vpc) -> None:
    giver = create_eni(sdk, vpc, SecondaryPrivateIpAddressCount=1)
    primary, secondary = addresses(giver)
    taker = create_eni(sdk, vpc)["NetworkInterfaceId"]
    sdk.assign_private_ip_addresses(
        NetworkInterfaceId=taker, PrivateIpAddresses=[secondary], AllowReassignment=True
    )
    assert vpc.owner(secondary) == taker
    assert addresses(eni_as_read(sdk, giver["NetworkInterfaceId"])) == [primary]
    with refused("InvalidParameterValue"):
        sdk.assign_private_ip_addresses(
            NetworkInterfaceId=taker, PrivateIpAddresses=[primary], AllowReassignment=True
        )


def test_unassign_of_a_primary_or_foreign_address_is_refused_whole(sdk: Any, vpc: Vpc) -> None:
    eni = create_eni(sdk, vpc, SecondaryPrivateIpAddressCount=1)
    primary, secondary = addresses(eni)
    for other in (primary, "10.40.9.9"):
        with refused("InvalidParameterValue", "are not assigned"):
            sdk.unassign_private_ip_addresses(
                NetworkInterfaceId=eni["NetworkInterfaceId"], PrivateIpAddresses=[secondary, other]
            )
    assert addresses(eni_as_read(sdk, eni["NetworkInterfaceId"])) == [primary, secondary]


def test_count_and_explicit_addresses_together_are_refused(sdk: Any, vpc: Vpc) -> None:
    eni = create_eni(sdk, vpc)["NetworkInterfaceId"]
    with refused("InvalidParameterCombination"):
        sdk.assign_private_ip_addresses(
            NetworkInterfaceId=eni,
            PrivateIpAddresses=["10.40.7.7"],
            SecondaryPrivateIpAddressCount=1,
        )
    with refused("MissingParameter"):
        sdk.assign_private_ip_addresses(NetworkInterfaceId=eni)


def test_subnets_of_two_vpcs_with_one_block_do_not_disturb_each_other(sdk: Any, vpc: Vpc) -> None:
    other = sdk.create_vpc(CidrBlock="10.40.0.0/16")["Vpc"]["VpcId"]
    subnet = sdk.create_subnet(
        VpcId=other, CidrBlock="10.40.0.0/20", AvailabilityZone="us-west-2a"
    )["Subnet"]["SubnetId"]
    ours = create_eni(sdk, vpc)["PrivateIpAddress"]
    theirs = create_eni(sdk, vpc, SubnetId=subnet)["PrivateIpAddress"]
    assert ours == theirs
