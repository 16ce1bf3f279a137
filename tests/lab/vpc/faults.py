"""Faults on demand: what a test orders EC2 or IMDS to do wrong.

A fault hits calls of one action ("*": every EC2 action; "imds": metadata requests), a
number of times or until it is cleared. The first matching fault is taken.

kinds for EC2:  error (code, status, message), throttle, garbage, delay (seconds),
                lose-reply (the call acts, then the connection closes without an answer),
                bucket (burst, rate: calls beyond burst + rate a second are throttled;
                "Request throttling for the Amazon EC2 API": token buckets for an account)
kinds for IMDS: error (status), silent (no answer), delay (seconds), stale (the interface
                tree stays as it was when the fault was set)
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

EC2_KINDS = ("error", "throttle", "garbage", "delay", "lose-reply", "bucket")
IMDS_KINDS = ("error", "silent", "delay", "stale")
IMDS = "imds"


@dataclass
class Fault:
    """One order. `count` goes down; None means until cleared."""

    id: str
    action: str
    kind: str
    count: int | None = None
    code: str = "InternalError"
    status: int = 500
    message: str = "An internal error has occurred"
    seconds: float = 0.0
    instance: str | None = None
    burst: float = 0.0
    rate: float = 0.0
    tokens: float = 0.0
    filled_at: float = 0.0

    def spends(self, now: float) -> bool:
        """Takes a token of the bucket; False where there is none left."""
        self.tokens = min(self.burst, self.tokens + (now - self.filled_at) * self.rate)
        self.filled_at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class BadFault(ValueError):
    """An order that makes no sense."""


class Faults:
    """The faults in force, and how many calls of each action came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._faults: list[Fault] = []
        self._calls: Counter[str] = Counter()

    def add(self, order: dict[str, Any]) -> Fault:
        """Puts a fault in force. Raises BadFault."""
        try:
            fault = Fault(id=f"fault-{next(self._numbers)}", **order)
        except TypeError as error:
            raise BadFault(str(error)) from None
        kinds = IMDS_KINDS if fault.action == IMDS else EC2_KINDS
        if fault.kind not in kinds:
            raise BadFault(f"kind {fault.kind!r} for {fault.action}: one of {', '.join(kinds)}")
        if fault.count is not None and fault.count < 1:
            raise BadFault(f"count {fault.count}: at least 1, or none")
        if fault.kind == "bucket" and (fault.burst < 1 or fault.rate < 0):
            raise BadFault("bucket: burst of at least 1, rate of at least 0 a second")
        fault.tokens, fault.filled_at = fault.burst, time.monotonic()
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self, fault: str | None) -> None:
        """Ends one fault, or all; whoever a silent fault holds is let go."""
        with self._lock:
            self._faults = [f for f in self._faults if fault is not None and f.id != fault]

    def listed(self) -> list[dict[str, Any]]:
        """The faults in force."""
        with self._lock:
            return [asdict(fault) for fault in self._faults]

    def in_force(self, fault: Fault) -> bool:
        """Whether a fault has not been cleared since."""
        with self._lock:
            return fault in self._faults

    def called(self, action: str) -> Fault | None:
        """Counts a call of EC2 and takes the fault it meets, if any."""
        with self._lock:
            self._calls[action] += 1
            return self._take(lambda fault: fault.action in (action, "*"))

    def imds(self, instance: str) -> Fault | None:
        """The fault that a metadata request of an instance meets, if any."""
        with self._lock:
            return self._take(
                lambda fault: fault.action == IMDS and fault.instance in (None, instance)
            )

    def calls(self) -> dict[str, int]:
        """How many calls of each EC2 action came."""
        with self._lock:
            return dict(self._calls)

    def _take(self, matches: Any) -> Fault | None:
        for fault in self._faults:
            if matches(fault):
                if fault.kind == "bucket" and fault.spends(time.monotonic()):
                    continue
                if fault.count is not None:
                    fault.count -= 1
                    if fault.count == 0:
                        self._faults.remove(fault)
                return fault
        return None
