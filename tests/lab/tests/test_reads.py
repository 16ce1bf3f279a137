"""Reads: lag, filters, pages, and errors that are EC2's and never a web page."""

from __future__ import annotations

import time
from typing import Any

import boto3
import pytest
from botocore.config import Config
from ec2_calls import addresses, attach_eni, create_eni, eni_as_read, refused

from vpc.client import Ec2Error, Vpc


def found(sdk: Any, **filters: Any) -> set[str]:
    """The ids of the ENIs that pass the filters."""
    asked = [{"Name": name, "Values": values} for name, values in filters["by"].items()]
    answer = sdk.describe_network_interfaces(Filters=asked)["NetworkInterfaces"]
    return {eni["NetworkInterfaceId"] for eni in answer}


def test_a_new_interface_is_not_found_until_reads_catch_up(sdk: Any, vpc: Vpc) -> None:
    vpc.set_lag(create=0.3)
    eni = create_eni(sdk, vpc)["NetworkInterfaceId"]
    with refused("InvalidNetworkInterfaceID.NotFound"):
        eni_as_read(sdk, eni)
    assert found(sdk, by={"network-interface-id": [eni]}) == set()
    time.sleep(0.4)
    assert eni_as_read(sdk, eni)["NetworkInterfaceId"] == eni


def test_with_write_lag_an_assigned_address_is_seen_late(sdk: Any, vpc: Vpc) -> None:
    eni = create_eni(sdk, vpc)["NetworkInterfaceId"]
    vpc.set_lag(write=0.3)
    time.sleep(0.4)
    new = vpc.assign_addresses(eni, 1)
    assert not set(new) & set(addresses(eni_as_read(sdk, eni)))
    time.sleep(0.4)
    assert set(new) <= set(addresses(eni_as_read(sdk, eni)))


