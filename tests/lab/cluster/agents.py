"""Our own agents on the lab: their images, and the manifests that are shipped."""
from __future__ import annotations

import shutil
from pathlib import Path

from . import builds
from .config import CHECKOUT, Config
from .progress import say, step, wait_until

OVERLAYS = CHECKOUT / "tests" / "lab" / "manifests"


def overlay(config: Config) -> str:
    """Which overlay has the agents that were chosen."""
    chosen = config.agents()
    if len(chosen) == 2:
        return "all"
    return "cni" if chosen == ["selvage-ipamd"] else "policy"


def archives(config: Config) -> list[Path]:
    """The archives of the agents' images; builds them if they are not in the cache."""
    if not config.agents():
        return []
    printed = builds.run(CHECKOUT / "images" / "build.sh")
    found = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    wanted = {"selvage-ipamd": "ipamd", "selvage-policy": "policy"}
    return [Path(found[wanted[agent]]) for agent in config.agents()]


def apply(lab, vpc) -> None:
    """Applies the overlay and waits until every DaemonSet is Ready on every node."""
    chosen = overlay(lab.config)
    tree = lab.state / "kustomize"
    # A copy, since the overlay must name this cluster's addresses. Paths in it stay what they are.
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(CHECKOUT / "manifests", tree / "manifests")
    shutil.copytree(OVERLAYS, tree / "tests" / "lab" / "manifests")
    values = {"API_SERVER_HOST": lab.address, "API_SERVER_PORT": "6443", "EC2_ENDPOINT": vpc.ec2_endpoint}
    for file in (tree / "tests" / "lab" / "manifests").rglob("*.yaml"):
        text = file.read_text()
        for name, value in values.items():
            text = text.replace(name, value)
        file.write_text(text)
    with step(f"kubectl apply -k tests/lab/manifests/{chosen}"):
        lab.kubectl.run("apply", "-k", str(tree / "tests" / "lab" / "manifests" / chosen))
    for agent in lab.config.agents():
        with step(f"{agent} Ready on every node"):
            _wait(lab, agent)


def _wait(lab, agent: str) -> None:
    path = f"/apis/apps/v1/namespaces/selvage-system/daemonsets/{agent}"

    def ready() -> bool:
        status = lab.api.get(path).get("status", {})
        return status.get("numberReady", 0) == lab.config.nodes

    try:
        wait_until(f"{agent} Ready", 90, ready)
    except TimeoutError:
        for words in (("get", "pods", "-o", "wide"), ("describe", "pods"), ("logs", f"ds/{agent}", "--all-containers", "--tail=30")):
            shown = lab.kubectl.attempt("-n", "selvage-system", *words)
            say(f"$ kubectl {' '.join(words)}\n{(shown.stdout + shown.stderr)[-4000:]}")
        raise
