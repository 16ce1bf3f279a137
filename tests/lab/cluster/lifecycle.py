"""Starting a whole lab, and ending it: also what a crash left."""
from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import images
from vpc import client as vpc_client

from . import agents, builds, cgroups, containerd, control_plane, kubelet, lock, namespaces, processes, ptp, signals
from .config import CACHE, CHECKOUT, CONTROL_PLANE, STATE, Config
from .control_plane import PORT, ControlPlane
from .kube import Api, Kubectl, condition
from .node import Limits, Node
from .processes import Registry
from .progress import cancelled, say, step, wait_until

TOOLS = {"ip": "iproute2", "nft": "nftables", "ipset": "ipset", "openssl": "openssl", "conntrack": "conntrack",
         "nsenter": "util-linux", "unshare": "util-linux"}


PROXY_HEALTH = 10256
# The plugins that a machine image brings, for conflists to chain.
PLUGINS = ("loopback", "portmap", "bandwidth", "tuning")


class LabError(Exception):
    """The lab can't do what was asked, for the reason in the message."""


@dataclass
class Lab:
    """A lab that is up."""

    config: Config
    state: Path
    components: Path
    address: str

    @property
    def kubectl(self) -> Kubectl:
        """kubectl as administrator."""
        return Kubectl(self.state, self.components)

    @property
    def api(self) -> Api:
        """The API server, as administrator."""
        return Api(self.state, self.address, PORT)

    @property
    def vpc(self) -> vpc_client.Vpc:
        """The VPC under the nodes."""
        return vpc_client.attach(self.state / "vpc")

    def save(self) -> None:
        """Writes down what `attach` reads."""
        (self.state / "lab.json").write_text(json.dumps(
            {"config": asdict(self.config), "components": str(self.components), "address": self.address}, indent=1))


def attach(state: Path = STATE) -> Lab:
    """The lab that runs from this checkout."""
    try:
        found = json.loads((state / "lab.json").read_text())
    except OSError:
        raise LabError("no lab runs from this checkout: `tests/lab/lab up` starts one") from None
    kept = found["config"]
    config = Config(**{**kept, "types": tuple(kept["types"]), "settings": tuple(map(tuple, kept["settings"]))})
    return Lab(config, state, Path(found["components"]), found["address"])


def components() -> Path:
    """The folder with the built components; builds them if they are not in the cache."""
    return Path(builds.run(CHECKOUT / "tests" / "components" / "build.sh"))


