"""Node modes, kube-proxy's modes, iptables backends and a node in the peered VPC, pairwise.

Eight runs hold every pair of two choices. Each measures whom the far end sees, in every direction
(traffic.py), and then that a node which leaves takes its interfaces with it.
"""
from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from . import brim, cgroups, config, endings, lifecycle, processes
from .kube import KubectlError
from .progress import say, wait_until
from .traffic import Traffic


@dataclass(frozen=True)
class Run:
    """One cluster: the variables that shape it."""

    mode: str
    proxy: str
    iptables: str
    peered: str

    @property
    def name(self) -> str:
        return f"{self.mode} {self.proxy} {self.iptables}{' peered' if self.peered == '1' else ''}"

    @property
    def variables(self) -> dict[str, str]:
        return {"MODE": self.mode, "PROXY": self.proxy, "IPTABLES": self.iptables, "PEERED": self.peered}

    @property
    def choices(self) -> tuple[str, ...]:
        """What is combined pairwise; addresses out of blocks are the same choice of subnet."""
        return (self.mode.partition("-")[0], self.proxy, self.iptables, self.peered)


RUNS = (
    Run("secondary", "iptables", "nft", "0"),
    Run("secondary", "nftables", "legacy", "1"),
    Run("prefix", "iptables", "legacy", "1"),
    Run("prefix", "nftables", "nft", "0"),
    Run("custom", "iptables", "nft", "1"),
    Run("custom-prefix", "nftables", "legacy", "0"),
    Run("ipv6", "iptables", "legacy", "0"),
    Run("ipv6", "nftables", "nft", "1"),
)
# In CI: both of kube-proxy's modes, both backends.
IN_CI = (RUNS[1], RUNS[4])


def missing_pairs(runs: tuple[Run, ...]) -> list[tuple[str, str]]:
    """Pairs of choices that no run has together."""
    values = [sorted({run.choices[at] for run in RUNS}) for at in range(len(RUNS[0].choices))]
    return [(one, two) for a, b in itertools.combinations(range(len(values)), 2)
            for one in values[a] for two in values[b]
            if not any((run.choices[a], run.choices[b]) == (one, two) for run in runs)]


def on_a_lab(variables: dict[str, str], environment: dict[str, str], work: Callable[..., list[str]]) -> list[str]:
    """Brings the cluster up, measures, ends it; what was not as it must be."""
    lab = lifecycle.up(config.read({**environment, **variables}))
    try:
        found = work(lab)
        found += lab.vpc.state()["violations"]
    finally:
        lifecycle.down()
    return found + endings.left_behind()


def attempt(run: Run, environment: dict[str, str]) -> list[str]:
    """One of the pairwise runs."""
    return on_a_lab(run.variables, environment, lambda lab: Traffic(lab).run() + _leave(lab))


# Beside the pairs: nodes at their limits.
LIMITS = (
    ("full nodes", {"TYPES": "c5.large,c5.xlarge"}, brim.fill),
    ("unschedulable node", {"POLICY": "none"}, brim.unschedulable),
)


def _leave(lab) -> list[str]:
    """A node that leaves takes its interfaces with it: nothing of it is left in EC2."""
    name = lab.config.node_names[-1]
    vpc = lab.vpc
    [instance] = [one for one in vpc.state()["instances"] if one["netns"] == name and one["state"] != "terminated"]
    # Its processes go first, as when an instance is switched off; its holder keeps the mounts.
    daemons = cgroups.members(cgroups.tracking() / cgroups.TOP / "daemons" / name)
    holder = int((lab.state / "nodes" / name / "holder").read_text())
    processes.kill([one for one in daemons if one.pid != holder] + cgroups.pods(name))
    vpc.terminate(instance["id"])
    left: list[str] = []

    def gone() -> bool:
        nonlocal left
        left = [eni["id"] for eni in vpc.state()["enis"] if instance["id"] in (eni["instance"], *eni["description"].split("aws-K8S-"))]
        return not left

    try:
        wait_until("interfaces of a node that left", 10, gone)
    except TimeoutError:
        return [f"{name} left, and {eni} of it is still there" for eni in left]
    return []


def run(environment: dict[str, str], only: str) -> bool:
    """Runs those whose names contain `only`; returns whether each was as it must be."""
    jobs = [(one.name, lambda one=one: attempt(one, environment)) for one in RUNS]
    jobs += [(name, lambda variables=variables, work=work: on_a_lab(variables, environment, work)) for name, variables, work in LIMITS]
    chosen = [(name, job) for name, job in jobs if only in name]
    results: list[tuple[str, list[str]]] = []
    for name, job in chosen:
        say(f"run: {name}")
        try:
            wrong = job()
        except (TimeoutError, RuntimeError, KubectlError, lifecycle.LabError) as error:
            wrong = [f"it could not be measured: {error}"]
        for line in wrong[:40]:
            print(f"  {line}")
        results.append((name, wrong))
    for name, wrong in results:
        print(f"{'FAILED' if wrong else 'passed'}  {name}" + (f": {len(wrong)} complaints" if wrong else ""), flush=True)
    if not chosen:
        say(f"no run has {only!r} in its name")
    return bool(results) and not any(wrong for _, wrong in results)
