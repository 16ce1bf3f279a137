"""The faults: what each does to a node, whose packets it may cost, and when it is repaired."""

from __future__ import annotations

import hashlib
import ipaddress
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fault_node import FaultNode
from heartbeat import FLOWS, OUTSIDE

from vpc.client import VpcError

# Bounds of what EC2 and metadata do wrong, in seconds.
HOLD = (0.5, 2.0)
YOUNG = 0.2  # how often something young is taken, where nothing is old
TO_POD, FROM_POD, MARKED = 512, 1536, 1024
SNAT_CHAIN = "AWS-SNAT-CHAIN-0"
# Calls of EC2 that lose their reply after they acted.
LOSABLE = (
    "AssignPrivateIpAddresses",
    "UnassignPrivateIpAddresses",
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
)
BY_RECYCLING = LOSABLE[2:]  # which a node makes surely only when it is new


@dataclass
class Played:
    """A fault that has been played."""

    words: str
    pods: set[str] = field(default_factory=set)  # whose own fault it is, by short name
    flows: tuple[str, ...] = FLOWS
    repaired: Callable[[], bool] = lambda: True
    undo: Callable[[], None] = lambda: None
    hold: float = 0.0
    doomed: bool = False  # its pods cannot live on: their addresses are gone
    addresses: set[str] = field(default_factory=set)  # the node's pods that have them, now or soon
    whole_node: bool = False  # pods that come while it lasts are hit as well
    waits: bool = False  # for a call of EC2, which may not come


Kind = Callable[[FaultNode], Played | None]
KINDS: dict[str, Kind] = {}


def kind(name: str) -> Callable[[Kind], Kind]:
    """Registers a fault; it answers None where the node has nothing that could be hit."""

    def register(function: Kind) -> Kind:
        KINDS[name] = function
        return function

    return register


def veth(pod: str) -> str:
    """The host's end of a pod's interface."""
    return "eni" + hashlib.sha1(f"default.{pod}".encode()).hexdigest()[:11]


# Metadata


@kind("metadata is stale")
def stale(node: FaultNode) -> Played:
    fault = node.vpc.fault("imds", "stale", instance=node.instance)
    return Played("stale", undo=lambda: node.vpc.clear_faults(fault), hold=node.rng.uniform(*HOLD))


@kind("metadata is silent")
def silent(node: FaultNode) -> Played:
    fault = node.vpc.fault("imds", "silent", instance=node.instance)
    return Played("silent", undo=lambda: node.vpc.clear_faults(fault), hold=node.rng.uniform(*HOLD))


# EC2


def _armed(node: FaultNode, action: str, words: str, fault: str) -> Played:
    """A fault that waits for a call, which the node's churn or a new node makes."""
    if action in BY_RECYCLING:
        node.recycle()
        node.churn()
    return Played(
        f"{action} {words}",
        repaired=lambda: all(one["id"] != fault for one in node.vpc.faults()),
        waits=True,
    )


@kind("EC2 loses a reply")
def lost_reply(node: FaultNode) -> Played:
    action = node.rng.choice(LOSABLE)
    return _armed(
        node, action, "loses its reply", node.vpc.fault(action, "lose-reply", count=1)
    )


@kind("NotFound after a create")
def not_found(node: FaultNode) -> Played:
    action = node.rng.choice(("AttachNetworkInterface", "ModifyNetworkInterfaceAttribute"))
    fault = node.vpc.fault(
        action,
        "error",
        code="InvalidNetworkInterfaceID.NotFound",
        status=400,
        message="The networkInterface ID does not exist",
        count=1,
    )
    return _armed(node, action, "does not find what was made", fault)


@kind("EC2 throttles")
def throttled(node: FaultNode) -> Played:
    fault = node.vpc.fault("*", "bucket", burst=1, rate=node.rng.choice((0.5, 1, 2)))
    return Played(
        "bucket", undo=lambda: node.vpc.clear_faults(fault), hold=node.rng.uniform(1.0, 3.0)
    )


def _settled(node: FaultNode, some: list[Any], name: Callable[[Any], str]) -> Any | None:
    """One of them, an old one if there is any: what is young takes a minute to be missed, and is
    taken now and then only."""
    old = [one for one in some if node.is_settled(name(one))]
    if old:
        return node.rng.choice(old)
    return node.rng.choice(some) if some and node.rng.random() < YOUNG else None


@kind("interface detached by hand")
def detached(node: FaultNode) -> Played | None:
    others = [eni for eni in node.enis() if eni["device_index"] != 0 and eni["attachment"]]
    eni = _settled(node, others, lambda one: str(one["id"]))
    if eni is None:
        return None
    held = {address for address, holder in node.pod_addresses().items() if holder["id"] == eni["id"]}
    pods = {name for name, live in node.live.items() if live.address in held}
    try:
        node.vpc.ec2("DetachNetworkInterface", AttachmentId=eni["attachment"])
    except VpcError:
        return None  # the pool gave it back at this very moment

    def delete() -> None:
        # Whoever detaches an interface by hand takes it away.
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                node.vpc.ec2("DeleteNetworkInterface", NetworkInterfaceId=eni["id"])
                return
            except VpcError:
                if not any(one["id"] == eni["id"] for one in node.vpc.state()["enis"]):
                    return
                time.sleep(0.1)

    delete()
    words = f"{eni['id']} with {', '.join(sorted(held))}"
    return Played(words, pods, repaired=node.knows_what_ec2_has, doomed=True, addresses=held)


