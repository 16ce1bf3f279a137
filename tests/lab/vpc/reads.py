"""Reads, tags and subnets where moto needs help: paging, existence, gateways."""

from __future__ import annotations

from typing import Any

from moto.ec2.models.subnets import Subnet

from vpc import errors
from vpc.actions import Call, action
from vpc.addresses import ipv6_block
from vpc.enis import find
from vpc.pages import page
from vpc.world import World


@action("DescribeInstanceTypes")
def describe_instance_types(world: World, call: Call) -> dict[str, Any]:
    """API reference, DescribeInstanceTypes: 100 a page at most."""
    types = world.backend.describe_instance_types(call.listed("InstanceTypes"), call.filters())
    listed, token = page(call, types, "InstanceTypes", largest=100)
    return {"InstanceTypes": listed, "NextToken": token}


@action("DescribeSubnets")
def describe_subnets(world: World, call: Call) -> dict[str, Any]:
    """API reference, DescribeSubnets."""
    subnets = world.backend.describe_subnets(call.listed("SubnetIds"), call.filters())
    listed, token = page(call, subnets, "SubnetIds", largest=1000)
    return {"Subnets": listed, "NextToken": token}


def patch_tags(world: World) -> None:
    """What is tagged has to exist (codes: the NotFound of its kind); moto looks, and does
    not mind, for interfaces and instances."""
    look = world.backend.do_resources_exist

    def do_resources_exist(resource_ids: list[str]) -> bool:
        for resource_id in resource_ids:
            if resource_id.startswith("eni-"):
                find(world, resource_id)
            elif resource_id.startswith("i-"):
                world.backend.get_instance(resource_id)
        return look(resource_ids)

    world.backend.do_resources_exist = do_resources_exist


def patch_subnets(world: World) -> None:
    """Subnets of the lab's VPCs have a gateway in the fabric; those in use stay."""
    make, remove = world.backend.create_subnet, world.backend.delete_subnet

    def create_subnet(*args: Any, **kwargs: Any) -> Any:
        subnet = make(*args, **kwargs)
        if subnet.vpc_id in world.vpcs:
            world.fabric.add_subnet(subnet.cidr_block, ipv6_block(subnet))
        return subnet

    def delete_subnet(subnet_id: str) -> Any:
        subnet = world.backend.get_subnet(subnet_id)
        if any(eni.subnet.id == subnet_id for eni in world.interfaces()):
            raise errors.subnet_in_use(subnet_id)
        removed = remove(subnet_id)
        if subnet.vpc_id in world.vpcs:
            world.fabric.remove_subnet(subnet.cidr_block, ipv6_block(subnet))
        return removed

    def free(subnet: Any) -> int:
        return world.ledger(subnet.vpc_id).free(subnet)

    def ipv6_blocks(subnet: Any) -> list[dict[str, Any]]:
        # moto answers a state within the state.
        return [
            {
                "ipv6CidrBlock": block["ipv6CidrBlock"],
                "associationId": block["associationId"],
                "ipv6CidrBlockState": block["ipv6CidrBlockState"],
            }
            for block in subnet.ipv6_cidr_block_associations.values()
            if block["ipv6CidrBlockState"]["State"] == "associated"
        ]

    world.backend.create_subnet, world.backend.delete_subnet = create_subnet, delete_subnet
    Subnet.available_ip_address_count = property(free)
    Subnet.ipv6_cidr_block_association_set = property(ipv6_blocks)