def require() -> None:
    """Refuses early where something is missing that no later message would name so well."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root: it makes namespaces, mounts and cgroups")
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if missing:
        raise LabError(f"install {' '.join(missing)}")


def up(config: Config) -> Lab:
    """Starts a lab and returns when nodes and agents are Ready. Raises lock.Taken if there is one."""
    require()
    _refuse_second()
    # What is built takes minutes the first time: before anything runs, and without the lock.
    with step("components"):
        parts = components()
    with step("images"):
        archives = [images.cached(parts / "agnhost", CACHE), *agents.archives(config)]
    with lock.driving():
        found = _refuse_second()
        if found:
            say(f"cleaning up after a lab that was abandoned: {found['state']}")
            _end(Path(found["state"]))
        lock.take(STATE)
        try:
            lab = _start(config, parts, archives)
        except BaseException:
            signals.ignore_signals()
            cancelled.set()
            say("ending what was started")
            _end(STATE)
            raise
        lock.finished()
        return lab


def _refuse_second() -> dict | None:
    """Raises lock.Taken if the machine has a lab that is alive; returns what an abandoned one left."""
    found = lock.owner()
    if found and not lock.abandoned(found):
        raise lock.Taken(f"this machine already has a lab: {found['state']}, since {found['since']} "
                         f"(`make cluster-down` ends it)")
    return found


def _start(config: Config, parts: Path, archives: list[Path]) -> Lab:
    say(f"starting the lab: {config.describe()}")
    if STATE.exists():
        shutil.rmtree(STATE)
    STATE.mkdir(parents=True)
    registry = Registry(STATE)
    with step("VPC: EC2, metadata service, fabric, internet"):
        (STATE / "namespaces").write_text("\n".join([CONTROL_PLANE, *config.node_names]) + "\n")
        vpc = vpc_client.start(STATE / "vpc")
    with step("instances"):
        ipv6 = config.family == 6
        brain = _run_instance(vpc, CONTROL_PLANE, "m5.large", vpc.subnets[0].id, ipv6)
        nodes = []
        for number, name in enumerate(config.node_names):
            kind = config.types[number]
            peered = config.peered and number == config.nodes - 1
            subnets = vpc.peer_subnets if peered else vpc.subnets
            subnet = subnets[number % len(subnets)]
            instance = _run_instance(vpc, name, kind, subnet.id, ipv6)
            nodes.append(Node(name, instance, _limits(vpc, kind, config), config, STATE, parts, registry))
    namespaces.write_enter(STATE, parts)
    plane = ControlPlane(Node(CONTROL_PLANE, brain, Limits(0, 0), config, STATE, parts, registry))
    lab = Lab(config, STATE, parts, brain.address)
    lab.save()
    with step("certificates"):
        plane.prepare(config.node_names)
    with ThreadPoolExecutor(len(nodes) + 1) as pool:
        jobs = [pool.submit(_start_plane, plane)]
        jobs += [pool.submit(_start_node, node, vpc, plane, archives) for node in nodes]
        for job in jobs:
            job.result()
    if config.agents():
        agents.apply(lab, vpc)
    _wait_for_nodes(lab)
    return lab


def _run_instance(vpc, name: str, kind: str, subnet: str, ipv6: bool):
    namespaces.add(name)
    return vpc.run_instance(name, kind, subnet, ipv6=ipv6)


def _limits(vpc, kind: str, config: Config) -> Limits:
    answer = vpc.ec2("DescribeInstanceTypes", **{"InstanceType.1": kind})
    enis = answer.findtext(".//networkInfo/maximumNetworkInterfaces")
    addresses = answer.findtext(".//networkInfo/ipv4AddressesPerInterface")
    if not enis or not addresses:
        raise LabError(f"TYPES: EC2 knows no instance type {kind}")
    return Limits(int(enis), int(addresses), agents.max_pods(config, kind) if config.cni == "selvage" else None)


def _start_plane(plane: ControlPlane) -> None:
    with step("control plane"):
        plane.start()


def _start_node(node: Node, vpc, plane: ControlPlane, archives: list[Path]) -> None:
    with step(f"{node.name}: containerd, images, kubelet, kube-proxy ({node.instance.instance_type}, {node.instance.address})"):
        node.make_root()
        node.run("cp", *(str(node.components / plugin) for plugin in PLUGINS), "/opt/cni/bin")
        if node.config.cni == "ptp":
            ptp.install(node, vpc)
        containerd.start(node)
        # It registers while the images are imported.
        kubelet.start_kubelet(node, plane.config(node.name), plane.authority.certificate)
        containerd.import_images(node, archives)
        kubelet.start_proxy(node, plane.config("proxy"))


def _wait_for_nodes(lab: Lab) -> None:
    # Without an address plugin a node has no network and stays NotReady: another agent may come.
    wanted = "Ready" if lab.config.cni != "none" else "registered"
    with step(f"nodes {wanted}"):
        def there() -> bool:
            nodes = lab.api.items("/api/v1/nodes")
            good = [node for node in nodes if wanted == "registered" or
                    (condition(node, "Ready") and not node["spec"].get("taints"))]
            return len(good) == lab.config.nodes

        wait_until(f"all nodes {wanted}", 60, there)
    with step("Services programmed on every node"):
        for node in lab.api.items("/api/v1/nodes"):
            address = next(one["address"] for one in node["status"]["addresses"] if one["type"] == "InternalIP")
            wait_until(f"kube-proxy on {node['metadata']['name']}", 30, lambda: _answers(address, PROXY_HEALTH))


def _answers(address: str, port: int) -> bool:
    """Whether /healthz there says that all is well, asked from the control plane's namespace."""
    with namespaces.connect(CONTROL_PLANE, address, port, 2) as connection:
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        return b" 200 " in connection.recv(200).partition(b"\n")[0]


def down(patience: float = 60) -> bool:
    """Ends the machine's lab, whatever state it is in; returns whether there was one."""
    with lock.driving(patience):
        signals.ignore_signals()
        found = lock.owner()
        state = Path(found["state"]) if found else STATE
        there = bool(found) or (state / "namespaces").exists()
        if there or cgroups.daemons() or cgroups.pods():
            with step("lab ended"):
                _end(state)
        return there


def _end(state: Path) -> None:
    registry = Registry(state)
    alive = registry.all()
    agents_first = [one for one in alive if one.name.endswith(("-kubelet", "-kube-proxy"))]
    processes.stop(agents_first, 5)
    processes.stop([one for one in registry.all() if one.name.endswith("-containerd")], 5)
    # Containers and their shims live on without containerd: ended by pid, found by cgroup.
    processes.kill(cgroups.pods())
    planes = {one.pid for one in control_plane.running(registry).values()}
    processes.kill([one for one in cgroups.daemons() if one.pid not in planes])
    control_plane.stop_all(registry)
    processes.kill(cgroups.daemons())
    listed = state / "namespaces"
    names_made = listed.read_text().split() if listed.exists() else []
    strangers = [pid for name in names_made for pid in namespaces.inside(name)]
    processes.stop([one for one in map(processes.running, strangers) if one], 2)  # somebody's shell
    vpc_client.stop(state / "vpc")
    for name in names_made:
        namespaces.delete(name)
    left = cgroups.remove()
    if left:
        say(f"cgroups that would not go: {', '.join(map(str, left))}")
    # The logs stay for whoever asks why.
    for part in ("nodes", "etcd", "certificates", "kustomize"):
        shutil.rmtree(state / part, ignore_errors=True)
    for part in ("namespaces", "pids", "lab.json", "enter", "kubeconfig"):
        (state / part).unlink(missing_ok=True)
    lock.release()
