"""What the caller chose, by environment variables: read once, checked at once."""
from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
# In the checkout whatever CARGO_TARGET_DIR says: scripts and people look for it there.
STATE = CHECKOUT / "target" / "cluster"
CACHE = Path(os.environ.get("SELVAGE_CACHE") or Path.home() / ".cache" / "selvage").absolute()

CONTROL_PLANE = "control-plane"
SERVICE_CIDR = "10.96.0.0/16"
VPC_CIDR = "10.40.0.0/16"
# Node n lives in zone n modulo 2, so that two nodes always are in two subnets.
ZONES = ("us-west-2a", "us-west-2b")

CHOICES = {
    "CNI": ("selvage", "ptp", "none"),
    "POLICY": ("selvage", "none"),
    "PROXY": ("iptables", "nftables"),
    "IPTABLES": ("nft", "legacy"),
}
# t3.small has 3 ENIs of 4 addresses: a few pods bring a second ENI into use. The ptp plugin
# only has the primary ENI, which must then hold enough addresses for a node's pods.
DEFAULT_TYPE = {"selvage": "t3.small", "none": "t3.small", "ptp": "m5.4xlarge"}


class ConfigError(Exception):
    """A variable has a value that means nothing here."""


@dataclass(frozen=True)
class Config:
    """One cluster's shape. `types` has exactly one instance type per node."""

    nodes: int = 2
    cni: str = "selvage"
    policy: str = "selvage"
    proxy: str = "iptables"
    iptables: str = "nft"
    types: tuple[str, ...] = field(default=("t3.small", "t3.small"))

    @property
    def node_names(self) -> list[str]:
        return [f"node-{number}" for number in range(1, self.nodes + 1)]

    def agents(self) -> list[str]:
        """The DaemonSets of ours this cluster runs."""
        wanted = [("selvage-ipamd", self.cni), ("selvage-policy", self.policy)]
        return [name for name, choice in wanted if choice == "selvage"]

    def describe(self) -> str:
        return (
            f"NODES={self.nodes} CNI={self.cni} POLICY={self.policy} PROXY={self.proxy} "
            f"IPTABLES={self.iptables} TYPES={','.join(self.types)}"
        )


def read(environment: dict[str, str] | None = None, default_type: str | None = None) -> Config:
    """The configuration in the environment; `default_type` replaces t3.small where TYPES is unset."""
    environment = dict(os.environ) if environment is None else environment
    chosen = {name: environment.get(name) or choices[0] for name, choices in CHOICES.items()}
    for name, value in chosen.items():
        if value not in CHOICES[name]:
            raise ConfigError(f"{name}={value}: must be one of {', '.join(CHOICES[name])}")
    count = environment.get("NODES") or "2"
    if not count.isdigit() or not 1 <= int(count) <= 9:
        raise ConfigError(f"NODES={count}: must be a number from 1 to 9")
    nodes = int(count)
    fallback = default_type if default_type and chosen["CNI"] != "ptp" else DEFAULT_TYPE[chosen["CNI"]]
    types = tuple((environment.get("TYPES") or fallback).split(","))
    if len(types) == 1:
        types *= nodes
    if len(types) != nodes or not all(types):
        raise ConfigError(f"TYPES={','.join(types)}: one instance type for all nodes or one for each of {nodes}")
    return Config(nodes, chosen["CNI"], chosen["POLICY"], chosen["PROXY"], chosen["IPTABLES"], types)
