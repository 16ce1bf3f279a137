"""Processes that outlive the driver: started detached, remembered by pid and start time, ended by pid."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from .progress import Cancelled, cancelled

_lock = threading.Lock()


@dataclass(frozen=True)
class Process:
    """A process we started. `began` (clock ticks since boot) tells it from a later one with its pid."""

    name: str
    pid: int
    began: int

    def alive(self) -> bool:
        return start_time(self.pid) == self.began

    def send(self, number: int) -> None:
        """Sends a signal, if the process still is the one that was started."""
        if self.alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None if there is none or it is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def running(pid: int, name: str = "") -> Process | None:
    """The process that has this pid now."""
    began = start_time(pid)
    return None if began is None else Process(name, pid, began)


class Registry:
    """The pids file of one lab: a JSON line for each process that was started."""

    def __init__(self, state: Path):
        self.file = state / "pids"
        self.logs = state / "logs"

    def start(self, name: str, command: list[str], *, cgroup: Path, env: dict[str, str] | None = None) -> Process:
        """Starts a command in its own session and in `cgroup`, its output in logs/NAME.log."""
        self.logs.mkdir(parents=True, exist_ok=True)
        # Under the lock: after `cancelled` is set and the lock was free once, nothing more is started.
        with _lock, open(self.logs / f"{name}.log", "ab") as log:
            if cancelled.is_set():
                raise Cancelled(name)
            # The shell joins the cgroup before it becomes the command: no child can be missed.
            child = subprocess.Popen(
                ["/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(cgroup), *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
                env={**os.environ, **(env or {})},
            )
            process = running(child.pid, name)
            if process is None:
                raise RuntimeError(f"{name} ended at once: see {self.logs / f'{name}.log'}")
            with open(self.file, "a") as file:
                file.write(json.dumps(asdict(process)) + "\n")
        # Reaped when it ends, so that a dead daemon is not taken for a living one.
        threading.Thread(target=child.wait, daemon=True).start()
        return process

    def all(self) -> list[Process]:
        """Every process that was started and still runs."""
        try:
            lines = self.file.read_text().splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                process = Process(**json.loads(line))
            except (ValueError, TypeError):
                continue  # the driver was killed while it wrote this line
            if process.alive():
                found.append(process)
        return found


def stop(processes: list[Process], patience: float) -> None:
    """SIGTERM to all, then SIGKILL to those that are left after `patience` seconds."""
    for process in processes:
        process.send(signal.SIGTERM)
    if not gone(processes, patience):
        kill(processes)


def kill(processes: list[Process]) -> None:
    """SIGKILL to all, and waits until they are gone."""
    for process in processes:
        process.send(signal.SIGKILL)
    gone(processes, 10)


def gone(processes: list[Process], patience: float) -> bool:
    """Waits until none is alive."""
    end = time.monotonic() + patience
    while any(process.alive() for process in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
