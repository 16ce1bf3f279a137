"""The network: packets reach the holder of an address, and nobody else sends from it."""

from __future__ import annotations

import fcntl
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from ec2_calls import attach_eni, create_eni, refused, small_subnet
from probes import NEVER, http_get, pings, udp_reply

from vpc import layout
from vpc.client import Instance, Vpc
from vpc.netns import Namespace, ip_in


def links(inside: Namespace) -> dict[str, tuple[str, str]]:
    """MAC and state of each interface but loopback, as the node sees them."""

    def read() -> dict[str, tuple[str, str]]:
        found = {}
        for _, name in socket.if_nameindex():
            if name == "lo":
                continue
            # sysfs shows the mounter's namespace; an ioctl shows the thread's.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                request = struct.pack("256s", name.encode())
                mac = fcntl.ioctl(probe, 0x8927, request)[18:24].hex(":")  # SIOCGIFHWADDR
                (flags,) = struct.unpack("H", fcntl.ioctl(probe, 0x8913, request)[16:18])
            found[name] = (mac, "up" if flags & 1 else "down")
        return found

    return inside.run(read)


def set_up_secondary(node: Instance, interface: str, address: str, gateway: str) -> None:
    """What a node agent does with a secondary interface: address, table, rule."""
    ip_in(
        node.netns,
        [
            f"link set {interface} up",
            f"addr add {address}/32 dev {interface}",
            f"route add {gateway} dev {interface} scope link table 2",
            f"route add default via {gateway} dev {interface} table 2",
            f"rule add from {address} lookup 2 priority 1536",
        ],
    )


def serve(inside: Namespace, address: str, port: int = 8080) -> socket.socket:
    """A listening socket at an address that the node holds itself."""
    return inside.listen(address, port)


def connects(inside: Namespace, address: str, port: int = 8080, timeout: float = 2.0) -> bool:
    """Whether a TCP connection is made."""

    def dial() -> bool:
        try:
            socket.create_connection((address, port), timeout).close()
        except OSError:
            return False
        return True

    return inside.run(dial)


def test_nodes_in_two_zones_reach_each_other_and_their_gateways(vpc: Vpc, nodes: Any) -> None:
    one, two = nodes.run("n1"), nodes.run("n2", subnet=vpc.subnets[1].id)
    three = nodes.run("n3")
    inside = nodes.inside(one.netns)
    for address in (one.gateway, two.gateway, two.address, three.address):
        assert inside.run(pings(address)), address
    with serve(nodes.inside(two.netns), two.address):
        assert connects(inside, two.address)