def test_filters_find_what_they_name_and_nothing_else(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    tagged = create_eni(
        sdk,
        vpc,
        Description="aws-K8S-i-1",
        SubnetId=vpc.subnets[1].id,
        TagSpecifications=[
            {"ResourceType": "network-interface", "Tags": [{"Key": "team", "Value": "blue"}]}
        ],
    )["NetworkInterfaceId"]
    attached = create_eni(sdk, vpc)["NetworkInterfaceId"]
    attach_eni(sdk, attached, node.instance_id, 1)
    everything = {node.eni, tagged, attached}
    table = {
        "by instance": ({"attachment.instance-id": [node.instance_id]}, {node.eni, attached}),
        "by tag": ({"tag:team": ["blue", "green"]}, {tagged}),
        "by another value": ({"tag:team": ["green"]}, set()),
        "by tag key": ({"tag-key": ["team"]}, {tagged}),
        "by status": ({"status": ["available"]}, {tagged}),
        "by vpc": ({"vpc-id": [vpc.vpc_id]}, everything),
        "by another vpc": ({"vpc-id": ["vpc-0"]}, set()),
        "by id": ({"network-interface-id": [tagged, attached]}, {tagged, attached}),
        "by subnet": ({"subnet-id": [vpc.subnets[1].id]}, {tagged}),
        "by description": ({"description": ["aws-K8S-*"]}, {tagged}),
        "by device index": ({"attachment.device-index": ["0"]}, {node.eni}),
        "all must match": ({"status": ["in-use"], "tag-key": ["team"]}, set()),
    }
    for name, (filters, expected) in table.items():
        assert found(sdk, by=filters) == expected, name


def test_an_unknown_filter_is_an_error_of_ec2(sdk: Any, vpc: Vpc) -> None:
    with refused("InvalidParameterValue", "no-such-filter"):
        found(sdk, by={"no-such-filter": ["x"]})
    with refused("InvalidParameterValue", "filter"):
        sdk.describe_instances(Filters=[{"Name": "no-such-filter", "Values": ["x"]}])
    with refused("InvalidParameterValue", "filter"):
        sdk.describe_subnets(Filters=[{"Name": "no-such-filter", "Values": ["x"]}])


def test_subnets_are_found_by_zone_vpc_and_tag_and_count_what_is_free(
    sdk: Any, vpc: Vpc
) -> None:
    def names(**by: list[str]) -> set[str]:
        asked = [{"Name": name.replace("_", "-"), "Values": by[name]} for name in by]
        return {one["SubnetId"] for one in sdk.describe_subnets(Filters=asked)["Subnets"]}

    ours = {"vpc_id": [vpc.vpc_id], "availability_zone": ["us-west-2a"]}
    subnet = vpc.pod_subnets[0].id
    assert names(**ours) == {vpc.subnets[0].id, subnet}
    sdk.create_tags(Resources=[subnet], Tags=[{"Key": "kubernetes.io/role/cni", "Value": "1"}])
    try:
        asked = [{"Name": "tag:kubernetes.io/role/cni", "Values": ["1"]}]
        (found,) = sdk.describe_subnets(Filters=asked)["Subnets"]
        assert found["SubnetId"] == subnet
        assert found["Tags"] == [{"Key": "kubernetes.io/role/cni", "Value": "1"}]
        assert found["CidrBlock"] == "100.64.0.0/20"
        assert [one["Ipv6CidrBlock"] for one in found["Ipv6CidrBlockAssociationSet"]] == [
            "2001:db8:40:2::/64"
        ]
        before = found["AvailableIpAddressCount"]
        create_eni(sdk, vpc, SubnetId=subnet, SecondaryPrivateIpAddressCount=4)
        (found,) = sdk.describe_subnets(SubnetIds=[subnet])["Subnets"]
        assert found["AvailableIpAddressCount"] == before - 5 == 4096 - 5 - 5
    finally:
        sdk.delete_tags(Resources=[subnet], Tags=[{"Key": "kubernetes.io/role/cni"}])


def test_pages_hold_everything_once(sdk: Any, vpc: Vpc) -> None:
    made = {create_eni(sdk, vpc)["NetworkInterfaceId"] for _ in range(12)}
    pages = list(
        sdk.get_paginator("describe_network_interfaces").paginate(PaginationConfig={"PageSize": 5})
    )
    sizes = [len(page["NetworkInterfaces"]) for page in pages]
    seen = [eni["NetworkInterfaceId"] for page in pages for eni in page["NetworkInterfaces"]]
    assert sizes == [5, 5, 2]
    assert set(seen) == made and len(seen) == len(made)


def test_page_sizes_and_tokens_that_make_no_sense_are_refused(sdk: Any, vpc: Vpc) -> None:
    eni = create_eni(sdk, vpc)["NetworkInterfaceId"]
    with refused("InvalidParameterValue"):
        sdk.describe_network_interfaces(MaxResults=4)
    with refused("InvalidPaginationToken"):
        sdk.describe_network_interfaces(NextToken="nonsense")
    with refused("InvalidParameterCombination"):
        sdk.describe_network_interfaces(NetworkInterfaceIds=[eni], MaxResults=5)


def test_instance_types_come_in_pages_and_one_by_one(sdk: Any) -> None:
    page = sdk.describe_instance_types(MaxResults=10)
    assert len(page["InstanceTypes"]) == 10
    assert page["NextToken"]
    (one,) = sdk.describe_instance_types(InstanceTypes=["c5.large"])["InstanceTypes"]
    assert one["NetworkInfo"]["MaximumNetworkInterfaces"] == 3
    assert one["NetworkInfo"]["Ipv4AddressesPerInterface"] == 10
    with refused("InvalidInstanceType"):
        sdk.describe_instance_types(InstanceTypes=["c5.gigantic"])


def test_an_action_that_nobody_knows_is_an_error_of_ec2(vpc: Vpc) -> None:
    with pytest.raises(Ec2Error) as caught:
        vpc.ec2("InventInterface")
    assert (caught.value.status, caught.value.code) == (400, "InvalidAction")


def test_credentials_that_were_never_issued_are_refused(vpc: Vpc) -> None:
    stranger = boto3.client(
        "ec2",
        region_name=vpc.region,
        endpoint_url=vpc.ec2_loopback,
        aws_access_key_id="AKIASTRANGER",
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1}),
    )
    with refused("AuthFailure", status=401):
        stranger.describe_network_interfaces()


def test_a_subnet_in_use_is_not_deleted(sdk: Any, vpc: Vpc) -> None:
    create_eni(sdk, vpc)
    with refused("DependencyViolation"):
        sdk.delete_subnet(SubnetId=vpc.subnets[0].id)
