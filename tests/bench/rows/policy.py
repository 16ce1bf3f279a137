"""Enforcement on one node, beside its floors (tests/bench-policy): each group of rows is one process in network
and mount namespaces of its own, with the shipped daemon and an API server that replays a seeded cluster."""
from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from cluster.config import CACHE, CHECKOUT
from cluster.progress import say, step

from .row import Row

TARGET = "x86_64-unknown-linux-musl"
BACKENDS = ("nft", "legacy")
PATIENCE_SECONDS = 600
# How the names of a group's rows begin, and whether each backend has figures of its own.
GROUPS = {
    "packets": (("policy/first-packet", "policy/established", "policy/connections", "policy/source-check"), True),
    "members": (("policy/peer-",), False),
    "policies": (("policy/policy-",), True),
    "start": (("policy/cold-start", "policy/restart"), True),
    "effect": (("policy/effect-",), False),
    "starts": (("policy/starts-", "policy/first-allowed-"), False),
    "churn": (("policy/cpu-",), False),
    "cut": (("policy/flow-",), False),
    "kills": (("policy/kills",), False),
    "repair": (("policy/repair-rules-",), True),
    "sets": (("policy/repair-sets-",), False),
    "growth": (("policy/growth-",), False),
    "large": (("policy/large-",), False),
}
# Measured by policy/netfilter/benches/conntrack.rs.
CUT = "policy/cut-flows"
CUT_BAR = 1 / 3
NAMES = (*(name for names, _ in GROUPS.values() for name in names), CUT)


def measure(only: str) -> list[Row]:
    """The groups that have a row whose name begins with `only`."""
    def wanted(*names: str) -> bool:
        return any(name.startswith(only) or only.startswith(name) for name in names)

    rows = []
    if wanted(CUT):
        rows.append(_cut())
    groups = {group: both for group, (names, both) in GROUPS.items() if wanted(*names)}
    if not groups:
        return rows
    with step("daemon and bench program built"):
        agent, program = _build()
    for group, both in groups.items():
        for backend in BACKENDS if both else BACKENDS[:1]:
            try:
                with step(f"policy: {group}, {backend}"):
                    output = _run(program, group, "--agent", agent, "--backend", backend)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                # What it said is above; the other groups have figures all the same.
                say(f"policy: {group}, {backend}: {error}")
                name = f"{GROUPS[group][0][0].rstrip('-')}-failed-{backend}"
                rows.append(Row(name, 1, "groups", bar=0))
                continue
            rows += [_row(one) for one in json.loads(output)]
    return rows


def _run(*words: Path | str) -> bytes:
    """What a program prints, in namespaces of its own."""
    command = [str(word) for word in (CHECKOUT / "tests/bench/netns", *words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=PATIENCE_SECONDS).stdout


def _cut() -> Row:
    """One pod's forbidden flows among 100,000, beside `conntrack -D` for its address in both directions."""
    with step("policy: flows cut"):
        lines = subprocess.run(["cargo", "bench", "--quiet", "--locked", "-p", "selvage-netfilter", "--bench", "conntrack", "--no-run",
                                "--message-format=json"], cwd=CHECKOUT, env=_environment(), check=True, stdout=subprocess.PIPE, text=True).stdout
        built = [one["executable"] for one in map(json.loads, lines.splitlines())
                 if one.get("reason") == "compiler-artifact" and one["target"]["kind"] == ["bench"]]
        found = json.loads(_run(built[0]))
    return Row(CUT, found["value_ms"], "ms", found["floor_ms"], round(found["ratio"], 3), round(CUT_BAR, 3))


def _environment() -> dict[str, str]:
    environment = {**os.environ, "CARGO_TARGET_DIR": os.environ.get("CARGO_TARGET_DIR", str(CACHE / "target"))}
    environment.setdefault("CC_x86_64_unknown_linux_musl", "musl-gcc")
    return environment


def _row(found: dict) -> Row:
    spread = found["spread"]
    return Row(**{**found, "spread": tuple(spread) if spread else None})


def _build() -> tuple[Path, Path]:
    """The daemon as images/build.sh ships it (AGENT names another binary), and the program that measures it."""
    environment = _environment()
    agent = os.environ.get("AGENT")
    if agent is None:
        subprocess.run([str(CHECKOUT / "images" / "build.sh"), "stage"], check=True, stdout=subprocess.DEVNULL)
        agent = CACHE / "target" / TARGET / "release" / "selvage-policy"
    subprocess.run(["cargo", "build", "--quiet", "--locked", "--release", "--target", TARGET, "-p", "selvage-bench-policy"],
                   cwd=CHECKOUT, env=environment, check=True)
    return Path(agent), Path(environment["CARGO_TARGET_DIR"]) / TARGET / "release" / "selvage-bench-policy"
