"""From a NetworkPolicy's POST to its rules in the kernel, beside what cannot be saved: a bare watch event and
one `iptables-restore` of the same text.

The commit is seen where it happens: the node's nf_tables notify each change (NFNLGRP_NFTABLES, linux/netfilter/
nfnetlink.h), so nothing is polled and no clock but this process's is read.
"""
from __future__ import annotations

import json
import queue
import socket
import struct
import subprocess
import threading
import time

from cluster import namespaces
from cluster.kube import _Connection
from cluster.progress import say, step

from .row import Row, percentile

NODE = "node-1"
SPACE = "bench"
ROUNDS, EACH = 10, 20
BAR = 5.0
PATIENCE_SECONDS = 15
NETLINK_NETFILTER = 12
NFNLGRP_NFTABLES = 7
NFT_MSG_NEWGEN = (10 << 8) | 15


def measure(lab) -> list[Row]:
    """200 policies, one at a time, each isolating one pod of the node's; each deleted again."""
    with step("a pod to isolate"):
        _make_pod(lab)
    committed, watched = queue.Queue(100), queue.Queue(1000)
    listener = _nftables_socket()
    threading.Thread(target=_listen, args=(listener, committed), daemon=True).start()
    threading.Thread(target=_watch, args=(lab, watched), daemon=True).start()
    _next(watched, "the bare watch to begin")
    client = _Client(lab)
    waits, floors, texts = [], [], []
    with step(f"{ROUNDS * EACH} policies"):
        for number in range(ROUNDS * EACH):
            name = f"latency-{number}"
            before = _chains(lab)
            _drain(committed)
            start = time.monotonic()
            client.post(name)
            seen = _next_named(watched, name) - start
            rules = _next(committed, f"rules of {name}") - start
            # The agent may need more than one transaction; the last one within a moment counts.
            rules = max(rules, _last(committed, start, rules))
            text = _changed(before, _chains(lab))
            texts.append(len(text.splitlines()))
            _drain(committed)
            restored = _restore(lab, text)
            waits.append(rules * 1000)
            floors.append((seen + restored) * 1000)
            _drain(committed)
            client.delete(name)
            _next(committed, f"rules without {name}")
            _last(committed, 0, 0)
    listener.close()
    lab.kubectl.run("delete", "namespace", SPACE, "--wait=false")
    say(f"restore text: {min(texts)} to {max(texts)} lines")

    def rounds(values: list[float], percent: float) -> list[float]:
        return [percentile(values[at:at + EACH], percent) for at in range(0, len(values), EACH)]

    rows = []
    for percent in (50, 95):
        ratios = [value / floor for value, floor in zip(rounds(waits, percent), rounds(floors, percent))]
        value, floor = percentile(waits, percent), percentile(floors, percent)
        rows.append(Row(f"policy/post-to-rules-p{percent}", round(value, 2), "ms", round(floor, 2), round(value / floor, 2),
                        BAR if percent == 95 else None, (round(min(ratios), 2), round(max(ratios), 2))))
    return rows


def _make_pod(lab) -> None:
    lab.kubectl.run("create", "namespace", SPACE)
    lab.kubectl.run("apply", "-f", "-", text=json.dumps({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "subject", "namespace": SPACE, "labels": {"app": "subject"}},
        "spec": {"nodeSelector": {"kubernetes.io/hostname": NODE}, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False,
                 "containers": [{"name": "agnhost", "image": "localhost/agnhost:dev", "imagePullPolicy": "Never", "args": ["pause"]}]}}))
    lab.kubectl.run("-n", SPACE, "wait", "--for=condition=Ready", "pod/subject", "--timeout=60s", timeout=70)


def _policy(name: str) -> dict:
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": SPACE},
            "spec": {"podSelector": {"matchLabels": {"app": "subject"}}, "policyTypes": ["Ingress"],
                     "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": name}}}], "ports": [{"protocol": "TCP", "port": 80}]}]}}


class _Client:
    """One kept connection to the API server, as a controller has."""

    def __init__(self, lab):
        api = lab.api
        self.connection = _Connection(api.address, api.port, timeout=10, context=api.context)
        self.path = f"/apis/networking.k8s.io/v1/namespaces/{SPACE}/networkpolicies"

    def post(self, name: str) -> None:
        self._ask("POST", self.path, json.dumps(_policy(name)))

    def delete(self, name: str) -> None:
        self._ask("DELETE", f"{self.path}/{name}", None)

    def _ask(self, method: str, path: str, body: str | None) -> None:
        self.connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:200]!r}")


