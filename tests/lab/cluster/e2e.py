"""The lab's assertions on whole clusters: how labs end, the demo, the twin that must fail, and two of the pairwise runs
of node modes.

A demo that passes proves little unless the same demo fails where a half is missing: without an
enforcer every connection that the policies forbid must be made, and no other cell may differ.
"""
from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from . import config, demo, endings, lifecycle, modes, unenforceable
from .matrix import Table
from .progress import say


@dataclass(frozen=True)
class Scenario:
    """One thing that must hold. `attempt` tries it and returns what did not."""

    name: str
    attempt: Callable[[dict[str, str]], list[str]]


def forbidden(opened: Table, under: Table) -> set[tuple[str, str]]:
    """The connections that exist without policies and must not under them."""
    return {(source, str(target)) for (source, target), reaches in opened.cells.items()
            if reaches and not under.cells[source, target]}


def complaints(result: dict, enforced: bool) -> list[str]:
    """What in a demo's result is not as it must be."""
    found = [f"{pod['pod']} has {pod['address']}, which EC2 did not assign to its node" for pod in result["pods"] if not pod["expected"]]
    found += [f"{one['pod']} is seen outside as {one['seen'] or 'nobody'}, not as {one['expected']}"
              for one in result["internet"] if one["seen"] != one["expected"]]
    may_differ = set() if enforced else forbidden(Table.read(demo.APP / "open.txt"), Table.read(demo.APP / "under.txt"))
    for matrix, cells in result["matrices"].items():
        for cell in cells:
            wrong = cell["expected"] != cell["measured"]
            must = matrix == "under" and (cell["from"], cell["to"]) in may_differ
            if wrong != must:
                found.append(f"{matrix}: {cell['from']} to {cell['to']} is {'+' if cell['measured'] else '.'}"
                             + (", though nobody enforces" if must else ""))
    if set(result["matrices"]) != {"before", "under", "after"}:
        found.append(f"only these matrices were measured: {', '.join(result['matrices']) or 'none'}")
    return found


def _demo(enforced: bool, **variables: str) -> Callable[[dict[str, str]], list[str]]:
    def attempt(environment: dict[str, str]) -> list[str]:
        lab = lifecycle.up(config.read({**environment, **variables}))
        try:
            demonstration = demo.Demo(lab, lambda text: None)
            demonstration.run()
            untold = unenforceable.complaints(lab) if enforced else []
        finally:
            lifecycle.down()
        return complaints(demonstration.result, enforced) + untold + endings.left_behind()

    return attempt


SCENARIOS = (
    Scenario("a start that is killed leaves what down cleans", endings.killed),
    Scenario("a start that is interrupted leaves nothing", endings.interrupted),
    Scenario("a second start is refused and names the first", endings.refused),
    Scenario("both halves together", _demo(True, CNI="selvage", POLICY="selvage")),
    Scenario("addressing alone enforces nothing", _demo(False, CNI="selvage", POLICY="none")),
    Scenario("enforcement alone, on addresses that are not ours", _demo(True, CNI="ptp", POLICY="selvage")),
    *(Scenario(f"whom the far end sees: {one.name}", functools.partial(modes.attempt, one)) for one in modes.IN_CI),
)


def run(environment: dict[str, str], only: str) -> bool:
    """Runs the scenarios whose names contain `only`; returns whether each ended as it must."""
    right = True
    chosen = [scenario for scenario in SCENARIOS if only in scenario.name]
    for scenario in chosen:
        say(f"scenario: {scenario.name}")
        wrong = scenario.attempt(environment)
        for line in wrong[:20]:
            print(f"  {line}")
        print(f"{'FAILED' if wrong else 'passed'}  {scenario.name}", flush=True)
        right = right and not wrong
    if not chosen:
        say(f"no scenario has {only!r} in its name")
    return right and bool(chosen)
