"""Names and numbers that the server and its client share. Standard library alone."""

from __future__ import annotations

import fcntl
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO

DEFAULT_PREFIX = "selvage-"
DEFAULT_LAG = 0.2  # seconds that reads trail writes

REGION = "us-west-2"

VPC_CIDR = "10.40.0.0/16"
POD_CIDR = "100.64.0.0/16"  # a secondary block, as pods of their own subnets have (RFC 6598)
VPC_IPV6 = "2001:db8:40::/56"  # RFC 3849
PEER_CIDR = "10.41.0.0/16"  # the second VPC, peered with the first
PEER_IPV6 = "2001:db8:41::/56"
VPC_BLOCKS = (VPC_CIDR, POD_CIDR, PEER_CIDR)


@dataclass(frozen=True)
class SubnetPlan:
    """A subnet that is there from the start, and what it is for."""

    kind: str  # "node", "pod" or "peer"
    cidr: str
    ipv6_cidr: str
    zone: str


SUBNETS = (
    SubnetPlan("node", "10.40.0.0/20", "2001:db8:40::/64", "us-west-2a"),
    SubnetPlan("node", "10.40.16.0/20", "2001:db8:40:1::/64", "us-west-2b"),
    SubnetPlan("pod", "100.64.0.0/20", "2001:db8:40:2::/64", "us-west-2a"),
    SubnetPlan("pod", "100.64.16.0/20", "2001:db8:40:3::/64", "us-west-2b"),
    SubnetPlan("peer", "10.41.0.0/20", "2001:db8:41::/64", "us-west-2a"),
    SubnetPlan("peer", "10.41.16.0/20", "2001:db8:41:1::/64", "us-west-2b"),
)

# What lies outside the VPC: TEST-NET-2 (RFC 5737), and a block of RFC 3849.
OUTSIDE_CIDR = "198.51.100.0/24"
OUTSIDE_GATEWAY = "198.51.100.1"
OUTSIDE_IPV6_GATEWAY = "2001:db8:f::1"
EC2_ADDRESS = "198.51.100.2"
EC2_PORT = 80
INTERNET_ADDRESS = "198.51.100.10"
INTERNET_IPV6_ADDRESS = "2001:db8:f::10"
INTERNET_HTTP_PORT = 80
INTERNET_UDP_PORT = 7  # echo, RFC 862
IMDS_ADDRESS = "169.254.169.254"
IMDS_PORT = 80

EC2_VERSION = "2016-11-15"
NETNS_TAG = "selvage-lab/netns"
ACCESS_KEY_ID = "AKIASELVAGELAB000001"
SECRET_ACCESS_KEY = "selvage-lab-not-a-secret"
ROLE = "selvage-node"

# In the state directory.
INFO = "vpc.json"  # written last: its presence means ready
OWNER = "vpc.owner.json"  # written first: who to end after a crash
LOG = "vpc.log"
MADE_NAMESPACES = "vpc.namespaces"  # one name a line, written before each is made
INTERNET_LOG = "internet.jsonl"

NAMESPACES = Path("/run/netns")
LOCKS = Path("/run/lock")


def lock_path(prefix: str) -> Path:
    """Held by the VPC of a prefix for as long as it runs."""
    return LOCKS / f"{prefix}vpc.lock"


def lock(prefix: str, words: str) -> tuple[IO[str], str | None]:
    """Takes the lock of a prefix, leaving `words` in it for those who find it taken.

    Returns the open file, which holds the lock until it is closed, and None; or the words
    of whoever holds it. The lock goes with its process, however that ends."""
    path = lock_path(prefix)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        held = path.open("a+")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.seek(0)
            return held, held.read().strip()
        # The one before removed its file between our opening and our locking it: again.
        if path.exists() and os.fstat(held.fileno()).st_ino == path.stat().st_ino:
            break
        held.close()
    held.truncate(0)
    held.write(words + "\n")
    held.flush()
    return held, None


def remove_namespace(name: str) -> None:
    """Removes a named network namespace if it is there."""
    if not (NAMESPACES / name).exists():
        return
    done = subprocess.run(["ip", "netns", "delete", name], capture_output=True, text=True)
    if done.returncode and (NAMESPACES / name).exists():
        raise RuntimeError(f"remove namespace {name}: {done.stderr.strip()}")
