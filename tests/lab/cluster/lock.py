"""One lab at a time on a machine: who has it is written in /run, not in a checkout."""
from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path

from . import cgroups, processes

FOLDER = Path("/run/selvage-lab")
OWNER = FOLDER / "owner.json"


class Taken(Exception):
    """Another lab runs, or another driver is at work."""


@contextlib.contextmanager
def driving(patience: float = 0):
    """Held while a driver starts or ends a lab. Another one is refused, after `patience` seconds."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "driver", "a+") as file:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    file.seek(0)
                    raise Taken(f"a lab is being started or ended by process {file.read().strip() or '?'}") from None
                time.sleep(0.2)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def owner() -> dict | None:
    """The lab this machine has: state (its folder), pid and began (its driver), since, finished."""
    try:
        return json.loads(OWNER.read_text())
    except (OSError, ValueError):
        return None


def take(state: Path) -> None:
    """Writes down that this driver's lab is the machine's."""
    began = processes.start_time(os.getpid())
    _write({"state": str(state), "pid": os.getpid(), "began": began, "since": time.strftime("%F %T"), "finished": False})


def finished() -> None:
    """Writes down that the lab is up, so that it stays without its driver."""
    _write({**(owner() or {}), "finished": True})


def release() -> None:
    """The machine has no lab any more."""
    OWNER.unlink(missing_ok=True)


def abandoned(found: dict) -> bool:
    """Whether a lab's driver was killed before it was up, or nothing of the lab runs."""
    driver = processes.Process("driver", found.get("pid", 0), found.get("began", 0))
    return not driver.alive() and (not found.get("finished") or not cgroups.daemons())


def _write(found: dict) -> None:
    part = OWNER.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.rename(OWNER)
