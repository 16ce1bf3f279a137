"""Progress lines: what is happening, and how long it took."""
from __future__ import annotations

import contextlib
import sys
import threading
import time

_lock = threading.Lock()
_began = time.monotonic()
# Set when the driver is asked to end: whoever waits in a thread gives up at once.
cancelled = threading.Event()


class Cancelled(Exception):
    """The driver was asked to end while it waited."""


def say(text: str) -> None:
    """One line on standard error, with the seconds since the program began."""
    with _lock:
        print(f"[{time.monotonic() - _began:6.1f} s] {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(name: str):
    """Says how long the block took; says nothing if it failed, since the error will be said."""
    began = time.monotonic()
    yield
    say(f"{name} ({time.monotonic() - began:.1f} s)")


def wait_until(what: str, deadline_seconds: float, check, pause: float = 0.1):
    """Calls `check` until it returns something true, and returns that.

    `check` may raise OSError for "not yet". Raises TimeoutError, which names the last such error.
    """
    end = time.monotonic() + deadline_seconds
    last = None
    while True:
        try:
            found = check()
            if found:
                return found
        except OSError as error:
            last = error
        if cancelled.is_set():
            raise Cancelled(what)
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline_seconds:.0f} s" + (f" ({last})" if last else ""))
        time.sleep(pause)