def test_a_new_node_has_its_primary_interface_up_and_an_attached_one_bare(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    node = nodes.run("n1")
    inside = nodes.inside(node.netns)
    assert links(inside) == {"ens5": (node.mac, "up")}
    eni = create_eni(sdk, vpc)
    attach_eni(sdk, eni["NetworkInterfaceId"], node.instance_id, 2)
    assert links(inside) == {"ens5": (node.mac, "up"), "ens7": (eni["MacAddress"], "down")}


def test_a_detached_interface_is_gone_when_the_call_returns(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node, other = nodes.run("n1"), nodes.run("n2")
    eni = create_eni(sdk, vpc)
    attachment = attach_eni(sdk, eni["NetworkInterfaceId"], node.instance_id, 1)
    set_up_secondary(node, "ens6", eni["PrivateIpAddress"], node.gateway)
    watcher = nodes.inside(other.netns)
    assert watcher.run(pings(eni["PrivateIpAddress"]))
    sdk.detach_network_interface(AttachmentId=attachment)
    assert links(nodes.inside(node.netns)) == {"ens5": (node.mac, "up")}
    assert not watcher.run(pings(eni["PrivateIpAddress"], timeout=NEVER))


def test_a_detached_interface_can_be_attached_to_another_node(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    one, two = nodes.run("n1"), nodes.run("n2")
    eni = create_eni(sdk, vpc)
    attachment = attach_eni(sdk, eni["NetworkInterfaceId"], one.instance_id, 1)
    sdk.detach_network_interface(AttachmentId=attachment)
    attach_eni(sdk, eni["NetworkInterfaceId"], two.instance_id, 1)
    set_up_secondary(two, "ens6", eni["PrivateIpAddress"], two.gateway)
    assert nodes.inside(one.netns).run(pings(eni["PrivateIpAddress"]))


def test_a_terminated_node_has_no_interface_and_answers_nobody(vpc: Vpc, nodes: Any) -> None:
    node, other = nodes.run("n1"), nodes.run("n2")
    vpc.terminate(node.instance_id)
    assert links(nodes.inside(node.netns)) == {}
    assert not nodes.inside(other.netns).run(pings(node.address, timeout=NEVER))


def test_a_node_whose_namespace_is_gone_can_still_be_terminated(vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    layout.remove_namespace(node.netns)
    vpc.terminate(node.instance_id)
    assert vpc.state()["enis"] == []
    again = nodes.run("n1")
    assert nodes.inside(again.netns).run(pings(again.gateway))


def test_an_address_is_delivered_from_assign_to_unassign(vpc: Vpc, nodes: Any) -> None:
    node, other = nodes.run("n1"), nodes.run("n2")
    watcher = nodes.inside(other.netns)
    (address,) = vpc.assign_addresses(node.eni, 1)
    # On lo, so that the node answers no ARP for it: delivery must not depend on that.
    ip_in(node.netns, [f"addr add {address}/32 dev lo"])
    nodes.inside(node.netns).sysctl({"ipv4/conf/all/arp_ignore": "1"})
    assert watcher.run(pings(address))
    vpc.unassign_addresses(node.eni, [address])
    assert not watcher.run(pings(address, timeout=NEVER))


def test_an_address_that_nobody_holds_is_unreachable_even_if_a_node_has_it(nodes: Any) -> None:
    node, other = nodes.run("n1"), nodes.run("n2")
    ip_in(node.netns, ["addr add 10.40.9.9/32 dev lo"])
    assert not nodes.inside(other.netns).run(pings("10.40.9.9", timeout=NEVER))


def test_a_packet_from_an_address_the_interface_does_not_hold_is_dropped(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    node, victim, target = nodes.run("n1"), nodes.run("n2"), nodes.run("n3")
    eni = create_eni(sdk, vpc)
    attach_eni(sdk, eni["NetworkInterfaceId"], node.instance_id, 1)
    (held,) = vpc.assign_addresses(node.eni, 1)
    spoofed = {
        "nobody's": "10.40.9.9",
        "from outside the VPC": "203.0.113.7",
        "another node's": victim.address,
        "of another ENI of the same node": eni["PrivateIpAddress"],
    }
    inside = nodes.inside(node.netns)
    heard = Heard(nodes.inside(target.netns), target.address)
    ip_in(node.netns, [f"addr add {a}/32 dev lo" for a in (held, *spoofed.values())])
    # The neighbour is known beforehand: else the fabric's silence to a spoofed ARP request
    # would stop the packet already, and hold up the honest one behind it.
    assert inside.run(pings(target.address, source=node.address))
    for name, source in spoofed.items():
        inside.run(udp_reply(target.address, 9, source=source))
        assert heard.sources() == [], name
    inside.run(udp_reply(target.address, 9, source=held))
    assert heard.sources() == [held]
    heard.close()


def test_in_subnet_neighbours_resolve_for_held_addresses_only(nodes: Any) -> None:
    node, other = nodes.run("n1"), nodes.run("n2")
    inside = nodes.inside(node.netns)
    inside.run(pings(other.address))
    inside.run(pings("10.40.9.9", timeout=NEVER))

    def neighbours() -> dict[str, str]:
        # /proc/net follows the thread's namespace.
        lines = Path("/proc/thread-self/net/arp").read_text().splitlines()[1:]
        return {line.split()[0]: line.split()[2] for line in lines}

    states = inside.run(neighbours)
    assert states[other.address] == "0x2"  # complete
    assert states["10.40.9.9"] == "0x0"


def test_the_internet_sees_the_primary_address_and_hears_no_other(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    node = nodes.run("n1")
    inside = nodes.inside(node.netns)
    (secondary,) = vpc.assign_addresses(node.eni, 1)
    ip_in(node.netns, [f"addr add {secondary}/32 dev lo"])
    eni = create_eni(sdk, vpc)
    attach_eni(sdk, eni["NetworkInterfaceId"], node.instance_id, 1)
    set_up_secondary(node, "ens6", eni["PrivateIpAddress"], node.gateway)
    before = len(vpc.internet_seen())

    assert inside.run(http_get(vpc.internet, "/hello")) == (200, f"{node.address}\n")
    echo = inside.run(udp_reply(vpc.internet, vpc.info["internet_udp_port"]))
    assert echo is not None and echo.startswith(f"{node.address}:") and echo.endswith(" hello")
    for source in (secondary, eni["PrivateIpAddress"]):
        with pytest.raises(TimeoutError):
            inside.run(http_get(vpc.internet, source=source, timeout=NEVER))
    seen = [(v["protocol"], v["source"], v["what"]) for v in vpc.internet_seen()[before:]]
    assert seen == [("tcp", node.address, "/hello"), ("udp", node.address, "hello")]


def test_the_internet_reaches_the_primary_address_and_no_other(vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1")
    (secondary,) = vpc.assign_addresses(node.eni, 1)
    ip_in(node.netns, [f"addr add {secondary}/32 dev lo"])
    heard = Heard(nodes.inside(node.netns), "0.0.0.0")
    outside = nodes.inside(vpc.info["namespaces"]["internet"])
    outside.run(udp_reply(secondary, 9))
    assert heard.sources() == []
    outside.run(udp_reply(node.address, 9))
    assert heard.sources() == [vpc.internet]
    heard.close()


def test_ec2_is_reached_from_nodes_and_from_the_machine(vpc: Vpc, nodes: Any) -> None:
    inside = nodes.inside(nodes.run("n1").netns)
    assert vpc.ec2_endpoint == "http://198.51.100.2:80"
    status, body = inside.run(http_get("198.51.100.2", "/lab/calls"))
    assert status == 200 and "RunInstances" in body


def test_a_subnet_made_later_has_a_gateway_and_delivers(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    subnet = small_subnet(sdk, vpc)
    node = nodes.run("n1", subnet=subnet)
    other = nodes.run("n2")
    assert nodes.inside(node.netns).run(pings("10.40.200.1"))
    assert nodes.inside(other.netns).run(pings(node.address))


def test_a_big_segment_crosses_without_fragments(vpc: Vpc, nodes: Any) -> None:
    one, two = nodes.run("n1"), nodes.run("n2")
    heard = Heard(nodes.inside(two.netns), two.address)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
            probe.sendto(b"x" * 8973, (two.address, 9))  # 9001 with its headers

    nodes.inside(one.netns).run(send)
    assert heard.sources() == [one.address]
    heard.close()


def test_an_attach_the_fabric_cannot_make_leaves_the_interface_available(
    sdk: Any, vpc: Vpc, nodes: Any
) -> None:
    node = nodes.run("n1")
    ip_in(node.netns, ["link add name ens6 type veth peer name stranger"])
    eni = create_eni(sdk, vpc)["NetworkInterfaceId"]
    with refused("InternalError", status=500):
        attach_eni(sdk, eni, node.instance_id, 1)
    (left,) = [e for e in vpc.state()["enis"] if e["id"] == eni]
    assert left["status"] == "available"
    ip_in(node.netns, ["link del ens6"])
    attach_eni(sdk, eni, node.instance_id, 1)


def test_calls_are_quick(sdk: Any, vpc: Vpc, nodes: Any) -> None:
    node = nodes.run("n1", "m5.4xlarge")
    times = []
    for _ in range(10):
        started = time.monotonic()
        vpc.assign_addresses(node.eni, 1)
        times.append(time.monotonic() - started)
    # A tenth of a second is many times the 10 ms it takes, and far below a hang.
    assert sorted(times)[5] < 0.1


class Heard:
    """A UDP socket in a namespace, and the sources it has heard since the last look."""

    def __init__(self, inside: Namespace, address: str):
        self.socket = inside.bind_udp(address, 9)
        self.socket.settimeout(0.1)

    def sources(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.socket.recvfrom(65535)[1][0])
            except TimeoutError:
                return found

    def close(self) -> None:
        self.socket.close()
