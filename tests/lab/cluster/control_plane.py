"""etcd, API server, controller manager and scheduler, in a namespace of their own and with no kubelet."""
from __future__ import annotations

import ipaddress
from pathlib import Path

from .certificates import Authority
from .config import CONTROL_PLANE, SERVICE_CIDR
from .kube import Api
from .node import Node
from .processes import Process, Registry, kill, stop
from .progress import wait_until

PORT = 6443
ETCD = "http://127.0.0.1:2379"
# The order in which they are stopped. An API server whose etcd is gone ignores SIGTERM for minutes.
NAMES = ("scheduler", "controllers", "apiserver", "etcd")


class ControlPlane:
    """The cluster's brain at one address of the VPC."""

    def __init__(self, host: Node):
        self.host, self.state, self.address = host, host.state, host.instance.address
        self.server = f"https://{self.address}:{PORT}"
        self.services = SERVICE_CIDR[host.config.family]
        self.authority = Authority(self.state / "certificates")

    def prepare(self, nodes: list[str]) -> None:
        """Makes the certificates and kubeconfigs of everything that talks to the API server."""
        first = str(next(ipaddress.ip_network(self.services).hosts()))
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        self.authority.make([*names, first, *{self.address, self.host.address}, "127.0.0.1"], nodes)
        for client in ("admin", "controllers", "scheduler", "proxy", *nodes):
            path = self.state / "kubeconfig" if client == "admin" else self.config(client)
            self.authority.kubeconfig(client, self.server, path)

    def config(self, client: str) -> Path:
        """The kubeconfig of one client."""
        return self.state / "certificates" / f"{client}.kubeconfig"

    def start(self) -> None:
        """Starts etcd and the API server at once, the others when it is ready."""
        certificates = self.authority.folder
        self.host.make_root()
        self.host.start(
            "etcd", "etcd", f"--data-dir={self.state / 'etcd'}", "--unsafe-no-fsync",
            f"--listen-client-urls={ETCD}", f"--advertise-client-urls={ETCD}",
            "--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=default=http://127.0.0.1:2380",
        )
        self.host.start(
            "apiserver", "kube-apiserver", f"--etcd-servers={ETCD}", 
            f"--bind-address={'::' if self.host.config.family == 6 else '0.0.0.0'}",
            f"--advertise-address={self.host.address}", f"--secure-port={PORT}",
            f"--tls-cert-file={certificates / 'server.crt'}", f"--tls-private-key-file={certificates / 'server.key'}",
            f"--client-ca-file={certificates / 'ca.crt'}", "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--kubelet-client-certificate={certificates / 'admin.crt'}",
            f"--kubelet-client-key={certificates / 'admin.key'}", "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={certificates / 'sa.pub'}",
            f"--service-account-signing-key-file={certificates / 'sa.key'}",
            f"--service-cluster-ip-range={self.services}", "--allow-privileged", "--profiling=false",
        )
        api = self.api()
        wait_until("API server ready", 60, lambda: api.get_text("/readyz") == "ok")
        self.host.start(
            "controllers", "kube-controller-manager", f"--kubeconfig={self.config('controllers')}",
            "--leader-elect=false", f"--root-ca-file={certificates / 'ca.crt'}",
            f"--service-account-private-key-file={certificates / 'sa.key'}", "--use-service-account-credentials",
            "--flex-volume-plugin-dir=/var/lib/kubelet/plugins-exec",  # the default is the machine's own folder
            "--kube-api-qps=200", "--kube-api-burst=400", "--node-monitor-period=1s",
        )
        self.host.start("scheduler", "kube-scheduler", f"--kubeconfig={self.config('scheduler')}", "--leader-elect=false")

    def api(self) -> Api:
        """A client with the administrator's certificate."""
        return Api(self.state, self.address, PORT)


def running(registry: Registry) -> dict[str, Process]:
    """Which processes of a control plane run, by their names in NAMES."""
    alive = {process.name: process for process in registry.all()}
    return {name: alive[f"{CONTROL_PLANE}-{name}"] for name in NAMES if f"{CONTROL_PLANE}-{name}" in alive}


def stop_all(registry: Registry) -> None:
    """Ends what runs of a control plane, the API server before etcd."""
    present = running(registry)
    stop([process for name, process in present.items() if name in ("scheduler", "controllers")], 3)
    if "apiserver" in present:
        stop([present["apiserver"]], 10)
    if "etcd" in present:
        kill([present["etcd"]])  # nothing of it is kept
