"""A node of the lab on which the shipped binaries run: selvage-ipamd and aws-cni.

Both run in the network namespace of an instance and in a private mount namespace in which
/run is a folder of the test's: socket, checkpoint and xtables' lock are there, and nothing
of the machine's own is touched. A restarted daemon finds what the one before it left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from probes import Metadata

from vpc.client import Instance, Vpc
from vpc.layout import NAMESPACES
from vpc.netns import Namespace

SOON = 15.0  # seconds for what takes one or two when the machine is idle
LOOK = 0.05  # seconds between two looks
ENDING = 10.0  # seconds that the kubelet would give
COMMAND = 30.0  # seconds for one command; an ADD may wait for addresses

# What of the environment is told on: nothing of the machine's AWS or Kubernetes settings.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Binaries:
    """Where the shipped binaries are."""

    ipamd: Path
    plugin: Path


def binaries() -> Binaries:
    """The binaries that go into the images; built if they are missing."""
    cache = os.environ.get("SELVAGE_CACHE") or Path.home() / ".cache" / "selvage"
    built = Path(cache) / "target" / "x86_64-unknown-linux-musl"
    found = Binaries(built / "release" / "selvage-ipamd", built / "plugin" / "aws-cni")
    if not (found.ipamd.exists() and found.plugin.exists()):
        root = Path(__file__).resolve().parents[3]
        subprocess.run([root / "images" / "build.sh", "stage"], check=True)
    return found


def eventually(
    what: str, look: Callable[[], _T | None], within: float = SOON, *, log: Path | None = None
) -> _T:
    """The first answer that is not None or False; fails with `what` after a while."""
    until = time.monotonic() + within
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        if time.monotonic() > until:
            told = f"; the daemon's log:\n{log.read_text()}" if log is not None else ""
            raise AssertionError(f"not within {within:g} s: {what}{told}")
        time.sleep(LOOK)


@dataclass(frozen=True)
class Answer:
    """What the plugin answered: its exit status, and the JSON of its stdout."""

    status: int
    body: dict[str, Any]

    @property
    def address(self) -> str:
        """The pod's address, of an ADD that succeeded."""
        assert self.status == 0, self.words
        (given,) = self.body["ips"]
        address, _, length = given["address"].partition("/")
        assert length == "32"
        return address

    @property
    def words(self) -> str:
        """What a person is told of a failure."""
        return f"{self.body.get('msg', '')}: {self.body.get('details', '')}"


@dataclass
class Pod:
    """A namespace that stands for a pod's sandbox."""

    name: str
    inside: Namespace
    path: str  # of the namespace; good in any mount namespace

    @property
    def container(self) -> str:
        return f"container-{self.name}"


