"""The VPC's network: one router namespace that knows who holds which address.

An ENI is a veth pair. The end in the node has the ENI's MAC and is named by device index;
the end in the fabric has a /32 route for each address that EC2 has assigned to the ENI,
through a next hop that is pinned to that MAC, as a VPC delivers to the ENI without asking
it. What holds, and by what:

- a packet to an address goes to the ENI that holds it and nowhere else: the /32 routes;
  to an address of the subnet that nobody holds: dropped in silence (blackhole route);
- a packet from an address that the sending ENI does not hold is dropped, also when another
  ENI of the same node holds it: strict rp_filter over those same routes;
- in-subnet neighbours resolve: proxy ARP, for held addresses only;
- gateways are base + 1 of each subnet, addresses of the fabric itself. They answer ping,
  which a VPC router is not documented to do (unverified);
- outside the VPC only the primary address of an instance's primary ENI gets through, both
  ways, as an internet gateway translates only addresses with a public one and EC2 gives
  that to the primary interface at launch (VPC User Guide, "Internet gateways"; EC2 User
  Guide, "Public IPv4 addresses"). A rule per such address leads to the table that knows
  the outside. Not modelled: the translation itself; the internet sees the private address.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from vpc import layout
from vpc.netns import Namespace, NetworkError, ensure_namespace, ip_in

ENI_MTU = 9001  # EC2 User Guide, "Network MTU": jumbo frames inside a VPC
OUTSIDE_MTU = 1500  # the same: 1500 through an internet gateway
NODE_HOP = "169.254.0.1"  # next hop of every /32, pinned to the ENI's MAC
# The same for IPv6, and the router's address on every link: EC2's (VPC UG, "IPv6 addressing").
NODE_HOP6 = "fe80::2"
ROUTER6 = "fe80:ec2::1"
OUTSIDE_TABLE = 100
OUTSIDE_LINK = "outside"


@dataclass(frozen=True)
class Wire:
    """What of an ENI the fabric needs."""

    eni: str
    mac: str
    netns: str
    interface: str

    @property
    def link(self) -> str:
        """The end in the fabric: 15 characters at most, so the id's tail."""
        return "v" + self.eni[-13:]


@dataclass(frozen=True)
class Primary:
    """How an instance's primary interface is set up, as DHCP would do it."""

    address: str
    subnet_cidr: str
    ipv6_addresses: tuple[str, ...] = ()


# IPv6 has no rp_filter. Neighbour discovery speaks before it has an address.
STRICT6 = """
table ip6 fabric {
  chain sources {
    type filter hook prerouting priority raw; policy accept;
    iif lo accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld2-listener-report } accept
    fib saddr . iif oif missing drop
  }
}
"""


def interface_name(device_index: int, card: int) -> str:
    """ens5, ens6 … on the first card; names starting with eni would be taken for pods'."""
    return f"ens{5 + device_index + 64 * card}"


