"""Instance metadata: each instance its own view, tokens required, the tree live."""

from __future__ import annotations

import json
import time
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.config import Config
from botocore.credentials import InstanceMetadataProvider
from botocore.utils import InstanceMetadataFetcher, InstanceMetadataRegionFetcher
from ec2_calls import attach_eni, create_eni, refused
from probes import Metadata, http_get

from vpc import layout
from vpc.client import Vpc
from vpc.netns import ip_in

MACS = "meta-data/network/interfaces/macs/"


def metadata(nodes: Any, netns: str) -> Metadata:
    return Metadata(nodes.inside(netns))


def test_each_instance_reads_about_itself(vpc: Vpc, nodes: Any) -> None:
    one = nodes.run("n1", "t3.small")
    two = nodes.run("n2", "c5.large", subnet=vpc.subnets[1].id)
    for node in (one, two):
        imds = metadata(nodes, node.netns)
        told = {
            "meta-data/instance-id": node.instance_id,
            "meta-data/instance-type": node.instance_type,
            "meta-data/local-ipv4": node.address,
            "meta-data/mac": node.mac,
            "meta-data/placement/availability-zone": node.zone,
            "meta-data/placement/region": vpc.region,
            f"{MACS}{node.mac}/interface-id": node.eni,
            f"{MACS}{node.mac}/device-number": "0",
            f"{MACS}{node.mac}/network-card": "0",
            f"{MACS}{node.mac}/subnet-id": node.subnet,
            f"{MACS}{node.mac}/vpc-id": vpc.vpc_id,
            f"{MACS}{node.mac}/security-group-ids": vpc.security_group,
            f"{MACS}{node.mac}/local-ipv4s": node.address,
            f"{MACS}{node.mac}/mac": node.mac,
            f"{MACS}{node.mac}/owner-id": vpc.info["account"],
            f"{MACS}{node.mac}/vpc-ipv4-cidr-block": "10.40.0.0/16",
            f"{MACS}{node.mac}/vpc-ipv4-cidr-blocks": "10.40.0.0/16\n100.64.0.0/16",
        }
        for path, expected in told.items():
            assert imds.value(path) == expected, path
        document = json.loads(imds.value("dynamic/instance-identity/document"))
        assert document["instanceId"] == node.instance_id
        assert document["region"] == vpc.region
    assert metadata(nodes, two.netns).value(f"{MACS}{two.mac}/subnet-ipv4-cidr-block") == (
        "10.40.16.0/20"
    )


def test_without_a_good_token_nothing_is_told(nodes: Any) -> None:
    one, two = nodes.run("n1"), nodes.run("n2")
    imds = metadata(nodes, one.netns)
    assert imds.ask("/latest/meta-data/instance-id")[0] == 401
    assert imds.read("meta-data/instance-id", "invented")[0] == 401
    other = metadata(nodes, two.netns).token()
    assert imds.read("meta-data/instance-id", other)[0] == 401
    brief = imds.token("1")
    assert imds.read("meta-data/instance-id", brief)[0] == 200
    time.sleep(1.1)
    assert imds.read("meta-data/instance-id", brief)[0] == 401


def test_a_token_needs_a_lifetime_within_six_hours_and_no_proxy(nodes: Any) -> None:
    imds = metadata(nodes, nodes.run("n1").netns)
    header = "X-aws-ec2-metadata-token-ttl-seconds"
    for headers in ({}, {header: "0"}, {header: "21601"}, {header: "soon"}):
        assert imds.ask("/latest/api/token", method="PUT", headers=headers)[0] == 400
    forwarded = {header: "60", "X-Forwarded-For": "10.0.0.1"}
    assert imds.ask("/latest/api/token", method="PUT", headers=forwarded)[0] == 403


