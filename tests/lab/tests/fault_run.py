"""Random faults while pods come and go: fault_run.py [--count N] [--seed N] [--nodes N] [--only WORDS]

Each node plays on by itself: a pod comes or goes, a fault strikes, its repair is waited for
while pods go on coming and going. At the end nothing may be left of any fault, no live pod may
have lost a packet to a fault that was not its own, and EC2, checkpoint, kernel and the daemon's
account must agree exactly. Exit status 1 if anything is not so.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fault_agreement import disagreements
from fault_kinds import KINDS, Played
from fault_node import FaultNode
from heartbeat import Heart, Loss

from vpc import layout
from vpc.client import Instance, Vpc
from vpc.fabric import interface_name
from vpc.netns import Namespace

# Seconds within which a fault's effects must be gone. The slowest are those of what has changed
# within the last minute: a description of it may be old, and is not believed before.
REPAIRED = 90.0
# Seconds within which a call of EC2 must come that a fault waits for.
MET = 30.0
# What a fault may cost begins a little before it is noted, and ends when all has been answered.
BEFORE, AFTER = 0.5, 1.0
PAUSE = (0.05, 0.4)
SETTLE = 30.0


def clock(at: float) -> str:
    """A moment of the monotonic clock as the daemons' logs have it."""
    wall = datetime.fromtimestamp(time.time() - time.monotonic() + at, UTC)
    return wall.strftime("%H:%M:%S.%f")[:-3]


@dataclass(frozen=True)
class Excuse:
    """Packets that a fault may cost: its own pods', while it lasts. `None`: all the node's."""

    node: str
    pods: frozenset[str] | None
    addresses: frozenset[str]
    flows: tuple[str, ...]
    since: float
    until: float

    def covers(self, loss: Loss) -> bool:
        return (
            loss.pod.startswith(f"{self.node}/")
            and (self.pods is None or loss.pod in self.pods or loss.address in self.addresses)
            and loss.flow in self.flows
            and self.since - BEFORE <= loss.at <= self.until + AFTER
        )


