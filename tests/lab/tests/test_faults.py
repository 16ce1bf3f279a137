"""Faults on demand: each is what it says, as often as it says, and then over."""

from __future__ import annotations

import time
import uuid
from typing import Any

import botocore.parsers
import pytest
from botocore.exceptions import ClientError, HTTPClientError
from ec2_calls import create_eni, refused

from vpc.client import Vpc, VpcError


def test_an_injected_error_has_its_code_and_status_and_ends_after_its_count(
    sdk: Any, vpc: Vpc
) -> None:
    vpc.fault("CreateNetworkInterface", "error", code="NobodyKnowsThis", status=418, count=2)
    for _ in range(2):
        with refused("NobodyKnowsThis", status=418):
            create_eni(sdk, vpc)
    create_eni(sdk, vpc)
    assert vpc.faults() == []
    assert len(vpc.state()["enis"]) == 1


def test_a_fault_hits_its_action_alone_and_until_it_is_cleared(sdk: Any, vpc: Vpc) -> None:
    fault = vpc.fault("DescribeSubnets", "throttle")
    for _ in range(3):
        with refused("RequestLimitExceeded", status=503):
            sdk.describe_subnets()
    sdk.describe_network_interfaces()
    vpc.clear_faults(fault)
    sdk.describe_subnets()


def test_a_fault_on_every_action_hits_every_action(sdk: Any, vpc: Vpc) -> None:
    vpc.fault("*", "throttle", count=2)
    with refused("RequestLimitExceeded", status=503):
        sdk.describe_vpcs()
    with refused("RequestLimitExceeded", status=503):
        sdk.describe_subnets()
    sdk.describe_vpcs()


def test_a_bucket_lets_its_burst_pass_and_then_its_rate(sdk: Any, vpc: Vpc) -> None:
    vpc.fault("DescribeSubnets", "bucket", burst=3, rate=4)
    for _ in range(3):
        sdk.describe_subnets()
    with refused("RequestLimitExceeded", status=503):
        sdk.describe_subnets()
    sdk.describe_network_interfaces()
    time.sleep(0.3)
    sdk.describe_subnets()
    with pytest.raises(VpcError, match="burst"):
        vpc.fault("DescribeSubnets", "bucket", rate=1)


def test_garbage_is_no_xml(sdk: Any, vpc: Vpc) -> None:
    vpc.fault("DescribeNetworkInterfaces", "garbage", count=1)
    with pytest.raises(botocore.parsers.ResponseParserError):
        sdk.describe_network_interfaces()
    sdk.describe_network_interfaces()


def test_a_delayed_call_is_late_and_holds_up_no_other(sdk: Any, vpc: Vpc) -> None:
    vpc.fault("CreateNetworkInterface", "delay", seconds=0.5, count=1)
    started = time.monotonic()
    create_eni(sdk, vpc)
    assert 0.5 <= time.monotonic() - started < 3


def test_a_lost_reply_has_acted_and_its_token_finds_what_it_made(sdk: Any, vpc: Vpc) -> None:
    token = str(uuid.uuid4())
    vpc.fault("CreateNetworkInterface", "lose-reply", count=1)
    with pytest.raises(HTTPClientError):
        create_eni(sdk, vpc, ClientToken=token)
    (made,) = vpc.state()["enis"]
    assert create_eni(sdk, vpc, ClientToken=token)["NetworkInterfaceId"] == made["id"]
    assert len(vpc.state()["enis"]) == 1


def test_calls_are_counted_by_action_whether_they_succeed_or_not(sdk: Any, vpc: Vpc) -> None:
    before = vpc.calls().get("DescribeVpcs", 0)
    vpc.fault("DescribeVpcs", "throttle", count=1)
    with pytest.raises(ClientError):
        sdk.describe_vpcs()
    sdk.describe_vpcs()
    assert vpc.calls()["DescribeVpcs"] == before + 2


def test_an_order_that_makes_no_sense_is_refused(vpc: Vpc) -> None:
    with pytest.raises(VpcError, match="kind 'explode'"):
        vpc.fault("DescribeVpcs", "explode")
    with pytest.raises(VpcError, match="no_such_detail"):
        vpc.fault("DescribeVpcs", "error", no_such_detail=1)
    with pytest.raises(VpcError, match="one of create, write, settle"):
        vpc.set_lag(everything=1)
