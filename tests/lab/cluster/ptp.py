"""CNI=ptp: gives a node the lab's own address plugin, and the addresses it hands out."""
from __future__ import annotations

import json
import sys

from .config import CHECKOUT, VPC_CIDR

PLUGIN = CHECKOUT / "tests" / "lab" / "ptp" / "selvage-lab-ptp"


def install(node, vpc) -> None:
    """Has EC2 assign all the primary ENI can hold, then writes plugin and conflist on the node."""
    addresses = vpc.assign_addresses(node.instance.eni, node.limits.addresses - 1)
    conflist = {
        "cniVersion": "1.1.0", "name": "selvage-lab-ptp",
        "plugins": [{"type": PLUGIN.name, "addresses": addresses, "mtu": 9001}],
    }
    # The interpreter by path: a `python3` found by PATH may be a slow wrapper.
    _, _, body = PLUGIN.read_text().partition("\n")
    program = node.folder / PLUGIN.name
    program.write_text(f"#!{sys.executable} -IS\n{body}")
    program.chmod(0o755)
    source = node.folder / "10-ptp.conflist"
    source.write_text(json.dumps(conflist, indent=1))
    # Outside the VPC only the instance's primary address is anybody.
    node.run("iptables", "-w", "-t", "nat", "-A", "POSTROUTING", "!", "-d", VPC_CIDR, "-o", "ens5", "-j", "MASQUERADE",
             "-m", "comment", "--comment", "selvage-lab-ptp")
    node.run("cp", str(program), f"/opt/cni/bin/{PLUGIN.name}")
    node.run("cp", str(source), "/etc/cni/net.d/10-ptp.conflist")
