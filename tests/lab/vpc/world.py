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


@dataclass
class Lag:
    """How far reads trail writes, in seconds ("Eventual consistency in the Amazon EC2
    API"; EC2 gives no figures). `create`: a new ENI is NotFound. `write`: any other change
    to an ENI is seen late. `settle`: attaching and detaching take that long."""

    create: float
    write: float
    settle: float


class World:
    """All state of one VPC. Whoever reads or changes it holds `lock`."""

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
        self.vpc_id = ""
        self.security_group = ""
        self.subnet_ids: list[str] = []
        self._ledgers: dict[str, Ledger] = {}

    def now(self) -> float:
        """The clock that lag is measured with."""
        return time.monotonic()

    def ledger(self, vpc_id: str) -> Ledger:
        """Who holds what in one VPC."""
        return self._ledgers.setdefault(vpc_id, Ledger())

    def build(self) -> None:
        """Makes the lab's VPC, its subnets and its security group."""
        vpc = self.backend.create_vpc(layout.VPC_CIDR)
        self.vpc_id = vpc.id
        self.security_group = self.backend.get_default_security_group(vpc.id).id
        for cidr, zone in layout.SUBNETS:
            subnet = self.backend.create_subnet(vpc.id, cidr, availability_zone=zone)
            self.subnet_ids.append(subnet.id)

    def interfaces(self) -> list[Any]:
        """Every ENI, detachments that are through included."""
        for eni in self.backend.enis.values():
            eni.finish_detaching(self)
        return list(self.backend.enis.values())

    def holder(self, address: str) -> Any | None:
        """The ENI of the lab's VPC that holds an address."""
        eni = self.ledger(self.vpc_id).holder(address)
        return self.backend.enis.get(eni) if eni else None

    def instances(self) -> list[Any]:
        """Every instance that is not terminated."""
        return [i for i in self.backend.all_instances() if i.state != "terminated"]

    def dump(self) -> dict[str, Any]:
        """The truth as JSON, without lag."""
        enis = [eni.dump() for eni in self.interfaces()]
        by_id = {eni["id"]: eni for eni in enis}
        addresses = {}
        for address, eni_id in self.ledger(self.vpc_id).items():
            eni = by_id[eni_id]
            addresses[address] = {
                "eni": eni_id,
                "instance": eni["instance"],
                "netns": eni["netns"],
                "primary": address == eni["primary"],
            }
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
        }


def netns_of(backend: Any, instance_id: str) -> str | None:
    """The namespace an instance is bound to, by its tag."""
    return backend.tags.get(instance_id, {}).get(layout.NETNS_TAG)
