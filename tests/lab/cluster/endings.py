"""Ways in which a lab may end, each tried: nothing of it may be left."""
from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from . import cgroups, config, lock
from .namespaces import NETNS
from .processes import Registry

LAB = config.CHECKOUT / "tests" / "lab" / "lab"
# The quickest lab there is.
BARE = {"CNI": "none", "POLICY": "none", "NODES": "1"}
PATIENCE = 120.0


def left_behind() -> list[str]:
    """What there still is of a lab on this machine."""
    found = [f"namespace {path.name}" for path in NETNS.glob("*")
             if path.name == config.CONTROL_PLANE or path.name.startswith(("node-", "selvage-"))]
    found += [f"process {process.pid} in cgroup {process.name}" for process in cgroups.daemons() + cgroups.pods()]
    found += [f"cgroup {path}" for path in [cgroups.MOUNT / cgroups.TOP, *cgroups.MOUNT.glob(f"*/{cgroups.TOP}")] if path.exists()]
    mounts = Path("/proc/mounts").read_text().splitlines()
    found += [f"mount {line.split()[1]}" for line in mounts if str(config.STATE) in line]
    return found + ([f"owner {lock.owner()}"] if lock.owner() else [])


def _start(environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen([str(LAB), "up"], env={**environment, **BARE}, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def _when(path: Path) -> bool:
    """Waits until a start has come so far that it made `path`."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _down(environment: dict[str, str]) -> list[str]:
    done = subprocess.run([str(LAB), "down"], env=environment, capture_output=True, text=True, timeout=PATIENCE)
    return [] if done.returncode == 0 else [f"down ended with {done.returncode}: {done.stderr[-500:]}"]


def killed(environment: dict[str, str]) -> list[str]:
    """A driver that is killed in the middle can clean up nothing: `down` does, and may be called twice."""
    driver = _start(environment)
    came = _when(config.STATE / "nodes" / "node-1" / "holder")
    driver.kill()
    driver.communicate()
    found = [] if came else ["the node was never made"]
    if came and not left_behind():
        found.append("the kill came too late or too early to prove anything")
    return found + _down(environment) + left_behind() + _down(environment)


def interrupted(environment: dict[str, str]) -> list[str]:
    """Ctrl-C in the middle ends what was started."""
    driver = _start(environment)
    came = _when(config.STATE / "etcd")
    os.kill(driver.pid, signal.SIGINT)
    driver.communicate(timeout=PATIENCE)
    found = [] if came else ["etcd was never started"]
    if driver.returncode != 130:
        found.append(f"the interrupted start ended with {driver.returncode}, not 130")
    return found + left_behind()


def refused(environment: dict[str, str]) -> list[str]:
    """A second start is refused with the first one's name, and does it no harm."""
    first = _start(environment)
    _, words = first.communicate(timeout=PATIENCE)
    found = [] if first.returncode == 0 else [f"the first start ended with {first.returncode}: {words[-500:]}"]
    # The daemons themselves: children that they start come and go.
    before = {process.pid for process in Registry(config.STATE).all()}
    second = _start(environment)
    _, words = second.communicate(timeout=PATIENCE)
    if second.returncode != 2 or str(config.STATE) not in words:
        found.append(f"the second start ended with {second.returncode} and said: {words[-500:]}")
    if not before or before - {process.pid for process in Registry(config.STATE).all()}:
        found.append("the refused start harmed the first lab")
    return found + _down(environment) + left_behind()
