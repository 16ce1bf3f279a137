"""A node's kubelet and kube-proxy."""
from __future__ import annotations

import json
from pathlib import Path

from . import containerd
from .cgroups import TOP

CLUSTER_DNS = {4: "10.96.0.10", 6: "fd00:10:96::a"}
SHORT = "2s"


def start_kubelet(node, kubeconfig: Path, authority: Path) -> None:
    """Starts the kubelet, which registers the node."""
    instance = node.instance
    config = node.folder / "kubelet.json"
    config.write_text(json.dumps({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{containerd.SOCKET}",
        # Any machine will do: cgroup v1, swap, little disk.
        "failCgroupV1": False, "failSwapOn": False, "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{TOP}/{node.name}",
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "10Mi", "nodefs.available": "1%", "imagefs.available": "1%",
                         "nodefs.inodesFree": "1%"},
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": False},
                           "x509": {"clientCAFile": str(authority)}},
        "authorization": {"mode": "AlwaysAllow"},
        "clusterDNS": [CLUSTER_DNS[node.config.family]], "clusterDomain": "cluster.local", "resolvConf": "",
        "maxPods": node.limits.max_pods(node.config),
        "providerID": f"aws:///{instance.zone}/{instance.instance_id}",
        # The default is under /usr/libexec, which the node shares with the machine.
        "volumePluginDir": "/var/lib/kubelet/plugins-exec",
        # Quick rather than sparing: the clusters are small and short-lived.
        "nodeStatusUpdateFrequency": SHORT, "syncFrequency": "10s", "kubeAPIQPS": 100, "kubeAPIBurst": 200,
        "eventRecordQPS": 0, "serializeImagePulls": False, "shutdownGracePeriod": "0s",
    }, indent=1))
    labels = {
        "topology.kubernetes.io/region": instance.zone[:-1],
        "topology.kubernetes.io/zone": instance.zone,
        "node.kubernetes.io/instance-type": instance.instance_type,
    }
    node.start(
        "kubelet", "kubelet", f"--config={config}", f"--kubeconfig={kubeconfig}", f"--hostname-override={node.name}",
        f"--node-ip={node.address}", f"--node-labels={','.join(f'{key}={value}' for key, value in labels.items())}",
        # Its cloud detection would ask the metadata service and wait for it.
        env={"AWS_EC2_METADATA_DISABLED": "true"},
    )


def start_proxy(node, kubeconfig: Path) -> None:
    """Starts kube-proxy in the mode that was chosen."""
    quick = {"minSyncPeriod": "0.1s", "syncPeriod": "30s"}
    config = node.folder / "kube-proxy.json"
    config.write_text(json.dumps({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        # No clusterCIDR, as on EKS: pods' addresses are of several blocks, and of other VPCs.
        "mode": node.config.proxy, "hostnameOverride": node.name,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "iptables": quick, "nftables": quick,
        # These are sysctls that a network namespace may not write, or need not.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }, indent=1))
    node.start("kube-proxy", "kube-proxy", f"--config={config}")
