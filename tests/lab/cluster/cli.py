"""The commands, signals and exit statuses of the `lab` program."""
from __future__ import annotations

import argparse
import os
import subprocess

from vpc.client import VpcError

from . import config, conformance, demo, e2e, lifecycle, lock, modes, signals
from .builds import BuildError
from .kube import KubectlError
from .matrix import TableError
from .progress import Cancelled, say

HELP = """variables:
  NODES=2                       number of nodes
  CNI=selvage|ptp|none          who gives pods addresses (ptp: a plugin of the lab's own)
  POLICY=selvage|none           who enforces NetworkPolicies
  PROXY=iptables|nftables       kube-proxy's mode
  IPTABLES=nft|legacy           which iptables the node has
  TYPES=t3.small,...            instance type of each node, or one for all
  MODE=secondary|prefix|custom|custom-prefix|ipv6   how pods get their addresses
  PEERED=0|1                    whether the last node lives in the peered VPC
  SETTINGS="NAME=value ..."     more environment for the address agent
  KEEP=1                        demo, conformance: leave the cluster up
  SELVAGE_CACHE=DIR             components and images (default ~/.cache/selvage)
exit status: 0 all as expected, 1 something is not, 2 it could not be tried, 130 interrupted"""


def main(arguments: list[str]) -> int:
    """Runs one command; returns the program's exit status."""
    parser = argparse.ArgumentParser(prog="lab", epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("up", help="start the cluster; returns when nodes and agents are Ready")
    commands.add_parser("down", help="end it, and clean what a crash left; always safe")
    demo_command = commands.add_parser("demo", help="start it, measure who reaches whom around the policies, end it")
    demo_command.add_argument("-o", dest="output", choices=["text", "json"], default="text", help="form of the results")
    conformance_command = commands.add_parser("conformance", help="run the upstream NetworkPolicy suite")
    conformance_command.add_argument("focus", nargs="?", default=os.environ.get("FOCUS", ""),
                                     help="regular expression over test names (default: $FOCUS, else every test)")
    commands.add_parser("config", help="say what the variables mean here, and start nothing")
    e2e_command = commands.add_parser("e2e", help="assert the demo on several labs, and that it fails without an enforcer")
    e2e_command.add_argument("only", nargs="?", default="", help="part of a scenario's name")
    modes_command = commands.add_parser("e2e-modes", help="whom the far end sees, by node mode, kube-proxy mode and iptables backend")
    modes_command.add_argument("only", nargs="?", default="", help="part of a run's name")
    commands.add_parser("faults", help="random faults while pods come and go; $COUNT of them (1000), $SEED repeats a run")
    test_command = commands.add_parser("self-test", help="the lab's own tests; arguments go to pytest")
    test_command.add_argument("rest", nargs=argparse.REMAINDER)
    chosen = parser.parse_args(arguments)
    signals.interrupt_on_signals()
    try:
        return _run(chosen)
    except (KeyboardInterrupt, Cancelled):
        say("interrupted")
        return 130
    except (config.ConfigError, BuildError, lifecycle.LabError, lock.Taken, KubectlError, TableError, VpcError, OSError, RuntimeError) as error:
        say(f"error: {error}")
        if os.environ.get("LAB_DEBUG"):
            raise
        return 2


def _run(chosen: argparse.Namespace) -> int:
    match chosen.command:
        case "up":
            return _up()
        case "down":
            if not lifecycle.down():
                say("no lab runs on this machine")
            return 0
        case "config":
            print(config.read().describe())
            return 0
        case "demo":
            wanted = config.read()
            if wanted.nodes < 2:
                raise config.ConfigError("NODES: the demo's application lives on node-1 and node-2")
            if wanted.cni == "none":
                raise config.ConfigError("CNI=none: the demo needs pods with addresses")
            return _on_a_lab(wanted, lambda lab: demo.run(lab, chosen.output == "json"))
        case "e2e":
            return 0 if e2e.run(dict(os.environ), chosen.only) else 1
        case "e2e-modes":
            return 0 if modes.run(dict(os.environ), chosen.only) else 1
        case "faults":
            return _faults()
        case "self-test":
            return _self_test(chosen.rest)
        case "conformance":
            return _conformance(chosen.focus)
        case other:
            raise AssertionError(f"command {other} is not handled")


def _up() -> int:
    lab = lifecycle.up(config.read())
    print(f"""The cluster is up. Its kubeconfig is {lab.state / 'kubeconfig'}, for use inside the VPC:
  {lab.state / 'enter'} control-plane kubectl get nodes -o wide
  {lab.state / 'enter'} node-1 ip rule
Logs are in {lab.state / 'logs'}. `tests/lab/lab down` ends it.""")
    return 0


LAB = config.CHECKOUT / "tests" / "lab"


def _python() -> str:
    """The interpreter of the lab's environment; made if it is not there."""
    venv = subprocess.run([str(LAB / "venv.sh")], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    return f"{venv}/bin/python"


def _self_test(arguments: list[str]) -> int:
    command = [_python(), "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", *(arguments or [str(LAB)])]
    return subprocess.run(command, cwd=LAB).returncode


def _faults() -> int:
    words = [word for name in ("COUNT", "SEED") if os.environ.get(name) for word in (f"--{name.lower()}", os.environ[name])]
    return subprocess.run([_python(), "-B", str(LAB / "tests" / "fault_run.py"), *words], cwd=LAB).returncode


def _conformance(focus: str) -> int:
    # On the lab that runs from this checkout, whatever it is made of; else on one of its own.
    found = lock.owner()
    if found and found["state"] == str(config.STATE) and not lock.abandoned(found):
        return 0 if conformance.run(lifecycle.attach(), focus) else 1
    return _on_a_lab(config.read(default_type="c5.large"), lambda lab: conformance.run(lab, focus))


def _on_a_lab(wanted: config.Config, work) -> int:
    """Starts a lab, runs `work`, and ends the lab, also on failure or interrupt; KEEP=1 leaves it up."""
    try:
        return 0 if work(lifecycle.up(wanted)) else 1
    finally:
        # Ours only: `up` may have been refused because of somebody else's.
        if (lock.owner() or {}).get("pid") == os.getpid():
            if os.environ.get("KEEP", "") in ("", "0"):
                lifecycle.down()
            else:
                say(f"KEEP: the cluster stays up: {config.STATE / 'enter'} control-plane kubectl get pods -A")
