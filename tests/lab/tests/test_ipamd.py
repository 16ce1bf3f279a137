"""The shipped binaries, selvage-ipamd and aws-cni, against this EC2 and its failures.

A t3.small has three interfaces with three addresses for pods on each: the pool fills the
first one, and a second interface comes with the first pod.
"""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ec2_calls import addresses, create_eni, small_subnet
from ipamd_node import ENDING, Node, Pod, eventually
from probes import SOON, http_get, pings

from vpc.client import Vpc

PER_ENI = 3  # addresses for pods on each interface of a t3.small


@pytest.fixture
def node_on(vpc: Vpc, nodes: Any, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Makes nodes; their daemons end with the test, however it ends."""
    made: list[Node] = []

    def make(name: str = "n1", **run: Any) -> Node:
        made.append(Node(vpc, nodes, name, tmp_path / name, **run))
        return made[-1]

    yield make
    for node in made:
        node.close()


@pytest.fixture
def node(node_on: Callable[..., Node]) -> Node:
    """One node; its daemon has not been started."""
    return node_on()


def added(node: Node, pod: Pod) -> str:
    """A pod's address, once there is one: the runtime tries again as well."""

    def add() -> str | None:
        answer = node.add(pod)
        return answer.address if answer.status == 0 else None

    return node.until(f"an address for {pod.name}", add)


def refused_words(node: Node, pod: Pod) -> str | None:
    """Why a pod gets no address; None where EC2 is being asked for the first time at this very moment."""
    answer = node.add(pod)
    assert answer.status != 0
    assert answer.body["code"] == 11
    first_try = "being refilled" in answer.words and "the last try" not in answer.words
    return None if first_try else answer.words


def enis(sdk: Any, node: Node) -> list[dict[str, Any]]:
    """The interfaces of a node by device index; those that are loose but its own, last."""
    found = sdk.describe_network_interfaces()["NetworkInterfaces"]
    own = [
        eni
        for eni in found
        if eni.get("Attachment", {}).get("InstanceId") == node.instance.instance_id
        or node.instance.instance_id in eni["Description"]
    ]
    return sorted(own, key=lambda eni: eni.get("Attachment", {}).get("DeviceIndex", 99))


def sources(node: Node, address: str, port: int, pod: Pod) -> str:
    """Whom a server on another node sees when the pod calls."""
    listening = node.metadata.inside.listen(address, port)
    with listening:
        listening.settimeout(SOON)

        def call() -> None:
            socket.create_connection((address, port), SOON).close()

        pod.inside.run(call)
        accepted, (source, _) = listening.accept()
        accepted.close()
    return str(source)


# Traffic


def test_pods_of_every_interface_reach_the_vpc_as_themselves_and_the_world_as_their_node(
    node_on: Callable[..., Node], vpc: Vpc, sdk: Any
) -> None:
    node, other = node_on("n1"), node_on("n2")
    node.start_ready()
    pods = [node.pod(f"p{at}") for at in range(PER_ENI + 1)]
    given = [added(node, pod) for pod in pods]
    held = [addresses(eni) for eni in enis(sdk, node)]
    assert set(given[:PER_ENI]) == set(held[0][1:])
    assert given[PER_ENI] in held[1][1:]
    assert len(set(given)) == len(given)

    for pod, address in ((pods[0], given[0]), (pods[-1], given[-1])):
        assert pod.inside.run(pings(node.instance.gateway)), f"{pod.name} to the gateway"
        assert pod.inside.run(pings(given[1])), f"{pod.name} to a pod beside it"
        assert sources(other, other.instance.address, 8080, pod) == address
        status, _ = pod.inside.run(http_get(vpc.internet, f"/{pod.name}"))
        assert status == 200
        (seen,) = [s for s in vpc.internet_seen() if s["what"].endswith(f"/{pod.name}")]
        assert seen["source"] == node.instance.address
    assert other.metadata.inside.run(pings(given[-1])), "another node to a pod"


# The start


def test_the_node_is_not_ready_before_metadata_answers_and_is_by_itself_afterwards(
    node: Node, vpc: Vpc
) -> None:
    vpc.fault("imds", "silent", instance=node.instance.instance_id)
    node.start()
    node.until("the start is held up", lambda: "start is held up" in node.log.read_text())
    assert node.is_alive()
    assert node.health("--live").returncode == 0
    assert node.health().returncode != 0
    assert not node.conflist.exists()
    assert not node.installed.exists()
    refused = node.add(node.pod("early"))
    assert refused.status != 0
    assert "ipamd is starting: read instance metadata" in refused.words

    vpc.clear_faults()
    node.until("the conflist is there", node.conflist.exists)
    assert node.is_ready()
    written = json.loads(node.conflist.read_text())
    assert (written["name"], written["plugins"][0]["type"]) == ("aws-cni", "aws-cni")
    assert node.installed.read_bytes() == node.binaries.plugin.read_bytes()
    assert added(node, node.pod("late"))


# EC2 fails


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"kind": "throttle"}, "EC2 throttles our calls"),
        ({"kind": "error", "code": "InternalError", "status": 500}, "InternalError"),
        (
            {"kind": "error", "code": "NewCodeOfNextYear", "status": 400, "message": "No luck."},
            "NewCodeOfNextYear: No luck.",
        ),
        ({"kind": "garbage"}, "CreateNetworkInterface: an answer that cannot be read"),
    ],
    ids=["throttled", "500", "unknown-code", "garbage"],
)
def test_a_pod_without_an_address_is_told_what_ec2_said_and_gets_one_when_ec2_is_well(
    node: Node, vpc: Vpc, sdk: Any, fault: dict[str, Any], told: str
) -> None:
    vpc.fault("CreateNetworkInterface", **fault)
    # The last free address makes it ask for an interface; a pod is not to wait for that.
    node.start_ready(WARM_ENI_TARGET="0", ADD_WAIT_SECONDS="0")
    pod = node.pod("more")
    node.fill(PER_ENI)
    node.until("EC2 failed", lambda: "CreateNetworkInterface: " in node.log.read_text())
    words = node.until("a pod that came between two tries", lambda: refused_words(node, pod))
    assert told in words
    assert "next try in " in words
    assert node.is_alive()
    assert node.is_ready(), "pods that are there are served"

    vpc.clear_faults()
    given = added(node, pod)
    held = enis(sdk, node)
    assert len(held) == 2, "one interface, however often it was asked for"
    assert given in addresses(held[1])


