"""Network namespaces: a thread that lives in one, and iproute2 run from there.

A thread that has entered a namespace hands it to the sockets and children it makes, so
the process itself never leaves the machine's own namespace, and nothing there changes.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from vpc.layout import MADE_NAMESPACES, NAMESPACES

CLONE_NEWNET = 0x40000000  # linux/sched.h
COMMAND_DEADLINE = 20.0  # seconds for one batch; ordinary ones take milliseconds

_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


class NetworkError(Exception):
    """iproute2 or the kernel refused a change."""


def ensure_namespace(name: str, state_dir: Path) -> None:
    """Makes the named namespace if it is missing, with loopback up, and writes down that
    it is ours to remove: before making it, so that a crash leaves none unknown."""
    if (NAMESPACES / name).exists():
        return
    with (state_dir / MADE_NAMESPACES).open("a") as made:
        made.write(name + "\n")
    _command(["ip", "netns", "add", name])
    ip_in(name, ["link set lo up"])


def ip_in(name: str, lines: Iterable[str]) -> None:
    """Runs iproute2 commands, in order, inside a named namespace."""
    _command(["ip", "-netns", name, "-batch", "-"], "\n".join(lines) + "\n")


class Namespace:
    """A named namespace and the one thread in it, where its work is done in order."""

    def __init__(self, name: str):
        self.name = name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=self._enter)

    def run(self, work: Callable[[], _T]) -> _T:
        """Does the work inside the namespace and returns what it returns."""
        return self._thread.submit(work).result()

    def ip(self, lines: Iterable[str]) -> None:
        """Runs iproute2 commands in order; stops at the first that fails."""
        text = "\n".join(lines) + "\n"
        self.run(lambda: _command(["ip", "-batch", "-"], text))

    def nft(self, text: str) -> None:
        """Loads nftables rules, all or none."""
        self.run(lambda: _command(["nft", "-f", "-"], text))

    def sysctl(self, values: dict[str, str]) -> None:
        """Writes sysctls of this namespace: /proc/sys/net shows that of the thread."""

        def write() -> None:
            for name, value in values.items():
                Path("/proc/sys/net", name).write_text(value)

        self.run(write)

    def listen(self, address: str, port: int) -> socket.socket:
        """A listening TCP socket that belongs to this namespace."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return self.run(lambda: socket.create_server((address, port), family=family, backlog=256))

    def bind_udp(self, address: str, port: int) -> socket.socket:
        """A bound UDP socket that belongs to this namespace."""

        def bind() -> socket.socket:
            bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            bound.bind((address, port))
            return bound

        return self.run(bind)

    def close(self) -> None:
        """Ends the thread, which would keep the namespace alive."""
        self._thread.shutdown()

    def _enter(self) -> None:
        opened = os.open(NAMESPACES / self.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(opened, CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), self.name)
        finally:
            os.close(opened)


def _command(arguments: list[str], text: str | None = None) -> None:
    try:
        done = subprocess.run(
            arguments, input=text, capture_output=True, text=True, timeout=COMMAND_DEADLINE
        )
    except subprocess.TimeoutExpired as error:
        raise NetworkError(f"{' '.join(arguments)}: {error}") from error
    if done.returncode:
        raise NetworkError(f"{' '.join(arguments)}: {done.stderr.strip()}: {text or ''}".strip())
