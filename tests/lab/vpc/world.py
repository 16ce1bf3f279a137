"""The one truth: moto's EC2 backend, the ledgers, the fabric, and the lock around them."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends

from vpc import layout
from vpc.addresses import Ledger
from vpc.credentials import Credentials
from vpc.fabric import Fabric
from vpc.faults import Faults
from vpc.tokens import ClientTokens


@dataclass(frozen=True)
class VpcInfo:
    """A VPC whose interfaces are in the fabric, and its groups."""

    id: str
    default_group: str
    pod_group: str


@dataclass
class Lag:
    """How far reads trail writes, in seconds ("Eventual consistency in the Amazon EC2
    API"; EC2 gives no figures). `create`: a new ENI is NotFound. `write`: any other change
    to an ENI is seen late. `settle`: attaching and detaching take that long."""

    create: float
    write: float
    settle: float


class World:
    """All state of the lab's two VPCs. Whoever reads or changes it holds `lock`."""

    def __init__(self, state_dir: Path, fabric: Fabric, lag: float):
        self.lock = threading.RLock()
        self.state_dir = state_dir
        self.fabric = fabric
        self.lag = Lag(create=lag, write=0.0, settle=lag)
        self.region = layout.REGION
        self.account = DEFAULT_ACCOUNT_ID
        self.backend: Any = ec2_backends[self.account][self.region]
        self.faults = Faults()
        self.tokens = ClientTokens()
        self.credentials = Credentials()
        self.vpcs: dict[str, VpcInfo] = {}
        self.vpc_id = ""  # of the first one
        self.peer_id = ""  # of the one it is peered with
        self.subnets: list[tuple[str, str]] = []  # what for (layout.SubnetPlan.kind), and id
        # What no address agent may do, and a node's agent did; in words.
        self.violations: list[str] = []
        self._ledgers: dict[str, Ledger] = {}

    def now(self) -> float:
        """The clock that lag is measured with."""
        return time.monotonic()

    def ledger(self, vpc_id: str) -> Ledger:
        """Who holds what in one VPC."""
        return self._ledgers.setdefault(vpc_id, Ledger())

    def build(self) -> None:
        """Makes the lab's two VPCs, their subnets and their security groups."""
        self.vpc_id = self._build_vpc(layout.VPC_CIDR, layout.VPC_IPV6)
        self.backend.get_vpc(self.vpc_id).associate_vpc_cidr_block(layout.POD_CIDR)
        self.peer_id = self._build_vpc(layout.PEER_CIDR, layout.PEER_IPV6)
        for plan in layout.SUBNETS:
            subnet = self.backend.create_subnet(
                self.peer_id if plan.kind == "peer" else self.vpc_id,
                plan.cidr,
                ipv6_cidr_block=plan.ipv6_cidr,
                availability_zone=plan.zone,
            )
            self.subnets.append((plan.kind, subnet.id))

    def _build_vpc(self, cidr: str, ipv6_cidr: str) -> str:
        vpc = self.backend.create_vpc(cidr, amazon_provided_ipv6_cidr_block=True)
        # moto makes up the IPv6 block.
        [association] = vpc.get_cidr_block_association_set(ipv6=True)
        association["cidr_block"] = ipv6_cidr
        default = self.backend.get_default_security_group(vpc.id)
        pods = self.backend.create_security_group("pods", "of pods alone", vpc_id=vpc.id)
        self.vpcs[vpc.id] = VpcInfo(vpc.id, default.id, pods.id)
        return vpc.id

    def interfaces(self) -> list[Any]:
        """Every ENI, detachments that are through included."""
        for eni in self.backend.enis.values():
            eni.finish_detaching(self)
        return list(self.backend.enis.values())

    def holder(self, address: str) -> Any | None:
        """The ENI of the lab's VPCs that holds an address, by itself or in a prefix."""
        for vpc_id in self.vpcs:
            eni = self.ledger(vpc_id).holder(address)
            if eni:
                return self.backend.enis.get(eni)
        return None

    def instances(self) -> list[Any]:
        """Every instance that is not terminated."""
        return [i for i in self.backend.all_instances() if i.state != "terminated"]

    def dump(self) -> dict[str, Any]:
        """The truth as JSON, without lag."""
        enis = [eni.dump() for eni in self.interfaces()]
        by_id = {eni["id"]: eni for eni in enis}

        def owner(eni_id: str) -> dict[str, Any]:
            eni = by_id[eni_id]
            return {"eni": eni_id, "instance": eni["instance"], "netns": eni["netns"]}

        addresses, prefixes = {}, {}
        for vpc_id in self.vpcs:
            for address, eni_id in self.ledger(vpc_id).addresses():
                primary = address == by_id[eni_id]["primary"]
                addresses[address] = {**owner(eni_id), "primary": primary}
            for prefix, eni_id in self.ledger(vpc_id).prefixes():
                prefixes[prefix] = owner(eni_id)
        instances = [
            {
                "id": instance.id,
                "type": instance.instance_type,
                "state": instance.state,
                "netns": netns_of(self.backend, instance.id),
                "zone": instance.availability_zone,
                "address": instance.private_ip_address,
                "enis": [eni.id for eni in instance.nics.values()],
            }
            for instance in self.backend.all_instances()
        ]
        return {
            "vpc": self.vpc_id,
            "lag": asdict(self.lag),
            "instances": instances,
            "enis": enis,
            "addresses": addresses,
            "prefixes": prefixes,
            "violations": list(self.violations),
        }


def netns_of(backend: Any, instance_id: str) -> str | None:
    """The namespace an instance is bound to, by its tag."""
    return backend.tags.get(instance_id, {}).get(layout.NETNS_TAG)
