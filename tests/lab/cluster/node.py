"""One node: its namespaces, its folder, and the commands that run in it. The control plane is one too."""
from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import cgroups, namespaces
from .config import CACHE, CHECKOUT, Config
from .processes import Registry
from .progress import wait_until

HERE = Path(__file__).resolve().parent
VARIANT_TOOLS = ("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore")


@dataclass(frozen=True)
class Limits:
    """What an instance type allows. `addresses` counts an ENI's primary one too."""

    enis: int
    addresses: int
    told: int | None = None  # by our agent, how many pods a kubelet should be given

    def max_pods(self, config: Config) -> int:
        """What our agent says; without it AWS's formula, the two more being pods in the node's own network.

        The ptp plugin has the primary ENI alone, and a pod it has no address for would not start.
        """
        if self.told is not None:
            return self.told
        enis = 1 if config.cni == "ptp" else self.enis
        return enis * (self.addresses - 1) + 2


@dataclass
class Node:
    """A node that runs or is about to. `instance` is what the VPC says of it."""

    name: str
    instance: object
    limits: Limits
    config: Config
    state: Path
    components: Path
    registry: Registry
    holder: int = 0

    @property
    def address(self) -> str:
        """The node's address in the cluster's family."""
        return self.instance.ipv6 if self.config.family == 6 else self.instance.address

    @property
    def folder(self) -> Path:
        """What the node keeps on disk."""
        return self.state / "nodes" / self.name

    def make_root(self) -> None:
        """Makes the node's mount namespace; from then on commands run in it."""
        for part in ("bin", "log", "kubelet", "containerd"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        for tool in VARIANT_TOOLS:
            family, _, rest = tool.partition("-")
            program = f"{family}-{self.config.iptables}" + (f"-{rest}" if rest else "")
            found = shutil.which(program, path="/usr/sbin:/sbin:/usr/bin")
            if not found:
                raise FileNotFoundError(f"{program}: install iptables")
            (self.folder / "bin" / tool).symlink_to(found)
        self.cgroup = cgroups.make(self.name)
        CACHE.mkdir(parents=True, exist_ok=True)
        process = self.registry.start(
            f"{self.name}-holder",
            [*namespaces.enter(self.name), "unshare", "--mount", "--propagation", "private",
             "/bin/sh", str(HERE / "node-root.sh"), str(self.folder), str(CHECKOUT), str(CACHE)],
            cgroup=self.cgroup,
        )

        def ready() -> bool:
            if not process.alive():
                log = self.registry.logs / f"{process.name}.log"
                raise RuntimeError(f"{self.name}: its mounts could not be made: {log.read_text().strip()[-500:]}")
            return (self.folder / "ready").exists()

        wait_until(f"mounts of {self.name}", 20, ready, 0.02)
        self.holder = process.pid
        (self.folder / "holder").write_text(str(process.pid))

    def environment(self) -> dict[str, str]:
        """The node's PATH, in which its own iptables come first; nothing of the caller's proxies."""
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        return {**kept, "PATH": f"{self.folder / 'bin'}:{self.components}:/usr/sbin:/usr/bin:/sbin:/bin"}

    def command(self, *words: str) -> list[str]:
        """The words that run a command in the node."""
        return [*namespaces.enter(self.name, self.holder), *words]

    def start(self, daemon: str, program: str, *flags: str, env: dict[str, str] | None = None) -> None:
        """Starts one of the components as a daemon of this node."""
        self.registry.start(
            f"{self.name}-{daemon}", self.command(str(self.components / program), *flags),
            cgroup=self.cgroup, env={**self.environment(), **(env or {})},
        )

    def attempt(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess:
        """Runs a command in the node, whatever its exit status."""
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=timeout,
                              env=self.environment(), cwd="/")

    def run(self, *words: str) -> str:
        """What a command in the node prints. Raises RuntimeError if it ends with an error."""
        done = self.attempt(*words)
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: {' '.join(words)}: {done.stderr.strip()[-500:]}")
        return done.stdout
