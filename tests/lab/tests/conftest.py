"""One VPC for the whole run, under names of its own, and a clean slate for each test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vpc import client, layout
from vpc.client import Instance, Vpc
from vpc.netns import Namespace, ensure_namespace

PREFIX = f"vt{os.getpid()}-"


@pytest.fixture(scope="session")
def vpc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vpc]:
    state_dir = tmp_path_factory.mktemp("vpc")
    running = client.start(state_dir, prefix=PREFIX, python=sys.executable)
    yield running
    client.stop(state_dir)
    left = [path.name for path in layout.NAMESPACES.iterdir() if path.name.startswith(PREFIX)]
    assert not left, f"stop left namespaces behind: {left}"


@pytest.fixture(scope="session")
def sdk(vpc: Vpc) -> Any:
    """The AWS SDK against the endpoint, without retries, so that each answer is seen."""
    return boto3.client(
        "ec2",
        region_name=vpc.region,
        endpoint_url=vpc.ec2_loopback,
        aws_access_key_id=vpc.info["access_key_id"],
        aws_secret_access_key=vpc.info["secret_access_key"],
        config=Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            read_timeout=10,
            connect_timeout=5,
            # What makes no sense shall reach the endpoint too.
            parameter_validation=False,
        ),
    )


@pytest.fixture(autouse=True)
def clean(vpc: Vpc, sdk: Any) -> Iterator[None]:
    """No lag unless the test asks for it; afterwards nothing is left of the test."""
    vpc.clear_faults()
    vpc.set_lag(create=0, write=0, settle=0)
    before = {subnet["SubnetId"] for subnet in sdk.describe_subnets()["Subnets"]}
    yield
    vpc.clear_faults()
    vpc.set_lag(create=0, write=0, settle=0)
    for instance in vpc.state()["instances"]:
        if instance["state"] != "terminated":
            vpc.terminate(instance["id"])
    for eni in vpc.state()["enis"]:
        vpc.ec2("DeleteNetworkInterface", NetworkInterfaceId=eni["id"])
    for subnet in sdk.describe_subnets()["Subnets"]:
        if subnet["SubnetId"] not in before:
            sdk.delete_subnet(SubnetId=subnet["SubnetId"])


class Nodes:
    """Instances by short names, and a thread in each one's namespace."""

    def __init__(self, vpc: Vpc):
        self.vpc = vpc
        self._threads: list[Namespace] = []

    def run(self, name: str, instance_type: str = "c5.large", **more: Any) -> Instance:
        return self.vpc.run_instance(PREFIX + name, instance_type, **more)

    def namespace(self, name: str) -> None:
        """A namespace of the test's own, removed with the others."""
        assert name.startswith(PREFIX)
        ensure_namespace(name, self.vpc.state_dir)

    def inside(self, netns: str) -> Namespace:
        """A thread in a namespace; close it before the namespace is to vanish."""
        thread = Namespace(netns)
        self._threads.append(thread)
        return thread

    def close(self) -> None:
        for thread in self._threads:
            thread.close()
        ours = {self.vpc.info["namespaces"]["fabric"], self.vpc.info["namespaces"]["internet"]}
        for path in layout.NAMESPACES.iterdir():
            if path.name.startswith(PREFIX) and path.name not in ours:
                layout.remove_namespace(path.name)


@pytest.fixture
def nodes(vpc: Vpc) -> Iterator[Nodes]:
    made = Nodes(vpc)
    yield made
    made.close()
