"""A node of a fault run: pods that come and go on the shipped binaries, and what is true of it."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heartbeat import Heart
from ipamd_node import Answer, Node, Pod, eventually
from probes import http_get

from vpc import layout
from vpc.client import Ec2Error, Vpc

TYPE = "t3.small"  # three interfaces with three pod addresses each: interfaces come and go
MOST_PODS, LEAST_PODS = 7, 2
BELIEVED_AFTER = 62.0  # seconds: what changed within a minute may be described as it was
THROTTLED_FOR = 30.0  # seconds: longer than a fault throttles
TRY_AGAIN = 11  # CNI specification: the runtime shall call again
# Few spare addresses and a short rest, so that the pool has to move all the time.
SETTINGS = {
    "WARM_IP_TARGET": "2",
    "MINIMUM_IP_TARGET": "3",
    "IP_COOLDOWN_PERIOD": "1",
    "ADD_WAIT_SECONDS": "3",
    "RECONCILE_SECONDS": "3",
    "AWS_VPC_K8S_CNI_LOGLEVEL": "info",
}


def unthrottled(call: Callable[[], Any]) -> Any:
    """What a person asks of EC2 while it throttles the node of a fault: asked again for a while."""
    until = time.monotonic() + THROTTLED_FOR
    while True:
        try:
            return call()
        except Ec2Error as error:
            if error.code != "RequestLimitExceeded" or time.monotonic() > until:
                raise
            time.sleep(0.3)


@dataclass
class Live:
    """A pod that runs."""

    pod: Pod
    address: str
    result: dict[str, Any]


@dataclass
class FaultNode:
    """One node. Only the thread that plays on it may call it."""

    vpc: Vpc
    nodes: Any
    name: str
    folder: Path
    heart: Heart
    rng: random.Random
    settings: dict[str, str] = field(default_factory=dict)
    live: dict[str, Live] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    seen: dict[str, float] = field(default_factory=dict)  # of interfaces and addresses: since when
    _number: int = 0
    _generation: int = 0

    def start(self) -> None:
        """Launches the instance and its daemon."""
        self._generation += 1
        name = f"{self.name}g{self._generation}"
        self.node = unthrottled(
            lambda: Node(self.vpc, self.nodes, name, self.folder / name, instance_type=TYPE)
        )
        self.node.start(**self.environment)
        # A node of the run may start while EC2 throttles all of them.
        eventually("the daemon serves", self.node.is_ready, THROTTLED_FOR, log=self.node.log)

    @property
    def environment(self) -> dict[str, str]:
        return {**SETTINGS, **self.settings}

    @property
    def netns(self) -> str:
        return self.node.instance.netns

    @property
    def instance(self) -> str:
        return self.node.instance.instance_id

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # Pods

    def churn(self) -> None:
        """One pod comes or goes."""
        few = len(self.live) <= LEAST_PODS
        if few or (len(self.live) < MOST_PODS and self.rng.random() < 0.55):
            self.add()
        else:
            self.delete(self.rng.choice(sorted(self.live)))

    def add(self) -> bool:
        """Starts a pod as a runtime does; whether it has an address. A refusal must say that it
        is worth another try."""
        self._number += 1
        pod = self.node.pod(f"p{self._number}")
        answer = self.node.add(pod)
        if answer.status == 0:
            self.count("pods started")
            full = f"{self.node.name}/{pod.name}"
            self.live[pod.name] = Live(pod, answer.address, answer.body)
            self.heart.add(full, answer.address, pod.inside)
            return True
        self.count("starts refused")
        if answer.body.get("code") != TRY_AGAIN and self.node.is_alive():
            self.complaints.append(f"{self.name}: ADD of {pod.name}: {answer.words}")
        self._end(pod, {})
        return False

    def delete(self, name: str) -> None:
        """Ends a pod as a runtime does."""
        live = self.live.pop(name)
        self.heart.remove(self.full(name))
        self._end(live.pod, live.result)
        self.count("pods ended")

    def full(self, name: str) -> str:
        """A pod's name among all nodes'."""
        return f"{self.node.name}/{name}"

    def _end(self, pod: Pod, result: dict[str, Any]) -> None:
        answer: Answer = self.node.cni("DEL", pod, result)
        if answer.status != 0:
            self.complaints.append(f"{self.name}: DEL of {pod.name}: {answer.words}")
        pod.inside.close()
        layout.remove_namespace(f"{self.netns}-{pod.name}")
        os.close(self.node.forget(pod))

    # The daemon and the instance

    def kill(self) -> None:
        """SIGKILL, and another daemon at once."""
        assert self.node.process is not None
        self.node.process.kill()
        self.node.process.wait()
        self.node.process = None
        self.node.start(**self.environment)

    def recycle(self) -> None:
        """The node leaves, with its pods, and another one comes in its place."""
        for name in list(self.live):
            self.delete(name)
        old, instance = self.node, self.instance
        old.stop()
        unthrottled(lambda: self.vpc.terminate(instance))
        self._expect_no_interface_of(instance)
        old.metadata.inside.close()
        old.close()
        layout.remove_namespace(old.instance.netns)
        self.start()

    def _expect_no_interface_of(self, instance: str) -> None:
        def left() -> list[str]:
            return [
                eni["id"]
                for eni in self.vpc.state()["enis"]
                if instance == eni["instance"] or eni["description"].endswith(instance)
            ]

        with contextlib.suppress(AssertionError):
            eventually("interfaces go with the node", lambda: not left(), within=5)
        swept = set(self._swept(instance))
        for eni in left():
            if eni in swept:
                self.count("interfaces left to the sweeper")
                unthrottled(lambda eni=eni: self.vpc.ec2("DeleteNetworkInterface", NetworkInterfaceId=eni))
            else:
                self.complaints.append(f"{self.name}: {eni} outlived its node")

    def _swept(self, instance: str) -> list[str]:
        """What the cluster's sweeper, which is not here, will find: interfaces whose instance ended between their
        making and their attaching."""
        filters = {
            "tag:node.k8s.amazonaws.com/instance_id": instance,
            "tag-key": "node.k8s.amazonaws.com/createdAt",
            "status": "available",
            "description": f"aws-K8S-{instance}",
        }
        words = {}
        for at, (name, value) in enumerate(filters.items(), start=1):
            words |= {f"Filter.{at}.Name": name, f"Filter.{at}.Value.1": value}
        found = unthrottled(lambda: self.vpc.ec2("DescribeNetworkInterfaces", **words))
        return [one.text or "" for one in found.iter("networkInterfaceId")]

    # What is true of it

    def ip(self, *words: str) -> list[dict[str, Any]]:
        """What `ip -j` says in the node."""
        command = ["ip", "-n", self.netns, "-j", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout or "[]")

    def change(self, *words: str) -> None:
        """A foreign hand's change with `ip`; what is not there cannot be changed."""
        subprocess.run(["ip", "-n", self.netns, *words], capture_output=True, check=False)

    def run(self, *words: str) -> str:
        """What a command in the node's network says."""
        command = ["nsenter", f"--net=/run/netns/{self.netns}", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def enis(self) -> list[dict[str, Any]]:
        """Its interfaces in EC2, the primary one first."""
        return sorted(self.node.enis(), key=lambda eni: eni["device_index"])

    def look(self) -> None:
        """Notes since when each interface, address and prefix has been seen."""
        now = time.monotonic()
        there = {one for eni in self.enis() for one in (eni["id"], *eni["addresses"], *eni["prefixes"])}
        self.seen = {one: self.seen.get(one, now) for one in there}

    def is_settled(self, what: str) -> bool:
        """Whether an interface, address or prefix is so old that a look at EC2 is believed."""
        return time.monotonic() - self.seen.get(what, time.monotonic()) > BELIEVED_AFTER

    def pod_addresses(self) -> dict[str, dict[str, Any]]:
        """Every address that pods may have, by EC2, with its interface."""
        found = {}
        for eni in self.enis():
            for address in eni["addresses"][1:]:
                found[address] = eni
            for prefix in eni["prefixes"]:
                for one in ipaddress.ip_network(prefix):
                    found[str(one)] = eni
        return found

    def metrics(self) -> dict[str, float]:
        """The daemon's own account, without labels."""
        lines = [line.split() for line in self._page("/metrics", 61678).splitlines()]
        lines = [words for words in lines if words and words[0] != "#"]
        return {words[0]: float(words[-1]) for words in lines if "{" not in words[0]}

    def blocks(self) -> dict[str, set[str]]:
        """What each interface holds for pods, by EC2; those that hold nothing are left out."""
        held = {
            eni["id"]: {f"{one}/32" for one in eni["addresses"][1:]} | set(eni["prefixes"])
            for eni in self.enis()
        }
        return {eni: blocks for eni, blocks in held.items() if blocks}

    def blocks_told(self) -> dict[str, set[str]]:
        """The same, by the daemon."""
        told = json.loads(self._page("/v1/selvage/status", 61679))["interfaces"]
        held = {eni["id"]: {block["block"] for block in eni["blocks"]} for eni in told}
        return {eni: blocks for eni, blocks in held.items() if blocks}

    def _page(self, path: str, port: int) -> str:
        status, text = self.node.metadata.inside.run(http_get("127.0.0.1", path, port=port))
        assert status == 200, f"{path} answers {status}"
        return text

    def knows_what_ec2_has(self) -> bool:
        """Whether the pool holds what EC2 assigned: as many may be others, for a while."""
        try:
            return self.blocks_told() == self.blocks()
        except (OSError, AssertionError):
            return False

