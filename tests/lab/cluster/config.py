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
SERVICE_CIDR = {4: "10.96.0.0/16", 6: "fd00:10:96::/112"}
VPC_CIDR = "10.40.0.0/16"
# Node n lives in zone n modulo 2, so that two nodes always are in two subnets.
ZONES = ("us-west-2a", "us-west-2b")

CHOICES = {
    "CNI": ("selvage", "ptp", "none"),
    "POLICY": ("selvage", "none"),
    "PROXY": ("iptables", "nftables"),
    "IPTABLES": ("nft", "legacy"),
    # How pods get their addresses, and whether the last node lives in the peered VPC.
    "MODE": ("secondary", "prefix", "custom", "custom-prefix", "ipv6"),
    "PEERED": ("0", "1"),
}
# What of manifests/components makes up a mode.
COMPONENTS = {
    "secondary": (),
    "prefix": ("prefix-delegation",),
    "custom": ("custom-networking",),
    "custom-prefix": ("custom-networking", "prefix-delegation"),
    "ipv6": ("ipv6",),
}
# t3.small has 3 ENIs of 4 addresses: a few pods bring a second ENI into use. The ptp plugin
# only has the primary ENI, which must then hold enough addresses for a node's pods.
DEFAULT_TYPE = {"selvage": "t3.small", "none": "t3.small", "ptp": "m5.4xlarge"}
# What a component sets, for those who ask the agent's binary itself.
SETTINGS_OF = {
    "prefix-delegation": {"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "1"},
    "custom-networking": {"AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": "true"},
    "ipv6": {"ENABLE_IPv4": "false", "ENABLE_IPv6": "true", "ENABLE_PREFIX_DELEGATION": "true"},
}


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
    mode: str = "secondary"
    peered: bool = False
    # More of the ipamd container's environment, over what the manifests and the mode say.
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def family(self) -> int:
        """The IP version of pods, Services and nodes."""
        return 6 if self.mode == "ipv6" else 4

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
            f"IPTABLES={self.iptables} MODE={self.mode} PEERED={int(self.peered)} TYPES={','.join(self.types)}"
            + (f" SETTINGS={' '.join(f'{name}={value}' for name, value in self.settings)}" if self.settings else "")
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
    if chosen["MODE"] != "secondary" and chosen["CNI"] == "ptp":
        raise ConfigError(f"MODE={chosen['MODE']}: the ptp plugin has secondary addresses only")
    settings = []
    for word in (environment.get("SETTINGS") or "").split():
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise ConfigError(f"SETTINGS: {word}: must be NAME=value, words separated by blanks")
        settings.append((name, value))
    return Config(nodes, chosen["CNI"], chosen["POLICY"], chosen["PROXY"], chosen["IPTABLES"], types, chosen["MODE"],
                  chosen["PEERED"] == "1", tuple(settings))
