"""Whether EC2, the checkpoint, the kernel and the daemon's own account say the same of a node."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fault_kinds import FROM_POD, SNAT_CHAIN, TO_POD, veth
from fault_node import FaultNode

PRIMARY_TABLE = "main"


def disagreements(node: FaultNode) -> list[str]:
    """What two of them say differently; empty if all agree exactly."""
    pods = {live.address: name for name, live in node.live.items()}
    held = node.pod_addresses()
    found = [*_ec2(node, pods, held), *_checkpoint(node), *_kernel(node, pods, held)]
    return [f"{node.name}: {one}" for one in found] + _account(node, held)


def _ec2(node: FaultNode, pods: dict[str, str], held: dict[str, Any]) -> list[str]:
    found = [f"{pods[one]} has {one}, which no interface holds" for one in set(pods) - set(held)]
    for eni in node.vpc.state()["enis"]:
        ours = eni["description"].endswith(node.instance)
        if ours and eni["instance"] is None:
            found.append(f"{eni['id']} is attached to nothing")
        if ours and eni["instance"] and not eni["delete_on_termination"]:
            found.append(f"{eni['id']} would outlive the instance")
    return found


def _checkpoint(node: FaultNode) -> list[str]:
    written = {
        container: lease["ipv4"] for container, lease in node.node.allocations().items()
    }
    lives = {live.pod.container: live.address for live in node.live.values()}
    return [] if written == lives else [f"checkpoint {written}, pods {lives}"]


def _kernel(node: FaultNode, pods: dict[str, str], held: dict[str, Any]) -> list[str]:
    found = []
    routes = {
        route["dst"]: route["dev"] for route in node.ip("route") if route["dev"].startswith("eni")
    }
    if routes != {address: veth(name) for address, name in pods.items()}:
        found.append(f"routes {routes}, pods {pods}")
    rules = node.ip("rule")
    to = Counter(rule.get("dst") for rule in rules if rule["priority"] == TO_POD)
    if to != Counter(list(pods)):
        found.append(f"rules to pods {dict(to)}, pods {pods}")
    sent = Counter(
        (rule["src"], rule["table"]) for rule in rules if rule["priority"] == FROM_POD
    )
    wanted = Counter(
        (address, str(held[address]["device_index"] + 1))
        for address in pods
        if address in held and held[address]["device_index"] > 0
    )
    if sent != wanted:
        found.append(f"rules from pods {dict(sent)}, must be {dict(wanted)}")
    for eni in node.enis():
        if eni["device_index"] > 0:
            found += _table(node, eni)
    links = node.ip("address", "show")
    names = {link["ifname"] for link in links if link["ifname"].startswith("eni")}
    if names != {veth(name) for name in node.live}:
        found.append(f"interfaces {sorted(names)} for {len(node.live)} pods")
    on_host = {info["local"] for link in links for info in link["addr_info"]}
    if on_host & set(held):
        found.append(f"pod addresses on the host: {sorted(on_host & set(held))}")
    chain = node.run("iptables", "-w", "-t", "nat", "-S", SNAT_CHAIN)
    if "SNAT" not in chain or f"--to-source {node.node.instance.address}" not in chain:
        found.append(f"{SNAT_CHAIN} is {chain!r}")
    return found


def _table(node: FaultNode, eni: dict[str, Any]) -> list[str]:
    table = str(eni["device_index"] + 1)
    routes = {
        (route["dst"], route["dev"]) for route in node.ip("route", "show", "table", table)
    }
    interface = eni["interface"]
    wanted = {("default", interface), (node.node.instance.gateway, interface)}
    return [] if routes == wanted else [f"table {table} has {sorted(routes)}"]


def _blocks(node: FaultNode) -> list[str]:
    told, held = node.blocks_told(), node.blocks()
    return [] if told == held else [f"{node.name}: the daemon holds {told}, EC2 says {held}"]


def _account(node: FaultNode, held: dict[str, Any]) -> list[str]:
    told = node.metrics()
    table = {
        "awscni_total_ip_addresses": len(held),
        "awscni_assigned_ip_addresses": len(node.live),
        "awscni_eni_allocated": len(node.enis()),
    }
    return _blocks(node) + [
        f"{node.name}: {name} is {told.get(name)}, must be {wanted}"
        for name, wanted in table.items()
        if told.get(name) != wanted
    ]
