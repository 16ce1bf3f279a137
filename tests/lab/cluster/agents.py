"""Our own agents on the lab: their images, and the manifests that are shipped."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from vpc import layout

from . import builds
from .config import CACHE, CHECKOUT, COMPONENTS, SETTINGS_OF, Config
from .progress import say, step, wait_until

# Built for the image, by images/build.sh.
BINARY = CACHE / "target" / "x86_64-unknown-linux-musl" / "release" / "selvage-ipamd"
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
    if "selvage-ipamd" in lab.config.agents():
        _add_mode(tree / "tests" / "lab" / "manifests", chosen, lab.config)
    with step(f"kubectl apply -k tests/lab/manifests/{chosen} ({lab.config.mode})"):
        lab.kubectl.run("apply", "-k", str(tree / "tests" / "lab" / "manifests" / chosen))
    if lab.config.mode.startswith("custom"):
        _apply_eni_configs(lab, vpc)
    for agent in lab.config.agents():
        with step(f"{agent} Ready on every node"):
            _wait(lab, agent)


def max_pods(config: Config, kind: str) -> int:
    """What our agent says a kubelet of an instance type should be given, in the cluster's mode."""
    environment = {"PATH": os.environ["PATH"]}
    for component in COMPONENTS[config.mode]:
        environment |= SETTINGS_OF[component]
    done = subprocess.run([str(BINARY), "max-pods", kind], capture_output=True, text=True, timeout=60,
                          env={**environment, **dict(config.settings)})
    if done.returncode != 0:
        raise RuntimeError(f"selvage-ipamd max-pods {kind}: {done.stderr.strip()[-500:]}")
    return int(done.stdout)


def _add_mode(overlays: Path, chosen: str, config: Config) -> None:
    """Adds the mode's components, and the settings that were asked for, to the copied overlay."""
    components = [f"../../../../manifests/components/{name}" for name in COMPONENTS[config.mode]]
    settings = dict(config.settings)
    if config.peered:
        # Blocks of the other side, whichever side a node is on: they are reached without translation.
        settings.setdefault("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", ",".join(layout.VPC_BLOCKS))
    if settings:
        component = overlays / "parts" / "settings"
        component.mkdir()
        patch = {
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {"name": "selvage-ipamd", "namespace": "selvage-system"},
            "spec": {"template": {"spec": {"containers": [{
                "name": "selvage-ipamd", "env": [{"name": name, "value": value} for name, value in settings.items()],
            }]}}},
        }
        (component / "kustomization.yaml").write_text(json.dumps({
            "apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component", "patches": [{"patch": json.dumps(patch)}],
        }))
        components.append("../parts/settings")
    file = overlays / chosen / "kustomization.yaml"
    # The list of components ends the file.
    file.write_text(file.read_text() + "".join(f"  - {path}\n" for path in components))


def _apply_eni_configs(lab, vpc) -> None:
    """An ENIConfig for each zone, and for a node in the peered VPC one of its own, named by annotation."""
    configs = {subnet.zone: (subnet.id, vpc.pod_security_group) for subnet in vpc.pod_subnets}
    if lab.config.peered:
        node = lab.config.node_names[-1]
        subnet = vpc.peer_subnets[(lab.config.nodes - 1) % len(vpc.peer_subnets)]
        configs[node] = (subnet.id, subnet.security_group)
        wait_until(f"{node} registered", 60, lambda: lab.api.get(f"/api/v1/nodes/{node}"))
        lab.kubectl.run("annotate", "node", node, f"k8s.amazonaws.com/eniConfig={node}")
    items = [{
        "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig", "metadata": {"name": name},
        "spec": {"subnet": subnet, "securityGroups": [group]},
    } for name, (subnet, group) in configs.items()]
    lab.kubectl.run("wait", "--for=condition=Established", "crd/eniconfigs.crd.k8s.amazonaws.com", "--timeout=30s")
    lab.kubectl.run("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


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