class Node:
    """An instance with the daemon on it. The daemon is not started by itself."""

    def __init__(self, vpc: Vpc, nodes: Any, name: str, folder: Path, **run: Any):
        self.vpc, self.nodes, self.name = vpc, nodes, name
        self.binaries = binaries()
        self.folder = folder
        for below in ("run/aws-node", "bin", "net.d"):
            (folder / below).mkdir(parents=True, exist_ok=True)
        self.log = folder / "ipamd.log"
        self.checkpoint = folder / "run" / "aws-node" / "ipam.json"
        self.conflist = folder / "net.d" / "10-aws.conflist"
        self.installed = folder / "bin" / "aws-cni"
        self.instance: Instance = nodes.run(name, run.pop("instance_type", "t3.small"), **run)
        self.metadata = Metadata(nodes.inside(self.instance.netns))
        self.process: subprocess.Popen[bytes] | None = None
        self._pods: dict[str, int] = {}  # open descriptors of namespaces
        self.environment = {
            "PATH": PATH,
            "AWS_ENDPOINT_URL_EC2": vpc.ec2_endpoint,
            "MY_NODE_NAME": name,
            "HOST_CNI_BIN_PATH": str(folder / "bin"),
            "HOST_CNI_CONFDIR_PATH": str(folder / "net.d"),
            "CNI_PLUGIN": str(self.binaries.plugin),
            "AWS_VPC_K8S_PLUGIN_LOG_FILE": str(folder / "plugin.log"),
            "ADD_WAIT_SECONDS": "1",
        }
        # What the init container does.
        done = self._run([str(self.binaries.ipamd), "init"], self.environment)
        assert done.returncode == 0, done.stdout + done.stderr

    # The daemon

    def start(self, **settings: str) -> None:
        """Starts the daemon and waits for nothing."""
        assert self.process is None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._inside([str(self.binaries.ipamd)]),
                env={**self.environment, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start_ready(self, **settings: str) -> None:
        """Starts the daemon and waits until it can give addresses."""
        self.start(**settings)
        self.until("the daemon serves", self.is_ready)

    def run_to_its_end(self, **settings: str) -> subprocess.CompletedProcess[str]:
        """Starts a daemon that is to refuse; what it said."""
        return self._run([str(self.binaries.ipamd)], {**self.environment, **settings})

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def is_ready(self) -> bool:
        assert self.is_alive(), self.log.read_text()
        return self.health().returncode == 0

    def health(self, *how: str) -> subprocess.CompletedProcess[str]:
        """What the probe says."""
        return self._run([str(self.binaries.ipamd), "health", *how], {"PATH": PATH})

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends the daemon as the kubelet does; its exit status."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        try:
            return process.wait(ENDING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"alive {ENDING:g} s after {number.name}") from None

    def close(self) -> None:
        """Leaves nothing running, also after a failure."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        for descriptor in self._pods.values():
            os.close(descriptor)
        self._pods.clear()

    def until(self, what: str, look: Callable[[], _T | None], within: float = SOON) -> _T:
        """As `eventually`, and tells the daemon's log when it does not come."""
        return eventually(what, look, within, log=self.log)

    # Pods

    def pod(self, name: str) -> Pod:
        """A new sandbox, not yet connected."""
        netns = f"{self.instance.netns}-{name}"
        self.nodes.namespace(netns)
        # The machine's /run is not seen where the plugin runs; an open file is.
        descriptor = os.open(NAMESPACES / netns, os.O_RDONLY | os.O_CLOEXEC)
        self._pods[name] = descriptor
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        return Pod(name=name, inside=self.nodes.inside(netns), path=path)

    def forget(self, pod: Pod) -> int:
        """Leaves a pod's namespace to the caller: the descriptor that holds it open."""
        return self._pods.pop(pod.name)

    def cni(self, command: str, pod: Pod, result: dict[str, Any] | None = None) -> Answer:
        """Runs the plugin as a container runtime does, with what the conflist says, and with
        the result of the ADD before, where there is one."""
        if self.conflist.exists():
            listed = json.loads(self.conflist.read_text())
            config = {**listed["plugins"][0], "name": listed["name"]}
            config["cniVersion"] = listed["cniVersion"]
        else:
            config = {"cniVersion": "1.1.0", "name": "aws-cni", "type": "aws-cni"}
            config["pluginLogFile"] = str(self.folder / "plugin.log")
        if result:
            config["prevResult"] = result
        plugin = self.installed if self.installed.exists() else self.binaries.plugin
        environment = {
            "PATH": PATH,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.container,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.folder / "bin"),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod.name}",
        }
        done = self._run([str(plugin)], environment, json.dumps(config))
        return Answer(done.returncode, json.loads(done.stdout) if done.stdout.strip() else {})

    def add(self, pod: Pod) -> Answer:
        return self.cni("ADD", pod)

    def delete(self, pod: Pod) -> Answer:
        return self.cni("DEL", pod)

    def fill(self, count: int) -> list[str]:
        """That many pods, each with an address at the first try."""
        return [self.add(self.pod(f"fill{at}")).address for at in range(count)]

    def allocations(self) -> dict[str, dict[str, Any]]:
        """The checkpoint's leases by container."""
        written = json.loads(self.checkpoint.read_text())
        return {lease["containerID"]: lease for lease in written["allocations"]}

    # EC2

    def enis(self) -> list[dict[str, Any]]:
        """The instance's interfaces, as they truly are."""
        return [
            eni for eni in self.vpc.state()["enis"] if eni["instance"] == self.instance.instance_id
        ]

    # Below

    def _inside(self, arguments: list[str]) -> list[str]:
        script = 'mount --bind "$0" /run && exec "$@"'
        return [
            "nsenter",
            f"--net={NAMESPACES / self.instance.netns}",
            "unshare",
            "--mount",
            "--propagation=private",
            "sh",
            "-c",
            script,
            str(self.folder / "run"),
            *arguments,
        ]

    def _run(
        self, arguments: list[str], environment: dict[str, str], text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._inside(arguments),
            env=environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=COMMAND,
        )
