"""Heartbeats of pods: whether any packet is lost, which way, and when.

Each pod is called by a host of the VPC, and calls a host outside it, five times a second. A
socket belongs to the namespace it was made in, whoever uses it later: one thread serves all.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from dataclasses import dataclass, field

from vpc import layout
from vpc.netns import Namespace

INSIDE, OUTSIDE = "from the VPC", "to the internet"
FLOWS = (INSIDE, OUTSIDE)
PERIOD = 0.2
# A packet that is not answered by then is lost: a busy machine may be late.
LOST_AFTER = 4.0
PORT = 7


@dataclass(frozen=True)
class Loss:
    """A packet that nobody answered."""

    pod: str
    address: str
    flow: str
    at: float


@dataclass
class _Beating:
    pod: str
    address: str
    echo: socket.socket
    out: socket.socket
    answered: dict[str, float] = field(default_factory=dict)  # by flow: when last


class Heart:
    """The thread, and what it has found. `watcher` is a namespace with an address of the VPC."""

    def __init__(self, watcher: Namespace, address: str):
        self._lock = threading.Lock()
        self._pods: dict[str, _Beating] = {}
        self._pending: dict[tuple[str, str, int], float] = {}
        self._sequence = 0
        self.losses: list[Loss] = []
        self.sent = 0
        self._selector = selectors.DefaultSelector()
        self._watcher = watcher.bind_udp(address, PORT)
        self._watcher.setblocking(False)
        self._selector.register(self._watcher, selectors.EVENT_READ, "watcher")
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
        self._thread.start()

    def add(self, pod: str, address: str, inside: Namespace) -> None:
        """Begins to call a pod that has just been given its address."""

        def make() -> tuple[socket.socket, socket.socket]:
            echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            echo.bind((address, PORT))
            out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            out.bind((address, 0))
            return echo, out

        echo, out = inside.run(make)
        beating = _Beating(pod, address, echo, out)
        with self._lock:
            for one, kind in ((echo, "echo"), (out, "out")):
                one.setblocking(False)
                self._selector.register(one, selectors.EVENT_READ, kind)
            self._pods[pod] = beating

    def remove(self, pod: str) -> None:
        """Stops: what is on its way counts no more."""
        with self._lock:
            beating = self._pods.pop(pod, None)
            if beating is None:
                return
            for one in (beating.echo, beating.out):
                self._selector.unregister(one)
                one.close()
            self._pending = {key: at for key, at in self._pending.items() if key[0] != pod}

    def alive_since(self, pod: str, moment: float) -> bool:
        """Whether a pod has been answered in every flow since then; true for one that is gone."""
        with self._lock:
            beating = self._pods.get(pod)
            return beating is None or all(
                beating.answered.get(flow, 0.0) > moment for flow in FLOWS
            )

    def close(self) -> None:
        """Ends the thread."""
        self._ending.set()
        self._thread.join()
        for pod in list(self._pods):
            self.remove(pod)
        self._watcher.close()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ending.is_set():
            now = time.monotonic()
            if now >= due:
                with self._lock:
                    self._beat(now)
                due = max(due + PERIOD, now)
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                with self._lock:
                    self._hear(key)

    def _beat(self, now: float) -> None:
        self._sequence += 1
        for (pod, flow, sequence), at in list(self._pending.items()):
            if now - at > LOST_AFTER:
                del self._pending[pod, flow, sequence]
                self.losses.append(Loss(pod, self._pods[pod].address, flow, at))
        for beating in self._pods.values():
            # With the name: an address that was taken from one pod may be another's before the first has ended.
            words = f"{beating.pod} {self._sequence}".encode()
            outside = (layout.INTERNET_ADDRESS, layout.INTERNET_UDP_PORT)
            for flow, sender, target in (
                (INSIDE, self._watcher, (beating.address, PORT)),
                (OUTSIDE, beating.out, outside),
            ):
                self._pending[beating.pod, flow, self._sequence] = now
                self.sent += 1
                try:
                    sender.sendto(words, target)
                except OSError:
                    pass  # not sent is not answered

    def _hear(self, key: selectors.SelectorKey) -> None:
        kind = key.data
        try:
            words, source = key.fileobj.recvfrom(2048)  # type: ignore[union-attr]
            if kind == "echo":
                key.fileobj.sendto(words, source)  # type: ignore[union-attr]
                return
        except OSError:
            return
        now = time.monotonic()
        flow = OUTSIDE if kind == "out" else INSIDE
        *_, pod, sequence = words.decode().split()
        if pod in self._pods and self._pending.pop((pod, flow, int(sequence)), None):
            self._pods[pod].answered[flow] = now