class Fabric:
    """The fabric and internet namespaces. Calls come one at a time, under EC2's lock."""

    def __init__(self, prefix: str, state_dir: Path):
        self.state_dir = state_dir
        self.name = prefix + "fabric"
        self.internet_name = prefix + "internet"
        for name in (self.name, self.internet_name):
            ensure_namespace(name, state_dir)
        self.namespace = Namespace(self.name)
        self.internet = Namespace(self.internet_name)
        self._wires: dict[str, Wire] = {}
        self._public: dict[str, str] = {}
        self._set_up()

    def _set_up(self) -> None:
        # Before any link exists: a new link takes over the defaults.
        self.namespace.sysctl(
            {
                "ipv4/ip_forward": "1",
                "ipv4/conf/all/rp_filter": "1",
                "ipv4/conf/default/rp_filter": "1",
                "ipv4/conf/default/proxy_arp": "1",
                "ipv4/conf/all/send_redirects": "0",
                "ipv4/conf/default/send_redirects": "0",
                "ipv6/conf/all/disable_ipv6": "0",
                "ipv6/conf/default/disable_ipv6": "0",
                "ipv6/conf/all/forwarding": "1",
                "ipv6/conf/default/forwarding": "1",
                "ipv6/conf/default/accept_dad": "0",
            }
        )
        self.namespace.nft(STRICT6)
        self.namespace.ip(
            [
                f"link add name {OUTSIDE_LINK} mtu {OUTSIDE_MTU} type veth"
                f" peer name eth0 mtu {OUTSIDE_MTU} netns {self.internet_name}",
                f"addr add {layout.EC2_ADDRESS}/32 dev lo scope host",
                f"addr add {layout.IMDS_ADDRESS}/32 dev lo scope host",
                f"addr add {layout.OUTSIDE_GATEWAY}/32 dev {OUTSIDE_LINK}",
                f"link set {OUTSIDE_LINK} up",
                f"addr add {layout.OUTSIDE_IPV6_GATEWAY}/64 dev {OUTSIDE_LINK} nodad",
                "route add blackhole default",
                "route add blackhole ::/0",
                f"route add {layout.INTERNET_ADDRESS}/32 dev {OUTSIDE_LINK} table {OUTSIDE_TABLE}",
                # The fabric's own packets to the outside, and ARP with it.
                f"rule add from {layout.OUTSIDE_GATEWAY} lookup {OUTSIDE_TABLE}",
            ]
        )
        self.internet.ip(
            [
                f"addr add {layout.INTERNET_ADDRESS}/24 dev eth0",
                "link set eth0 up",
                f"route add default via {layout.OUTSIDE_GATEWAY}",
                f"addr add {layout.INTERNET_IPV6_ADDRESS}/64 dev eth0 nodad",
                f"route add ::/0 via {layout.OUTSIDE_IPV6_GATEWAY}",
            ]
        )

    def add_subnet(self, cidr: str, ipv6_cidr: str | None) -> None:
        """Gives a subnet its gateway, and drops what goes to addresses nobody holds."""
        gateway = ipaddress.ip_network(cidr).network_address + 1
        lines = [f"addr add {gateway}/32 dev lo", f"route add blackhole {cidr}"]
        self.namespace.ip([*lines, *([f"route add blackhole {ipv6_cidr}"] if ipv6_cidr else [])])

    def remove_subnet(self, cidr: str, ipv6_cidr: str | None) -> None:
        """Undoes `add_subnet`."""
        gateway = ipaddress.ip_network(cidr).network_address + 1
        lines = [f"route del blackhole {cidr}", f"addr del {gateway}/32 dev lo"]
        self.namespace.ip([*lines, *([f"route del blackhole {ipv6_cidr}"] if ipv6_cidr else [])])

    def ensure_node(self, netns: str) -> None:
        """Makes a node's namespace where its maker has not."""
        ensure_namespace(netns, self.state_dir)

    def attach(self, wire: Wire, destinations: list[str], primary: Primary | None = None) -> None:
        """Puts an ENI's interface in its node, and delivers to it.

        With `primary` it is the instance's primary interface: it comes up with its address
        and the default route, as DHCP would do, and the address is let outside. Any other
        appears down and bare, as on EC2.
        """
        link = wire.link
        lines = [
            f"link add name {link} mtu {ENI_MTU} type veth peer name {wire.interface}"
            f" address {wire.mac} mtu {ENI_MTU} netns {wire.netns}",
            # A proxied ARP answer is otherwise delayed by up to 0.8 s.
            f"ntable change name arp_cache dev {link} proxy_delay 0",
            f"link set {link} up",
            f"addr add {ROUTER6}/64 dev {link} nodad",
            f"neigh replace {NODE_HOP} lladdr {wire.mac} dev {link} nud permanent",
            f"neigh replace {NODE_HOP6} lladdr {wire.mac} dev {link} nud permanent",
            *(_route(destination, link) for destination in destinations),
        ]
        if primary is not None:
            lines.append(f"rule add from {primary.address} lookup {OUTSIDE_TABLE}")
        self._wires[wire.eni] = wire
        if primary is not None:
            self._public[wire.eni] = primary.address
        try:
            self.namespace.ip(lines)
            if primary is not None:
                ip_in(wire.netns, _primary(wire.interface, primary))
        except NetworkError:
            self.detach(wire.eni)
            raise

    def detach(self, eni: str) -> None:
        """Takes the ENI's interface away; its routes go with it."""
        wire = self._wires.pop(eni, None)
        if wire is None:
            return
        public = self._public.pop(eni, None)
        lines = [f"link del {wire.link}"]
        if public is not None:
            lines.append(f"rule del from {public} lookup {OUTSIDE_TABLE}")
        for line in lines:
            try:
                self.namespace.ip([line])
            except NetworkError as error:
                # Gone already: with a node's namespace that its maker removed, perhaps in this
                # very moment, or never made because attaching stopped half way.
                gone = ("Cannot find", "No such file", "No such device")
                if not any(words in str(error) for words in gone):
                    raise

    def assign(self, eni: str, destinations: list[str]) -> None:
        """Delivers more to an ENI; nothing to do while it is attached nowhere."""
        wire = self._wires.get(eni)
        if wire is not None and destinations:
            self.namespace.ip(_route(destination, wire.link) for destination in destinations)

    def unassign(self, eni: str, destinations: list[str]) -> None:
        """Delivers these to nobody any more."""
        wire = self._wires.get(eni)
        if wire is not None and destinations:
            self.namespace.ip(
                f"route del {ipaddress.ip_network(one)} dev {wire.link}" for one in destinations
            )

    def close(self) -> None:
        """Leaves the namespaces; removing them is the owner's last step."""
        self.namespace.close()
        self.internet.close()


def _route(destination: str, link: str) -> str:
    network = ipaddress.ip_network(destination)
    if network.version == 6:
        return f"route replace {network} via {NODE_HOP6} dev {link}"
    return f"route replace {network} via {NODE_HOP} dev {link} onlink"


def _primary(interface: str, primary: Primary) -> list[str]:
    subnet = ipaddress.ip_network(primary.subnet_cidr)
    lines = [
        f"link set {interface} up",
        f"addr add {primary.address}/{subnet.prefixlen} brd + dev {interface}",
        f"route add default via {subnet.network_address + 1} dev {interface}",
    ]
    if primary.ipv6_addresses:
        # DHCPv6 gives single addresses; the route is what the router advertises.
        lines += [f"addr add {one}/128 dev {interface} nodad" for one in primary.ipv6_addresses]
        lines.append(f"route add ::/0 via {ROUTER6} dev {interface}")
    return lines
