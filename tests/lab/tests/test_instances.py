"""Instances: what running and terminating them does to interfaces and addresses."""

from __future__ import annotations

import uuid
from typing import Any

from ec2_calls import create_eni, eni_as_read, refused, small_subnet

from vpc.client import Vpc


def run(sdk: Any, **more: Any) -> list[dict[str, Any]]:
    """Runs instances without a namespace."""
    asked = {"ImageId": "ami-1", "InstanceType": "t3.small", "MinCount": 1, "MaxCount": 1, **more}
    return sdk.run_instances(**asked)["Instances"]


def test_an_instance_has_a_primary_interface_that_goes_with_it(sdk: Any, vpc: Vpc) -> None:
    (instance,) = run(sdk, SubnetId=vpc.subnets[1].id, SecurityGroupIds=[vpc.security_group])
    (nic,) = instance["NetworkInterfaces"]
    eni = eni_as_read(sdk, nic["NetworkInterfaceId"])
    assert eni["PrivateIpAddress"] == instance["PrivateIpAddress"]
    assert eni["SubnetId"] == vpc.subnets[1].id
    assert eni["Attachment"]["DeviceIndex"] == 0
    assert eni["Attachment"]["InstanceId"] == instance["InstanceId"]
    assert eni["Attachment"]["DeleteOnTermination"] is True
    vpc.terminate(instance["InstanceId"])
    assert vpc.state()["enis"] == []
    described = sdk.describe_instances(InstanceIds=[instance["InstanceId"]])
    gone = described["Reservations"][0]["Instances"][0]
    assert gone["State"]["Name"] == "terminated"
    assert not gone.get("NetworkInterfaces")
    vpc.terminate(instance["InstanceId"])  # a second time is no error


def test_describe_instances_shows_the_device_indexes_in_use(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    eni = create_eni(sdk, vpc)["NetworkInterfaceId"]
    sdk.attach_network_interface(NetworkInterfaceId=eni, InstanceId=node.instance_id, DeviceIndex=2)
    described = sdk.describe_instances(InstanceIds=[node.instance_id])
    nics = described["Reservations"][0]["Instances"][0]["NetworkInterfaces"]
    indexes = {nic["NetworkInterfaceId"]: nic["Attachment"]["DeviceIndex"] for nic in nics}
    assert indexes == {node.eni: 0, eni: 2}


def test_interfaces_can_be_given_at_launch(sdk: Any, vpc: Vpc) -> None:
    existing = create_eni(sdk, vpc)["NetworkInterfaceId"]
    (instance,) = run(
        sdk,
        NetworkInterfaces=[
            {"DeviceIndex": 1, "NetworkInterfaceId": existing},
            {
                "DeviceIndex": 0,
                "SubnetId": vpc.subnets[0].id,
                "SecondaryPrivateIpAddressCount": 2,
                "DeleteOnTermination": False,
            },
        ],
    )
    primary = next(n for n in instance["NetworkInterfaces"] if n["Attachment"]["DeviceIndex"] == 0)
    assert len(primary["PrivateIpAddresses"]) == 3
    vpc.terminate(instance["InstanceId"])
    left = {eni["id"]: eni["status"] for eni in vpc.state()["enis"]}
    assert left == {existing: "available", primary["NetworkInterfaceId"]: "available"}


def test_an_attached_interface_is_refused_at_launch(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    with refused("InvalidNetworkInterface.InUse"):
        run(sdk, NetworkInterfaces=[{"DeviceIndex": 0, "NetworkInterfaceId": node.eni}])


def test_a_launch_that_fits_only_partly_runs_what_fits(sdk: Any, vpc: Vpc) -> None:
    subnet = small_subnet(sdk, vpc)
    assert len(run(sdk, SubnetId=subnet, MinCount=1, MaxCount=20)) == 11
    with refused("InsufficientFreeAddressesInSubnet"):
        run(sdk, SubnetId=subnet)


def test_a_refused_launch_leaves_nothing(sdk: Any, vpc: Vpc) -> None:
    before = len(vpc.state()["instances"])
    with refused("InvalidParameterValue", "InstanceType"):
        run(sdk, SubnetId=vpc.subnets[0].id, InstanceType="c5.gigantic")
    with refused("InvalidGroup.NotFound"):
        run(sdk, SubnetId=vpc.subnets[0].id, SecurityGroupIds=["sg-0123456789abcdef0"])
    with refused("VPCIdNotSpecified"):
        run(sdk)
    with refused("PrivateIpAddressLimitExceeded"):
        nics = [{"DeviceIndex": 0, "SubnetId": vpc.subnets[0].id}]
        run(sdk, NetworkInterfaces=[{**nics[0], "SecondaryPrivateIpAddressCount": 4}])
    assert len(vpc.state()["instances"]) == before
    assert vpc.state()["enis"] == []


def test_a_client_token_runs_one_instance(sdk: Any, vpc: Vpc) -> None:
    token = str(uuid.uuid4())
    first = run(sdk, SubnetId=vpc.subnets[0].id, ClientToken=token)
    second = run(sdk, SubnetId=vpc.subnets[0].id, ClientToken=token)
    assert first[0]["InstanceId"] == second[0]["InstanceId"]
    with refused("IdempotentParameterMismatch"):
        run(sdk, SubnetId=vpc.subnets[1].id, ClientToken=token)


def test_a_namespace_is_bound_to_one_instance(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    tags = [{"Key": "selvage-lab/netns", "Value": node.netns}]
    with refused("InvalidParameterValue", f"is bound to {node.instance_id}"):
        run(
            sdk,
            SubnetId=vpc.subnets[0].id,
            TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
        )