@dataclass
class Run:
    """A fault run over some nodes of one VPC."""

    vpc: Vpc
    nodes: list[FaultNode]
    heart: Heart
    count: int
    seed: int
    least: int = 0  # faults of each kind
    kinds: tuple[str, ...] = tuple(KINDS)
    histogram: Counter[str] = field(default_factory=Counter)
    excuses: list[Excuse] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    repairs: dict[str, list[float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def play(self) -> list[str]:
        """Plays, settles, and says what was not as it must be."""
        threads = [
            threading.Thread(target=self._guarded, args=(node,), daemon=True) for node in self.nodes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.vpc.clear_faults()
        for node in self.nodes:
            self._settle(node)
        time.sleep(6)  # longer than a packet is waited for
        self.complaints += self._unexcused()
        for node in self.nodes:
            self.complaints += node.complaints
        self.complaints += self.vpc.state()["violations"]
        return self.complaints

    def _guarded(self, node: FaultNode) -> None:
        try:
            node.start()
            for _ in range(3):
                node.add()
            while (name := self._next(node)) is not None:
                self._strike(node, name)
        except Exception as error:  # noqa: BLE001: whatever it is, the run has failed
            self.complaints.append(f"{node.name}: {type(error).__name__}: {error}")

    def _next(self, node: FaultNode) -> str | None:
        """A kind that is still wanted: any, and towards the end those there were too few of."""
        with self._lock:
            rare = [name for name in self.kinds if self.histogram[name] < self.least]
            if self.histogram.total() >= self.count and not rare:
                return None
            left = self.count - self.histogram.total()
            short = sum(self.least - self.histogram[name] for name in rare)
            return node.rng.choice(rare if rare and short >= left else self.kinds)

    def _strike(self, node: FaultNode, name: str) -> None:
        node.look()
        for _ in range(node.rng.randint(0, 2)):
            node.churn()
        since = time.monotonic()
        played = KINDS[name](node)
        if played is None:
            node.churn()
            return
        fulls = frozenset(node.full(pod) for pod in played.pods)
        struck = time.monotonic()
        until = struck + played.hold
        while time.monotonic() < until:
            self._live_on(node, played)
        played.undo()
        deadline = time.monotonic() + (MET if played.waits else REPAIRED)
        while not (played.repaired() and self._heard(node, played, struck)):
            if time.monotonic() > deadline and played.waits:
                self.vpc.clear_faults()
                return  # the call never came: nothing was played
            if time.monotonic() > deadline:
                self.complaints.append(
                    f"{node.name}: {name} ({played.words}): not repaired within {REPAIRED:g} s"
                )
                self.vpc.clear_faults()
                break
            self._live_on(node, played)
        now = time.monotonic()
        with self._lock:
            self.histogram[name] += 1
            self.repairs.setdefault(name, []).append(now - until)
            if fulls or played.addresses or played.whole_node:
                whose = frozenset(played.addresses)
                pods = None if played.whole_node else fulls
                excuse = Excuse(node.node.name, pods, whose, played.flows, since, now)
                self.excuses.append(excuse)
            print(
                f"{sum(self.histogram.values()):5}  {clock(since)}  {node.node.name}  {name}:"
                f" {played.words} ({now - since:.1f} s)",
                flush=True,
            )
        if played.doomed:
            self._bury(node, played)

    def _bury(self, node: FaultNode, played: Played) -> None:
        """Ends the pods whose addresses have gone: somebody has to, as with a real cluster. Until
        the loss is noticed others may have been given such addresses too."""
        held = set(node.pod_addresses())
        for name, live in list(node.live.items()):
            if live.address in played.addresses and live.address not in held:
                node.delete(name)

    def _live_on(self, node: FaultNode, played: Played) -> None:
        """Pods come and go meanwhile, but for those that the fault is about."""
        if node.rng.random() < 0.5:
            kept = {name: live for name, live in node.live.items() if name in played.pods}
            others = [name for name in node.live if name not in kept]
            if not others or (len(node.live) < 7 and node.rng.random() < 0.5):
                node.add()
            else:
                node.delete(node.rng.choice(sorted(others)))
        time.sleep(node.rng.uniform(*PAUSE))

    def _heard(self, node: FaultNode, played: Played, struck: float) -> bool:
        """Whether the fault's own pods are heard again, where they can be."""
        return played.doomed or all(
            self.heart.alive_since(node.full(pod), struck + 0.3) for pod in played.pods
        )

    def _settle(self, node: FaultNode) -> None:
        """Until all agree; what still does not, at the end, is a complaint."""
        deadline = time.monotonic() + SETTLE
        while True:
            try:
                left = disagreements(node)
            except Exception as error:  # noqa: BLE001: it cannot be told yet
                left = [f"{node.name}: {type(error).__name__}: {error}"]
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        self.complaints += left

    def _unexcused(self) -> list[str]:
        """Packets that were lost to no fault of the pod's own, a line for each pod and flow."""
        lost: dict[tuple[str, str, str], list[float]] = {}
        for loss in self.heart.losses:
            if not any(excuse.covers(loss) for excuse in self.excuses):
                lost.setdefault((loss.pod, loss.address, loss.flow), []).append(loss.at)
        return [
            f"{pod} ({address}) lost {len(at)} packets {flow}, {clock(min(at))} to {clock(max(at))},"
            " without a fault of its own"
            for (pod, address, flow), at in sorted(lost.items())
        ]

    def report(self) -> str:
        """What was played, in words."""
        lines = [f"seed {self.seed}: {self.histogram.total()} faults on {len(self.nodes)} nodes"]
        for name in self.kinds:
            times = sorted(self.repairs.get(name, [0.0]))
            lines.append(
                f"  {self.histogram[name]:5}  {name.ljust(28)}"
                f" repaired after {times[len(times) // 2]:.1f} s (median), {times[-1]:.1f} s at most"
            )
        total: Counter[str] = Counter()
        for node in self.nodes:
            total.update(node.counts)
        lost = len(self.heart.losses)
        lines.append("  " + ", ".join(f"{number} {what}" for what, number in sorted(total.items())))
        why = ", each to a fault of its pod's own" if lost and not self._unexcused() else ""
        lines.append(f"  {self.heart.sent} packets, {lost} lost{why}")
        return "\n".join(lines)


def prepare(
    vpc: Vpc,
    nodes: Any,
    folder: Path,
    *,
    count: int,
    seed: int,
    least: int,
    number: int,
    kinds: tuple[str, ...] = tuple(KINDS),
) -> Run:
    """The nodes of a run, the last of them in prefix mode, and the host that watches."""
    watcher = nodes.run("watcher", "c5.large")
    by_the_router(nodes.inside(watcher.netns), watcher)
    heart = Heart(nodes.inside(watcher.netns), watcher.address)
    made = [
        FaultNode(
            vpc,
            nodes,
            f"f{at}",
            folder,
            heart,
            random.Random(seed * 1000 + at),
            {"ENABLE_PREFIX_DELEGATION": "true"} if at == number - 1 else {},
        )
        for at in range(number)
    ]
    return Run(vpc, made, heart, count, seed, least, kinds)


def by_the_router(inside: Namespace, watcher: Instance) -> None:
    """Its neighbours too are reached by the router. While nobody holds an address that an ended fault's pod still has,
    asking for its hardware address fails, and with it go the first packets to the pod that is given it a moment later."""
    link = interface_name(0, 0)
    gateway = ip_address(watcher.gateway)
    subnet = next(one.cidr for one in layout.SUBNETS if gateway in ip_network(one.cidr))
    inside.ip([f"route add {gateway}/32 dev {link}", f"route del {subnet} dev {link}"])


def main() -> int:
    """Runs from the command line, on a VPC of its own."""
    from conftest import PREFIX, Nodes

    from vpc import client

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6))
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--only", default="", help="kinds with one of these words, by commas")
    arguments = parser.parse_args()
    words = arguments.only.split(",")
    kinds = tuple(name for name in KINDS if any(word in name for word in words))
    # A run that is told to end leaves nothing behind either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    least = 40 if arguments.count >= 40 * len(kinds) else 0
    with tempfile.TemporaryDirectory(prefix="selvage-faults-") as folder:
        vpc = client.start(Path(folder) / "vpc", prefix=PREFIX, python=sys.executable)
        nodes = Nodes(vpc)
        run = prepare(
            vpc, nodes, Path(folder), count=arguments.count, seed=arguments.seed, least=least,
            number=arguments.nodes, kinds=kinds,
        )
        try:
            wrong = run.play()
            print(run.report())
            for line in wrong:
                print(f"  WRONG: {line}")
            if wrong:
                _keep_logs(run, Path(folder))
        finally:
            run.heart.close()
            for node in run.nodes:
                node.node.close()
            nodes.close()
            client.stop(Path(folder) / "vpc")
    return 1 if wrong else 0


def _keep_logs(run: Run, folder: Path) -> None:
    """The daemons' logs, for whoever asks why."""
    kept = Path(tempfile.mkdtemp(prefix="selvage-fault-logs-"))
    for log in folder.rglob("ipamd.log"):
        (kept / f"{log.parent.name}.log").write_bytes(log.read_bytes())
    print(f"the daemons' logs are in {kept}")


if __name__ == "__main__":
    sys.exit(main())
