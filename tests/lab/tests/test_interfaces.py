"""Interfaces: what create, attach, detach, delete and modify allow."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from ec2_calls import attach_eni, create_eni, eni_as_read, refused

from vpc.client import Vpc


def test_a_new_interface_has_what_was_asked_for(sdk: Any, vpc: Vpc) -> None:
    eni = create_eni(
        sdk,
        vpc,
        Description="aws-K8S-i-1",
        Groups=[vpc.security_group],
        TagSpecifications=[
            {
                "ResourceType": "network-interface",
                "Tags": [{"Key": "node.k8s.amazonaws.com/instance_id", "Value": "i-1"}],
            }
        ],
    )
    read = eni_as_read(sdk, eni["NetworkInterfaceId"])
    assert read["Description"] == "aws-K8S-i-1"
    assert [group["GroupId"] for group in read["Groups"]] == [vpc.security_group]
    assert read["TagSet"] == [{"Key": "node.k8s.amazonaws.com/instance_id", "Value": "i-1"}]
    assert read["Status"] == "available"
    assert read["SubnetId"] == vpc.subnets[0].id
    assert "Attachment" not in read


def test_tags_can_be_added_and_taken_later(sdk: Any, vpc: Vpc) -> None:
    eni = create_eni(sdk, vpc)["NetworkInterfaceId"]
    sdk.create_tags(Resources=[eni], Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}])
    sdk.delete_tags(Resources=[eni], Tags=[{"Key": "a"}])
    assert eni_as_read(sdk, eni)["TagSet"] == [{"Key": "b", "Value": "2"}]
    with refused("InvalidNetworkInterfaceID.NotFound"):
        sdk.create_tags(Resources=["eni-0123456789abcdef0"], Tags=[{"Key": "a", "Value": "1"}])


def test_an_attribute_can_be_read_alone(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    answer = sdk.describe_network_interface_attribute(
        NetworkInterfaceId=node.eni, Attribute="attachment"
    )
    assert answer["Attachment"]["InstanceId"] == node.instance_id
    assert answer["Attachment"]["DeleteOnTermination"] is True


def test_unknown_security_groups_are_refused(sdk: Any, vpc: Vpc) -> None:
    with refused("InvalidGroup.NotFound"):
        create_eni(sdk, vpc, Groups=["sg-0123456789abcdef0"])
    eni = create_eni(sdk, vpc)["NetworkInterfaceId"]
    with refused("InvalidGroup.NotFound"):
        sdk.modify_network_interface_attribute(
            NetworkInterfaceId=eni, Groups=["sg-0123456789abcdef0"]
        )


def test_a_security_group_of_another_vpc_is_refused(sdk: Any, vpc: Vpc) -> None:
    other = sdk.create_vpc(CidrBlock="10.99.0.0/16")["Vpc"]["VpcId"]
    group = sdk.create_security_group(GroupName="other", Description="other", VpcId=other)
    with refused("InvalidParameter"):
        create_eni(sdk, vpc, Groups=[group["GroupId"]])


def test_a_client_token_makes_one_interface_however_often_it_is_sent(sdk: Any, vpc: Vpc) -> None:
    token = str(uuid.uuid4())
    first = create_eni(sdk, vpc, ClientToken=token, Description="one")
    second = create_eni(sdk, vpc, ClientToken=token, Description="one")
    assert first["NetworkInterfaceId"] == second["NetworkInterfaceId"]
    assert len(vpc.state()["enis"]) == 1
    with refused("IdempotentParameterMismatch"):
        create_eni(sdk, vpc, ClientToken=token, Description="two")


def test_interfaces_beyond_the_types_limit_are_refused(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1", "t3.small")  # three interfaces
    for index in (1, 2):
        attach_eni(sdk, create_eni(sdk, vpc)["NetworkInterfaceId"], node.instance_id, index)
    with refused("AttachmentLimitExceeded", "Interface count 4 exceeds the limit for t3.small"):
        attach_eni(sdk, create_eni(sdk, vpc)["NetworkInterfaceId"], node.instance_id, 3)


def test_a_taken_device_index_and_an_attached_interface_are_refused(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    node = nodes.run("n1")
    attached = create_eni(sdk, vpc)["NetworkInterfaceId"]
    attach_eni(sdk, attached, node.instance_id, 1)
    another = create_eni(sdk, vpc)["NetworkInterfaceId"]
    for index in (0, 1):
        with refused("InvalidParameterValue", f"attached at device index '{index}'"):
            attach_eni(sdk, another, node.instance_id, index)
    with refused("InvalidNetworkInterface.InUse"):
        attach_eni(sdk, attached, node.instance_id, 2)


def test_an_interface_of_another_zone_is_refused(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    eni = create_eni(sdk, vpc, SubnetId=vpc.subnets[1].id)["NetworkInterfaceId"]
    with refused("InvalidParameterValue", "availability zone"):
        attach_eni(sdk, eni, node.instance_id, 1)


def test_attaching_and_detaching_take_their_time_and_say_so(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    eni = create_eni(sdk, vpc)["NetworkInterfaceId"]
    vpc.set_lag(settle=60)
    attachment = attach_eni(sdk, eni, node.instance_id, 1)
    read = eni_as_read(sdk, eni)
    assert (read["Status"], read["Attachment"]["Status"]) == ("in-use", "attaching")
    vpc.set_lag(settle=0)
    assert eni_as_read(sdk, eni)["Attachment"]["Status"] == "attached"
    vpc.set_lag(settle=60)
    sdk.detach_network_interface(AttachmentId=attachment)
    assert eni_as_read(sdk, eni)["Attachment"]["Status"] == "detaching"
    with refused("InvalidParameterValue", "is currently in use"):
        sdk.delete_network_interface(NetworkInterfaceId=eni)
    vpc.set_lag(settle=0)
    read = eni_as_read(sdk, eni)
    assert read["Status"] == "available"
    assert "Attachment" not in read
    sdk.delete_network_interface(NetworkInterfaceId=eni)
    with refused("InvalidNetworkInterfaceID.NotFound"):
        eni_as_read(sdk, eni)


def test_an_attached_interface_is_not_deleted(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    eni = create_eni(sdk, vpc)["NetworkInterfaceId"]
    attach_eni(sdk, eni, node.instance_id, 1)
    for attached in (eni, node.eni):
        with refused("InvalidParameterValue", "is currently in use"):
            sdk.delete_network_interface(NetworkInterfaceId=attached)


def test_the_primary_interface_is_not_detached(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    attachment = eni_as_read(sdk, node.eni)["Attachment"]["AttachmentId"]
    with refused("OperationNotPermitted", "cannot be detached"):
        sdk.detach_network_interface(AttachmentId=attachment)


def test_delete_on_termination_is_kept_and_obeyed(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    goes = create_eni(sdk, vpc)["NetworkInterfaceId"]
    stays = create_eni(sdk, vpc)["NetworkInterfaceId"]
    attachment = attach_eni(sdk, goes, node.instance_id, 1)
    attach_eni(sdk, stays, node.instance_id, 2)
    assert eni_as_read(sdk, node.eni)["Attachment"]["DeleteOnTermination"] is True
    assert eni_as_read(sdk, goes)["Attachment"]["DeleteOnTermination"] is False
    sdk.modify_network_interface_attribute(
        NetworkInterfaceId=goes,
        Attachment={"AttachmentId": attachment, "DeleteOnTermination": True},
    )
    assert eni_as_read(sdk, goes)["Attachment"]["DeleteOnTermination"] is True
    with refused("InvalidAttachmentID.NotFound"):
        sdk.modify_network_interface_attribute(
            NetworkInterfaceId=goes,
            Attachment={"AttachmentId": "eni-attach-0", "DeleteOnTermination": True},
        )
    sdk.terminate_instances(InstanceIds=[node.instance_id])
    assert [eni["id"] for eni in vpc.state()["enis"]] == [stays]
    assert eni_as_read(sdk, stays)["Status"] == "available"


def test_things_that_do_not_exist_are_not_found(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    with refused("InvalidNetworkInterfaceID.NotFound"):
        attach_eni(sdk, "eni-0123456789abcdef0", node.instance_id, 1)
    with refused("InvalidNetworkInterfaceId.Malformed"):
        sdk.delete_network_interface(NetworkInterfaceId="eni-nonsense")
    with refused("InvalidAttachmentID.NotFound"):
        sdk.detach_network_interface(AttachmentId="eni-attach-0123")
    with refused("InvalidSubnetID.NotFound"):
        create_eni(sdk, vpc, SubnetId="subnet-0123456789abcdef0")
    with refused("InvalidInstanceID.NotFound"):
        attach_eni(sdk, create_eni(sdk, vpc)["NetworkInterfaceId"], "i-0123456789abcdef0", 1)


@pytest.mark.parametrize("card", [0, 1])
def test_network_cards_have_limits_of_their_own(sdk: Any, vpc: Vpc, nodes: Any, card: int) -> None:
    # p4d.24xlarge: four cards with 15 interfaces each; device indexes are per card.
    node = nodes.run("n1", "p4d.24xlarge")
    for index in range(15 if card else 14):
        sdk.attach_network_interface(
            NetworkInterfaceId=create_eni(sdk, vpc)["NetworkInterfaceId"],
            InstanceId=node.instance_id,
            DeviceIndex=index + 1,
            NetworkCardIndex=card,
        )
    with refused("AttachmentLimitExceeded"):
        sdk.attach_network_interface(
            NetworkInterfaceId=create_eni(sdk, vpc)["NetworkInterfaceId"],
            InstanceId=node.instance_id,
            DeviceIndex=20,
            NetworkCardIndex=card,
        )


def test_dry_run_changes_nothing(sdk: Any, vpc: Vpc) -> None:
    with refused("DryRunOperation", status=412):
        create_eni(sdk, vpc, DryRun=True)
    assert vpc.state()["enis"] == []
