"""The lab's cgroups: every process of a node is in one, so that ending the lab can miss none.

    selvage-lab/daemons/NODE   containerd, kubelet, kube-proxy, shims, the namespace's holder
    selvage-lab/NODE           kubelet's root: the pods

With cgroup v1 the daemons are tracked in the pids hierarchy alone; the pods are in all of them.
"""
from __future__ import annotations

import time
from pathlib import Path

from . import processes

MOUNT = Path("/sys/fs/cgroup")
TOP = "selvage-lab"


def unified() -> bool:
    """Whether this machine has cgroup v2 alone."""
    return (MOUNT / "cgroup.controllers").exists()


def hierarchies() -> list[Path]:
    """Roots of the hierarchies that containers use."""
    if unified():
        return [MOUNT]
    seen = []
    for path in sorted(MOUNT.iterdir()):
        # cpu,cpuacct appears under three names; the links are not hierarchies of their own.
        if path.is_dir() and not path.is_symlink() and (path / "tasks").exists():
            seen.append(path)
    return seen


def tracking() -> Path:
    """Root of the hierarchy in which every process of the lab is found."""
    return MOUNT if unified() else MOUNT / "pids"


def make(node: str) -> Path:
    """Makes both cgroups of a node; returns the one for its daemons."""
    for root in hierarchies():
        path = root / TOP / node
        path.mkdir(parents=True, exist_ok=True)
        if unified():
            for parent in (root, root / TOP):
                controllers = (parent / "cgroup.controllers").read_text().split()
                (parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
        elif (root / "cpuset.cpus").exists():
            # A new cpuset is empty and takes no process until it has both.
            for parent in (root / TOP, path):
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (parent / name).write_text((root / name).read_text())
    daemons = tracking() / TOP / "daemons" / node
    daemons.mkdir(parents=True, exist_ok=True)
    return daemons


def members(path: Path) -> list[processes.Process]:
    """The processes in a cgroup and in all below it."""
    found = []
    for file in path.rglob("cgroup.procs") if path.is_dir() else []:
        try:
            pids = file.read_text().split()
        except OSError:
            continue  # the cgroup went away meanwhile
        for pid in pids:
            process = processes.running(int(pid), f"{file.parent.name}")
            if process is not None:
                found.append(process)
    return found


def pods(node: str = "") -> list[processes.Process]:
    """The processes in a node's containers, or in those of all nodes."""
    top = tracking() / TOP
    if node:
        return members(top / node)
    nodes = [path for path in top.iterdir() if path.is_dir() and path.name != "daemons"] if top.is_dir() else []
    return [process for path in nodes for process in members(path)]


def daemons() -> list[processes.Process]:
    """The processes of all nodes and of the control plane that are in no container."""
    return members(tracking() / TOP / "daemons")


def remove() -> list[Path]:
    """Removes the lab's cgroups; returns those that would not go."""
    left = []
    # Also the v2 hierarchy beside v1's, in which runc makes folders of its own accord.
    for root in {path.parent for path in [MOUNT / TOP, *MOUNT.glob(f"*/{TOP}")] if path.is_dir()}:
        top = root / TOP
        for attempt in range(50):
            left_here = [path for path in _deepest_first(top) if not _rmdir(path)]
            if not left_here:
                break
            time.sleep(0.02)  # a killed process leaves its cgroup a moment later
        left += left_here if top.exists() else []
    return left


def _deepest_first(top: Path) -> list[Path]:
    if not top.is_dir():
        return []
    return sorted((path for path in [top, *top.rglob("*")] if path.is_dir()), key=lambda path: -len(path.parts))


def _rmdir(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
