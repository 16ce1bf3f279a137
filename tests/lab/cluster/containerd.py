"""A node's containerd: configuration, start, and the images it is given."""
from __future__ import annotations

import time
from pathlib import Path

from .progress import wait_until

SOCKET = "/run/containerd/containerd.sock"
PAUSE = "localhost/pause:1"

# restrict_oom_score_adj: root may lack CAP_SYS_RESOURCE (in a virtual machine's sandbox), and runc then
# fails to lower the score. The opt plugin would create /opt/containerd.
CONFIG = f"""version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{SOCKET}"
[ttrpc]
  address = "{SOCKET}.ttrpc"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
"""


def start(node) -> None:
    """Starts containerd on a node and waits until it answers."""
    config = node.folder / "containerd.toml"
    config.write_text(CONFIG)
    node.start("containerd", "containerd", "--config", str(config))
    wait_until(f"containerd on {node.name}", 20, lambda: node.attempt("ctr", "-a", SOCKET, "version").returncode == 0, 0.05)


def import_images(node, archives: list[Path]) -> None:
    """Imports archives where the kubelet looks for images."""
    for archive in archives:
        command = ("ctr", "-a", SOCKET, "-n", "k8s.io", "image", "import", "--local", str(archive))
        for left in (2, 1, 0):
            done = node.attempt(*command)
            if done.returncode == 0:
                break
            if left == 0:
                raise RuntimeError(f"import {archive.name} on {node.name}: {done.stderr.strip()[-500:]}")
            time.sleep(0.5)
