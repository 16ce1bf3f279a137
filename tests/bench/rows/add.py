"""What ADD, DEL and the plugin's start cost, beside their floors (cni/benches/add.rs), what the checkpoint adds, and the
memory of ipamd."""
from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from pathlib import Path

from cluster.config import CACHE, CHECKOUT
from cluster.progress import say, step, wait_until

from .row import Row, of_rounds, percentile

NODE = "node-1"
TYPE = "m5.16xlarge"
# What its 15 ENIs have room for as single addresses; as prefixes it all fits the primary one.
POOL = 735
# And its own pods; EKS gives a kubelet there 250 at most, whatever the addresses.
PODS = 737
PREFIX = 16
ROUNDS, EACH = 9, 81
ENDS = 100  # as many ADDs at the beginning of the row and at its end are compared
STARTS = 200
# So many pods are added at once, in each round. An address rests 30 s before it is leased again: rounds that follow one
# another without a pause fit the pool.
BURSTS = (110, 30)
COOLING_SECONDS = 35
ADD_BAR, BURST_BAR, GROWTH_BAR, START_BAR = 2.5, 2.0, 1.25, 1.5
DEL_BAR_MS, CHECKPOINT_BAR_MS, WRITES_BAR = 1.0, 0.5, 20
RESIDENT_BAR_MB = 30
NAMES = ("cni/add-", "cni/del-", "cni/start", "ipamd/checkpoint-", "ipamd/rss-750-pods")


