"""Ending on Ctrl-C, and not ending twice."""
from __future__ import annotations

import signal

from .progress import cancelled

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interrupt_on_signals() -> None:
    """From here on the signals that end a program tell waiting threads, then raise KeyboardInterrupt."""
    def interrupt(number, frame):
        cancelled.set()
        raise KeyboardInterrupt

    for number in ENDING:
        signal.signal(number, interrupt)


def ignore_signals() -> None:
    """From here on a signal would only leave something behind: for the time of cleaning up."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
