"""Enforcement on one node, beside its floors (tests/bench-policy): each group of rows is one process in network
and mount namespaces of its own, with the shipped daemon and an API server that replays a seeded cluster."""
from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from cluster.config import CACHE, CHECKOUT
from cluster.progress import step

from .row import Row

TARGET = "x86_64-unknown-linux-musl"
BACKENDS = ("nft", "legacy")
PATIENCE_SECONDS = 180
# How the names of a group's rows begin, and whether each backend has figures of its own.
GROUPS = {
    "packets": (("policy/first-packet", "policy/established", "policy/connections", "policy/source-check"), True),
    "members": (("policy/peer-",), False),
    "policies": (("policy/policy-",), True),
    "start": (("policy/cold-start", "policy/restart"), True),
    "effect": (("policy/effect-",), False),
    "starts": (("policy/starts-", "policy/first-allowed-"), False),
    "churn": (("policy/cpu-",), False),
    "large": (("policy/large-",), False),
}
NAMES = tuple(name for names, _ in GROUPS.values() for name in names)


def measure(only: str) -> list[Row]:
    """The groups that have a row whose name begins with `only`."""
    with step("daemon and bench program built"):
        agent, program = _build()
    rows = []
    for group, (names, both) in GROUPS.items():
        if not any(name.startswith(only) or only.startswith(name) for name in names):
            continue
        for backend in BACKENDS if both else BACKENDS[:1]:
            with step(f"policy: {group}, {backend}"):
                words = [CHECKOUT / "tests/bench/netns", program, group, "--agent", agent, "--backend", backend]
                output = subprocess.run([str(word) for word in words], check=True, stdout=subprocess.PIPE, timeout=PATIENCE_SECONDS).stdout
            rows += [_row(one) for one in json.loads(output)]
    return rows


def _row(found: dict) -> Row:
    spread = found["spread"]
    return Row(**{**found, "spread": tuple(spread) if spread else None})


def _build() -> tuple[Path, Path]:
    """The daemon as images/build.sh ships it (AGENT names another binary), and the program that measures it."""
    environment = {**os.environ, "CARGO_TARGET_DIR": os.environ.get("CARGO_TARGET_DIR", str(CACHE / "target"))}
    agent = os.environ.get("AGENT")
    if agent is None:
        subprocess.run([str(CHECKOUT / "images" / "build.sh"), "stage"], check=True, stdout=subprocess.DEVNULL)
        agent = CACHE / "target" / TARGET / "release" / "selvage-policy"
    environment.setdefault("CC_x86_64_unknown_linux_musl", "musl-gcc")
    subprocess.run(["cargo", "build", "--quiet", "--locked", "--release", "--target", TARGET, "-p", "selvage-bench-policy"],
                   cwd=CHECKOUT, env=environment, check=True)
    return Path(agent), Path(environment["CARGO_TARGET_DIR"]) / TARGET / "release" / "selvage-bench-policy"
