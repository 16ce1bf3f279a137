"""Where on a node to look: the commands, and what they show there."""
from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

# Lines shown of one command's output.
MOST = 14


def veth(namespace: str, pod: str) -> str:
    """The host end of a pod's interface, by the rule that both halves follow."""
    return "eni" + hashlib.sha1(f"{namespace}.{pod}".encode()).hexdigest()[:11]


def of(state: Path, node: str, namespace: str, pod: str | None, address: str) -> str:
    """Text for people: each command with its output, for a node and one pod on it."""
    enter = str(state / "enter")

    def shown(command: str) -> tuple[str, list[str]]:
        done = subprocess.run([enter, node, "sh", "-c", command], capture_output=True, text=True, timeout=30)
        return command, (done.stdout + done.stderr).splitlines()

    parts = [shown("ip rule")]
    tables = sorted(set(re.findall(r"lookup (\d+)", "\n".join(parts[0][1]))), key=int)
    parts += [shown(f"ip route show table {table}") for table in tables[:2]]
    if pod:
        parts.append(shown(f"ip route show {address}   # {namespace}/{pod}"))
        parts.append(shown(f"ip -br link show {veth(namespace, pod)}"))
    parts.append(shown("iptables -t mangle -S | grep -- ' selvage-'"))
    parts.append(shown("ipset list -n | grep ^selvage-"))
    text = [f"Where to look on {node}: {state / 'enter'} {node} …"]
    for command, lines in parts:
        text.append(f"$ {command}")
        text += [f"  {line}" for line in lines[:MOST]] or ["  (nothing)"]
        if len(lines) > MOST:
            text.append(f"  … and {len(lines) - MOST} more lines")
    return "\n".join(text)
