"""Pods' own subnets, the peered VPC, groups and interface types: what custom networking meets."""

from __future__ import annotations

import json
from typing import Any

import boto3
from botocore.config import Config
from ec2_calls import addresses, attach_eni, create_eni, refused
from probes import NEVER, Metadata, pings
from test_fabric import set_up_secondary

from vpc import layout
from vpc.client import Vpc
from vpc.netns import ip_in

MACS = "meta-data/network/interfaces/macs/"


def role_client(vpc: Vpc, nodes: Any, netns: str) -> Any:
    """The SDK with the credentials of a node's role."""
    imds = Metadata(nodes.inside(netns))
    told = json.loads(imds.value(f"meta-data/iam/security-credentials/{layout.ROLE}"))
    return boto3.client(
        "ec2",
        region_name=vpc.region,
        endpoint_url=vpc.ec2_loopback,
        aws_access_key_id=told["AccessKeyId"],
        aws_secret_access_key=told["SecretAccessKey"],
        aws_session_token=told["Token"],
        config=Config(retries={"total_max_attempts": 1}),
    )


def test_the_vpc_has_a_second_block_and_metadata_says_so(vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    imds = Metadata(nodes.inside(node.netns))
    blocks = imds.value(f"{MACS}{node.mac}/vpc-ipv4-cidr-blocks").splitlines()
    assert blocks == [layout.VPC_CIDR, layout.POD_CIDR]
    assert imds.value(f"{MACS}{node.mac}/vpc-ipv4-cidr-block") == layout.VPC_CIDR


def test_an_interface_in_a_pod_subnet_speaks_with_nodes_of_both_vpcs(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    node = nodes.run("n1")
    near, far = nodes.run("n2"), nodes.run("n3", subnet=vpc.peer_subnets[1].id)
    subnet = vpc.pod_subnets[0]
    eni = create_eni(sdk, vpc, SubnetId=subnet.id, Groups=[vpc.pod_security_group])
    attach_eni(sdk, eni["NetworkInterfaceId"], node.instance_id, 1)
    address = addresses(eni)[0]
    assert address.startswith("100.64.")
    set_up_secondary(node, "ens6", address, subnet.gateway)
    for other in (near, far):
        assert nodes.inside(other.netns).run(pings(address)), other.netns
        assert nodes.inside(node.netns).run(pings(other.address, source=address)), other.netns


def test_peered_vpcs_reach_each_other_as_themselves(vpc: Vpc, nodes: Any) -> None:
    one = nodes.run("n1")
    two = nodes.run("n2", subnet=vpc.peer_subnets[0].id)
    assert two.address.startswith("10.41.") and two.gateway == "10.41.0.1"
    assert nodes.inside(one.netns).run(pings(two.address))
    assert nodes.inside(two.netns).run(pings(one.address))
    ip_in(one.netns, ["addr add 10.40.9.9/32 dev lo"])
    assert not nodes.inside(one.netns).run(
        pings(two.address, source="10.40.9.9", timeout=NEVER)
    )
    imds = Metadata(nodes.inside(two.netns))
    assert imds.value(f"{MACS}{two.mac}/vpc-id") == vpc.info["peer_vpc_id"]
    assert imds.value(f"{MACS}{two.mac}/vpc-ipv4-cidr-blocks") == layout.PEER_CIDR
    assert vpc.state()["addresses"][two.address]["netns"] == two.netns


def test_groups_must_exist_and_be_of_the_subnets_vpc(sdk: Any, vpc: Vpc) -> None:
    there = vpc.peer_subnets[0]
    with refused("InvalidGroup.NotFound", "sg-0123456789abcdef0"):
        create_eni(sdk, vpc, Groups=["sg-0123456789abcdef0"])
    with refused("InvalidParameter", "belong to different networks"):
        create_eni(sdk, vpc, SubnetId=there.id, Groups=[vpc.security_group])
    made = create_eni(sdk, vpc, SubnetId=there.id, Groups=[there.security_group])
    assert [one["GroupId"] for one in made["Groups"]] == [there.security_group]


def test_zone_decides_where_an_interface_may_be_attached_and_vpc_does_not(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    node = nodes.run("n1")
    elsewhere = create_eni(sdk, vpc, SubnetId=vpc.pod_subnets[1].id)["NetworkInterfaceId"]
    with refused("InvalidParameterValue", "availability zone"):
        attach_eni(sdk, elsewhere, node.instance_id, 1)
    other_vpc = create_eni(sdk, vpc, SubnetId=vpc.peer_subnets[0].id)["NetworkInterfaceId"]
    attach_eni(sdk, other_vpc, node.instance_id, 1)
    with refused("InvalidSubnetID.NotFound"):
        create_eni(sdk, vpc, SubnetId="subnet-0123456789abcdef0")


def test_trunk_and_efa_interfaces_are_marked_and_what_a_node_does_to_them_is_noted(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    node = nodes.run("n1", "c5.xlarge")
    agent = role_client(vpc, nodes, node.netns)
    before = list(vpc.state()["violations"])
    trunk, efa = (create_eni(sdk, vpc, InterfaceType=kind) for kind in ("trunk", "efa"))
    assert (trunk["InterfaceType"], efa["InterfaceType"]) == ("trunk", "efa")
    found = sdk.describe_network_interfaces(
        Filters=[{"Name": "interface-type", "Values": ["trunk"]}]
    )["NetworkInterfaces"]
    assert [one["NetworkInterfaceId"] for one in found] == [trunk["NetworkInterfaceId"]]
    attachment = attach_eni(sdk, trunk["NetworkInterfaceId"], node.instance_id, 1)
    plain = create_eni(sdk, vpc)["NetworkInterfaceId"]
    agent.delete_network_interface(NetworkInterfaceId=plain)
    sdk.delete_network_interface(NetworkInterfaceId=efa["NetworkInterfaceId"])
    assert vpc.state()["violations"] == before, "whoever drives the lab may"
    agent.detach_network_interface(AttachmentId=attachment)
    agent.delete_network_interface(NetworkInterfaceId=trunk["NetworkInterfaceId"])
    assert vpc.state()["violations"] == [
        *before,
        f"trunk interface {trunk['NetworkInterfaceId']} was detached by a node",
        f"trunk interface {trunk['NetworkInterfaceId']} was deleted by a node",
    ]
    with refused("InvalidParameterValue", "interfaceType"):
        create_eni(sdk, vpc, InterfaceType="wireless")
    with refused("UnsupportedOperation", "branch"):
        create_eni(sdk, vpc, InterfaceType="branch")


def test_tags_of_an_interface_can_be_added_later_and_are_found(sdk: Any, vpc: Vpc) -> None:
    eni = create_eni(sdk, vpc)["NetworkInterfaceId"]
    sdk.create_tags(Resources=[eni], Tags=[{"Key": "node.k8s.amazonaws.com/no_manage", "Value": "true"}])
    found = sdk.describe_network_interfaces(
        Filters=[{"Name": "tag:node.k8s.amazonaws.com/no_manage", "Values": ["true"]}]
    )["NetworkInterfaces"]
    assert [one["NetworkInterfaceId"] for one in found] == [eni]