@kind("address or prefix vanishes")
def vanished(node: FaultNode) -> Played | None:
    held = [(eni, one) for eni in node.enis() for one in [*eni["prefixes"], *eni["addresses"][1:]]]
    found = _settled(node, held, lambda one: str(one[1]))
    if found is None:
        return None
    eni, gone = found
    addresses = {str(one) for one in ipaddress.ip_network(gone)}
    pods = {name for name, live in node.live.items() if live.address in addresses}
    field_name = "Ipv4Prefix.1" if "/" in gone else "PrivateIpAddress.1"
    try:
        node.vpc.ec2("UnassignPrivateIpAddresses", NetworkInterfaceId=eni["id"], **{field_name: gone})
    except VpcError:
        # Throttled; or the reply was lost that a node of the run wanted lost, and the call has acted.
        if any(gone in (*one["prefixes"], *one["addresses"]) for one in node.enis()):
            return None
    return Played(
        gone, pods, repaired=node.knows_what_ec2_has, doomed=True, addresses=addresses
    )


# The host


@kind("addresses put on the host")
def on_the_host(node: FaultNode) -> Played | None:
    addresses = sorted(node.pod_addresses())
    if not addresses:
        return None
    taken = node.rng.sample(addresses, min(len(addresses), node.rng.randint(1, 3)))
    for address in taken:
        node.change("address", "add", f"{address}/32", "dev", "ens5")
    pods = {name for name, live in node.live.items() if live.address in taken}

    def gone() -> bool:
        # What the pool has given back meanwhile is none of the node's.
        held = set(node.pod_addresses()) & set(taken)
        local = {info["local"] for link in node.ip("address", "show") for info in link["addr_info"]}
        return not local & held

    return Played(", ".join(taken), pods, repaired=gone, addresses=set(taken))


@kind("veth's MAC rewritten")
def mac_rewritten(node: FaultNode) -> Played | None:
    if not node.live:
        return None
    name = node.rng.choice(sorted(node.live))
    mac = "06:" + ":".join(f"{node.rng.randrange(256):02x}" for _ in range(5))
    node.change("link", "set", "dev", veth(name), "address", mac)
    return Played(f"{veth(name)} is {mac}", {name})


@kind("rule deleted")
def rule_deleted(node: FaultNode) -> Played | None:
    rules = [
        rule for rule in node.ip("rule") if rule["priority"] in (TO_POD, FROM_POD, MARKED)
    ]
    if not rules:
        return None
    rule = node.rng.choice(rules)
    words = ["priority", str(rule["priority"])]
    address = rule.get("dst") or (rule["src"] if rule["src"] != "all" else None)
    if rule["priority"] == TO_POD:
        words += ["to", str(address)]
    elif rule["priority"] == FROM_POD:
        words += ["from", str(address)]
    node.change("rule", "delete", *words)
    pods = (
        set(node.live)  # every pod's way out of the VPC
        if rule["priority"] == MARKED
        else {name for name, live in node.live.items() if live.address == address}
    )
    flows = (OUTSIDE,) if rule["priority"] == MARKED else FLOWS

    def back() -> bool:
        owned = any(live.address == address for live in node.live.values())
        found = [one for one in node.ip("rule") if _same(one, rule)]
        return bool(found) or (rule["priority"] != MARKED and not owned)

    whole_node = rule["priority"] == MARKED
    return Played(" ".join(words), pods, flows, repaired=back, whole_node=whole_node)


def _same(one: dict[str, object], other: dict[str, object]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("priority", "src", "dst", "table", "fwmark"))


@kind("route deleted")
def route_deleted(node: FaultNode) -> Played | None:
    to_pods = [route for route in node.ip("route") if route["dev"].startswith("eni")]
    tables = [
        (route, table)
        for eni in node.enis()
        if eni["device_index"] > 0
        for table in [str(eni["device_index"] + 1)]
        for route in _table(node, table)
    ]
    choices = [(route, "main") for route in to_pods] + tables
    if not choices:
        return None
    route, table = node.rng.choice(choices)
    node.change("route", "delete", str(route["dst"]), "dev", str(route["dev"]), "table", table)
    held = set()  # a pod that comes meanwhile may have one of these
    if table == "main":
        pods = {name for name, live in node.live.items() if live.address == route["dst"]}
    else:
        held = {
            address
            for address, eni in node.pod_addresses().items()
            if str(eni["device_index"] + 1) == table
        }
        pods = {name for name, live in node.live.items() if live.address in held}

    def back() -> bool:
        if table == "main":
            routes = node.ip("route")
            owned = any(live.address == route["dst"] for live in node.live.values())
        else:
            routes = _table(node, table)
            owned = any(str(eni["device_index"] + 1) == table for eni in node.enis())
        same = [one for one in routes if (one["dst"], one["dev"]) == (route["dst"], route["dev"])]
        return bool(same) or not owned

    return Played(f"{route['dst']} of table {table}", pods, repaired=back, addresses=held)


def _table(node: FaultNode, table: str) -> list[dict[str, object]]:
    try:
        return node.ip("route", "show", "table", table)
    except subprocess.CalledProcessError:
        return []  # a table that does not exist


@kind("SNAT chain flushed")
def snat_flushed(node: FaultNode) -> Played:
    before = _snat(node)
    node.run("iptables", "-w", "-t", "nat", "-F", SNAT_CHAIN)
    return Played(
        SNAT_CHAIN, set(node.live), (OUTSIDE,), repaired=lambda: _snat(node) == before, whole_node=True
    )


def _snat(node: FaultNode) -> set[str]:
    listed = node.run("iptables", "-w", "-t", "nat", "-S", SNAT_CHAIN).splitlines()
    return set(listed)


@kind("daemon killed")
def killed(node: FaultNode) -> Played:
    node.kill()
    return Played("SIGKILL", repaired=lambda: node.node.is_ready())
