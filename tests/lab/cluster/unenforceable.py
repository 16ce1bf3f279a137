"""A policy that the API server takes and an agent cannot enforce as written: the agent says so with an Event on it."""
from __future__ import annotations

import json

from .progress import step, wait_until

NAMESPACE = "shop"
NAME = "too-large"
PATIENCE_SECONDS = 30
# More members than a rule may have (2^18): each of so many blocks with each of so many ports.
BLOCKS = 2_700
PORTS = 100


def policy() -> dict:
    """It selects no pod, so that nobody is closed by it; the blocks have gaps, so that they do not join."""
    blocks = [{"ipBlock": {"cidr": f"10.{100 + number // 128}.{number % 128 * 2}.0/24"}} for number in range(BLOCKS)]
    ports = [{"protocol": "TCP", "port": 1000 + 2 * number} for number in range(PORTS)]
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"podSelector": {"matchLabels": {"app": "nobody"}}, "policyTypes": ["Ingress"],
                 "ingress": [{"from": blocks, "ports": ports}]},
    }


def complaints(lab) -> list[str]:
    """What is not as it must be; takes the policy away again."""
    lab.kubectl.run("create", "-f", "-", text=json.dumps(policy()))
    found: list[dict] = []

    def told() -> bool:
        events = lab.api.items(f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events")
        found[:] = [event for event in events if event["regarding"].get("name") == NAME and event["reason"] == "NotUnderstood"]
        return bool(found)

    try:
        with step("an Event on a policy that cannot be enforced"):
            wait_until("an Event on the policy", PATIENCE_SECONDS, told, 0.5)
    finally:
        lab.kubectl.run("delete", "networkpolicy", "-n", NAMESPACE, NAME)
    event = found[0]
    wrong = [f"the Event's {field} is {event.get(field)!r}, not {must!r}"
             for field, must in (("type", "Warning"), ("action", "Deny")) if event.get(field) != must]
    if event["regarding"].get("uid") is None or str(BLOCKS * PORTS) not in event.get("note", ""):
        wrong.append(f"the Event does not say which policy and how large: {event['regarding']}, {event.get('note')!r}")
    return wrong