def test_a_subnet_that_is_full_in_words_alone_is_known_as_full(node: Node, vpc: Vpc) -> None:
    # CreateNetworkInterface has no code for it (amazon-vpc-cni-k8s#3105).
    vpc.fault(
        "CreateNetworkInterface",
        kind="error",
        code="InvalidParameterValue",
        status=400,
        message="There aren't sufficient free Ipv4 addresses or prefixes",
    )
    node.start_ready(WARM_ENI_TARGET="0", ADD_WAIT_SECONDS="0")
    pod = node.pod("more")
    node.fill(PER_ENI)

    def told() -> bool:
        words = refused_words(node, pod)
        return words is not None and "has no free addresses, next try in " in words

    node.until("the pod is told that the subnet is full", told)
    assert node.is_alive()


def test_an_exhausted_subnet_gives_what_it_has_and_the_pod_after_that_is_told(
    node_on: Callable[..., Node], vpc: Vpc, sdk: Any
) -> None:
    subnet = small_subnet(sdk, vpc)
    node = node_on("n1", subnet=subnet)
    # Eleven addresses: the node's, eight of these, two for pods.
    create_eni(sdk, vpc, SubnetId=subnet, SecondaryPrivateIpAddressCount=7)
    node.start_ready()
    first, second, third = (node.pod(f"p{at}") for at in range(3))
    assert added(node, first) != added(node, second)
    refused = node.add(third)
    assert refused.status != 0
    assert f"subnet {subnet} has no free addresses" in refused.words
    assert node.is_alive()
    assert len(enis(sdk, node)) == 1


def test_lost_replies_leak_no_interface_and_double_no_address(
    node: Node, vpc: Vpc, sdk: Any
) -> None:
    before = vpc.calls()
    vpc.set_lag(create=0.3, settle=0.3)
    vpc.fault("AssignPrivateIpAddresses", "lose-reply", count=1)
    vpc.fault("CreateNetworkInterface", "lose-reply", count=2)
    vpc.fault("AttachNetworkInterface", "lose-reply", count=1)
    node.start_ready()
    pods = [node.pod(f"p{at}") for at in range(PER_ENI + 1)]
    given = [added(node, pod) for pod in pods]

    def settled() -> list[dict[str, Any]] | None:
        found = enis(sdk, node)
        indices = [eni.get("Attachment", {}).get("DeviceIndex") for eni in found]
        return found if indices == [0, 1, 2] else None

    # A third one, since the second is not free as a whole any more.
    found = node.until("two more interfaces are attached", settled)
    assert not vpc.faults(), "every reply that was to be lost was lost"
    assert len(vpc.state()["enis"]) == 3, "nothing else was made"
    assert vpc.calls()["CreateNetworkInterface"] - before.get("CreateNetworkInterface", 0) == 4
    assert [len(addresses(eni)) for eni in found] == [1 + PER_ENI] * 3
    assert len(set(given)) == len(given)
    assert set(given) <= {address for eni in found for address in addresses(eni)[1:]}

    def kept() -> bool:
        return all(eni["Attachment"]["DeleteOnTermination"] for eni in enis(sdk, node))

    node.until("every interface ends with the instance", kept)
    vpc.terminate(node.instance.instance_id)
    eventually("the interfaces went with the instance", lambda: vpc.state()["enis"] == [])