def measure(lab) -> list[Row]:
    """Fills the node's pool, then runs ADDs in the node: 700 in a row, their DELs, and 110 and 30 at once."""
    with step("bench program built"):
        program, empty = _build(), _empty()
    with step(f"pool filled with {POOL} addresses"):
        lab.kubectl.run("-n", "selvage-system", "set", "env", "daemonset/selvage-ipamd", f"MINIMUM_IP_TARGET={POOL}",
                        f"MAX_PODS={PODS}")
        lab.kubectl.run("-n", "selvage-system", "rollout", "status", "daemonset/selvage-ipamd", "--timeout=120s", timeout=130)
        wait_until("the pool to fill", 240, lambda: _held(lab) >= POOL, 0.5)
    enter = lab.state / "enter"
    conflist = json.loads(subprocess.check_output([enter, NODE, "cat", "/etc/cni/net.d/10-aws.conflist"]))
    conf = lab.state / "bench-plugin.json"
    conf.write_text(json.dumps({**conflist["plugins"][0], "name": conflist["name"], "cniVersion": conflist["cniVersion"]}))

    def run(*arguments: str) -> dict:
        return json.loads(subprocess.check_output([enter, NODE, str(program), "--conf", str(conf), *arguments]))

    with step(f"{STARTS} starts, an empty program in turns with them"):
        starts = run("--empty", str(empty), "--each", str(STARTS))
    with step(f"{ROUNDS * EACH} ADDs in a row, the bare netlink work in turns with them, and their DELs"):
        serial = run("--serial", str(ROUNDS), "--each", str(EACH))
    bursts: dict[int, dict[str, list]] = {}
    for at_once in BURSTS:
        found = bursts[at_once] = {}
        left = ROUNDS
        while left:
            say(f"{COOLING_SECONDS} s for addresses to cool")
            time.sleep(COOLING_SECONDS)
            rounds = min(left, POOL // at_once)
            left -= rounds
            with step(f"{rounds} times {at_once} ADDs at once"):
                for name, values in run("--burst", str(rounds), "--each", str(at_once)).items():
                    found.setdefault(name, []).extend(values)
    return [
        *_adds(serial), _dels(serial, starts), _start(starts),
        *(_burst(at_once, burst) for at_once, burst in bursts.items()), *_checkpoint(serial, bursts),
        # By its own metric, with the pods of all rounds there and as many as that number in prefixes around them.
        Row("ipamd/rss-750-pods", round(serial["resident"][-1] / 1e6, 1), "MB", bar=RESIDENT_BAR_MB),
    ]


def _adds(serial: dict) -> list[Row]:
    def of(percent: float) -> tuple[list[float], list[float]]:
        return tuple([percentile(one, percent) / 1000 for one in serial[way]] for way in ("plugin", "netlink"))

    adds = [one for some in serial["plugin"] for one in some]
    first, last = percentile(adds[:ENDS], 50) / 1000, percentile(adds[-ENDS:], 50) / 1000
    return [
        of_rounds("cni/add-p50", "ms", *of(50), ADD_BAR),
        of_rounds("cni/add-p95", "ms", *of(95), ADD_BAR),
        Row("cni/add-last-over-first", round(last, 3), "ms", round(first, 3), round(last / first, 3), GROWTH_BAR),
    ]


def _dels(serial: dict, starts: dict) -> Row:
    """DEL beyond the start of a process: the plugin's own, VERSION."""
    start = percentile(starts["start_plugin"], 50)
    rounds = [(percentile(one, 50) - start) / 1000 for one in serial["dels"]]
    return Row("cni/del-p50", round(statistics.median(rounds), 3), "ms", bar=DEL_BAR_MS,
               spread=(round(min(rounds), 3), round(max(rounds), 3)))


def _start(starts: dict) -> Row:
    tenth = STARTS // 10
    groups = [tuple(percentile(starts[way][at:at + tenth], 50) / 1000 for way in ("start_plugin", "start_empty"))
              for at in range(0, STARTS, tenth)]
    return of_rounds("cni/start", "ms", *zip(*groups), START_BAR)


def _burst(at_once: int, burst: dict) -> Row:
    plugin, netlink = ([one / 1000 for one in burst[f"burst_{way}"]] for way in ("plugin", "netlink"))
    return of_rounds(f"cni/add-{at_once}-at-once", "ms", plugin, netlink, BURST_BAR)


def _checkpoint(serial: dict, bursts: dict) -> list[Row]:
    """What its writes take as ipamd counts them, with nearly all pods there; and how many there are in a burst."""
    writes = bursts[110]["burst_writes"]
    return [
        Row("ipamd/checkpoint-add-750", round(serial["write_ms"][-1], 3), "ms", bar=CHECKPOINT_BAR_MS,
            spread=(round(min(serial["write_ms"]), 3), round(max(serial["write_ms"]), 3))),
        Row("ipamd/checkpoint-writes-110-at-once", statistics.median(writes), "writes", bar=WRITES_BAR,
            spread=(min(writes), max(writes))),
    ]


def _held(lab) -> int:
    """Addresses in the prefixes that EC2 has assigned to the node."""
    mine = {prefix for prefix, one in lab.vpc.state()["prefixes"].items() if one["netns"] == NODE}
    enis = [one for one in lab.vpc.state()["enis"] if one["prefixes"]]
    if len(enis) > 1:
        raise RuntimeError(f"prefixes on {len(enis)} interfaces: the floor wires pods of the primary one")
    return PREFIX * len(mine)


def _build() -> Path:
    environment = {**os.environ, "CARGO_TARGET_DIR": str(CACHE / "target")}
    lines = subprocess.run(["cargo", "bench", "--locked", "-p", "selvage-cni", "--bench", "add", "--no-run", "--message-format=json"],
                           cwd=CHECKOUT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    built = [one["executable"] for one in map(json.loads, lines)
             if one.get("reason") == "compiler-artifact" and one["target"]["kind"] == ["bench"]]
    return Path(built[0])


def _empty() -> Path:
    """The least that a static program can be: what `start` is measured against."""
    program = CACHE / "empty"
    subprocess.run(["musl-gcc", "-static", "-O2", "-o", str(program), "-x", "c", "-"], check=True, text=True,
                   input="int main(void) { return 0; }\n")
    return program
