"""The upstream NetworkPolicy suite against the lab, and its results as a table."""
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from . import namespaces
from .config import CHECKOUT, CONTROL_PLANE
from .progress import say

OUT = CHECKOUT / "target" / "conformance"
# SCTP's tests need SCTP sockets, which few kernels have built in.
LABELS = "Feature:NetworkPolicy && !Feature:SCTPConnectivity"
EVERYTHING = "Netpol"
# A failing test waits for its probes' time-outs; all of them together would take so long.
DEADLINE = "3h"
ENDED = re.compile(r"^•\s*(\[FAILED\] |\[TIMEDOUT\] |\[PANICKED\] )?\[([0-9.]+) seconds\]")
STARTED = re.compile(r"^\[sig-network\] (Netpol.*)$")


@dataclass(frozen=True)
class Result:
    """How one test ended: passed, failed, timedout, panicked, interrupted … in ginkgo's words."""

    test: str
    result: str
    seconds: float


def parse(report: list) -> list[Result]:
    """The tests that ran, from ginkgo's JSON report, in the order they ran."""
    found = []
    for suite in report:
        for spec in suite.get("SpecReports") or []:
            # Set-up nodes are reports too, and so is each test that the focus left out.
            if spec.get("LeafNodeType") != "It" or spec["State"] in ("skipped", "pending"):
                continue
            words = [*(spec.get("ContainerHierarchyTexts") or []), spec["LeafNodeText"]]
            found.append((spec.get("StartTime", ""), Result(plain(" ".join(words)), spec["State"], round(spec["RunTime"] / 1e9, 1))))
    return [result for _, result in sorted(found, key=lambda one: one[0])]


def plain(name: str) -> str:
    """A test's name without the labels in brackets."""
    return re.sub(r" +", " ", re.sub(r"\[[^\]]*\]", " ", name)).strip()


def set_up_failure(report: list) -> str:
    """Why the suite could not begin, if so."""
    for suite in report:
        for spec in suite.get("SpecReports") or []:
            if spec.get("LeafNodeType") != "It" and spec["State"] not in ("passed", "skipped"):
                return f"{spec['LeafNodeType']}: {spec.get('Failure', {}).get('Message', spec['State'])}"
    return ""


def table(results: list[Result]) -> str:
    """Test, result and seconds for people."""
    width = max([len(result.test) for result in results] + [4])
    lines = [f"{'TEST'.ljust(width)}  {'RESULT'.ljust(8)}  SECONDS"]
    lines += [f"{result.test.ljust(width)}  {result.result.ljust(8)}  {result.seconds:7.1f}" for result in results]
    return "\n".join(lines)


def run(lab, focus: str) -> bool:
    """Runs the tests whose names match; returns whether some ran and all of them passed.

    Leaves results.json (test, result, seconds of each), ginkgo.json and e2e.log in target/conformance.
    """
    OUT.mkdir(parents=True, exist_ok=True)
    report, log = OUT / "ginkgo.json", OUT / "e2e.log"
    for stale in (report, OUT / "results.json"):
        stale.unlink(missing_ok=True)
    command = [
        *namespaces.enter(CONTROL_PLANE), str(lab.components / "e2e.test"), "--provider=local",
        f"--kubeconfig={lab.state / 'kubeconfig'}", f"--kubectl-path={lab.components / 'kubectl'}",
        f"--ginkgo.focus={focus or EVERYTHING}", f"--ginkgo.label-filter={LABELS}", f"--ginkgo.timeout={DEADLINE}",
        "--ginkgo.v", "--ginkgo.no-color", f"--ginkgo.json-report={report}", "--dump-logs-on-failure=false",
    ]
    say(f"upstream suite: focus {focus or EVERYTHING!r}; output in {log}")
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=OUT,
                             start_new_session=True, env={**os.environ, "KUBECONFIG": str(lab.state / "kubeconfig")})
    try:
        _follow(child, log)
        child.wait(60)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    found = json.loads(report.read_text()) if report.exists() else []
    results = parse(found)
    (OUT / "results.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    print(table(results))
    passed = sum(result.result == "passed" for result in results)
    print(f"\n{passed} of {len(results)} passed, {sum(result.seconds for result in results):.0f} s")
    reason = set_up_failure(found)
    if reason:
        print(f"the suite could not begin: {reason}")
    elif not results:
        print(f"no test matches {focus!r}, or the suite could not begin: see {log}")
    return bool(results) and passed == len(results) and not reason


def _follow(child: subprocess.Popen, log: Path) -> None:
    """Copies the suite's output to the log, and says how each test ended."""
    test, number = "", 0
    with open(log, "w") as file:
        for line in child.stdout:
            file.write(line)
            file.flush()
            started = STARTED.match(line)
            if started:
                test = plain(started.group(1))
            ended = ENDED.match(line)
            if ended and test:
                number += 1
                say(f"{number:3d}  {(ended.group(1) or 'passed').strip(' []').lower():8} {float(ended.group(2)):6.1f} s  {test}")
                test = ""