# The end, and the start after it


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["told", "killed"])
def test_a_restart_keeps_every_lease_and_frees_what_is_deleted(
    node: Node, vpc: Vpc, sdk: Any, number: signal.Signals
) -> None:
    settings = {"IP_COOLDOWN_PERIOD": "1", "MAX_ENI": "1"}
    node.start_ready(**settings)
    pods = [node.pod(f"p{at}") for at in range(PER_ENI)]
    given = [added(node, pod) for pod in pods]
    status = node.stop(number)
    assert status == (0 if number is signal.SIGTERM else -number), node.log.read_text()
    assert node.conflist.exists(), "pods that are there can still be deleted"
    written = json.loads(node.checkpoint.read_text())
    assert written["version"] == "vpc-cni-ipam/1"
    lease = node.allocations()[pods[0].container]
    assert lease.pop("allocationTimestamp") > 1_600_000_000_000_000_000
    assert lease == {
        "networkName": "aws-cni",
        "containerID": pods[0].container,
        "ifName": "eth0",
        "ipv4": given[0],
        "metadata": {
            "k8sPodNamespace": "default",
            "k8sPodName": pods[0].name,
            "interfacesCount": 1,
        },
    }

    assert pods[1].inside.run(pings(node.instance.gateway))
    node.start_ready(**settings)
    assert pods[1].inside.run(pings(node.instance.gateway))
    kept = {container: lease["ipv4"] for container, lease in node.allocations().items()}
    assert kept == {pod.container: address for pod, address in zip(pods, given, strict=True)}
    assert node.add(pods[1]).address == given[1], "the same sandbox, the same address"
    late = node.pod("late")
    full = node.add(late)
    assert full.status != 0
    assert "every address is in use: 1 interfaces with 3 pod addresses each" in full.words

    for _ in range(2):
        assert node.delete(pods[0]).status == 0, "deleting twice is no failure"
    # Taking back is answered before it is on disk.
    node.until("it is written", lambda: pods[0].container not in node.allocations())
    assert added(node, late) == given[0]
    assert node.stop() == 0


def test_interfaces_follow_the_security_groups_that_the_primary_one_is_given(
    node: Node, vpc: Vpc, sdk: Any
) -> None:
    node.start_ready(RECONCILE_SECONDS="1")
    added(node, node.pod("web"))
    node.until("a second interface", lambda: len(enis(sdk, node)) == 2)

    def groups() -> list[list[str]]:
        return [[group["GroupId"] for group in eni["Groups"]] for eni in enis(sdk, node)]

    assert groups() == [[vpc.security_group]] * 2
    wanted = [vpc.pod_security_group]
    primary = enis(sdk, node)[0]["NetworkInterfaceId"]
    sdk.modify_network_interface_attribute(NetworkInterfaceId=primary, Groups=wanted)
    node.until("the second one has them too", lambda: groups() == [wanted] * 2)


def test_a_daemon_that_waits_for_metadata_ends_when_it_is_told(node: Node, vpc: Vpc) -> None:
    vpc.fault("imds", "silent", instance=node.instance.instance_id)
    node.start()
    node.until("it is alive", lambda: node.health("--live").returncode == 0)
    assert node.stop() == 0, f"within {ENDING:g} s"


# Refusals


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"version":"vpc-cni-ipam/1","alloc', "cannot be understood"),
        ('{"version":"vpc-cni-ipam/9","allocations":[]}', 'has version "vpc-cni-ipam/9"'),
    ],
    ids=["torn", "of-a-later-version"],
)
def test_a_checkpoint_that_is_not_understood_is_refused_and_left_alone(
    node: Node, text: str, told: str
) -> None:
    node.checkpoint.write_text(text)
    ended = node.run_to_its_end()
    assert ended.returncode == 1
    assert "checkpoint /var/run/aws-node/ipam.json" in ended.stderr
    assert told in ended.stderr
    assert "it is left as it is" in ended.stderr
    assert node.checkpoint.read_text() == text
    assert not node.conflist.exists()


def test_a_second_daemon_beside_a_live_one_refuses_and_names_the_socket(node: Node) -> None:
    node.start_ready()
    pod = node.pod("p0")
    given = added(node, pod)
    ended = node.run_to_its_end()
    assert ended.returncode == 1
    assert "socket /var/run/aws-node/ipamd.sock: another ipamd is running" in ended.stderr
    assert node.is_ready()
    assert node.add(pod).address == given
