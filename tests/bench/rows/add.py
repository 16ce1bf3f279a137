"""What ADD costs, beside the same netlink work in one long-lived process (cni/benches/add.rs)."""
from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from cluster.config import CACHE, CHECKOUT
from cluster.progress import say, step, wait_until

from .row import Row, of_rounds, percentile

NODE = "node-1"
SERIAL_ROUNDS, EACH = 10, 20
BURST_ROUNDS, AT_ONCE = 5, 30
BURSTS = 2
BAR = 3.0
# An address rests 30 s before it is leased again; bursts must not wait for that.
COOLING_SECONDS = 35
# m5.4xlarge: 8 ENIs of 30 addresses, their own left out.
POOL = 232


def measure(lab) -> list[Row]:
    """Fills the node's pool, then runs ADDs in the node: 200 in a row, and 30 at once."""
    with step("bench program built"):
        program = _build()
    with step(f"pool filled with {POOL} addresses"):
        lab.kubectl.run("-n", "selvage-system", "set", "env", "daemonset/selvage-ipamd", f"MINIMUM_IP_TARGET={POOL}")
        lab.kubectl.run("-n", "selvage-system", "rollout", "status", "daemonset/selvage-ipamd", "--timeout=120s", timeout=130)
        wait_until("the pool to fill", 120, lambda: _held(lab) >= POOL, 0.5)
    enter = lab.state / "enter"
    conflist = json.loads(subprocess.check_output([enter, NODE, "cat", "/etc/cni/net.d/10-aws.conflist"]))
    conf = lab.state / "bench-plugin.json"
    conf.write_text(json.dumps({**conflist["plugins"][0], "name": conflist["name"], "cniVersion": conflist["cniVersion"]}))

    def run(*arguments: str) -> dict:
        return json.loads(subprocess.check_output([enter, NODE, str(program), "--conf", str(conf), *arguments]))

    with step(f"{SERIAL_ROUNDS * EACH} ADDs in a row, the bare netlink work in turns with them"):
        serial = run("--serial", str(SERIAL_ROUNDS), "--each", str(EACH))
    plugin, netlink = [], []
    for _ in range(BURSTS):
        say(f"{COOLING_SECONDS} s for addresses to cool")
        time.sleep(COOLING_SECONDS)
        with step(f"{BURST_ROUNDS} times {AT_ONCE} ADDs at once"):
            burst = run("--burst", str(BURST_ROUNDS), "--each", str(AT_ONCE))
        plugin += burst["burst_plugin"]
        netlink += burst["burst_netlink"]

    def of(percent: float) -> tuple[list[float], list[float]]:
        return tuple([percentile(one, percent) / 1000 for one in serial[way]] for way in ("plugin", "netlink"))

    return [
        of_rounds("cni/add-p50", "ms", *of(50), BAR),
        of_rounds("cni/add-p95", "ms", *of(95), BAR),
        of_rounds(f"cni/add-{AT_ONCE}-at-once", "ms", [one / 1000 for one in plugin], [one / 1000 for one in netlink], BAR),
    ]


def _held(lab) -> int:
    """Addresses that EC2 has assigned to the node, the ENIs' own left out."""
    addresses = lab.vpc.state()["addresses"].values()
    mine = [one for one in addresses if one.get("netns") == NODE]
    return len(mine) - len({one["eni"] for one in mine})


def _build() -> Path:
    environment = {**os.environ, "CARGO_TARGET_DIR": str(CACHE / "target")}
    lines = subprocess.run(["cargo", "bench", "--locked", "-p", "selvage-cni", "--bench", "add", "--no-run", "--message-format=json"],
                           cwd=CHECKOUT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    built = [one["executable"] for one in map(json.loads, lines)
             if one.get("reason") == "compiler-artifact" and one["target"]["kind"] == ["bench"]]
    return Path(built[0])