def _watch(lab, watched: queue.Queue) -> None:
    """Puts (name, when) for each policy that a bare watch tells of; first ("", when) once it began."""
    api = lab.api
    version = api.get(f"/apis/networking.k8s.io/v1/namespaces/{SPACE}/networkpolicies")["metadata"]["resourceVersion"]
    connection = _Connection(api.address, api.port, timeout=600, context=api.context)
    connection.request("GET", f"/apis/networking.k8s.io/v1/namespaces/{SPACE}/networkpolicies?watch=1&resourceVersion={version}")
    answer = connection.getresponse()
    watched.put(("", time.monotonic()))
    while line := answer.readline():
        when = time.monotonic()
        event = json.loads(line)
        if event["type"] == "ADDED":
            watched.put((event["object"]["metadata"]["name"], when))


def _next_named(watched: queue.Queue, name: str) -> float:
    while True:
        found, when = _next(watched, f"the watch event of {name}")
        if found == name:
            return when


def _next(events: queue.Queue, what: str):
    try:
        return events.get(timeout=PATIENCE_SECONDS)
    except queue.Empty:
        raise RuntimeError(f"{what}: not within {PATIENCE_SECONDS} s") from None


def _last(committed: queue.Queue, start: float, rules: float) -> float:
    """Waits until the node has been quiet for a moment; returns when its last change was, counted from `start`."""
    while True:
        try:
            rules = committed.get(timeout=0.1) - start
        except queue.Empty:
            return rules


def _drain(events: queue.Queue) -> None:
    while not events.empty():
        events.get_nowait()


def _nftables_socket() -> socket.socket:
    """A socket in the node's namespace that hears of each nf_tables transaction there."""
    made: list[socket.socket] = []

    def go() -> None:
        with open(namespaces.NETNS / NODE, "rb") as file:
            if namespaces._libc.setns(file.fileno(), namespaces.CLONE_NEWNET) != 0:
                return
        one = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        one.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE: a dropped notice would be a lost round
        one.bind((0, 1 << (NFNLGRP_NFTABLES - 1)))
        made.append(one)

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    if not made:
        raise RuntimeError(f"{NODE}: its network namespace cannot be entered")
    return made[0]


def _listen(listener: socket.socket, committed: queue.Queue) -> None:
    """Puts the moment of each transaction that touched a chain of the agent's."""
    ours = False
    while True:
        try:
            data = listener.recv(1 << 20)
        except OSError:
            return  # closed: the measurement is over
        when = time.monotonic()
        at = 0
        while at + 16 <= len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            if kind == NFT_MSG_NEWGEN:
                if ours:
                    committed.put(when)
                ours = False
            elif b"selvage-" in data[at:at + length]:
                ours = True
            at += (length + 3) & ~3


def _chains(lab) -> dict[str, list[str]]:
    """The agent's chains in the node's mangle table, as iptables-save prints them."""
    lines = subprocess.check_output([lab.state / "enter", NODE, "iptables-save", "-t", "mangle"], text=True).splitlines()
    chains: dict[str, list[str]] = {line[1:].split()[0]: [] for line in lines if line.startswith(":selvage-")}
    for line in lines:
        if line.startswith("-A selvage-"):
            chains[line.split()[1]].append(line)
    return chains


def _changed(before: dict[str, list[str]], after: dict[str, list[str]]) -> str:
    """Restore input for the chains that differ: what a change of the policy had to write at least."""
    changed = [name for name in after if before.get(name) != after[name]]
    if not changed:
        raise RuntimeError("a policy was in force and no chain had changed: the floor would be empty")
    return "\n".join(["*mangle", *(f":{name} - [0:0]" for name in changed), *(rule for name in changed for rule in after[name]), "COMMIT", ""])


def _restore(lab, text: str) -> float:
    """Seconds that one iptables-restore of the text takes in the node, its start included."""
    command = [lab.state / "nodes" / NODE / "bin" / "iptables-restore"]
    words = ["nsenter", f"--net={namespaces.NETNS / NODE}", "--", *map(str, command), "--noflush"]
    began = time.monotonic()
    subprocess.run(words, input=text, text=True, check=True)
    whole = time.monotonic() - began
    began = time.monotonic()
    subprocess.run([*words[:3], "true"], check=True)
    # What the lab itself adds, entering the namespace, is not the tool's.
    return max(whole - (time.monotonic() - began), 0.0005)
