"""The demo: an application, its policies, and every connection measured before, under and after them."""
from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

from vpc.client import holder

from . import whereabouts
from .config import CHECKOUT
from .kube import condition
from .matrix import PATIENT, Prober, Table
from .progress import Cancelled, cancelled, say, step, wait_until

APP = CHECKOUT / "tests" / "lab" / "app"
NAMESPACES = ("shop", "monitoring", "visitors")
INTERNET = "internet"
# How long policies may take to be in force, or out of it, once the API server has them.
SETTLE = 15.0
# Wrong cells that get a line each below their matrix, which shows them all.
MOST_NAMED = 10


class Demo:
    """One run on a lab that is up. `shown` prints what people read; `result` is what machines read."""

    def __init__(self, lab, shown=print):
        self.lab, self.kubectl, self.api, self.shown = lab, lab.kubectl, lab.api, shown
        self.open, self.under = Table.read(APP / "open.txt"), Table.read(APP / "under.txt")
        self.result: dict = {"config": lab.config.describe(), "pods": [], "matrices": {}, "internet": [], "wrong": 0}

    def run(self) -> bool:
        """Runs it all; returns whether every cell was as expected."""
        self._start_application()
        self._show_pods()
        prober = Prober(self.kubectl, self.pods, self.addresses)
        self._matrix("before", "before the policies", self.open, prober)
        self._show_internet()
        with step("kubectl apply -f tests/lab/app/policies.yaml"):
            self.kubectl.run("apply", "-f", str(APP / "policies.yaml"))
        self._matrix("under", "under the policies", self.under, prober)
        self._show_node()
        with step("kubectl delete -f tests/lab/app/policies.yaml"):
            self.kubectl.run("delete", "-f", str(APP / "policies.yaml"))
        self._matrix("after", "after the policies", self.open, prober)
        return self.result["wrong"] == 0

    def _start_application(self) -> None:
        with step("kubectl apply -f tests/lab/app/application.yaml"):
            self.kubectl.run("apply", "-f", str(APP / "application.yaml"))
        with step("the application's pods Ready"):
            wait_until("the application's pods Ready", 60, self._all_ready, 0.2)

    def _all_ready(self) -> bool:
        found = [pod for namespace in NAMESPACES for pod in self.api.items(f"/api/v1/namespaces/{namespace}/pods")]
        if not found or not all(condition(pod, "Ready") and pod["status"].get("podIP") for pod in found):
            return False
        self.pods = {pod["metadata"]["name"]: pod["metadata"]["namespace"] for pod in found}
        self.nodes = {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in found}
        self.addresses = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in found}
        self.pod_addresses = dict(self.addresses)
        services = self.api.items("/api/v1/namespaces/monitoring/services")
        self.addresses |= {service["metadata"]["name"]: service["spec"]["clusterIP"] for service in services}
        self.addresses[INTERNET] = self.lab.vpc.internet
        return True

    def _show_pods(self) -> None:
        state = self.lab.vpc.state()
        rows = [("NAMESPACE", "POD", "NODE", "ADDRESS", "ENI", "OF INSTANCE")]
        for pod, address in sorted(self.pod_addresses.items(), key=lambda one: (self.nodes[one[0]], one[0])):
            eni = holder(state, address) or {"eni": "none: EC2 does not know this address", "instance": ""}
            # The address must be the node's own, or the pod would live on a lie of the fabric's.
            right = eni.get("netns") == self.nodes[pod]
            self.result["wrong"] += not right
            rows.append((self.pods[pod], pod, self.nodes[pod], address, eni["eni"] + ("" if right else " [wrong]"), eni["instance"]))
            self.result["pods"].append({"namespace": self.pods[pod], "pod": pod, "node": self.nodes[pod],
                                        "address": address, "eni": eni["eni"], "expected": right})
        self.shown("\nPods, and the ENI that EC2 assigned each address to")
        self.shown(columns(rows))

    def _matrix(self, key: str, title: str, expected: Table, prober: Prober) -> None:
        began = time.monotonic()
        everything = list(expected.cells)
        found = Table(expected.sources, expected.targets, prober.measure(everything))
        wrong = found.wrong(expected)
        settling = bool(wrong)
        # Until the policies have taken effect only the cells that are not yet right are asked again.
        while wrong and time.monotonic() < began + SETTLE:
            if cancelled.is_set():
                raise Cancelled(title)
            found.cells |= prober.measure(wrong)
            wrong = found.wrong(expected)
            time.sleep(0.2 if wrong else 0)
        if settling and not wrong:
            # Everything once more: what was right early may have become wrong since.
            found.cells |= prober.measure(everything)
            late = found.wrong(expected)
            if late:
                found.cells |= prober.measure(late, PATIENT)
            wrong = found.wrong(expected)
        self.result["wrong"] += len(wrong)
        self.result["matrices"][key] = [
            {"from": source, "to": str(target), "expected": reaches, "measured": found.cells[source, target]}
            for (source, target), reaches in expected.cells.items()]
        say(f"matrix {title}: {len(everything) - len(wrong)} of {len(everything)} cells as expected "
            f"({time.monotonic() - began:.1f} s)")
        self.shown(f"\nWho reaches whom {title}   (+ reaches, . does not" + (", [ ] is WRONG)" if wrong else ")"))
        self.shown(found.render(expected))
        for source, target in wrong[:MOST_NAMED]:
            did = "reaches" if found.cells[source, target] else "does not reach"
            must = "must" if expected.cells[source, target] else "must not"
            self.shown(f"  WRONG: {source} {did} {target}, and {must}")
        if len(wrong) > MOST_NAMED:
            self.shown(f"  WRONG: {len(wrong) - MOST_NAMED} more, in brackets above")

    def _show_internet(self) -> None:
        """Which source the host outside sees: it answers with it. Only a node's primary address gets out."""
        vpc = self.lab.vpc
        node_address = {instance["netns"]: instance["address"] for instance in vpc.state()["instances"]}
        sources = self.open.sources
        with ThreadPoolExecutor(len(sources)) as pool:
            answers = list(pool.map(self._source_outside, sources))
        rows = [("POD", "ADDRESS", "SEEN OUTSIDE AS", "WHICH IS")]
        for source, seen in zip(sources, answers):
            node, pod = node_address[self.nodes[source]], self.pod_addresses[source]
            right = seen == node
            name = {node: f"{self.nodes[source]}'s", pod: "its own", "": "nobody's"}.get(seen, "somebody else's")
            self.result["wrong"] += not right
            self.result["internet"].append({"pod": source, "seen": seen, "expected": node})
            rows.append((source, pod, seen or "-", name + ("" if right else f" [wrong: must be {node}]")))
        self.shown(f"\nWhat {vpc.internet}, outside the VPC, sees")
        self.shown(columns(rows))

    def _source_outside(self, pod: str) -> str:
        # Not wget's own -T: a static busybox crashes in it.
        done = self.kubectl.attempt("-n", self.pods[pod], "exec", pod, "--", "timeout", str(PATIENT),
                                    "wget", "-q", "-O", "-", f"http://{self.addresses[INTERNET]}/")
        return done.stdout.strip()

    def _show_node(self) -> None:
        node = self.lab.config.node_names[0]
        pod = next((name for name in self.open.sources if self.nodes[name] == node), None)
        address = self.pod_addresses.get(pod or "", "")
        self.shown("\n" + whereabouts.of(self.lab.state, node, self.pods.get(pod or "", ""), pod, address))


def columns(rows: list[tuple[str, ...]]) -> str:
    """Rows under each other, each column as wide as its widest cell."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def run(lab, as_json: bool) -> bool:
    """Runs the demo on a lab; prints for people, or one JSON object for machines."""
    demo = Demo(lab, (lambda text: None) if as_json else print)
    began = time.monotonic()
    right = demo.run()
    demo.result["seconds"] = round(time.monotonic() - began, 1)
    if as_json:
        print(json.dumps(demo.result, indent=1))
    elif right:
        print("\nEvery cell is as expected.")
    else:
        print(f"\n{demo.result['wrong']} cells are not as expected.")
    return right
