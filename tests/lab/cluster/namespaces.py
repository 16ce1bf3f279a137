"""Running things in a node's network and mount namespace, the control plane's included.

Network namespaces are named ones in /run/netns. A node's mount namespace lives as long as a process
in it: its holder, whose pid is in nodes/NODE/holder. The control plane has the machine's own mounts.
"""
from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from pathlib import Path

NETNS = Path("/run/netns")
_libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000


def add(name: str) -> None:
    """Makes a named network namespace with its loopback up."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)


def delete(name: str) -> None:
    """Removes a named network namespace, if there is one."""
    if (NETNS / name).exists():
        subprocess.run(["ip", "netns", "delete", name], check=True)


def enter(name: str, holder: int | None = None) -> list[str]:
    """The words to put before a command so that it runs in the node's namespaces, under its own pid."""
    mount = [f"--mount=/proc/{holder}/ns/mnt"] if holder else []
    return ["nsenter", f"--net={NETNS / name}", *mount, "--"]


def connect(name: str, address: str, port: int, timeout: float) -> socket.socket:
    """A TCP connection made from inside a network namespace.

    A socket belongs to the namespace of the thread that made it, so a thread goes there for it.
    """
    made: list[socket.socket | OSError] = []

    def go() -> None:
        try:
            with open(NETNS / name, "rb") as file:
                if _libc.setns(file.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"enter {name}")
            made.append(socket.create_connection((address, port), timeout))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def inside(name: str) -> list[int]:
    """Processes whose network namespace is the named one."""
    try:
        wanted = os.stat(NETNS / name).st_ino
    except OSError:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.stat(entry / "ns" / "net").st_ino == wanted:
                    found.append(int(entry.name))
            except OSError:
                continue  # it ended meanwhile
    return found


ENTER = """#!/bin/sh
# enter NODE COMMAND...: runs a command in a node's network and mount namespaces (control-plane is
# one too), in this working directory, with this environment, and with its exit status.
set -u
lab={state}
node=${{1:?usage: enter NODE COMMAND...}}
shift
[ -e "/run/netns/$node" ] && [ -d "$lab/nodes/$node" ] || {{
  echo "enter: there is no $node: the lab has $(ls "$lab/nodes" 2>/dev/null | tr '\\n' ' ')" >&2
  exit 1
}}
PATH=$lab/nodes/$node/bin:$PATH:{components}
export PATH KUBECONFIG="${{KUBECONFIG:-$lab/kubeconfig}}"
set -- /bin/sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"
if [ -e "$lab/nodes/$node/holder" ]; then
  set -- "--mount=/proc/$(cat "$lab/nodes/$node/holder")/ns/mnt" -- "$@"
fi
exec nsenter "--net=/run/netns/$node" "$@"
"""


def write_enter(state: Path, components: Path) -> None:
    """Writes the `enter` program for people and tests."""
    path = state / "enter"
    path.write_text(ENTER.format(state=state, components=components))
    path.chmod(0o755)
