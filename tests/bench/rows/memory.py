"""Resident memory of the agents on the demo cluster."""
from __future__ import annotations

from pathlib import Path

from cluster.kube import condition

from .row import Row

BAR_MEGABYTES = 40


def measure(lab) -> list[Row]:
    """The greater of the two nodes' figures, from VmRSS."""
    if not all(condition(pod, "Ready") for pod in lab.api.items("/api/v1/namespaces/selvage-system/pods")):
        raise RuntimeError("an agent's pod is not Ready: its memory would mean nothing")
    return [Row(f"{row}/rss", round(max(_resident(name)) / 1000, 1), "MB", bar=BAR_MEGABYTES)
            for row, name in (("ipamd", "selvage-ipamd"), ("policy", "selvage-policy"))]


def _resident(name: str) -> list[int]:
    """Kilobytes of each running process of that name."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.joinpath("comm").read_text().strip() == name:
                status = dict(line.split(":", 1) for line in folder.joinpath("status").read_text().splitlines())
                found.append(int(status["VmRSS"].split()[0]))
        except OSError:
            continue
    return found