def test_folders_list_what_is_in_them_and_unknown_keys_are_not_found(nodes: Any) -> None:
    node = nodes.run("n1")
    imds = metadata(nodes, node.netns)
    assert "network/" in imds.value("meta-data/").splitlines()
    assert "instance-id" in imds.value("meta-data/").splitlines()
    assert imds.value(MACS) == f"{node.mac}/"
    assert "local-ipv4s" in imds.value(f"{MACS}{node.mac}/").splitlines()
    for path in (
        "meta-data/no-such-key",
        f"{MACS}02:00:00:00:00:00/mac",
        f"{MACS}{node.mac}/ipv6s",
    ):
        assert imds.read(path)[0] == 404, path


def test_the_interface_tree_follows_ec2(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    imds = metadata(nodes, node.netns)
    new = vpc.assign_addresses(node.eni, 2)
    assert imds.value(f"{MACS}{node.mac}/local-ipv4s").splitlines() == [node.address, *new]
    eni = create_eni(sdk, vpc)
    mac = eni["MacAddress"]
    vpc.set_lag(settle=60)
    attachment = attach_eni(sdk, eni["NetworkInterfaceId"], node.instance_id, 1)
    assert imds.read(f"{MACS}{mac}/interface-id")[0] == 404, "attaching is not attached"
    vpc.set_lag(settle=0)
    assert imds.value(f"{MACS}{mac}/interface-id") == eni["NetworkInterfaceId"]
    assert imds.value(f"{MACS}{mac}/device-number") == "1"
    sdk.detach_network_interface(AttachmentId=attachment)
    assert imds.value(MACS) == f"{node.mac}/"


def test_role_credentials_work_against_ec2_until_they_expire(vpc: Vpc, nodes: Any) -> None:
    imds = metadata(nodes, nodes.run("n1").netns)
    role = imds.value("meta-data/iam/security-credentials/")
    told = json.loads(imds.value(f"meta-data/iam/security-credentials/{role}"))
    assert told["Code"] == "Success"

    def client(token: str) -> Any:
        return boto3.client(
            "ec2",
            region_name=vpc.region,
            endpoint_url=vpc.ec2_loopback,
            aws_access_key_id=told["AccessKeyId"],
            aws_secret_access_key=told["SecretAccessKey"],
            aws_session_token=token,
            config=Config(retries={"total_max_attempts": 1}),
        )

    client(told["Token"]).describe_subnets()
    with refused("AuthFailure", status=401):
        client("another token").describe_subnets()


def test_expired_role_credentials_are_refused_and_renewed_in_time(vpc: Vpc, nodes: Any) -> None:
    imds = metadata(nodes, nodes.run("n1").netns)
    vpc.set_credential_lifetime(1)
    try:
        path = "meta-data/iam/security-credentials/" + layout.ROLE
        told = json.loads(imds.value(path))
        time.sleep(1.1)
        renewed = json.loads(imds.value(path))
        assert renewed["AccessKeyId"] != told["AccessKeyId"]
        expired = boto3.client(
            "ec2",
            region_name=vpc.region,
            endpoint_url=vpc.ec2_loopback,
            aws_access_key_id=told["AccessKeyId"],
            aws_secret_access_key=told["SecretAccessKey"],
            aws_session_token=told["Token"],
            config=Config(retries={"total_max_attempts": 1}),
        )
        with refused("RequestExpired", status=401):
            expired.describe_subnets()
    finally:
        vpc.set_credential_lifetime(6 * 3600)


def test_the_sdk_on_a_node_needs_nothing_but_the_endpoint(vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")

    def ask() -> list[str]:
        session = botocore.session.Session()
        fetcher = InstanceMetadataFetcher(timeout=2, num_attempts=1)
        found = InstanceMetadataProvider(fetcher).load()
        assert found is not None
        key = found.get_frozen_credentials()
        region = InstanceMetadataRegionFetcher(timeout=2, num_attempts=1).retrieve_region()
        ec2 = session.create_client(
            "ec2",
            region_name=region,
            endpoint_url=vpc.ec2_endpoint,
            aws_access_key_id=key.access_key,
            aws_secret_access_key=key.secret_key,
            aws_session_token=key.token,
        )
        filters = [{"Name": "attachment.instance-id", "Values": [node.instance_id]}]
        answer = ec2.describe_network_interfaces(Filters=filters)
        return [eni["NetworkInterfaceId"] for eni in answer["NetworkInterfaces"]]

    assert nodes.inside(node.netns).run(ask) == [node.eni]


@pytest.mark.parametrize(("hops", "reaches"), [(2, True), (1, False)])
def test_the_hop_limit_decides_whether_a_pod_gets_a_token(
    vpc: Vpc, nodes: Any, hops: int, reaches: bool
) -> None:
    node = nodes.run("n1", hop_limit=hops)
    (pod_address,) = vpc.assign_addresses(node.eni, 1)
    pod = nodes.inside(make_pod(nodes, node.netns, pod_address))
    imds = Metadata(pod)
    assert Metadata(nodes.inside(node.netns)).value("meta-data/instance-id") == node.instance_id
    if reaches:
        assert imds.value("meta-data/instance-id") == node.instance_id
    else:
        with pytest.raises(TimeoutError):
            pod.run(
                http_get(
                    layout.IMDS_ADDRESS,
                    "/latest/api/token",
                    method="PUT",
                    headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"},
                    timeout=0.5,
                )
            )
        # Only the token's answer is limited: a key without a token is refused, and heard.
        assert imds.ask("/latest/meta-data/instance-id")[0] == 401


def test_metadata_options_can_be_changed_while_the_instance_runs(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    node = nodes.run("n1")
    imds = metadata(nodes, node.netns)
    sdk.modify_instance_metadata_options(InstanceId=node.instance_id, HttpTokens="optional")
    assert imds.ask("/latest/meta-data/instance-id") == (200, node.instance_id)
    sdk.modify_instance_metadata_options(InstanceId=node.instance_id, HttpEndpoint="disabled")
    assert imds.ask("/latest/meta-data/instance-id")[0] == 403
    with refused("InvalidParameterValue"):
        sdk.modify_instance_metadata_options(
            InstanceId=node.instance_id, HttpPutResponseHopLimit=65
        )


def test_imds_can_be_silent_broken_or_slow_for_one_instance(vpc: Vpc, nodes: Any) -> None:
    one, two = nodes.run("n1"), nodes.run("n2")
    imds, other = metadata(nodes, one.netns), metadata(nodes, two.netns)
    token = imds.token()
    vpc.fault("imds", "silent", instance=one.instance_id)
    with pytest.raises(TimeoutError):
        imds.ask("/latest/meta-data/", timeout=0.4)
    assert other.value("meta-data/instance-id") == two.instance_id
    vpc.clear_faults()
    vpc.fault("imds", "error", status=503, count=1)
    assert imds.read("meta-data/instance-id", token)[0] == 503
    assert imds.read("meta-data/instance-id", token)[0] == 200


def test_a_stale_tree_shows_what_was_until_the_fault_is_cleared(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    node = nodes.run("n1")
    imds = metadata(nodes, node.netns)
    vpc.fault("imds", "stale")
    new = vpc.assign_addresses(node.eni, 1)
    assert imds.value(f"{MACS}{node.mac}/local-ipv4s") == node.address
    vpc.clear_faults()
    assert imds.value(f"{MACS}{node.mac}/local-ipv4s").splitlines() == [node.address, *new]


def make_pod(nodes: Any, node: str, address: str) -> str:
    """A namespace behind a node, as a pod is: /32, routed, no translation."""
    pod = f"{node}-pod"
    nodes.namespace(pod)
    ip_in(
        node,
        [
            f"link add name pod0 type veth peer name eth0 netns {pod}",
            "link set pod0 up",
            f"route add {address}/32 dev pod0",
        ],
    )
    nodes.inside(node).sysctl(
        {
            "ipv4/ip_forward": "1",
            "ipv4/conf/pod0/proxy_arp": "1",
            "ipv4/neigh/pod0/proxy_delay": "0",
        }
    )
    ip_in(
        pod,
        [
            f"addr add {address}/32 dev eth0",
            "link set eth0 up",
            "route add 169.254.1.1 dev eth0",
            "route add default via 169.254.1.1 dev eth0",
        ],
    )
    return pod
