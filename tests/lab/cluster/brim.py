"""Nodes at their limits: filled to the brim, and told to take no more pods."""
from __future__ import annotations

import json

from vpc.client import holder

from .kube import condition
from .progress import step, wait_until

NAMESPACE = "brim"
# AWS's formula without the two for pods on the host's network: ENIs x (addresses - 1).
PODS = {"c5.large": 27, "c5.xlarge": 56}


def fill(lab) -> list[str]:
    """As many pods as each node has addresses for, and one more, which the kubelet must refuse."""
    wanted = {f"{node}-{number}": node for node, kind in zip(lab.config.node_names, lab.config.types)
              for number in range(PODS[kind])}
    with step(f"{len(wanted)} pods on {' and '.join(lab.config.types)}"):
        _apply(lab, wanted)
        wait_until("every pod Ready", 240, lambda: len(_ready(lab)) == len(wanted), 1)
    found = _complaints(lab, _ready(lab), wanted)
    one_more = {f"{node}-more": node for node in lab.config.node_names}
    _apply(lab, one_more)

    def refused() -> bool:
        pods = {pod["metadata"]["name"]: pod for pod in _pods(lab)}
        return all(pods.get(name, {}).get("status", {}).get("phase") == "Failed" for name in one_more)

    try:
        wait_until("one pod more is refused", 30, refused, 0.5)
    except TimeoutError:
        found.append("a kubelet took one pod more than its node has addresses for")
    return found


def unschedulable(lab) -> list[str]:
    """A node that takes no more pods gets no more interfaces, also when its agent starts anew; when it
    takes pods again, those that had to wait get their addresses."""
    node = lab.config.node_names[-1]
    found: list[str] = []
    before = _interfaces(lab, node)
    with step(f"{node} is cordoned, and its agent starts anew"):
        lab.kubectl.run("cordon", node)
        wait_until("the taint", 30, lambda: "taints" in lab.api.get(f"/api/v1/nodes/{node}")["spec"])
        [agent] = [pod["metadata"]["name"] for pod in lab.api.items("/api/v1/namespaces/selvage-system/pods")
                   if pod["spec"].get("nodeName") == node and "ipamd" in pod["metadata"]["name"]]
        lab.kubectl.run("-n", "selvage-system", "delete", "pod", agent)
        wait_until("the agent Ready again", 60, lambda: _agent_ready(lab, node, agent))
    names = {f"late-{number}": node for number in range(9)}
    with step(f"{len(names)} pods, bound to it all the same"):
        _apply(lab, names)
        # What it holds already is given: three addresses of a t3.small's primary interface.
        wait_until("pods on the addresses that are there", 60, lambda: len(_ready(lab)) >= 3)
    if _interfaces(lab, node) != before:
        found.append(f"{node} got an interface while it was unschedulable: {before} before, {_interfaces(lab, node)} now")
    if len(_ready(lab)) == len(names):
        found.append("every pod had an address, so nothing was proved")
    with step(f"{node} is uncordoned"):
        lab.kubectl.run("uncordon", node)
        try:
            wait_until("every pod Ready", 120, lambda: len(_ready(lab)) == len(names), 1)
        except TimeoutError:
            found.append(f"{len(_ready(lab))} of {len(names)} pods were Ready after {node} took pods again")
    return found


def _agent_ready(lab, node: str, old: str) -> bool:
    return any(pod["spec"].get("nodeName") == node and "ipamd" in pod["metadata"]["name"] and pod["metadata"]["name"] != old
               and condition(pod, "Ready") for pod in lab.api.items("/api/v1/namespaces/selvage-system/pods"))


def _interfaces(lab, node: str) -> int:
    return sum(1 for eni in lab.vpc.state()["enis"] if eni["netns"] == node)


def _apply(lab, names: dict[str, str]) -> None:
    items: list[dict] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}]
    items += [{
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False,
                 "enableServiceLinks": False,
                 "containers": [{"name": "pause", "image": "localhost/pause:1", "imagePullPolicy": "Never"}]},
    } for name, node in names.items()]
    lab.kubectl.run("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def _pods(lab) -> list[dict]:
    return lab.api.items(f"/api/v1/namespaces/{NAMESPACE}/pods")


def _ready(lab) -> dict[str, str]:
    """Address by name of the pods that run."""
    return {pod["metadata"]["name"]: pod["status"].get("podIP", "") for pod in _pods(lab) if condition(pod, "Ready")}


def _complaints(lab, ready: dict[str, str], wanted: dict[str, str]) -> list[str]:
    state = lab.vpc.state()
    found = [f"{len(set(ready.values()))} addresses for {len(ready)} pods"] if len(set(ready.values())) != len(ready) else []
    for name, address in ready.items():
        held = holder(state, address)
        if held is None or held["netns"] != wanted[name]:
            found.append(f"{name} has {address}, which EC2 assigned to {held['netns'] if held else 'nobody'}")
    return found
